from xml.etree import ElementTree

import pytest

from distill.run_report.charts import line_chart, thinned, ticks


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.1, 0.1), (0, 0), (-3, 7), (1e-9, 2e-9), (0.88, 0.91), (5, 12345)])
def test_ticks_enclose_what_is_drawn(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-9 * abs(low)
    assert found[-1] >= high - 1e-9 * abs(high)
    assert 2 <= len(found) <= 7
    assert found == sorted(set(found))


def test_a_long_line_is_thinned_to_means():
    shown = thinned([(float(x), float(x % 2)) for x in range(4000)])
    assert len(shown) == 400
    assert {y for _, y in shown} == {0.5}


def test_a_chart_is_well_formed_whatever_its_title():
    chart = line_chart({0: [(1.0, 2.0)], 3: [(1.0, 2.5), (9.0, 1.5)]}, title='<script>"&')
    root = ElementTree.fromstring(chart)
    assert root.attrib["aria-label"] == '<script>"&'
    assert [line.attrib["class"] for line in root.iter("polyline")] == ["line0", "line3"]
