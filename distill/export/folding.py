"""Batch normalisation of a trained network put into its convolutions."""

import numpy as np
import paddle
from paddle import nn

from distill.models.plan import conv_layers
from distill.models.resnet import ResNet


def fold_batch_norm(model: ResNet) -> ResNet:
    """The same function without batch normalisation: each convolution has a bias instead.

    With the stored mean m and variance v of an output channel, its scale g and shift b,

        weight' = weight g / sqrt(v + eps),    bias' = b - m g / sqrt(v + eps),

    computed in float64, so that the answers differ from the model's in the last digits of float32 alone.

    Args:
        model: Left as it is.

    Returns:
        A network in evaluation mode whose images are [N, 3, H, W], whatever the model's layout.
    """
    network = ResNet(model.plan)
    network.set_state_dict(model.state_dict())
    naming = model.plan.naming
    for path, _ in conv_layers(model.plan):
        layer = _at(network, path)
        _fold(getattr(layer, naming.convolution), getattr(layer, naming.batch_norm))
        layer.add_sublayer(naming.batch_norm, nn.Identity())
    network.eval()
    return network


def folded_convolution(network: ResNet, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight float32 [out, in / groups, k, k] and bias float32 [out] of a network that `fold_batch_norm` returned.

    Args:
        network: The network.
        path: Of `conv_layers`.
    """
    convolution = getattr(_at(network, path), network.plan.naming.convolution)
    return convolution.weight.numpy(), convolution.bias.numpy()


def _fold(convolution: nn.Conv2D, norm: nn.BatchNorm2D) -> None:
    mean, variance, scale, shift = (
        value.numpy().astype(np.float64) for value in (norm._mean, norm._variance, norm.weight, norm.bias)
    )
    factor = scale / np.sqrt(variance + norm._epsilon)
    weight = convolution.weight.numpy() * factor[:, None, None, None]
    bias = convolution.create_parameter([len(factor)], is_bias=True)
    with paddle.no_grad():
        convolution.weight.set_value(weight.astype(np.float32))
        bias.set_value((shift - mean * factor).astype(np.float32))
    convolution.bias = bias


def _at(network: ResNet, path: str) -> nn.Layer:
    """The convolution at a path of `conv_layers`, whose names may hold dots themselves."""
    layers = dict(network.named_sublayers())
    return layers[path]
