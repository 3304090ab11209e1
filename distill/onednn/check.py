"""Whether oneDNN answers as Paddle's kernels do, found out on a few small layers."""

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from distill.errors import RunError
from distill.onednn import functions
from distill.onednn.library import onednn

TOLERANCE = 1e-4
"""Of the largest value of each tensor; found with oneDNN 3.6.2: below 1e-6. A product in bfloat16 would give 4e-3."""
_BATCH, _CHANNELS, _SIDE_PX, _GROUPS = 3, 12, 9, 2


def compare_with_paddle() -> str:
    """Runs a stem and a residual block both ways, forward and backward, in training and evaluation mode.

    Returns:
        oneDNN's version.

    Raises:
        RunError: A tensor differs by more than `TOLERANCE` of its largest value.
        AttributeError: The library lacks a function.
    """
    # Not from Paddle's generator: the weights that a run draws next must not depend on whether there was a check, and
    # `paddle.set_rng_state` puts it back to its seed, not to where it was (3.3.1).
    noise = np.random.default_rng(0)
    with paddle.utils.unique_name.guard():
        layers = [_layer(noise, groups) for groups in (1, _GROUPS, 1)]
    images = paddle.to_tensor(noise.standard_normal((_BATCH, _SIDE_PX, _SIDE_PX, _CHANNELS), dtype=np.float32))
    for training in (True, False):
        ours, paddles = _answers(layers, images, training, on_onednn=True), _answers(layers, images, training)
        for name, expected in paddles.items():
            difference = float((ours[name] - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
            if not difference <= TOLERANCE:
                raise RunError(
                    f"oneDNN {onednn().version} differs from Paddle's kernels in {name} by {difference:.1e} of the "
                    f"largest value, {TOLERANCE:g} is allowed"
                )
    return onednn().version


def _layer(noise: np.random.Generator, groups: int) -> tuple[nn.Conv2D, nn.BatchNorm2D]:
    shape = (_CHANNELS, _CHANNELS // groups, 3, 3)
    weights = nn.initializer.Assign(noise.standard_normal(shape, dtype=np.float32))
    convolution = nn.Conv2D(
        _CHANNELS,
        _CHANNELS,
        3,
        padding=1,
        groups=groups,
        weight_attr=paddle.ParamAttr(initializer=weights),
        bias_attr=False,
        data_format="NHWC",
    )
    return convolution, nn.BatchNorm2D(_CHANNELS, data_format="NHWC")


def _answers(
    layers: list[tuple[nn.Conv2D, nn.BatchNorm2D]], images: Tensor, training: bool, *, on_onednn: bool = False
) -> dict[str, Tensor]:
    """Output, gradients and moved statistics, by name; the layers are left as they were."""
    images = images.detach()
    images.stop_gradient = False
    statistics: dict[str, Tensor] = {}
    for number, (_, norm) in enumerate(layers):
        norm.training = training
        statistics |= {f"mean {number}": norm._mean, f"variance {number}": norm._variance}
    before = {name: value.clone() for name, value in statistics.items()}
    block = _block_on_onednn if on_onednn else _block_on_paddle
    output = block(layers, images)
    (output * output).sum().backward()
    answers = {"output": output.detach(), "images' gradient": images.grad}
    for number, (convolution, norm) in enumerate(layers):
        for name, parameter in (("weights", convolution.weight), ("scale", norm.weight), ("shift", norm.bias)):
            answers[f"gradient of {name} {number}"] = parameter.grad.clone()
            parameter.clear_gradient(False)
    for name, value in statistics.items():
        answers[name] = value.clone()
        value.set_value(before[name])
    return answers


def _block_on_onednn(layers: list[tuple[nn.Conv2D, nn.BatchNorm2D]], images: Tensor) -> Tensor:
    def layer(number: int, maps: Tensor, stride: int, relu: bool) -> Tensor:
        convolution, norm = layers[number]
        groups = convolution._groups
        return functions.conv_norm(
            maps, convolution.weight, norm, stride=stride, padding_px=1, groups=groups, relu=relu
        )

    stem = functions.max_pool(layer(0, images, 1, True))
    branch = layer(1, stem, 2, False)
    shortcut = layer(2, functions.average_pool(stem, 2), 1, False)
    return functions.add_relu(branch, shortcut)


def _block_on_paddle(layers: list[tuple[nn.Conv2D, nn.BatchNorm2D]], images: Tensor) -> Tensor:
    def layer(number: int, maps: Tensor, stride: int, relu: bool) -> Tensor:
        convolution, norm = layers[number]
        maps = functional.conv2d(
            maps, convolution.weight, stride=stride, padding=1, groups=convolution._groups, data_format="NHWC"
        )
        maps = functional.batch_norm(
            maps,
            norm._mean,
            norm._variance,
            norm.weight,
            norm.bias,
            training=norm.training,
            momentum=norm._momentum,
            epsilon=norm._epsilon,
            data_format="NHWC",
        )
        return functional.relu(maps) if relu else maps

    stem = functional.max_pool2d(layer(0, images, 1, True), 3, 2, 1, data_format="NHWC")
    branch = layer(1, stem, 2, False)
    pooled = functional.avg_pool2d(stem, 2, 2, ceil_mode=True, exclusive=True, data_format="NHWC")
    return functional.relu(branch + layer(2, pooled, 1, False))
