"""The published tables of accuracy and latency, and the rule that tells where its figures cannot be right."""

import csv
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from distill.benchmark.count import multiply_accumulates, parameters
from distill.models.plan import plan_network
from distill.models.specs import SPECS

# The tables print parameters in steps of 0.01 M and FLOPs of 0.001 G (mostly 0.01 G) with zeros behind.
PARAMS_ROUNDING_M = 0.005
FLOPS_ROUNDING_G = 0.005
# What FLOPs may count beyond convolutions and classifier (normalisation, ReLU, pooling, bias) stays below
# 0.2 % in every consistent row of the table.
FLOPS_MAX_EXCESS = 0.01


@dataclass(frozen=True)
class PublishedModel:
    """A row of the published table: a set of weights, and how good it was said to be.

    Attributes:
        model: The published name of the weights.
        network: The name of its network in `SPECS`; several sets of weights share one.
        crop_px: Height and width of the images that the row holds for.
        top1: Accuracy on ImageNet-1k's validation set in [0, 1].
        top5: Likewise, the right class among five.
        reference_top1: Of the original authors' weights, where stated.
        reference_top5: Likewise.
        flops_g: 10^9 floating-point operations an image: about twice the multiply-accumulates.
        params_m: 10^6 parameters.
    """

    model: str
    network: str
    crop_px: int
    top1: float
    top5: float
    reference_top1: float | None
    reference_top5: float | None
    flops_g: float
    params_m: float


@dataclass(frozen=True)
class PublishedLatency:
    """Milliseconds that a batch takes on a GPU, by precision and batch size; the key is ("fp16", 4)."""

    model: str
    crop_px: int
    resize_short_px: int
    milliseconds: dict[tuple[str, int], float]


@dataclass(frozen=True)
class Counted:
    """Our own figures of a published row, from shapes.

    Attributes:
        macs_g: 10^9 multiply-accumulates of convolutions and classifier an image.
        params_m: 10^6 parameters.
    """

    macs_g: float
    params_m: float


def published_models() -> list[PublishedModel]:
    """The published table, in its order.

    Sources: PaddleClas, "ResNet and ResNet_vd series", and for ResNeXt101_wsl "EfficientNet and
    ResNeXt101_wsl series"; `network` and `crop_px` are ours (crops from the series' latency tables).
    """
    table = resources.files("distill.benchmark").joinpath("published/accuracy.csv")
    return [_published(row) for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines())]


def published_latencies(gpu: Literal["t4", "v100"] = "t4") -> list[PublishedLatency]:
    """The published latency on an NVIDIA T4 or V100, in its order.

    Source: PaddleClas, "ResNet and ResNet_vd series", sections 4 and 3. A row that occurs twice stands here once;
    those of the V100 have ("fp32", 1) alone.
    """
    table = resources.files("distill.benchmark").joinpath(f"published/latency_{gpu}.csv")
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    batches = [(precision, batch) for precision in ("fp16", "fp32") for batch in (1, 4, 8)]
    return [
        PublishedLatency(
            row["model"],
            int(row["crop_px"]),
            int(row["resize_short_px"]),
            {(p, n): float(row[f"{p}_bs{n}_ms"]) for p, n in batches if f"{p}_bs{n}_ms" in row},
        )
        for row in rows
    ]


def latency_ms(
    network: str, crop_px: int, precision: str, batch: int, gpu: Literal["t4", "v100"] = "t4"
) -> float | None:
    """The published latency of a network of the series, whatever its weights; None where there is none.

    Args:
        network: A name in `SPECS`.
        crop_px: Height and width of the images.
        precision: "fp16" or "fp32".
        batch: Number of images.
        gpu: Where it was measured.
    """
    networks = {row.model: row.network for row in published_models()}
    for row in published_latencies(gpu):
        if (networks[row.model], row.crop_px) == (network, crop_px):
            return row.milliseconds.get((precision, batch))
    return None


def count(row: PublishedModel) -> Counted:
    """Counts a published row's network at its crop."""
    return count_network(row.network, row.crop_px)


def count_network(
    network: str, crop_px: int, num_classes: int = 1000, *, width: float = 1.0, stem_stride: int = 4
) -> Counted:
    """Counts a network at a crop; the other arguments as `plan_network` takes them."""
    plan = plan_network(SPECS[network], num_classes, width=width, stem_stride=stem_stride)
    return Counted(multiply_accumulates(plan, crop_px) / 1e9, parameters(plan) / 1e6)


def flops_doubt(row: PublishedModel, counted: Counted) -> str | None:
    """Why the row's FLOPs cannot be right, or None.

    FLOPs count at least the convolutions and the classifier, two operations a multiply-accumulate, and
    hardly more: a figure is impossible below 2 x MACs (less its rounding), and implausible more than 1 %
    above.
    """
    expected = 2 * counted.macs_g
    if row.flops_g < expected - FLOPS_ROUNDING_G:
        return f"published {row.flops_g:.2f} GFLOPs, convolutions and classifier alone take {expected:.2f}"
    if row.flops_g > expected * (1 + FLOPS_MAX_EXCESS):
        return f"published {row.flops_g:.2f} GFLOPs, more than 1 % above the {expected:.2f} of its layers"
    return None


def params_doubt(row: PublishedModel, counted: Counted) -> str | None:
    """Why the row's parameter count cannot be right, or None where it equals ours as rounded."""
    if abs(row.params_m - counted.params_m) <= PARAMS_ROUNDING_M:
        return None
    return f"published {row.params_m:.2f} M parameters, its layers have {counted.params_m:.2f} M"


def _published(row: dict[str, str]) -> PublishedModel:
    return PublishedModel(
        model=row["model"],
        network=row["network"],
        crop_px=int(row["crop_px"]),
        top1=float(row["top1"]),
        top5=float(row["top5"]),
        reference_top1=_optional(row["reference_top1"]),
        reference_top5=_optional(row["reference_top5"]),
        flops_g=float(row["flops_g"]),
        params_m=float(row["params_m"]),
    )


def _optional(text: str) -> float | None:
    return float(text) if text else None
