#!/usr/bin/env python3
"""How fast a training step on a CPU would be on Paddle's own oneDNN. An experiment: training does not use it.

    python scripts/experiments/onednn_step.py --repeats 5

Eager Paddle never calls the oneDNN that its CPU wheel brings along (libs/libdnnl.so.3). Here ctypes calls it inside
PyLayers: convolutions with batch normalisation and ReLU, poolings and residual sums, forward and backward, on NHWC
maps. Parameters, their gradients and the statistics of batch normalisation stay float32; the maps in between, and
the copies of the weights that convolutions read, are float32 or bfloat16. The mean over pixels, the classifier,
the loss and the optimiser remain Paddle's.

Measured on 2026-11-24, paddlepaddle 3.3.1, two Zen 4 cores, ResNet50_vd, batch 8, 224 px, two threads, images/s:

    eager Paddle       7.4    (5.8 with MKL_DEBUG_CPU_TYPE=5 instead of 7)
    oneDNN, float32   14.0
    oneDNN, bfloat16  18.9

Gradients with fresh weights and four images of noise, relative difference to float64, the largest of any parameter,
measured the same day; the second network is badly conditioned, and eager float32 shows how badly:

                     ResNet18_vd, 64 px    ResNet50_vd, 224 px
    eager Paddle          7.1e-6                 0.030
    oneDNN, float32       1.1e-5                 0.054
    oneDNN, bfloat16      0.58                   1.6

Whether a network trains as well with bfloat16 maps is not yet measured.

What stands between this and a use in training:

- Evaluation mode: batch normalisation always takes the batch's statistics.
- Frozen layers: every convolution and batch normalisation gets a gradient, wanted or not.
- `.contiguous()`: the tensors' memory is read as it lies, so that a view or a strided gradient gives wrong numbers.
- Primitives are cached by shape and never freed: images of many sizes would fill the memory.
- Threads: a primitive and its memories serve one call at a time; two threads that train would mix their data.
- Other versions of oneDNN than 3.6.2: the numbers below are its header's, and another may number differently.
"""

import argparse
import ctypes
import functools
import statistics
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import DistillError, RunError, UserError
from distill.models import create_model, model_names
from distill.parallel import import_paddle, setup_process

paddle = import_paddle()  # without the warning that a plain import raises
from paddle import Tensor  # noqa: E402
from paddle.autograd import PyLayer  # noqa: E402

from distill.models.resnet import ConvNorm, ResidualBlock, ResNet  # noqa: E402

Pointer = ctypes.c_void_p
Shape = tuple[int, ...]
VERSION = (3, 6, 2)
EPSILON = 1e-5  # of batch normalisation, as distill/models/resnet.py has it
MOMENTUM = 0.9  # of its stored statistics, likewise
GRADIENT_MODEL, GRADIENT_BATCH, GRADIENT_PX = "ResNet18_vd", 4, 64

# The numbers of oneDNN's dnnl_types.h and dnnl_common_types.h.
CPU = 1
IN_ORDER = 1
FORWARD_TRAINING, BACKWARD = 64, 128
CONVOLUTION_DIRECT = 0x1
ELTWISE_RELU, ELTWISE_RELU_FROM_OUTPUT = 0x20, 0x100
POOLING_MAX, POOLING_AVERAGE_OF_EXISTING = 0x1FF, 0x3FF
BINARY_ADD = 0x1FFF0
USE_SCALE, USE_SHIFT, FUSE_RELU = 2, 4, 8
BFLOAT16, FLOAT32 = 2, 3
DATA_TYPES = {paddle.bfloat16: BFLOAT16, paddle.float32: FLOAT32}
LAYOUT_ANY = 1
NHWC, VECTOR = "acdb", "a"  # oneDNN gives shapes as N, C, H, W in every layout
# Arguments of a primitive ...
SOURCE, SECOND_SOURCE, OUTPUT, WEIGHTS, WORKSPACE = 1, 2, 17, 33, 64
MEAN, VARIANCE, SCALE, SHIFT = 49, 50, 51, 52
SOURCE_GRADIENT, OUTPUT_GRADIENT, WEIGHTS_GRADIENT, SCALE_GRADIENT, SHIFT_GRADIENT = 129, 145, 161, 255, 256
# ... and the queries for the layouts that it chose.
QUERY_WEIGHTS, QUERY_WEIGHTS_GRADIENT, QUERY_WORKSPACE = 131, 132, 135


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_int), ("minor", ctypes.c_int), ("patch", ctypes.c_int))


