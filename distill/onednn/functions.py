"""What a network's layers do on oneDNN, as differentiable functions of float32 maps [N, H, W, C]."""

from collections.abc import Sequence
from typing import Any

from paddle import Tensor, nn
from paddle.autograd import PyLayer

from distill.onednn.library import Shape
from distill.onednn.operations import (
    POOLING_AVERAGE_OF_EXISTING,
    POOLING_MAX,
    add_relu_for,
    batch_norm_for,
    convolution_for,
    pooling_for,
)


def conv_norm(
    maps: Tensor, weights: Tensor, norm: nn.BatchNorm2D, *, stride: int, padding_px: int, groups: int, relu: bool
) -> Tensor:
    """Convolution without bias, batch normalisation, and maybe ReLU.

    Args:
        maps: [N, H, W, in].
        weights: [out, in / groups, k, k].
        norm: In training mode normalises by the batch, and its stored statistics move as Paddle's kernel moves them:
            momentum * stored + (1 - momentum) * batch's, the variance being the mean of squares; not where it has an
            attribute `keeps_statistics` that is true. Otherwise normalises by the stored ones.
        stride: In both directions.
        padding_px: On all four sides.
        groups: Of channels.
        relu: Whether one follows.

    Returns:
        [N, h, w, out].
    """
    output: Tensor = _ConvNorm.apply(maps, weights, norm.weight, norm.bias, norm, (stride, padding_px, groups), relu)
    return output


def max_pool(maps: Tensor) -> Tensor:
    """The 3x3 maxima of stride 2 behind a stem: [N, H, W, C] to [N, ceil(H / 2), ceil(W / 2), C]."""
    output: Tensor = _Pooling.apply(maps, (POOLING_MAX, 3, 2, 1, False))
    return output


def average_pool(maps: Tensor, stride: int) -> Tensor:
    """The 2x2 means before a shortcut; a window that leaves the map is the mean of what it still covers."""
    output: Tensor = _Pooling.apply(maps, (POOLING_AVERAGE_OF_EXISTING, 2, stride, 0, True))
    return output


def add_relu(left: Tensor, right: Tensor) -> Tensor:
    """relu(left + right) of two tensors of one shape."""
    output: Tensor = _AddRelu.apply(left, right)
    return output


def _channels_second(nhwc: Sequence[int]) -> Shape:
    count, height, width, channels = nhwc
    return count, channels, height, width


class _ConvNorm(PyLayer):
    @staticmethod
    def forward(
        context: Any,
        maps: Tensor,
        weights: Tensor,
        scale: Tensor,
        shift: Tensor,
        norm: nn.BatchNorm2D,
        window: tuple[int, int, int],
        relu: bool,
    ) -> Tensor:
        # What is read below lies as oneDNN expects only where it is contiguous; copies nothing where it is.
        maps, weights = maps.contiguous(), weights.contiguous()
        convolution = convolution_for(_channels_second(maps.shape), tuple(weights.shape), *window)
        batch_norm = batch_norm_for(convolution.output_shape, norm._epsilon, relu, norm.training)
        convolved = convolution.forward(maps, weights)
        mean, variance = norm._mean, norm._variance
        if norm.training:
            mean, variance = scale.clone(), scale.clone()
        output, passed = batch_norm.forward(convolved, scale, shift, mean, variance)
        if norm.training and not getattr(norm, "keeps_statistics", False):
            norm._mean.scale_(norm._momentum).add_(mean * (1 - norm._momentum))
            norm._variance.scale_(norm._momentum).add_(variance * (1 - norm._momentum))
        context.operations = convolution, batch_norm
        context.inputs = maps, weights
        context.normalisation = convolved, scale, mean, variance, passed
        context.wanted = [not tensor.stop_gradient for tensor in (maps, weights, scale)]
        return output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        convolution, batch_norm = context.operations
        maps_wanted, weights_wanted, scale_wanted = context.wanted
        inputs, normalisation = context.inputs, context.normalisation
        context.inputs = context.normalisation = None  # frees the maps while the pass goes on
        gradient, to_scale, to_shift = batch_norm.backward(*normalisation, gradient.contiguous())
        del normalisation
        return (
            convolution.features_gradient(*inputs, gradient) if maps_wanted else None,
            convolution.weights_gradient(*inputs, gradient) if weights_wanted else None,
            *((to_scale, to_shift) if scale_wanted else (None, None)),
        )


class _Pooling(PyLayer):
    @staticmethod
    def forward(context: Any, maps: Tensor, window: tuple[int, int, int, int, bool]) -> Tensor:
        maps = maps.contiguous()
        context.pooling, context.shape = pooling_for(_channels_second(maps.shape), *window), maps.shape
        output, context.places = context.pooling.forward(maps)
        result: Tensor = output
        return result

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        result: Tensor = context.pooling.backward(context.shape, context.places, gradient.contiguous())
        return result


class _AddRelu(PyLayer):
    @staticmethod
    def forward(context: Any, left: Tensor, right: Tensor) -> Tensor:
        left, right = left.contiguous(), right.contiguous()
        context.operation = add_relu_for(left.size)
        context.output = context.operation.forward(left, right)
        context.wanted = not left.stop_gradient, not right.stop_gradient
        output: Tensor = context.output
        return output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gradient = context.operation.backward(context.output, gradient.contiguous())
        left_wanted, right_wanted = context.wanted
        return gradient if left_wanted else None, gradient if right_wanted else None
