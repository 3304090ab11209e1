"""Layers on oneDNN against Paddle's kernels in float64, forward and backward."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional

from distill.onednn import functions
from distill.onednn.operations import MOST_KEPT, add_relu_for

RNG = np.random.default_rng(0)
LAYERS = {  # in, out, kernel, stride, groups, side
    "stem": (3, 32, 3, 2, 1, 33),
    "wide stem": (3, 16, 7, 2, 1, 28),
    "1x1": (16, 40, 1, 1, 1, 7),
    "3x3, odd side, odd channels": (5, 7, 3, 2, 1, 9),
    "groups": (24, 24, 3, 1, 4, 8),
    "one pixel": (8, 8, 3, 1, 1, 1),
}


def tensors(*arrays, data_type="float32", wanted=True):
    return [paddle.to_tensor(array.astype(data_type), stop_gradient=not wanted) for array in arrays]


def norm_layer(channels, data_type):
    paddle.set_default_dtype(data_type)
    norm = nn.BatchNorm2D(channels, data_format="NHWC")
    paddle.set_default_dtype("float32")
    return norm


def close(received, expected, tolerance=2e-5):
    difference = np.abs(received.numpy().astype("float64") - expected.numpy()).max()
    return difference <= tolerance * max(np.abs(expected.numpy()).max(), 1e-12)


def paddles_conv_norm(maps, weights, norm, *, stride, padding_px, groups, relu):
    maps = functional.conv2d(maps, weights, stride=stride, padding=padding_px, groups=groups, data_format="NHWC")
    maps = functional.batch_norm(
        maps, norm._mean, norm._variance, norm.weight, norm.bias, training=norm.training, data_format="NHWC"
    )
    return functional.relu(maps) if relu else maps


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_conv_norm_equals_paddles_in_float64(layer, training, relu):
    channels, out, kernel, stride, groups, side = LAYERS[layer]
    arrays = (
        RNG.standard_normal((4, side, side, channels)),
        RNG.standard_normal((out, channels // groups, kernel, kernel)),
    )
    statistics = RNG.uniform(0.5, 2.0, (4, out))
    found = {}
    for data_type, function in (("float32", functions.conv_norm), ("float64", paddles_conv_norm)):
        maps, weights = tensors(*arrays, data_type=data_type)
        norm = norm_layer(out, data_type)
        for parameter, value in zip((norm.weight, norm.bias, norm._mean, norm._variance), statistics, strict=True):
            parameter.set_value(value.astype(data_type))
        norm.training = training
        output = function(maps, weights, norm, stride=stride, padding_px=kernel // 2, groups=groups, relu=relu)
        (output * paddle.cos(output)).sum().backward()
        gradients = [tensor.grad for tensor in (maps, weights, norm.weight, norm.bias)]
        found[data_type] = [output.detach(), *gradients, norm._mean, norm._variance]
    names = ("output", "maps", "weights", "scale", "shift", "mean", "variance")
    for name, received, expected in zip(names, found["float32"], found["float64"], strict=True):
        assert close(received, expected), name


@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize(("ours", "paddles"), [
    (functions.max_pool, lambda maps: functional.max_pool2d(maps, 3, 2, 1, data_format="NHWC")),
    (lambda maps: functions.average_pool(maps, 2),
     lambda maps: functional.avg_pool2d(maps, 2, 2, ceil_mode=True, exclusive=True, data_format="NHWC")),
], ids=["max", "average"])  # fmt: skip
def test_poolings_equal_paddles(ours, paddles, side):
    array = RNG.standard_normal((2, side, side, 5))
    (maps,), (reference,) = tensors(array), tensors(array, data_type="float64")
    received, expected = ours(maps), paddles(reference)
    (received * received).sum().backward()
    (expected * expected).sum().backward()
    assert close(received, expected)
    assert close(maps.grad, reference.grad)


def test_the_sum_of_equal_tensors_gives_both_their_gradient():
    left, right = tensors(RNG.standard_normal((2, 3, 3, 4)), RNG.standard_normal((2, 3, 3, 4)))
    doubled = left * 2  # its gradient has two sources
    output = functions.add_relu(functions.add_relu(doubled, right), doubled)
    output.sum().backward()
    inner = np.maximum(left.numpy() * 2 + right.numpy(), 0)
    outer = inner + left.numpy() * 2 > 0
    assert np.array_equal(right.grad.numpy(), (outer & (inner > 0)).astype("float32"))
    assert np.array_equal(left.grad.numpy(), 2.0 * (outer & (inner > 0)) + 2.0 * outer)


def convolved(maps, weights, norm):
    return functions.conv_norm(maps, weights, norm, stride=1, padding_px=1, groups=1, relu=True)


def test_views_and_strided_gradients_are_read_as_what_they_are():
    array, weights = RNG.standard_normal((2, 4, 6, 5)), RNG.standard_normal((4, 4, 3, 3))
    results = []
    for copied in (True, False):
        (nchw,), (kernel,) = tensors(array), tensors(weights)
        maps = nchw.transpose([0, 2, 3, 1])
        output = convolved(maps.contiguous() if copied else maps, kernel, norm_layer(4, "float32"))
        back = output.transpose([0, 3, 1, 2])
        (back * paddle.to_tensor(array.astype("float32"))).sum().backward()
        results.append([output.numpy(), nchw.grad.numpy(), kernel.grad.numpy()])
    assert all(np.array_equal(left, right) for left, right in zip(*results, strict=True))


def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same():
    arrays = RNG.standard_normal((2, 5, 5, 4)), RNG.standard_normal((4, 4, 3, 3))
    full_maps, full_weights = tensors(*arrays)
    convolved(full_maps, full_weights, norm_layer(4, "float32")).sum().backward()

    (maps,), (weights,) = tensors(arrays[0]), tensors(arrays[1], wanted=False)
    norm = norm_layer(4, "float32")
    norm.weight.stop_gradient = norm.bias.stop_gradient = True
    convolved(maps, weights, norm).sum().backward()
    assert weights.grad is None
    assert norm.weight.grad is None
    assert np.array_equal(maps.grad.numpy(), full_maps.grad.numpy())

    (images,), (weights,) = tensors(arrays[0], wanted=False), tensors(arrays[1])
    convolved(images, weights, norm_layer(4, "float32")).sum().backward()
    assert images.grad is None
    assert np.array_equal(weights.grad.numpy(), full_weights.grad.numpy())


def test_statistics_that_are_kept_do_not_move():
    maps, weights = tensors(RNG.standard_normal((2, 5, 5, 4)), RNG.standard_normal((4, 4, 3, 3)))
    moving, kept = norm_layer(4, "float32"), norm_layer(4, "float32")
    kept.keeps_statistics = True
    assert np.array_equal(convolved(maps, weights, moving).numpy(), convolved(maps, weights, kept).numpy())
    assert np.array_equal(kept._mean.numpy(), np.zeros(4))
    assert np.array_equal(kept._variance.numpy(), np.ones(4))
    assert not np.array_equal(moving._mean.numpy(), np.zeros(4))


def test_threads_that_share_an_operation_do_not_mix_their_data():
    (weights,) = tensors(RNG.standard_normal((8, 8, 3, 3)), wanted=False)
    inputs = [tensors(RNG.standard_normal((2, 16, 16, 8)), wanted=False)[0] for _ in range(8)]

    def compute(maps):
        return convolved(maps, weights, norm_layer(8, "float32")).numpy()

    expected = [compute(maps) for maps in inputs]
    with ThreadPoolExecutor(4) as pool:
        received = list(pool.map(compute, inputs * 5))
    assert all(np.array_equal(left, right) for left, right in zip(expected * 5, received, strict=True))


def test_images_of_many_sizes_do_not_fill_the_memory():
    for size in range(1, MOST_KEPT + 50):
        (values,) = tensors(np.ones((1, 1, 1, size)))
        assert functions.add_relu(values, values).numpy().tolist() == [[[[2.0] * size]]]
    assert add_relu_for.cache_info().currsize <= MOST_KEPT
