"""A measurement as `distill evaluate --record` makes it, and one as `distill benchmark latency` does."""

import pytest

from distill.benchmark.latency_rows import LatencyRow
from distill.benchmark.measurements import Measurement

FOUND = Measurement(
    model="ResNet50_vd",
    width=1.0,
    stem_stride=4,
    num_classes=1000,
    weights="weights/ResNet50_vd_ssld_pretrained.pdparams",
    weights_sha256="a" * 64,
    top1=0.8239,
    top5=0.9610,
    images=50_000,
    undecodable=0,
    sources=("val.txt",),
    images_sha256="b" * 64,
    resize_short_px=256,
    crop_px=224,
    recipe="val",
    date="2026-11-24",
    hardware="a processor, 2 threads",
    paddle="3.3.1",
)


@pytest.fixture
def found() -> Measurement:
    """The accuracy of published weights on ImageNet-1k's validation set."""
    return FOUND


@pytest.fixture
def latency_row() -> LatencyRow:
    """Four images in a ResNet50_vd."""
    return LatencyRow(
        model="ResNet50_vd",
        crop_px=224,
        resize_short_px=256,
        engine="predictor",
        precision="float32",
        batch=4,
        runs=30,
        min_ms=88.1,
        median_ms=90.25,
        p90_ms=95.5,
        date="2026-11-24",
        processor="Some, processor",
        threads=2,
        versions="paddle 3.3.1, onnxruntime 1.32.0",
    )
