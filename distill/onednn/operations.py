"""Convolution, batch normalisation, pooling and residual sum on oneDNN, forward and backward.

Maps are float32 [N, H, W, C] and contiguous; shapes are given as oneDNN has them, (N, C, H, W). An operation is
compiled for one shape when it is first needed (some milliseconds), and of each family the last `MOST_KEPT` are kept.
"""

import ctypes
import functools
from collections.abc import Sequence

import paddle
from paddle import Tensor

from distill.onednn.library import (
    VECTOR,
    Layouts,
    Primitive,
    Reordering,
    Shape,
    buffer,
    dimensions,
    memory,
    onednn,
)

MOST_KEPT = 256
"""A ResNet200_vd has 35 shapes a batch size, and training meets four of these: whole and last batches of training and
of evaluation."""

# Numbers of oneDNN's dnnl_types.h.
_FORWARD_TRAINING, _BACKWARD = 64, 128
_CONVOLUTION_DIRECT = 0x1
_RELU, _RELU_FROM_OUTPUT = 0x20, 0x100
POOLING_MAX, POOLING_AVERAGE_OF_EXISTING = 0x1FF, 0x3FF
_BINARY_ADD = 0x1FFF0
_GIVEN_STATISTICS, _USE_SCALE, _USE_SHIFT, _FUSE_RELU = 1, 2, 4, 8
# Arguments of a primitive ...
_SOURCE, _SECOND_SOURCE, _OUTPUT, _WEIGHTS, _WORKSPACE = 1, 2, 17, 33, 64
_MEAN, _VARIANCE, _SCALE, _SHIFT = 49, 50, 51, 52
_SOURCE_GRADIENT, _OUTPUT_GRADIENT, _WEIGHTS_GRADIENT, _SCALE_GRADIENT, _SHIFT_GRADIENT = 129, 145, 161, 255, 256
# ... and the queries for the layouts that it chose.
_QUERY_WEIGHTS, _QUERY_WEIGHTS_GRADIENT, _QUERY_WORKSPACE = 131, 132, 135


