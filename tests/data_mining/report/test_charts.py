import xml.etree.ElementTree as ET

import numpy as np
import pytest

from data_mining.report.charts import HEIGHT, WIDTH, classes_chart, histogram


def marks(svg, kind):
    return [mark for mark in ET.fromstring(svg).iter() if mark.get("class") == kind]


def inside(svg):
    for rect in ET.fromstring(svg).iter("rect"):
        x, y, width, height = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
        assert x >= 0 and x + width <= WIDTH and y >= 0 and y + height <= HEIGHT
    return True


def test_a_histogram_has_a_bar_for_each_bin_that_has_any():
    svg = histogram([3, 0, 1000, 4], [0, 0, 10, 4], title="A <title> & more", x_label="x")
    assert ET.fromstring(svg).get("aria-label") == "A <title> & more"
    before, after = marks(svg, "before"), marks(svg, "after")
    assert len(before) == 3 and len(after) == 2 and inside(svg)
    heights = [float(bar.get("height")) for bar in before]
    np.testing.assert_allclose(np.divide(heights, heights[1]), np.log1p([3, 1000, 4]) / np.log1p(1000), atol=0.01)
    assert after[1].get("x") == before[2].get("x")


def test_few_classes_are_bars_to_scale():
    svg = classes_chart([10, 40, 0], [10, 20, 0], 20, title="t")
    heights = [float(bar.get("height")) for bar in marks(svg, "before")]
    assert heights[1] == pytest.approx(4 * heights[0], rel=0.01)
    (line,) = marks(svg, "quota")
    top_of_after = [float(bar.get("y")) for bar in marks(svg, "after")][1]
    assert float(line.get("y1")) == pytest.approx(top_of_after, abs=0.2)


def test_many_classes_are_lines_by_rank():
    counts = np.random.default_rng(0).permutation(np.arange(20_000))
    svg = classes_chart(counts.tolist(), (counts // 2).tolist(), None, title="t")
    assert len(svg) < 30_000 and not marks(svg, "quota")
    (polygon,) = marks(svg, "before")
    points = np.array([pair.split(",") for pair in polygon.get("points").split()], float)
    assert (np.diff(points[1:-1, 0]) > 0).all() and (np.diff(points[1:-1, 1]) >= 0).all()


@pytest.mark.parametrize("counts", [[0, 0], [1], [0, 7_000_000]])
def test_edge_cases_stay_inside(counts):
    assert inside(histogram(counts, [0] * len(counts), title="t", x_label="x"))
    assert inside(classes_chart(counts, counts, None, title="t"))
