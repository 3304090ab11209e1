from dataclasses import replace

import pytest

from distill.benchmark.tables import (
    Counted,
    PublishedModel,
    count,
    flops_doubt,
    latency_ms,
    params_doubt,
    published_latencies,
    published_models,
)
from distill.models.specs import SPECS

ROWS = published_models()
SERIES = [row for row in ROWS if not row.network.endswith("_wsl")]


def test_the_table_is_complete() -> None:
    assert len(SERIES) == 18
    assert len(ROWS) == 22
    assert len({row.model for row in ROWS}) == 22
    assert {row.network for row in ROWS} == set(SPECS)


def test_a_row_is_read_as_published() -> None:
    rows = {row.model: row for row in ROWS}
    assert rows["ResNet50"] == PublishedModel(
        "ResNet50", "ResNet50", 224, 0.765, 0.930, 0.760, 0.930, flops_g=8.19, params_m=25.56
    )
    fixed = rows["Fix_ResNet50_vd_ssld_v2"]
    assert (fixed.network, fixed.crop_px, fixed.reference_top1, fixed.flops_g) == ("ResNet50_vd", 320, None, 17.696)


@pytest.mark.parametrize("row", SERIES, ids=lambda row: row.model)
def test_parameters_equal_the_published_count_to_its_last_digit(row: PublishedModel) -> None:
    assert f"{count(row).params_m:.2f}" == f"{row.params_m:.2f}"
    assert params_doubt(row, count(row)) is None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.model)
def test_published_flops_are_twice_our_multiply_accumulates_unless_marked(row: PublishedModel) -> None:
    counted = count(row)
    ratio = row.flops_g / counted.macs_g
    # 0.2 % are what the table counts beyond convolutions and classifier
    assert (flops_doubt(row, counted) is None) == (1.998 < ratio < 2.004)


def test_the_rows_that_cannot_be_right() -> None:
    wsl = [f"ResNeXt101_32x{width}d_wsl" for width in (8, 16, 32, 48)]
    assert [row.model for row in ROWS if flops_doubt(row, count(row))] == [
        "ResNet34_vd",
        "ResNet34_vd_ssld",
        "ResNet101",
        *wsl,
    ]
    assert [row.model for row in ROWS if params_doubt(row, count(row))] == wsl


@pytest.mark.parametrize(
    ("flops_g", "doubt"),
    [
        (7.0, "published 7.00 GFLOPs, convolutions and classifier alone take 8.00"),
        (7.99, "published 7.99 GFLOPs, convolutions and classifier alone take 8.00"),
        (7.996, None),  # 8.00 as rounded
        (8.0, None),
        (8.07, None),
        (8.09, "published 8.09 GFLOPs, more than 1 % above the 8.00 of its layers"),
    ],
)
def test_the_rule_for_flops(flops_g: float, doubt: str | None) -> None:
    assert flops_doubt(replace(ROWS[0], flops_g=flops_g), Counted(macs_g=4.0, params_m=1.0)) == doubt


@pytest.mark.parametrize(("params_m", "right"), [(1.00, True), (1.01, False), (0.99, False)])
def test_the_rule_for_parameters(params_m: float, right: bool) -> None:
    doubt = params_doubt(replace(ROWS[0], params_m=params_m), Counted(macs_g=4.0, params_m=1.004))
    assert (doubt is None) == right
    assert right or doubt == f"published {params_m:.2f} M parameters, its layers have 1.00 M"


def test_latencies_are_those_of_the_published_table() -> None:
    rows = published_latencies()
    assert len(rows) == 17
    assert {row.model for row in rows} == {row.model for row in SERIES} - {"ResNet34_vd_ssld"}
    found = {row.model: row for row in rows}["ResNet200_vd"]
    assert (found.crop_px, found.resize_short_px) == (224, 256)
    assert found.milliseconds == {
        ("fp16", 1): 9.36026,
        ("fp16", 4): 13.5474,
        ("fp16", 8): 19.0725,
        ("fp32", 1): 10.80619,
        ("fp32", 4): 25.01731,
        ("fp32", 8): 48.81399,
    }


def test_the_latencies_on_a_v100_are_published_for_one_image() -> None:
    rows = published_latencies("v100")
    assert len(rows) == 16
    assert {row.model for row in SERIES} - {row.model for row in rows} == {
        "ResNet50_vd_ssld_v2",
        "Fix_ResNet50_vd_ssld_v2",
    }
    assert all(row.milliseconds.keys() == {("fp32", 1)} for row in rows)
    assert latency_ms("ResNet200_vd", 224, "fp32", 1, "v100") == 8.885
    assert latency_ms("ResNet200_vd", 224, "fp32", 4, "v100") is None


def test_a_latency_is_the_networks_whatever_its_weights() -> None:
    assert latency_ms("ResNet34_vd", 224, "fp32", 4) == 6.22257
    assert latency_ms("ResNet50_vd", 320, "fp16", 8) == 13.19370
    assert latency_ms("ResNet50_vd", 288, "fp16", 8) is None
    assert latency_ms("ResNeXt101_32x8d_wsl", 224, "fp16", 8) is None