class Convolution:
    """A convolution without bias.

    Args:
        shape: Of the features.
        weights_shape: out, in / groups, k, k.
        stride: In both directions.
        padding_px: On all four sides.
        groups: Of channels.

    Attributes:
        output_shape: N, C, H, W.
    """

    def __init__(self, shape: Shape, weights_shape: Shape, stride: int, padding_px: int, groups: int) -> None:
        out_channels, group_channels, *kernel = weights_shape
        out_px = [(size + 2 * padding_px - k) // stride + 1 for size, k in zip(shape[2:], kernel, strict=True)]
        self.output_shape = (shape[0], out_channels, *out_px)
        self._weights_shape, plain_layout = weights_shape, "abcd"
        if groups > 1:
            self._weights_shape = (groups, out_channels // groups, group_channels, *kernel)
            plain_layout = "abcde"
        self._plain = memory(self._weights_shape, plain_layout)
        self._source, self._output = memory(shape), memory(self.output_shape)
        padding = dimensions((padding_px, padding_px))
        self._window = (dimensions((stride, stride)), dimensions((0, 0)), padding, padding)

        free = memory(self._weights_shape, None)
        self._description = onednn().describe(
            "convolution_forward",
            _FORWARD_TRAINING,
            _CONVOLUTION_DIRECT,
            self._source,
            free,
            None,
            self._output,
            *self._window,
            None,
        )
        weights = onednn().chosen_layout(self._description, _QUERY_WEIGHTS)
        layouts: Layouts = {_SOURCE: self._source, _WEIGHTS: weights, _OUTPUT: self._output}
        self._forward = Primitive(self._description, layouts)
        self._forward_weights = Reordering(self._plain, weights)

    @functools.cached_property
    def _to_source(self) -> tuple[Primitive, Reordering]:
        free = memory(self._weights_shape, None)
        arguments = (self._source, free, self._output, *self._window, self._description, None)
        description = onednn().describe("convolution_backward_data", _CONVOLUTION_DIRECT, *arguments)
        weights = onednn().chosen_layout(description, _QUERY_WEIGHTS)
        layouts: Layouts = {_SOURCE_GRADIENT: self._source, _WEIGHTS: weights, _OUTPUT_GRADIENT: self._output}
        return Primitive(description, layouts), Reordering(self._plain, weights)

    @functools.cached_property
    def _to_weights(self) -> tuple[Primitive, Reordering]:
        free = memory(self._weights_shape, None)
        arguments = (self._source, free, None, self._output, *self._window, self._description, None)
        description = onednn().describe("convolution_backward_weights", _CONVOLUTION_DIRECT, *arguments)
        gradient = onednn().chosen_layout(description, _QUERY_WEIGHTS_GRADIENT)
        layouts: Layouts = {_SOURCE: self._source, _WEIGHTS_GRADIENT: gradient, _OUTPUT_GRADIENT: self._output}
        return Primitive(description, layouts), Reordering(gradient, self._plain)

    def forward(self, features: Tensor, weights: Tensor) -> Tensor:
        """Maps [N, H, W, in] and [out, in / groups, k, k] to [N, h, w, out]."""
        count, channels, height, width = self.output_shape
        output = paddle.empty([count, height, width, channels], "float32")
        self._forward.run(features, self._forward_weights.run(weights), output)
        return output

    def features_gradient(self, features: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of the features, from that of the output."""
        primitive, layout = self._to_source
        result = paddle.empty_like(features)
        primitive.run(result, layout.run(weights), gradient)
        return result

    def weights_gradient(self, features: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of the weights, from that of the output."""
        primitive, layout = self._to_weights
        result = paddle.empty_like(weights)
        chosen = buffer(layout.source_bytes) if layout.needed else result
        primitive.run(features, chosen, gradient)
        return layout.run(chosen, result)


class BatchNorm:
    """Batch normalisation, with or without a ReLU behind it.

    Args:
        shape: Of the maps.
        epsilon: Added to the variance.
        relu: Whether a ReLU follows.
        by_batch: Whether the batch's statistics normalise; else those that are given.
    """

    def __init__(self, shape: Shape, epsilon: float, relu: bool, by_batch: bool) -> None:
        maps, channel = memory(shape), memory((shape[1],), VECTOR)
        flags = _USE_SCALE | _USE_SHIFT | (_FUSE_RELU if relu else 0) | (0 if by_batch else _GIVEN_STATISTICS)
        common = (ctypes.c_float(epsilon), flags)
        forward = onednn().describe("batch_normalization_forward", _FORWARD_TRAINING, maps, maps, *common, None)
        backward = onednn().describe(
            "batch_normalization_backward", _BACKWARD, maps, maps, maps, *common, forward, None
        )
        passed: Layouts = {}
        if relu:
            passed = {_WORKSPACE: onednn().chosen_layout(forward, _QUERY_WORKSPACE)}
        self._passed_bytes = onednn().size_bytes(passed[_WORKSPACE]) if relu else 0
        inputs: Layouts = {_SOURCE: maps, _SCALE: channel, _SHIFT: channel}
        statistics: Layouts = {_MEAN: channel, _VARIANCE: channel}
        self._forward = Primitive(forward, {**inputs, **statistics, _OUTPUT: maps, **passed})
        inputs = {_SOURCE: maps, _SCALE: channel, _OUTPUT_GRADIENT: maps}
        gradients = {_SOURCE_GRADIENT: maps, _SCALE_GRADIENT: channel, _SHIFT_GRADIENT: channel}
        self._backward = Primitive(backward, {**inputs, **statistics, **gradients, **passed})

    def forward(
        self, maps: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Normalises maps.

        Args:
            maps: [N, H, W, C].
            scale: [C].
            shift: [C].
            mean: [C], read, or written where the batch's statistics normalise.
            variance: Likewise; the batch's is the mean of squares, not corrected for N.

        Returns:
            The normalised maps, and what the ReLU let pass (nothing without one).
        """
        output = paddle.empty_like(maps)
        passed = (buffer(self._passed_bytes),) if self._passed_bytes else ()
        self._forward.run(maps, scale, shift, mean, variance, output, *passed)
        return output, passed

    def backward(
        self, maps: Tensor, scale: Tensor, mean: Tensor, variance: Tensor, passed: tuple[Tensor, ...], gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of maps, scale and shift, from that of the output."""
        results = (paddle.empty_like(maps), paddle.empty_like(scale), paddle.empty_like(scale))
        self._backward.run(maps, scale, gradient, mean, variance, *results, *passed)
        return results


class Pooling:
    """A pooling with a square window.

    Args:
        shape: Of the maps.
        kind: POOLING_MAX, or POOLING_AVERAGE_OF_EXISTING: beyond the border there is nothing to average.
        kernel_px: Side of the window.
        stride: In both directions.
        padding_px: Above and on the left; below and on the right what the output's size needs.
        round_up: Whether a window may begin inside and end beyond the border (only without padding).
    """

    def __init__(self, shape: Shape, kind: int, kernel_px: int, stride: int, padding_px: int, round_up: bool) -> None:
        count, channels, *sizes = shape
        if round_up:
            out_px = [-(-size // stride) for size in sizes]
        else:
            out_px = [(size + 2 * padding_px - kernel_px) // stride + 1 for size in sizes]
        ends = [(out - 1) * stride + kernel_px - size - padding_px for out, size in zip(out_px, sizes, strict=True)]
        self._output_shape = [count, *out_px, channels]
        source, output = memory(shape), memory((count, channels, *out_px))
        window = [(stride, stride), (kernel_px, kernel_px), (0, 0), (padding_px, padding_px), ends]
        sides = [dimensions(values) for values in window]
        forward = onednn().describe("pooling_forward", _FORWARD_TRAINING, kind, source, output, *sides, None)
        backward = onednn().describe("pooling_backward", kind, source, output, *sides, forward, None)
        places: Layouts = {}
        if kind == POOLING_MAX:
            places = {_WORKSPACE: onednn().chosen_layout(forward, _QUERY_WORKSPACE)}
        self._places_bytes = onednn().size_bytes(places[_WORKSPACE]) if places else 0
        self._forward = Primitive(forward, {_SOURCE: source, _OUTPUT: output, **places})
        self._backward = Primitive(backward, {_SOURCE_GRADIENT: source, _OUTPUT_GRADIENT: output, **places})

    def forward(self, maps: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the pooled maps, and where each maximum lay (nothing for means)."""
        output = paddle.empty(self._output_shape, "float32")
        places = (buffer(self._places_bytes),) if self._places_bytes else ()
        self._forward.run(maps, output, *places)
        return output, places

    def backward(self, shape: Sequence[int], places: tuple[Tensor, ...], gradient: Tensor) -> Tensor:
        """The gradient of the maps [N, H, W, C], from that of the output."""
        result = paddle.empty(shape, "float32")
        self._backward.run(result, gradient, *places)
        return result


class AddRelu:
    """relu(left + right) of `size` values."""

    def __init__(self, size: int) -> None:
        values, zero = memory((size,), VECTOR), ctypes.c_float(0)
        then = onednn().create("post_ops", "post_ops_create")
        onednn().call("post_ops_append_eltwise", then, _RELU, zero, zero)
        attributes = onednn().create("primitive_attr", "primitive_attr_create")
        onednn().call("primitive_attr_set_post_ops", attributes, then)
        add = onednn().describe("binary", _BINARY_ADD, values, values, values, attributes)
        self._forward = Primitive(add, {_SOURCE: values, _SECOND_SOURCE: values, _OUTPUT: values})
        relu = (_RELU_FROM_OUTPUT, values, values)
        hint = onednn().describe("eltwise_forward", _FORWARD_TRAINING, *relu, zero, zero, None)
        backward = onednn().describe("eltwise_backward", *relu, values, zero, zero, hint, None)
        self._backward = Primitive(backward, {_OUTPUT: values, _OUTPUT_GRADIENT: values, _SOURCE_GRADIENT: values})

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


convolution_for = functools.lru_cache(MOST_KEPT)(Convolution)
batch_norm_for = functools.lru_cache(MOST_KEPT)(BatchNorm)
pooling_for = functools.lru_cache(MOST_KEPT)(Pooling)
add_relu_for = functools.lru_cache(MOST_KEPT)(AddRelu)
