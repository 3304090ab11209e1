"""From a spec to every layer with its channel counts, without Paddle.

The plan is the one place that decides shapes: `resnet.py` builds it, `distill.benchmark.count` counts
it, `state_shapes` lists the keys that its weights have.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from distill.models.specs import NAMINGS, KeyNaming, NetworkSpec

STEM_STRIDES = (1, 2, 4)
STAGE_CHANNELS = (64, 128, 256, 512)
BOTTLENECK_EXPANSION = 4


@dataclass(frozen=True)
class ConvPlan:
    """A bias-free convolution with padding kernel_px // 2, its batch normalisation and maybe a ReLU.

    Attributes:
        name: The layer's name inside its parent.
        stride: Of the convolution, or of the pooling before it where `average_pooled`.
        activation: Whether a ReLU follows.
        average_pooled: A 2x2 average pooling with this stride comes before the convolution.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel_px: int
    stride: int = 1
    groups: int = 1
    activation: bool = True
    average_pooled: bool = False


@dataclass(frozen=True)
class BlockPlan:
    """Convolutions in sequence; their result plus the shortcut goes through a ReLU."""

    name: str
    convs: tuple[ConvPlan, ...]
    shortcut: ConvPlan | None

    @property
    def layers(self) -> tuple[ConvPlan, ...]:
        """All convolutions, the shortcut's last, in the order of the published keys."""
        return self.convs if self.shortcut is None else (*self.convs, self.shortcut)


@dataclass(frozen=True)
class NetworkPlan:
    """A whole network: stem, optional 3x3 max-pooling of stride 2, four stages, mean, classifier."""

    naming: KeyNaming
    stem: tuple[ConvPlan, ...]
    max_pool: bool
    stages: tuple[tuple[BlockPlan, ...], ...]
    num_classes: int

    @property
    def tap_channels(self) -> dict[str, int]:
        """Channels of every tap by name, in the order in which the network computes them."""
        stages = {f"stage{i}": blocks[-1].convs[-1].out_channels for i, blocks in enumerate(self.stages, 1)}
        return {
            "stem": self.stem[-1].out_channels,
            **stages,
            "embedding": stages["stage4"],
            "logits": self.num_classes,
        }


