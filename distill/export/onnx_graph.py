"""A network of the series as an ONNX model, written from its plan.

Not by paddle2onnx 2.1.0: tried with Paddle 3.3.1, it installs packages into the running environment while it folds
constants, ends the process on a network in NHWC, and leaves batch normalisation beside the convolutions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from distill.engines.onnx_engine import import_extra
from distill.errors import RunError
from distill.export.folding import folded_convolution
from distill.models.plan import BlockPlan, ConvPlan
from distill.models.resnet import ResNet
from distill.recipe import NormalizationSection

OPSET = 17
IR_VERSION = 8
INPUT, OUTPUT = "images", "logits"
PREPROCESSING = "preprocessing"
"""Begins the names of the nodes that turn bytes into normalised images."""


def onnx_network(
    network: ResNet, crop_px: int, *, half: bool = False, normalization: NormalizationSection | None = None
) -> Any:
    """Writes the graph.

    Args:
        network: What `fold_batch_norm` returned.
        crop_px: Height and width of the images.
        half: Weights and computation in float16; images and logits stay what they are.
        normalization: Done inside, if given.

    Returns:
        An `onnx.ModelProto`: "images", float32 [N, 3, crop_px, crop_px], normalised, to "logits", float32
        [N, num_classes], any N. With `normalization` the images are uint8 [N, crop_px, crop_px, 3], RGB. The last
        layer's input [N, D] is named "embedding".

    Raises:
        RunError: A value is too large for float16.
    """
    graph = _Graph(np.dtype(np.float16 if half else np.float32))
    images = graph.preprocessed(normalization) if normalization is not None else INPUT
    if half:
        images = graph.add("Cast", [images], to=_type_of(np.float16))
    _layers(graph, network, images)
    helper = import_extra("onnx").helper
    side = [crop_px, crop_px]
    shape, kind = (["N", *side, 3], np.uint8) if normalization is not None else (["N", 3, *side], np.float32)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "network",
            [helper.make_tensor_value_info(INPUT, _type_of(kind), shape)],
            [helper.make_tensor_value_info(OUTPUT, _type_of(np.float32), ["N", network.plan.num_classes])],
            graph.constants,
        ),
        producer_name="distill",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    import_extra("onnx").checker.check_model(model, full_check=True)
    return model


def _layers(graph: "_Graph", network: ResNet, images: str) -> None:
    """All layers of the plan, the values behind stages named as the network's taps."""
    plan = network.plan
    value = images
    for conv in plan.stem:
        value = graph.convolution(network, conv.name, conv, value)
    if plan.max_pool:
        value = graph.add("MaxPool", [value], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for blocks in plan.stages:
        for block in blocks:
            value = _block(graph, network, block, value)
    value = graph.add("GlobalAveragePool", [value])
    value = graph.add("Flatten", [value], name="embedding")
    classifier = getattr(network, plan.naming.classifier)
    weight, bias = (
        graph.constant(f"{plan.naming.classifier}.{part}", getattr(classifier, part).numpy())
        for part in ("weight", "bias")
    )
    if graph.dtype == np.float32:
        graph.add("Gemm", [value, weight, bias], name=OUTPUT)
    else:
        graph.add("Cast", [graph.add("Gemm", [value, weight, bias])], name=OUTPUT, to=_type_of(np.float32))


def _block(graph: "_Graph", network: ResNet, block: BlockPlan, value: str) -> str:
    shortcut = value
    if block.shortcut is not None:
        shortcut = graph.convolution(network, f"{block.name}.{block.shortcut.name}", block.shortcut, value)
    for conv in block.convs:
        value = graph.convolution(network, f"{block.name}.{conv.name}", conv, value)
    return graph.add("Relu", [graph.add("Add", [value, shortcut])])


class _Graph:
    """Nodes and constants in the order in which they are added."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, inputs: Sequence[str], *, name: str | None = None, **attributes: Any) -> str:
        """Adds a node with one output, which it returns and which bears the node's name."""
        name = name or f"{operator}_{len(self.nodes)}"
        self.nodes.append(import_extra("onnx").helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: np.ndarray, dtype: np.dtype[Any] | None = None) -> str:
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(values, dtype or self.dtype)
        if not np.isfinite(stored).all():
            raise RunError(f"{name} has values up to {np.abs(values).max():.3g}, too large for {stored.dtype}")
        self.constants.append(import_extra("onnx").numpy_helper.from_array(stored, name))
        return name

    def preprocessed(self, normalization: NormalizationSection) -> str:
        """Bytes [N, H, W, 3] to (x / 255 - mean) / std, float32 [N, 3, H, W]."""
        float32 = np.dtype(np.float32)
        mean, std = (np.array(each).reshape(1, 3, 1, 1) for each in (normalization.mean, normalization.std))
        scale = self.constant(f"{PREPROCESSING}.scale", 1 / (255 * std), float32)
        shift = self.constant(f"{PREPROCESSING}.shift", -mean / std, float32)
        planes = self.add("Transpose", [INPUT], name=f"{PREPROCESSING}.planes", perm=[0, 3, 1, 2])
        values = self.add("Cast", [planes], name=f"{PREPROCESSING}.values", to=_type_of(np.float32))
        scaled = self.add("Mul", [values, scale], name=f"{PREPROCESSING}.scaled")
        return self.add("Add", [scaled, shift], name=f"{PREPROCESSING}.normalised")

    def convolution(self, network: ResNet, path: str, plan: ConvPlan, value: str) -> str:
        """Average pooling where planned, convolution, ReLU where planned."""
        if plan.average_pooled:
            # Rounds up and leaves out what lies beyond the border, as `PaddleKernels` does.
            value = self.add(
                "AveragePool", [value], kernel_shape=[2, 2], strides=2 * [plan.stride], ceil_mode=1, count_include_pad=0
            )
        weight, bias = (
            self.constant(f"{path}.{part}", values)
            for part, values in zip(("weight", "bias"), folded_convolution(network, path), strict=True)
        )
        value = self.add(
            "Conv",
            [value, weight, bias],
            name=path,
            kernel_shape=2 * [plan.kernel_px],
            strides=2 * [1 if plan.average_pooled else plan.stride],
            pads=4 * [plan.kernel_px // 2],
            group=plan.groups,
        )
        return self.add("Relu", [value]) if plan.activation else value


def _type_of(dtype: Any) -> int:
    return int(import_extra("onnx").helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
