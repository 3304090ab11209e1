from dataclasses import replace

import pytest

from distill.benchmark.figures import points
from distill.benchmark.latency_report import figure_axis, markdown, write_report


@pytest.fixture
def rows(latency_row):
    """Two networks, two engines, two precisions; not all of everything."""
    small = [
        replace(latency_row, model="ResNet18", engine=engine, batch=batch, median_ms=ms, min_ms=ms - 1, p90_ms=ms + 1)
        for engine, batch, ms in [("eager", 1, 31.0), ("predictor", 1, 12.0), ("predictor", 4, 40.0)]
    ]
    return [*small, latency_row, replace(latency_row, precision="bfloat16", median_ms=50.0)]


def tables(text):
    """Title to lines of cells, the header first."""
    found = {}
    for part in text.split("\n## ")[1:]:
        title, *lines = part.splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        found[title] = [cells[0], *cells[2:]]
    return found


def test_what_is_published_stands_beside_ours_and_says_so(rows):
    header, *lines = tables(markdown(rows))["Engines side by side"]
    assert header[4:] == [
        "measured here: Paddle, eager, FP32 (ms)",
        "measured here: Paddle Inference, oneDNN, FP32 (ms)",
        "measured here: Paddle Inference, oneDNN, BF16 (ms)",
        "published: V100, FP32 (ms)",
        "published: T4, FP32 (ms)",
        "published: T4, FP16 (ms)",
    ]
    ours = ["31.0 (30.0-32.0)", "12.0 (11.0-13.0)", ""]
    assert lines[0] == ["ResNet18", "224", "256", "1", *ours, "1.499", "1.456", "1.357"]
    assert lines[1] == ["ResNet18", "224", "256", "4", "", "40.0 (39.0-41.0)", "", "", "3.563", "2.522"]
    assert lines[2][:4] == ["ResNet50_vd", "224", "256", "4"]
    assert lines[2][7:] == ["", "8.091", "4.841"]


def test_each_engine_has_the_published_documents_columns(rows):
    header, *lines = tables(markdown(rows))["Measured here: Paddle Inference, oneDNN"]
    assert header == [
        "Model",
        "Crop size",
        "Resize short size",
        "FP32, batch size 1 (ms)",
        "FP32, batch size 4 (ms)",
        "BF16, batch size 4 (ms)",
    ]
    assert lines == [
        ["ResNet18", "224", "256", "12.0", "40.0", ""],
        ["ResNet50_vd", "224", "256", "", "90.2", "50.0"],
    ]


@pytest.mark.parametrize(
    ("ms", "shown"), [(0.51234, "0.512"), (1.4994, "1.50"), (99.94, "99.9"), (100.0, "100"), (1868.6, "1869")]
)
def test_times_have_the_digits_that_repeat(latency_row, ms, shown):
    text = markdown([replace(latency_row, median_ms=ms, min_ms=ms, p90_ms=ms)])
    assert f"| {shown} ({shown}-{shown}) |" in text and f"| {shown} |" in text


def test_it_says_on_what_it_was_measured(rows):
    text = markdown([*rows, replace(rows[-2], batch=8, date="2026-11-25", runs=10)])
    assert "Some, processor, 2 threads, paddle 3.3.1, onnxruntime 1.32.0; 2026-11-24 to 2026-11-25" in text
    assert "of\n10-30 calls" in text


def test_a_figure_joins_published_accuracy_with_our_latency(rows, tmp_path):
    axis = figure_axis(rows, "predictor", "float32")
    shown = {point.name: (point.cost, point.top1) for point in points(axis, [])}
    assert shown["ResNet18"] == (40.0, pytest.approx(71.0))
    assert shown["ResNet50_vd_ssld"] == (90.25, pytest.approx(82.4))  # the same network, other weights
    assert "ResNet34" not in shown
    assert "Fix_ResNet50_vd_ssld_v2" not in shown  # another size
    assert "4 images, measured here" in axis.label
    assert "1 image, measured here" in figure_axis(rows, "eager", "float32").label
    written = {path.name for path in write_report(tmp_path, rows)}
    assert written == {path.name for path in tmp_path.iterdir()}
    assert "accuracy_latency_predictor_bfloat16.svg" in written
    picture = (tmp_path / "accuracy_latency_predictor_float32.svg").read_text()
    assert "published accuracy" in picture
    assert "Some, processor, 2 threads" in picture


def test_a_network_outside_the_series_is_in_the_table_alone(latency_row, tmp_path):
    written = write_report(tmp_path, [replace(latency_row, model="ResNeXt101_32x8d_wsl")])
    assert [path.name for path in written] == ["latency.md"]
    assert "| ResNeXt101_32x8d_wsl | 224 | 256 | 4 | 90.2 (88.1-95.5) |  |  |  |" in written[0].read_text()