class _Argument(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int), ("memory", Pointer))


class Library:
    """Paddle's oneDNN with one engine and one stream.

    Args:
        path: The shared library.

    Raises:
        UserError: It is missing, cannot be loaded, or is not version 3.6.2.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._functions = ctypes.CDLL(str(path))
        except OSError as error:
            raise UserError(
                f"Paddle's oneDNN cannot be loaded ({error}). This experiment needs the CPU wheel of paddlepaddle 3.3.1"
            ) from error
        self._functions.dnnl_version.restype = ctypes.POINTER(_Version)
        self._functions.dnnl_primitive_desc_query_md.restype = Pointer
        self._functions.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        found = self._functions.dnnl_version().contents
        version = (found.major, found.minor, found.patch)
        if version != VERSION:
            expected, received = (".".join(map(str, numbers)) for numbers in (VERSION, version))
            raise UserError(
                f"{path}: expected oneDNN {expected}, received {received}. "
                "This experiment needs the CPU wheel of paddlepaddle 3.3.1"
            )
        self.engine = self.create("engine_create", CPU, ctypes.c_size_t(0))
        self.stream = self.create("stream_create", self.engine, IN_ORDER)

    def create(self, function: str, *arguments: Any) -> Pointer:
        """Calls `dnnl_<function>`, which writes a new object's address to its first argument."""
        created = Pointer()
        self.call(function, ctypes.byref(created), *arguments)
        return created

    def call(self, function: str, *arguments: Any) -> None:
        """Calls `dnnl_<function>`.

        Raises:
            RunError: It returned a status other than 0.
        """
        status = getattr(self._functions, f"dnnl_{function}")(*arguments)
        if status:
            raise RunError(f"dnnl_{function} failed with status {status} (1: memory, 2: arguments, 3: not implemented)")

    def describe(self, kind: str, *arguments: Any) -> Pointer:
        """Creates the descriptor of a primitive, such as "binary", on the engine."""
        return self.create(f"{kind}_primitive_desc_create", self.engine, *arguments)

    def chosen_layout(self, primitive: Pointer, query: int) -> Pointer:
        """The memory descriptor of one of a primitive's arguments."""
        return Pointer(self._functions.dnnl_primitive_desc_query_md(primitive, query, 0))

    def size_bytes(self, layout: Pointer) -> int:
        """What a tensor of this memory descriptor needs."""
        return int(self._functions.dnnl_memory_desc_get_size(layout))

    def equal(self, left: Pointer, right: Pointer) -> bool:
        """Whether two memory descriptors mean the same layout."""
        return bool(self._functions.dnnl_memory_desc_equal(left, right))


@functools.cache
def onednn() -> Library:
    """The library in the folder of the Paddle that is imported."""
    return Library(Path(paddle.__file__).parent / "libs" / "libdnnl.so.3")


class Primitive:
    """A compiled operation.

    Args:
        description: Its descriptor, which must live as long as the primitive.
        layouts: The memory descriptor of each argument, in the order in which `run` takes the tensors.
    """

    def __init__(self, description: Pointer, layouts: dict[int, Pointer]) -> None:
        self._primitive = onednn().create("primitive_create", description)
        self._arguments = (_Argument * len(layouts))()
        for argument, (kind, layout) in zip(self._arguments, layouts.items(), strict=True):
            argument.kind = kind
            argument.memory = onednn().create("memory_create", layout, onednn().engine, None)

    def run(self, *tensors: Tensor) -> None:
        """Reads and writes the tensors' memory, which must lie as the layouts say."""
        for argument, tensor in zip(self._arguments, tensors, strict=True):
            onednn().call("memory_set_data_handle", Pointer(argument.memory), Pointer(tensor.data_ptr()))
        onednn().call("primitive_execute", self._primitive, onednn().stream, len(self._arguments), self._arguments)