def plan_network(
    spec: NetworkSpec, num_classes: int = 1000, *, width: float = 1.0, stem_stride: int = 4
) -> NetworkPlan:
    """Lays out a network.

    Args:
        spec: The network.
        num_classes: Outputs of the classifier, >= 1.
        width: Multiplier of every channel count, > 0. Counts are rounded to multiples of 8 (at least 8);
            in grouped convolutions the width of a group is rounded instead (at least 1).
        stem_stride: 4 as published; 2: without max-pooling; 1: also a stride-1 convolution, 3x3 in a plain
            stem too (the usual change for images of 28-64 px).

    Raises:
        ValueError: An argument is outside its range.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be >= 1, received {num_classes}")
    if not width > 0:
        raise ValueError(f"width must be > 0, received {width}. Typical: 0.25-1.")
    if stem_stride not in STEM_STRIDES:
        raise ValueError(f"stem_stride must be one of {STEM_STRIDES}, received {stem_stride}. 4 is as published.")
    naming = NAMINGS[spec.naming]
    stem = _stem(spec, naming, width, stem_stride)
    stages = []
    in_channels = stem[-1].out_channels
    for stage in range(4):
        blocks = tuple(_stage_blocks(spec, naming, width, stage, in_channels))
        stages.append(blocks)
        in_channels = blocks[-1].convs[-1].out_channels
    return NetworkPlan(naming, stem, stem_stride == 4, tuple(stages), num_classes)


def state_shapes(plan: NetworkPlan) -> dict[str, tuple[int, ...]]:
    """Every key and shape of the network's `state_dict()`, in its order.

    Convolution weights are [out, in / groups, k, k] in either data format, the classifier's weight is
    [in, out].
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path, conv in conv_layers(plan):
        kernel = (conv.out_channels, conv.in_channels // conv.groups, conv.kernel_px, conv.kernel_px)
        shapes[f"{path}.{plan.naming.convolution}.weight"] = kernel
        for value in ("weight", "bias", "_mean", "_variance"):
            shapes[f"{path}.{plan.naming.batch_norm}.{value}"] = (conv.out_channels,)
    shapes[f"{plan.naming.classifier}.weight"] = (plan.tap_channels["embedding"], plan.num_classes)
    shapes[f"{plan.naming.classifier}.bias"] = (plan.num_classes,)
    return shapes


def conv_layers(plan: NetworkPlan) -> Iterator[tuple[str, ConvPlan]]:
    """Every convolution with its dotted path, in the order of the keys."""
    for conv in plan.stem:
        yield conv.name, conv
    for blocks in plan.stages:
        for block in blocks:
            for conv in block.layers:
                yield f"{block.name}.{conv.name}", conv


def _scaled(channels: int, width: float) -> int:
    return max(8, 8 * round(channels * width / 8))


def _stem(spec: NetworkSpec, naming: KeyNaming, width: float, stem_stride: int) -> tuple[ConvPlan, ...]:
    first_stride = min(stem_stride, 2)
    out_channels = _scaled(STAGE_CHANNELS[0], width)
    if spec.stem == "plain":
        kernel_px = 3 if stem_stride == 1 else 7
        return (ConvPlan(naming.stem[0], 3, out_channels, kernel_px, first_stride),)
    half = _scaled(STAGE_CHANNELS[0] // 2, width)
    return (
        ConvPlan(naming.stem[0], 3, half, 3, first_stride),
        ConvPlan(naming.stem[1], half, half, 3),
        ConvPlan(naming.stem[2], half, out_channels, 3),
    )


def _stage_blocks(
    spec: NetworkSpec, naming: KeyNaming, width: float, stage: int, in_channels: int
) -> Iterator[BlockPlan]:
    """The blocks of stage 0-3; the first changes the channels and, from stage 1 on, the size."""
    for position in range(spec.blocks[stage]):
        stride = 2 if position == 0 and stage > 0 else 1
        name = naming.block.format(
            stage=stage + 1, stage_index=stage, position=position, index=sum(spec.blocks[:stage]) + position
        )
        convs = _block_convs(spec, naming, width, stage, in_channels, stride)
        out_channels = convs[-1].out_channels
        # The first block of stage 1 has this convolution even where 64 channels meet 64, as published.
        shortcut = ConvPlan(
            naming.shortcut,
            in_channels,
            out_channels,
            kernel_px=1,
            stride=stride,
            activation=False,
            average_pooled=spec.shortcut == "average_pooled" and stride > 1,
        )
        yield BlockPlan(name, convs, shortcut if position == 0 else None)
        in_channels = out_channels


def _block_convs(
    spec: NetworkSpec, naming: KeyNaming, width: float, stage: int, in_channels: int, stride: int
) -> tuple[ConvPlan, ...]:
    names = [naming.conv.format(index=index) for index in range(3)]
    channels = _scaled(STAGE_CHANNELS[stage], width)
    if spec.block == "basic":
        return (
            ConvPlan(names[0], in_channels, channels, 3, stride),
            ConvPlan(names[1], channels, channels, 3, activation=False),
        )
    inner = channels
    if spec.groups > 1:
        inner = spec.groups * max(1, round(spec.group_width * width)) * 2**stage
    return (
        ConvPlan(names[0], in_channels, inner, 1),
        # The stride sits on the 3x3 convolution, in the published nets of this series without exception.
        ConvPlan(names[1], inner, inner, 3, stride, groups=spec.groups),
        ConvPlan(names[2], inner, BOTTLENECK_EXPANSION * channels, 1, activation=False),
    )
