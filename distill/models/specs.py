"""The networks of the series as data: names, depths, stems, shortcuts and key names.

No Paddle import, so that a recipe is validated and `distill zoo` answers at once. `plan.py` turns a
spec into layers with channel counts, `resnet.py` turns those into a Paddle network.
"""

from dataclasses import dataclass
from typing import Literal

from distill.errors import did_you_mean


@dataclass(frozen=True)
class KeyNaming:
    """How published weights of one kind name their layers in `state_dict()`.

    Attributes:
        stem: The stem's convolutions in order; a plain stem uses the first name only.
        block: Format of a block's name; `stage` counts from 1, `stage_index`, `position` (in its stage)
            and `index` (over all stages) from 0.
        conv: Format of a convolution's name inside a block; `index` counts from 0.
        shortcut: The convolution on a block's shortcut.
        convolution: The convolution proper beside its batch normalisation.
        batch_norm: The batch normalisation beside its convolution.
        classifier: The fully connected layer at the end.
    """

    stem: tuple[str, ...]
    block: str
    conv: str
    shortcut: str
    convolution: str
    batch_norm: str
    classifier: str


NAMINGS: dict[str, KeyNaming] = {
    "current": KeyNaming(
        stem=("stem.0", "stem.1", "stem.2"),
        block="blocks.{index}",
        conv="conv{index}",
        shortcut="short",
        convolution="conv",
        batch_norm="bn",
        classifier="fc",
    ),
    # ResNet50_vc, and the ResNet*_vd files from before PaddleClas 2.1
    "old": KeyNaming(
        stem=("conv1_1", "conv1_2", "conv1_3"),
        block="bb_{stage_index}_{position}",
        conv="conv{index}",
        shortcut="short",
        convolution="_conv",
        batch_norm="_batch_norm",
        classifier="out",
    ),
    "wsl": KeyNaming(
        stem=("_conv_stem",),
        block="_conv{stage}_{position}",
        conv="_conv{index}",
        shortcut="_short._conv",
        convolution="_conv",
        batch_norm="_bn",
        classifier="_out",
    ),
}


@dataclass(frozen=True)
class NetworkSpec:
    """What makes one network of the series different from the others.

    Attributes:
        name: The published name.
        block: "basic": two 3x3 convolutions; "bottleneck": 1x1, 3x3 (which has the stride), 1x1.
        blocks: Blocks in each of the four stages.
        stem: "plain": one 7x7 convolution; "deep": three 3x3 convolutions (vc, vd).
        shortcut: How a strided block brings its input to size: "strided" 1x1 convolution, or
            "average_pooled" before a 1x1 convolution of stride 1 (vd).
        groups: Groups of the 3x3 convolution in a bottleneck.
        group_width: Channels a group in stage 1; doubled from stage to stage.
        naming: Key of `NAMINGS`.
    """

    name: str
    block: Literal["basic", "bottleneck"]
    blocks: tuple[int, int, int, int]
    stem: Literal["plain", "deep"] = "plain"
    shortcut: Literal["strided", "average_pooled"] = "strided"
    groups: int = 1
    group_width: int = 64
    naming: Literal["current", "old", "wsl"] = "current"


def _vd(name: str, block: Literal["basic", "bottleneck"], blocks: tuple[int, int, int, int]) -> NetworkSpec:
    return NetworkSpec(name, block, blocks, stem="deep", shortcut="average_pooled")


def _wsl(group_width: int) -> NetworkSpec:
    name = f"ResNeXt101_32x{group_width}d_wsl"
    return NetworkSpec(name, "bottleneck", (3, 4, 23, 3), groups=32, group_width=group_width, naming="wsl")


SPECS: dict[str, NetworkSpec] = {
    spec.name: spec
    for spec in (
        NetworkSpec("ResNet18", "basic", (2, 2, 2, 2)),
        _vd("ResNet18_vd", "basic", (2, 2, 2, 2)),
        NetworkSpec("ResNet34", "basic", (3, 4, 6, 3)),
        _vd("ResNet34_vd", "basic", (3, 4, 6, 3)),
        NetworkSpec("ResNet50", "bottleneck", (3, 4, 6, 3)),
        NetworkSpec("ResNet50_vc", "bottleneck", (3, 4, 6, 3), stem="deep", naming="old"),
        _vd("ResNet50_vd", "bottleneck", (3, 4, 6, 3)),
        NetworkSpec("ResNet101", "bottleneck", (3, 4, 23, 3)),
        _vd("ResNet101_vd", "bottleneck", (3, 4, 23, 3)),
        NetworkSpec("ResNet152", "bottleneck", (3, 8, 36, 3)),
        _vd("ResNet152_vd", "bottleneck", (3, 8, 36, 3)),
        _vd("ResNet200_vd", "bottleneck", (3, 12, 48, 3)),
        _wsl(8),
        _wsl(16),
        _wsl(32),
        _wsl(48),
    )
}


def check_model_name(name: str) -> NetworkSpec:
    """Returns the spec of a network of the series.

    Raises:
        ValueError: No network has this name; the message lists the valid ones and the nearest.
    """
    if name not in SPECS:
        raise ValueError(f"unknown model {name!r}.{did_you_mean(name, SPECS)} Valid: {', '.join(SPECS)}")
    return SPECS[name]