class Reordering:
    """Copies a tensor from one layout to another, where they differ.

    Args:
        source: The memory descriptor of what is there.
        target: The one that is wanted.
    """

    def __init__(self, source: Pointer, target: Pointer) -> None:
        self.source_bytes = onednn().size_bytes(source)
        self._target_bytes = onednn().size_bytes(target)
        self._primitive = None
        if not onednn().equal(source, target):
            engine = onednn().engine
            description = onednn().create("reorder_primitive_desc_create", source, engine, target, engine, None)
            self._primitive = Primitive(description, {SOURCE: source, OUTPUT: target})

    @property
    def needed(self) -> bool:
        """Whether the layouts differ."""
        return self._primitive is not None

    def run(self, source: Tensor, target: Tensor | None = None) -> Tensor:
        """Returns the tensor in the other layout: `source` itself where they are equal, else `target` or a new one."""
        if self._primitive is None:
            return source
        target = buffer(self._target_bytes) if target is None else target
        self._primitive.run(source, target)
        return target


@functools.cache
def memory(shape: Shape, data_type: int = FLOAT32, layout: str | None = NHWC) -> Pointer:
    """A memory descriptor; without a layout, the primitive that gets it chooses one."""
    sizes = dimensions(shape)
    if layout is None:
        return onednn().create("memory_desc_create_with_tag", len(shape), sizes, data_type, LAYOUT_ANY)
    return onednn().create("memory_desc_create_with_string_tag", len(shape), sizes, data_type, layout.encode())


def dimensions(values: Sequence[int]) -> Any:
    """The int64[12] that oneDNN takes for shapes, strides and paddings."""
    return (ctypes.c_int64 * 12)(*values)


