import io
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from distill.benchmark.measurements import Measurement
from distill.benchmark.tables import published_models
from distill.benchmark.zoo import zoo_table


def printed(width: int = 80, measured: Sequence[Measurement] = ()) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    zoo_table(console, measured)
    return console.file.getvalue().splitlines()


def test_every_published_model_has_its_row_within_80_columns() -> None:
    header, *lines = printed()
    rows = lines[: len(published_models())]
    assert header.split() == ["model", "px", "top-1", "top-5", "GFLOPs", "our", "GMACs", "params", "M", "our", "M"]
    assert [row.split()[0] for row in rows] == [row.model for row in published_models()]
    assert "ResNet50_vd             224  79.1  94.4    8.67      4.33    25.58  25.58" in rows
    assert all(len(line) <= 80 for line in (header, *lines))


def test_figures_that_cannot_be_right_are_marked_and_explained() -> None:
    lines = printed(width=200)
    rows = {line.split()[0]: line.split() for line in lines[1:23]}
    assert rows["ResNet34_vd"][4] == "!7.39"
    assert rows["ResNet34"][4] == "7.36"
    assert rows["ResNeXt101_32x16d_wsl"][6:] == ["!152.66", "194.03"]
    assert "- ResNet34_vd: published 7.39 GFLOPs, convolutions and classifier alone take 7.83" in lines
    marks = sum(cell.startswith("!") for row in rows.values() for cell in row)
    assert marks == sum(line.startswith("- ") for line in lines) == 11


def test_what_was_measured_has_a_table_of_its_own(found: Measurement) -> None:
    of_a_run = {"weights": "runs/fashion/student.safetensors", "num_classes": 10, "top1": 0.887}
    narrow = replace(found, **of_a_run, model="ResNet18_vd", width=0.0625, stem_stride=2, crop_px=28)
    lines = printed(width=200, measured=[found, narrow])
    published = printed(width=200)
    assert lines[: len(published) - 2] == published[:-2]
    assert published[-1] == "Nothing measured here yet: `distill evaluate ... --record`."
    own = [line.split() for line in lines[len(published) - 2 :]]
    assert ["measured", "here", "px", "top-1", "top-5", "our", "GMACs", "our", "M", "images"] in own
    assert ["ResNet50_vd_ssld_pretrained", "224", "82.39", "96.10", "4.33", "25.58", "50,000"] in own
    assert ["fashion", "28", "88.70", "96.10", "0.00111", "0.0481", "50,000"] in own
    assert any(
        line.startswith("- fashion: ResNet18_vd x 0.0625, 10 classes, runs/fashion/student.safetensors (SHA-256 aaaa")
        for line in lines
    )
    assert all(len(line) <= 80 for line in printed(measured=[found, narrow]))
