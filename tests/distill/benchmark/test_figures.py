import itertools
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from distill.benchmark.figures import AXES, FAMILIES, MEASURED, draw, draw_figures, points
from distill.benchmark.labelling import shared_area
from distill.benchmark.tables import published_models
from distill.errors import UserError

SERIES = {row.model: row for row in published_models() if not row.network.endswith("_wsl")}
BY_FILE = {axis.file: axis for axis in AXES}


@pytest.fixture
def several(found):
    """Measurements that lie on published points, between them, and off them."""
    return [
        found,
        replace(found, weights="weights/ResNet50_vd_pretrained.pdparams", top1=0.791),
        replace(found, weights="runs/mine/student.safetensors", top1=0.812),
        replace(found, weights="Fix_ResNet50_vd_ssld_v2_pretrained.pdparams", top1=0.84, crop_px=320),
        replace(found, weights="runs/half/student.safetensors", model="ResNet18_vd", width=0.5, top1=0.6),
    ]


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.file)
def test_each_figure_has_the_whole_series(axis):
    shown = points(axis, [])
    assert {point.name.rstrip("!") for point in shown} == set(SERIES)
    assert len(shown) == 18
    for point in shown:
        assert point.top1 == pytest.approx(100 * SERIES[point.name.rstrip("!")].top1)


@pytest.mark.parametrize(
    ("file", "name", "cost"),
    [
        ("accuracy_flops", "ResNet50_vd", 8.67),
        ("accuracy_flops", "ResNet34_vd!", 7.39),
        ("accuracy_parameters", "ResNet200_vd", 74.74),
        ("accuracy_latency_fp32", "ResNet50_vd", 8.09057),
        ("accuracy_latency_fp16", "ResNet50_vd", 4.84109),
        ("accuracy_latency_fp16", "ResNet34_vd_ssld", 4.22246),
        ("accuracy_latency_fp32", "Fix_ResNet50_vd_ssld_v2", 14.64218),
    ],
)
def test_costs_are_the_published_ones(file, name, cost):
    assert {point.name: point.cost for point in points(BY_FILE[file], [])}[name] == cost


def test_every_row_belongs_to_one_family():
    rows = [row for family in FAMILIES for row in family.rows]
    assert sorted(rows) == sorted(SERIES)


def test_what_was_measured_is_drawn_apart(several):
    found = {axis.file: [p for p in points(axis, several) if p.family is MEASURED] for axis in AXES}
    assert [point.name for point in found["accuracy_flops"]] == [each.name for each in several]
    costs = {point.name: point.cost for point in found["accuracy_flops"]}
    assert costs["mine"] == pytest.approx(8.67, rel=0.003)
    assert {point.name: point.cost for point in found["accuracy_parameters"]}["mine"] == pytest.approx(25.58, abs=0.01)
    # Nobody has published the latency of a network of half the width.
    assert [point.name for point in found["accuracy_latency_fp32"]] == [each.name for each in several[:-1]]


def texts_and_marks(figure):
    """Boxes of the points' names, of the marks and of the plot, in pixels."""
    (axes,) = figure.get_axes()
    figure.draw_without_rendering()
    names = [text for text in axes.texts if text.get_text()]
    boxes = np.array([text.get_window_extent().extents for text in names])
    centres = np.concatenate([axes.transData.transform(line.get_xydata()) for line in axes.get_lines()])
    legend = np.array([axes.get_legend().get_window_extent().extents])
    return boxes, np.concatenate([centres - 5, centres + 5], axis=1), legend, axes.get_window_extent().extents


@pytest.mark.parametrize(
    ("axis", "own"), list(itertools.product(AXES, [0, 5])), ids=lambda value: getattr(value, "file", value)
)
def test_no_name_covers_another_a_point_or_the_legend(axis, own, several):
    shown = points(axis, several[:own])
    boxes, marks, legend, plot = texts_and_marks(draw(axis, shown))
    assert len(boxes) == len(shown)
    assert np.triu(shared_area(boxes, boxes), k=1).max() == 0
    assert shared_area(boxes, marks).max() == 0
    assert shared_area(boxes, legend).max() == 0
    assert (boxes[:, :2] >= plot[:2]).all() and (boxes[:, 2:] <= plot[2:]).all()


def test_files_are_the_same_each_time(tmp_path, several):
    elsewhere = replace(several[0], weights="other_data", num_classes=10)
    written = draw_figures(tmp_path / "a" / "b", [*several, elsewhere])
    assert sorted(path.name for path in written) == sorted(
        f"{axis.file}.{kind}" for axis in AXES for kind in ("png", "svg")
    )
    for path in written:
        if path.suffix == ".png":
            assert cv2.imread(str(path)).shape == (900, 1350, 3)
            continue
        text = " ".join(ElementTree.parse(path).getroot().itertext())
        assert "ResNet50_vd_ssld" in text and "measured here" in text and "other_data" not in text
    again = draw_figures(tmp_path / "c", several)
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make .*file/figures"):
        draw_figures(Path(tmp_path / "file" / "figures"), [])
