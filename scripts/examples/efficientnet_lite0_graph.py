"""EfficientNet-Lite as an ONNX network, from the arrays of a PyTorch state dict. Neither PyTorch nor Paddle is needed.

EfficientNet without squeeze-and-excitation and with ReLU6, so that it runs in 8 bits on phones. A plan lists the
convolutions in the order in which they compute; the keys and shapes that the weights must have, and the graph, both
follow from it.

Source: Google's `efficientnet/lite` in github.com/tensorflow/tpu (Apache-2.0), which gives stages, padding and
epsilon; keys as in the PyPI package efficientnet_lite_pytorch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.engines.onnx_engine import import_extra
from distill.errors import UserError

BATCH_NORM_EPSILON = 1e-3  # TensorFlow's; PyTorch's own default is 1e-5
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
NOT_NEEDED = "num_batches_tracked"
"""Ends the key of what PyTorch counts while it trains."""
OPSET = 13
IR_VERSION = 8


@dataclass(frozen=True)
class Stage:
    """Blocks that are alike; the first of them has the stride and changes the number of channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


@dataclass(frozen=True)
class Architecture:
    """A network: a convolution of 3 x 3 at stride 2, the stages, a convolution of 1 x 1, the classifier."""

    stem_channels: int
    stages: tuple[Stage, ...]
    head_channels: int
    classes: int


LITE0 = Architecture(
    stem_channels=32,
    stages=(
        Stage(blocks=1, kernel=3, stride=1, expansion=1, channels=16),
        Stage(blocks=2, kernel=3, stride=2, expansion=6, channels=24),
        Stage(blocks=2, kernel=5, stride=2, expansion=6, channels=40),
        Stage(blocks=3, kernel=3, stride=2, expansion=6, channels=80),
        Stage(blocks=3, kernel=5, stride=1, expansion=6, channels=112),
        Stage(blocks=4, kernel=5, stride=2, expansion=6, channels=192),
        Stage(blocks=1, kernel=3, stride=1, expansion=6, channels=320),
    ),
    head_channels=1280,
    classes=1000,
)


# --- the plan -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convolution:
    """A convolution without bias, the batch normalisation behind it and, unless it is linear, ReLU6.

    Attributes:
        key: Of the convolution in the state dict.
        norm_key: Of the batch normalisation.
        shape: Of the weight: [output channels, input channels / groups, kernel, kernel].
        stride: Of both axes.
        groups: 1, or the number of channels in a depthwise convolution.
        linear: Nothing follows the batch normalisation.
    """

    key: str
    norm_key: str
    shape: tuple[int, int, int, int]
    stride: int = 1
    groups: int = 1
    linear: bool = False


@dataclass(frozen=True)
class Block:
    """Convolutions one after the other; with a shortcut their input is added to what comes out."""

    convolutions: tuple[Convolution, ...]
    shortcut: bool = False


def plan_network(architecture: Architecture) -> tuple[Block, ...]:
    """Everything before the pooling, in the order in which it computes."""
    channels = architecture.stem_channels
    blocks = [Block((Convolution("_conv_stem", "_bn0", (channels, 3, 3, 3), stride=2),))]
    for stage in architecture.stages:
        for number in range(stage.blocks):
            name = f"_blocks.{len(blocks) - 1}"
            blocks.append(_inverted_bottleneck(name, stage, channels, stride=1 if number else stage.stride))
            channels = stage.channels
    head = Convolution("_conv_head", "_bn1", (architecture.head_channels, channels, 1, 1))
    return (*blocks, Block((head,)))


def _inverted_bottleneck(name: str, stage: Stage, inputs: int, stride: int) -> Block:
    """Widens, filters each channel by itself, and narrows without an activation (MobileNetV2's block)."""
    wide, outputs, kernel = inputs * stage.expansion, stage.channels, stage.kernel
    expand = Convolution(f"{name}._expand_conv", f"{name}._bn0", (wide, inputs, 1, 1))
    depthwise = Convolution(
        f"{name}._depthwise_conv", f"{name}._bn1", (wide, 1, kernel, kernel), stride=stride, groups=wide
    )
    project = Convolution(f"{name}._project_conv", f"{name}._bn2", (outputs, wide, 1, 1), linear=True)
    convolutions = (depthwise, project) if stage.expansion == 1 else (expand, depthwise, project)
    return Block(convolutions, shortcut=stride == 1 and inputs == outputs)


# --- the weights --------------------------------------------------------------------------------


def expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of each array that the network needs, by its key."""
    shapes: dict[str, tuple[int, ...]] = {}
    for convolution in _convolutions(architecture):
        shapes[f"{convolution.key}.weight"] = convolution.shape
        shapes |= {f"{convolution.norm_key}.{part}": convolution.shape[:1] for part in BATCH_NORM}
    shapes["_fc.weight"] = (architecture.classes, architecture.head_channels)
    shapes["_fc.bias"] = (architecture.classes,)
    return shapes


def check_weights(weights: Mapping[str, np.ndarray], architecture: Architecture) -> None:
    """Checks that a state dict is of this architecture.

    Raises:
        UserError: Keys are missing or unknown, shapes are others, or numbers are not floating; names up to three.
    """
    expected = expected_shapes(architecture)
    there = {key for key in weights if not key.endswith(NOT_NEEDED)}
    wrong = [f"{key} is missing" for key in expected if key not in there]
    wrong += [f"{key} is unknown" for key in sorted(there - expected.keys())]
    for key in filter(there.__contains__, expected):
        array = weights[key]
        if array.shape != expected[key] or array.dtype.kind != "f":
            wrong.append(f"{key} is {array.dtype} {list(array.shape)}, expected floating {list(expected[key])}")
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"the weights are not of this EfficientNet-Lite: {'; '.join(wrong[:3])}{more}")


def fold_batch_norm(weights: Mapping[str, np.ndarray], convolution: Convolution) -> tuple[np.ndarray, np.ndarray]:
    """One convolution with bias that computes what the convolution and its batch normalisation compute.

    With g = gamma / sqrt(variance + epsilon), the weight is g W and the bias beta - g mean, in float64.

    Returns:
        The weight, float32 of the same shape, and the bias, float32 [output channels].
    """
    gamma, beta, mean, variance = (weights[f"{convolution.norm_key}.{part}"].astype(np.float64) for part in BATCH_NORM)
    scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
    weight = weights[f"{convolution.key}.weight"] * scale[:, None, None, None]
    return weight.astype(np.float32), (beta - scale * mean).astype(np.float32)


def _convolutions(architecture: Architecture) -> Iterator[Convolution]:
    for block in plan_network(architecture):
        yield from block.convolutions


# --- the graph ----------------------------------------------------------------------------------


def build_network(
    weights: Mapping[str, np.ndarray], architecture: Architecture = LITE0, metadata: Mapping[str, str] | None = None
) -> Any:
    """The ONNX network of a state dict.

    Input `images`: float32 [N, 3, H, W], RGB, (x - 127) / 128 of values 0-255. Outputs: `logits` [N, classes], and
    `embedding` [N, head channels], the average of the last features over the image. N, H and W are free.

    Args:
        weights: The arrays by key.
        architecture: What they are of.
        metadata: Kept in the file: where the weights come from, for one.

    Returns:
        An onnx.ModelProto, checked.

    Raises:
        UserError: The weights are of something else, or the package onnx is missing.
    """
    check_weights(weights, architecture)
    onnx = import_extra("onnx")
    arrays = {"zero": np.float32(0.0), "six": np.float32(6.0)}
    for convolution in _convolutions(architecture):
        arrays[f"{convolution.key}.weight"], arrays[f"{convolution.key}.bias"] = fold_batch_norm(weights, convolution)
    arrays |= {key: weights[key].astype(np.float32) for key in ("_fc.weight", "_fc.bias")}
    graph = onnx.helper.make_graph(
        list(_nodes(onnx, plan_network(architecture))),
        "efficientnet_lite",
        [_float32(onnx, "images", ["N", 3, "H", "W"])],
        [
            _float32(onnx, "logits", ["N", architecture.classes]),
            _float32(onnx, "embedding", ["N", architecture.head_channels]),
        ],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    onnx.helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model, full_check=True)
    return model


def _float32(onnx: Any, name: str, shape: Sequence[int | str]) -> Any:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def _nodes(onnx: Any, blocks: Sequence[Block]) -> Iterator[Any]:
    """The graph's nodes; a tensor is named after the layer that makes it."""
    make = onnx.helper.make_node
    features = "images"
    for block in blocks:
        entering = features
        for convolution in block.convolutions:
            yield from _convolution_nodes(make, convolution, features)
            features = convolution.key
        if block.shortcut:
            yield make("Add", [features, entering], [f"{features}.sum"])
            features = f"{features}.sum"
    yield make("GlobalAveragePool", [features], ["pooled"])
    yield make("Flatten", ["pooled"], ["embedding"])
    yield make("Gemm", ["embedding", "_fc.weight", "_fc.bias"], ["logits"], transB=1)


def _convolution_nodes(make: Any, convolution: Convolution, entering: str) -> Iterator[Any]:
    """A convolution and its ReLU6.

    SAME_UPPER is TensorFlow's SAME: the output has ceil(side / stride), and where the padding is odd, the end gets
    the larger half. ONNX Runtime works it out from the images, so that one file serves any size.
    """
    key, (*_, kernel) = convolution.key, convolution.shape
    yield make(
        "Conv",
        [entering, f"{key}.weight", f"{key}.bias"],
        [key if convolution.linear else f"{key}.linear"],
        kernel_shape=[kernel, kernel],
        strides=[convolution.stride] * 2,
        group=convolution.groups,
        auto_pad="SAME_UPPER",
    )
    if not convolution.linear:
        yield make("Clip", [f"{key}.linear", "zero", "six"], [key])