def buffer(size_bytes: int) -> Tensor:
    """Memory whose content only oneDNN understands."""
    return paddle.empty([-(-size_bytes // 4)], "float32")


def channels_second(nhwc: Sequence[int]) -> Shape:
    """The shape [N, C, H, W] of a tensor [N, H, W, C]."""
    count, height, width, channels = nhwc
    return count, channels, height, width


class Convolution:
    """A convolution without bias, forward and backward.

    Args:
        shape: Of the features, N, C, H, W.
        weights_shape: out, in / groups, k, k.
        stride: In both directions.
        padding_px: On all four sides.
        groups: Of channels.
        data_type: Of the features.
    """

    def __init__(
        self, shape: Shape, weights_shape: Shape, stride: int, padding_px: int, groups: int, data_type: int
    ) -> None:
        out_channels, group_channels, *kernel = weights_shape
        out_px = [(size + 2 * padding_px - k) // stride + 1 for size, k in zip(shape[2:], kernel, strict=True)]
        self.output_shape = (shape[0], out_channels, *out_px)
        plain_shape, plain_layout = weights_shape, "abcd"
        if groups > 1:
            plain_shape, plain_layout = (groups, out_channels // groups, group_channels, *kernel), "abcde"
        plain = memory(plain_shape, FLOAT32, plain_layout)
        source, output = memory(shape, data_type), memory(self.output_shape, data_type)
        padding = dimensions((padding_px, padding_px))
        window = (dimensions((stride, stride)), dimensions((0, 0)), padding, padding)

        free = memory(plain_shape, data_type, None)
        forward = onednn().describe(
            "convolution_forward", FORWARD_TRAINING, CONVOLUTION_DIRECT, source, free, None, output, *window, None
        )
        weights = onednn().chosen_layout(forward, QUERY_WEIGHTS)
        self._forward = Primitive(forward, {SOURCE: source, WEIGHTS: weights, OUTPUT: output})
        self._forward_weights = Reordering(plain, weights)

        to_source = onednn().describe(
            "convolution_backward_data", CONVOLUTION_DIRECT, source, free, output, *window, forward, None
        )
        weights = onednn().chosen_layout(to_source, QUERY_WEIGHTS)
        layouts = {SOURCE_GRADIENT: source, WEIGHTS: weights, OUTPUT_GRADIENT: output}
        self._to_source = Primitive(to_source, layouts)
        self._backward_weights = Reordering(plain, weights)

        free = memory(plain_shape, FLOAT32, None)
        to_weights = onednn().describe(
            "convolution_backward_weights", CONVOLUTION_DIRECT, source, free, None, output, *window, forward, None
        )
        gradient = onednn().chosen_layout(to_weights, QUERY_WEIGHTS_GRADIENT)
        layouts = {SOURCE: source, WEIGHTS_GRADIENT: gradient, OUTPUT_GRADIENT: output}
        self._to_weights = Primitive(to_weights, layouts)
        self._weights_gradient = Reordering(gradient, plain)

    def forward(self, features: Tensor, weights: Tensor) -> Tensor:
        """Maps [N, H, W, in] and float32 [out, in / groups, k, k] to [N, h, w, out]."""
        count, channels, height, width = self.output_shape
        output = paddle.empty([count, height, width, channels], features.dtype)
        self._forward.run(features, self._forward_weights.run(weights), output)
        return output

    def features_gradient(self, features: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of the features, from that of the output."""
        result = paddle.empty_like(features)
        self._to_source.run(result, self._backward_weights.run(weights), gradient)
        return result

    def weights_gradient(self, features: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of the weights, float32, from that of the output."""
        result = paddle.empty_like(weights)
        if not self._weights_gradient.needed:
            self._to_weights.run(features, result, gradient)
            return result
        chosen = buffer(self._weights_gradient.source_bytes)
        self._to_weights.run(features, chosen, gradient)
        return self._weights_gradient.run(chosen, result)


class BatchNorm:
    """Batch normalisation by the batch's statistics, with or without a ReLU behind it.

    Args:
        shape: N, C, H, W.
        relu: Whether a ReLU follows.
        data_type: Of the maps.
    """

    def __init__(self, shape: Shape, relu: bool, data_type: int) -> None:
        maps, channel = memory(shape, data_type), memory((shape[1],), FLOAT32, VECTOR)
        epsilon, flags = ctypes.c_float(EPSILON), USE_SCALE | USE_SHIFT | (FUSE_RELU if relu else 0)
        forward = onednn().describe("batch_normalization_forward", FORWARD_TRAINING, maps, maps, epsilon, flags, None)
        backward = onednn().describe(
            "batch_normalization_backward", BACKWARD, maps, maps, maps, epsilon, flags, forward, None
        )
        mask = {WORKSPACE: onednn().chosen_layout(forward, QUERY_WORKSPACE)} if relu else {}
        self._mask_bytes = onednn().size_bytes(mask[WORKSPACE]) if relu else 0
        inputs = {SOURCE: maps, SCALE: channel, SHIFT: channel}
        self._forward = Primitive(forward, {**inputs, OUTPUT: maps, MEAN: channel, VARIANCE: channel, **mask})
        inputs = {SOURCE: maps, MEAN: channel, VARIANCE: channel, OUTPUT_GRADIENT: maps, SCALE: channel}
        gradients = {SOURCE_GRADIENT: maps, SCALE_GRADIENT: channel, SHIFT_GRADIENT: channel}
        self._backward = Primitive(backward, {**inputs, **gradients, **mask})

    def forward(self, maps: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Returns the normalised maps, mean and variance [C], and what the ReLU let pass (nothing without one)."""
        output, mean, variance = paddle.empty_like(maps), paddle.empty_like(scale), paddle.empty_like(scale)
        mask = (buffer(self._mask_bytes),) if self._mask_bytes else ()
        self._forward.run(maps, scale, shift, output, mean, variance, *mask)
        return output, mean, variance, mask

    def backward(
        self, maps: Tensor, scale: Tensor, mean: Tensor, variance: Tensor, mask: tuple[Tensor, ...], gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of maps, scale and shift, from that of the output."""
        results = (paddle.empty_like(maps), paddle.empty_like(scale), paddle.empty_like(scale))
        self._backward.run(maps, mean, variance, gradient, scale, *results, *mask)
        return results


class Pooling:
    """A pooling with a square window.

    Args:
        shape: N, C, H, W.
        kind: POOLING_MAX, or POOLING_AVERAGE_OF_EXISTING: beyond the border there is nothing to average.
        kernel_px: Side of the window.
        stride: In both directions.
        padding_px: Above and on the left; below and on the right what the output's size needs.
        round_up: Whether a window may begin inside and end beyond the border (only without padding).
        data_type: Of the maps.
    """

    def __init__(
        self, shape: Shape, kind: int, kernel_px: int, stride: int, padding_px: int, round_up: bool, data_type: int
    ) -> None:
        count, channels, *sizes = shape
        if round_up:
            out_px = [-(-size // stride) for size in sizes]
        else:
            out_px = [(size + 2 * padding_px - kernel_px) // stride + 1 for size in sizes]
        ends = [(out - 1) * stride + kernel_px - size - padding_px for out, size in zip(out_px, sizes, strict=True)]
        self._output_shape = [count, *out_px, channels]
        source, output = memory(shape, data_type), memory((count, channels, *out_px), data_type)
        window = [(stride, stride), (kernel_px, kernel_px), (0, 0), (padding_px, padding_px), ends]
        sides = [dimensions(values) for values in window]
        forward = onednn().describe("pooling_forward", FORWARD_TRAINING, kind, source, output, *sides, None)
        backward = onednn().describe("pooling_backward", kind, source, output, *sides, forward, None)
        is_max = kind == POOLING_MAX
        places = {WORKSPACE: onednn().chosen_layout(forward, QUERY_WORKSPACE)} if is_max else {}
        self._places_bytes = onednn().size_bytes(places[WORKSPACE]) if is_max else 0
        self._forward = Primitive(forward, {SOURCE: source, OUTPUT: output, **places})
        self._backward = Primitive(backward, {SOURCE_GRADIENT: source, OUTPUT_GRADIENT: output, **places})

    def forward(self, maps: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the pooled maps, and where each maximum lay (nothing for means)."""
        output = paddle.empty(self._output_shape, maps.dtype)
        places = (buffer(self._places_bytes),) if self._places_bytes else ()
        self._forward.run(maps, output, *places)
        return output, places

    def backward(self, shape: Sequence[int], places: tuple[Tensor, ...], gradient: Tensor) -> Tensor:
        """The gradient of the maps [N, H, W, C], from that of the output."""
        result = paddle.empty(shape, gradient.dtype)
        self._backward.run(result, gradient, *places)
        return result


class AddRelu:
    """relu(left + right) of `size` values."""

    def __init__(self, size: int, data_type: int) -> None:
        values, zero = memory((size,), data_type, VECTOR), ctypes.c_float(0)
        then = onednn().create("post_ops_create")
        onednn().call("post_ops_append_eltwise", then, ELTWISE_RELU, zero, zero)
        attributes = onednn().create("primitive_attr_create")
        onednn().call("primitive_attr_set_post_ops", attributes, then)
        add = onednn().describe("binary", BINARY_ADD, values, values, values, attributes)
        self._forward = Primitive(add, {SOURCE: values, SECOND_SOURCE: values, OUTPUT: values})
        relu = (ELTWISE_RELU_FROM_OUTPUT, values, values)
        hint = onednn().describe("eltwise_forward", FORWARD_TRAINING, *relu, zero, zero, None)
        backward = onednn().describe("eltwise_backward", *relu, values, zero, zero, hint, None)
        self._backward = Primitive(backward, {OUTPUT: values, OUTPUT_GRADIENT: values, SOURCE_GRADIENT: values})

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Of two tensors of one shape."""
        output = paddle.empty_like(left)
        self._forward.run(left, right, output)
        return output

    def backward(self, output: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of either operand, from that of the output."""
        result = paddle.empty_like(output)
        self._backward.run(output, gradient, result)
        return result


convolution_for, batch_norm_for, pooling_for, add_relu_for = map(
    functools.cache, (Convolution, BatchNorm, Pooling, AddRelu)
)


class ConvNormFunction(PyLayer):
    """Convolution, batch normalisation and maybe ReLU on [N, H, W, C]; moves the stored statistics."""

    @staticmethod
    def forward(
        context: Any,
        features: Tensor,
        weights: Tensor,
        scale: Tensor,
        shift: Tensor,
        stored_mean: Tensor,
        stored_variance: Tensor,
        stride: int,
        padding_px: int,
        groups: int,
        relu: bool,
    ) -> Tensor:
        """The output [N, h, w, out], in the features' data type."""
        data_type = DATA_TYPES[features.dtype]
        shapes = channels_second(features.shape), tuple(weights.shape)
        convolution = convolution_for(*shapes, stride, padding_px, groups, data_type)
        batch_norm = batch_norm_for(convolution.output_shape, relu, data_type)
        maps = convolution.forward(features, weights)
        output, mean, variance, mask = batch_norm.forward(maps, scale, shift)
        stored_mean.scale_(MOMENTUM).add_(mean * (1 - MOMENTUM))
        stored_variance.scale_(MOMENTUM).add_(variance * (1 - MOMENTUM))
        context.operations = convolution, batch_norm
        context.inputs = features, weights
        context.normalisation = maps, scale, mean, variance, mask
        context.features_need_gradient = not features.stop_gradient
        return output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """The gradients of features (None for images), weights, scale and shift."""
        convolution, batch_norm = context.operations
        inputs = context.inputs
        gradient, to_scale, to_shift = batch_norm.backward(*context.normalisation, gradient)
        context.inputs = context.normalisation = None  # frees the maps while the pass goes on
        to_features = convolution.features_gradient(*inputs, gradient) if context.features_need_gradient else None
        return to_features, convolution.weights_gradient(*inputs, gradient), to_scale, to_shift


class PoolingFunction(PyLayer):
    """A pooling on [N, H, W, C]; see `Pooling` for the arguments."""

    @staticmethod
    def forward(
        context: Any, maps: Tensor, kind: int, kernel_px: int, stride: int, padding_px: int, round_up: bool
    ) -> Tensor:
        """The pooled maps."""
        shape, data_type = channels_second(maps.shape), DATA_TYPES[maps.dtype]
        context.pooling = pooling_for(shape, kind, kernel_px, stride, padding_px, round_up, data_type)
        output, context.places = context.pooling.forward(maps)
        context.shape = maps.shape
        return output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """The gradient of the maps."""
        return context.pooling.backward(context.shape, context.places, gradient)


class AddReluFunction(PyLayer):
    """relu(left + right)."""

    @staticmethod
    def forward(context: Any, left: Tensor, right: Tensor) -> Tensor:
        """Of two tensors of one shape."""
        context.operation = add_relu_for(left.size, DATA_TYPES[left.dtype])
        context.output = context.operation.forward(left, right)
        return context.output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient, the same for both."""
        gradient = context.operation.backward(context.output, gradient)
        return gradient, gradient


def on_onednn(network: ResNet, data_type: str = "float32") -> ResNet:
    """Makes a network in NCHW compute on oneDNN, with maps in "float32" or "bfloat16"; images stay [N, 3, H, W]."""
    for layer in network.sublayers():
        if isinstance(layer, ConvNorm):
            layer.forward = types.MethodType(_conv_norm, layer)  # type: ignore[method-assign]
        elif isinstance(layer, ResidualBlock):
            layer.forward = types.MethodType(_residual_block, layer)  # type: ignore[method-assign]

    def stem(images: Tensor) -> Tensor:
        features = paddle.transpose(images, [0, 2, 3, 1]).contiguous().astype(data_type)
        for conv in network.plan.stem:
            features = getattr(network, conv.name)(features)
        return PoolingFunction.apply(features, POOLING_MAX, 3, 2, 1, False) if network.plan.max_pool else features

    def mean_over_pixels(features: Tensor) -> Tensor:
        return features.astype("float32").mean(axis=[1, 2])

    network._stem = stem  # type: ignore[method-assign]
    network._embedding = mean_over_pixels  # type: ignore[method-assign]
    return network


def _conv_norm(layer: ConvNorm, features: Tensor) -> Tensor:
    plan, stride = layer._plan, layer._plan.stride
    if plan.average_pooled:
        features = PoolingFunction.apply(features, POOLING_AVERAGE_OF_EXISTING, 2, stride, 0, True)
        stride = 1
    norm = getattr(layer, layer._naming.batch_norm)
    parameters = (getattr(layer, layer._naming.convolution).weight, norm.weight, norm.bias, norm._mean, norm._variance)
    return ConvNormFunction.apply(
        features, *parameters, stride, plan.kernel_px // 2, plan.groups, bool(plan.activation)
    )


def _residual_block(block: ResidualBlock, features: Tensor) -> Tensor:
    shortcut = features
    if block._plan.shortcut is not None:
        shortcut = getattr(block, block._plan.shortcut.name)(features)
    for conv in block._plan.convs:
        features = getattr(block, conv.name)(features)
    return AddReluFunction.apply(features, shortcut)


def main() -> int:
    options = parse_arguments()
    try:
        threads = setup_process("cpu").threads
        onednn()
        print(
            f"{options.model}, batch {options.batch}, {options.px} px, {threads} threads, median of {options.repeats}"
        )
        report_speed(options)
        report_gradients()
    except DistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=model_names(), default="ResNet50_vd", metavar="NAME", help="%(default)s")
    parser.add_argument("--batch", type=_positive, default=8, help="images a step (default %(default)s)")
    parser.add_argument("--px", type=_positive, default=224, help="side of the images (default %(default)s)")
    parser.add_argument("--repeats", type=_positive, default=5, help="timed steps of each (default %(default)s)")
    return parser.parse_args()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, received {text!r}")
    return int(text)


def report_speed(options: argparse.Namespace) -> None:
    """Times steps of the three in turn, so that a busy moment meets all of them, and prints the medians."""
    contenders = {
        "eager": create_model(options.model),
        "oneDNN float32": on_onednn(create_model(options.model)),
        "oneDNN bfloat16": on_onednn(create_model(options.model), "bfloat16"),
    }
    images = paddle.randn([options.batch, 3, options.px, options.px])
    labels = paddle.randint(0, 1000, [options.batch])
    steps = {name: training_step(network, images, labels) for name, network in contenders.items()}
    for step in [*steps.values()] * 2:
        step()  # compiles primitives, fills caches
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    for name, values in seconds.items():
        ratio = statistics.median(eager / own for eager, own in zip(seconds["eager"], values, strict=True))
        print(f"{name:16} {options.batch / statistics.median(values):6.2f} images/s, {ratio:.2f} x eager")


def training_step(network: ResNet, images: Tensor, labels: Tensor) -> Callable[[], float]:
    """A step of training as in recipes (Nesterov momentum, weight decay) that returns the loss."""
    network.train()
    optimizer = paddle.optimizer.Momentum(
        0.01, 0.9, parameters=network.parameters(), use_nesterov=True, weight_decay=1e-4
    )

    def step() -> float:
        loss = paddle.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return float(loss)

    return step


def report_gradients() -> None:
    """Prints the largest relative difference of any parameter's gradient to that in float64."""
    weights = {key: value.numpy() for key, value in create_model(GRADIENT_MODEL).state_dict().items()}
    rng = np.random.Generator(np.random.Philox(0))
    images = rng.standard_normal((GRADIENT_BATCH, 3, GRADIENT_PX, GRADIENT_PX))
    labels = paddle.to_tensor(rng.integers(0, 1000, GRADIENT_BATCH))

    def gradients(data_type: str, prepare: Callable[[ResNet], ResNet]) -> dict[str, np.ndarray]:
        paddle.set_default_dtype(data_type)
        network = create_model(GRADIENT_MODEL)
        paddle.set_default_dtype("float32")
        network.set_state_dict({key: paddle.to_tensor(value.astype(data_type)) for key, value in weights.items()})
        network.train()
        answers = prepare(network)(paddle.to_tensor(images.astype(data_type)))
        paddle.nn.functional.cross_entropy(answers, labels).backward()
        learned = {key: value for key, value in network.named_parameters() if not value.stop_gradient}
        return {key: value.grad.numpy().astype("float64") for key, value in learned.items()}

    exact = gradients("float64", lambda network: network)
    print(f"gradients against float64, {GRADIENT_MODEL}, batch {GRADIENT_BATCH}, {GRADIENT_PX} px, relative:")
    contenders: dict[str, Callable[[ResNet], ResNet]] = {
        "eager": lambda network: network,
        "oneDNN float32": on_onednn,
        "oneDNN bfloat16": lambda network: on_onednn(network, "bfloat16"),
    }
    for name, prepare in contenders.items():
        found = gradients("float32", prepare)
        differences = [
            float(np.linalg.norm(found[key] - value) / np.linalg.norm(value)) for key, value in exact.items()
        ]
        print(f"{name:16} largest {max(differences):.1e}, median {statistics.median(differences):.1e}")


if __name__ == "__main__":
    sys.exit(main())
