"""The networks against an independent NumPy forward pass, and what the training needs of them."""

import copy
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import paddle
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from distill.models import create_model
from distill.models.plan import plan_network, state_shapes
from distill.models.specs import SPECS

Arrays = dict[str, np.ndarray]


# --- an independent forward pass in float64, NCHW ---------------------------------------------


def conv(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    size = weight.shape[-1]
    padding = size // 2
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
    groups = x.shape[1] // weight.shape[1]
    parts = zip(np.split(windows, groups, axis=1), np.split(weight, groups), strict=True)
    return np.concatenate([np.einsum("nchwij,ocij->nohw", *part, optimize=True) for part in parts], axis=1)


def mean_of_2x2(x: np.ndarray) -> np.ndarray:
    """Stride 2; at an odd edge the mean of the pixels that exist."""
    height, width = x.shape[2:]
    rows = [[x[:, :, i : i + 2, j : j + 2].mean(axis=(2, 3)) for j in range(0, width, 2)] for i in range(0, height, 2)]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def max_of_3x3(x: np.ndarray) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    return sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(-2, -1))


def reference(
    state: Arrays, images: np.ndarray, *, stem: list[str], blocks: Callable[[int, int], str], conv_name: str,
    short: str, parts: tuple[str, str], classifier: str, depths: list[int], vd: bool, stem_stride: int = 4,
) -> np.ndarray:  # fmt: skip
    def layer(x: np.ndarray, path: str, stride: int) -> np.ndarray:
        convolution, norm = f"{path}.{parts[0]}", f"{path}.{parts[1]}"
        x = conv(x, state[f"{convolution}.weight"], stride)
        mean, variance, scale, shift = (
            state[f"{norm}.{value}"][:, None, None] for value in ("_mean", "_variance", "weight", "bias")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * scale + shift

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    x = images
    for index, path in enumerate(stem):
        x = relu(layer(x, path, min(stem_stride, 2) if index == 0 else 1))
    if stem_stride == 4:
        x = max_of_3x3(x)
    for stage, depth in enumerate(depths):
        for position in range(depth):
            path = blocks(stage, position)
            stride = 2 if stage > 0 and position == 0 else 1
            # basic blocks stride in their first convolution, bottlenecks in their second (the 3x3)
            count = 3 if f"{path}.{conv_name}2.{parts[0]}.weight" in state else 2
            y = x
            for index in range(count):
                y = layer(y, f"{path}.{conv_name}{index}", stride if index == count - 2 else 1)
                y = relu(y) if index < count - 1 else y
            if position == 0:
                pooled = vd and stride == 2
                x = layer(mean_of_2x2(x) if pooled else x, f"{path}.{short}", 1 if pooled else stride)
            x = relu(x + y)
    return x.mean(axis=(2, 3)) @ state[f"{classifier}.weight"] + state[f"{classifier}.bias"]


def current(depths: list[int], deep: bool, vd: bool, stem_stride: int = 4) -> dict[str, object]:
    return {
        "stem": ["stem.0", "stem.1", "stem.2"] if deep else ["stem.0"],
        "blocks": lambda stage, position: f"blocks.{sum(depths[:stage]) + position}",
        "conv_name": "conv",
        "short": "short",
        "parts": ("conv", "bn"),
        "classifier": "fc",
        "depths": depths,
        "vd": vd,
        "stem_stride": stem_stride,
    }


VC = {
    "stem": ["conv1_1", "conv1_2", "conv1_3"],
    "blocks": lambda stage, position: f"bb_{stage}_{position}",
    "conv_name": "conv",
    "short": "short",
    "parts": ("_conv", "_batch_norm"),
    "classifier": "out",
    "depths": [3, 4, 6, 3],
    "vd": False,
}
WSL = {
    "stem": ["_conv_stem"],
    "blocks": lambda stage, position: f"_conv{stage + 1}_{position}",
    "conv_name": "_conv",
    "short": "_short._conv",
    "parts": ("_conv", "_bn"),
    "classifier": "_out",
    "depths": [3, 4, 23, 3],
    "vd": False,
}


def randomised(model: paddle.nn.Layer, seed: int = 0) -> Arrays:
    """Gives every value of the model, statistics included, a random value that matters; returns them."""
    rng = np.random.default_rng(seed)
    state = {}
    for key, value in model.state_dict().items():
        shape = tuple(value.shape)
        if key.endswith("_variance"):
            state[key] = rng.uniform(0.5, 2.0, shape)
        elif len(shape) == 4:
            state[key] = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
        elif key.endswith(".weight") and len(shape) == 1:
            state[key] = rng.uniform(0.5, 1.5, shape)
        else:
            state[key] = rng.normal(0, 0.3, shape)
    state = {key: value.astype("float32") for key, value in state.items()}
    missing, unexpected = model.set_state_dict(state)
    assert not missing and not unexpected
    return {key: value.astype("float64") for key, value in state.items()}


@pytest.mark.parametrize(
    ("name", "size", "stem_stride", "layout"),
    [
        ("ResNet18", (28, 28), 4, current([2, 2, 2, 2], deep=False, vd=False)),
        ("ResNet34_vd", (37, 50), 4, current([3, 4, 6, 3], deep=True, vd=True)),
        ("ResNet50", (33, 28), 2, current([3, 4, 6, 3], deep=False, vd=False, stem_stride=2)),
        ("ResNet50_vc", (35, 35), 4, VC),
        ("ResNet50_vd", (65, 43), 4, current([3, 4, 6, 3], deep=True, vd=True)),
        ("ResNet18_vd", (29, 28), 1, current([2, 2, 2, 2], deep=True, vd=True, stem_stride=1)),
        ("ResNet18", (28, 28), 1, current([2, 2, 2, 2], deep=False, vd=False, stem_stride=1)),
        ("ResNeXt101_32x8d_wsl", (33, 33), 4, WSL),
    ],
)
def test_logits_equal_an_independent_computation(
    name: str, size: tuple[int, int], stem_stride: int, layout: dict
) -> None:
    model = create_model(name, 5, width=0.125, stem_stride=stem_stride)
    model.eval()
    state = randomised(model)
    images = np.random.default_rng(1).normal(size=(2, 3, *size)).astype("float32")
    expected = reference(state, images.astype("float64"), **layout)
    received = model(paddle.to_tensor(images)).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(received, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


# --- keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SPECS))
def test_the_built_network_has_the_planned_keys_and_shapes(name: str) -> None:
    """`test_plan.py` holds the plan against the published manifests; nothing is allocated here."""
    with paddle.LazyGuard():
        state = create_model(name).state_dict()
    expected = state_shapes(plan_network(SPECS[name]))
    assert [(key, tuple(value.shape)) for key, value in state.items()] == list(expected.items())


# --- sizes and layouts ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ResNet18_vd", "ResNet50", "ResNeXt101_32x8d_wsl"])
@pytest.mark.parametrize("stem_stride", [1, 2, 4])
def test_layouts_agree_at_small_and_odd_sizes(name: str, stem_stride: int) -> None:
    first = create_model(name, 4, width=0.125, stem_stride=stem_stride)
    last = create_model(name, 4, width=0.125, stem_stride=stem_stride, data_format="NHWC")
    last.set_state_dict({key: paddle.to_tensor(value.astype("float32")) for key, value in randomised(first).items()})
    first.eval()
    last.eval()
    taps = list(first.tap_channels)
    for size in ((28, 28), (31, 45)):
        images = paddle.to_tensor(np.random.default_rng(2).normal(size=(1, 3, *size)).astype("float32"))
        ours = first.taps(images, taps)
        theirs = last.taps(images.transpose([0, 2, 3, 1]), taps)
        for tap, channels in first.tap_channels.items():
            assert ours[tap].shape[1] == theirs[tap].shape[-1] == channels
            other = theirs[tap].transpose([0, 3, 1, 2]) if theirs[tap].ndim == 4 else theirs[tap]
            scale = float(ours[tap].abs().max())
            np.testing.assert_allclose(ours[tap].numpy(), other.numpy(), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("stem_stride", "sizes"), [(4, [7, 7, 4, 2, 1]), (2, [14, 14, 7, 4, 2]), (1, [28, 28, 14, 7, 4])]
)
def test_stem_stride_sets_the_size_of_the_maps(stem_stride: int, sizes: list[int]) -> None:
    model = create_model("ResNet18_vd", 4, width=0.125, stem_stride=stem_stride)
    maps = model.taps(paddle.zeros([1, 3, 28, 28]), ["stem", "stage1", "stage2", "stage3", "stage4"])
    assert [tuple(value.shape[2:]) for value in maps.values()] == [(size, size) for size in sizes]


# --- taps -------------------------------------------------------------------------------------


def test_taps_are_parts_of_the_same_pass() -> None:
    model = create_model("ResNet18", 4, width=0.125)
    model.eval()
    randomised(model)
    images = paddle.to_tensor(np.random.default_rng(3).normal(size=(2, 3, 40, 28)).astype("float32"))
    taps = model.taps(images, ("stage4", "embedding", "logits"))
    assert list(taps) == ["stage4", "embedding", "logits"]
    np.testing.assert_allclose(taps["embedding"].numpy(), taps["stage4"].numpy().mean(axis=(2, 3)), rtol=1e-5)
    by_hand = taps["embedding"].numpy() @ model.fc.weight.numpy() + model.fc.bias.numpy()
    np.testing.assert_allclose(taps["logits"].numpy(), by_hand, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(taps["logits"].numpy(), model(images).numpy())


def test_an_unknown_tap_is_refused() -> None:
    model = create_model("ResNet18", 4, width=0.125)
    with pytest.raises(ValueError, match=r"unknown tap 'stage5'\. Did you mean 'stage\d'\? Valid: stem, stage1"):
        model.taps(paddle.zeros([1, 3, 28, 28]), ["logits", "stage5"])


# --- learning rates ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50_vc", "ResNeXt101_32x8d_wsl"])
def test_multipliers_belong_to_stem_and_stages(name: str) -> None:
    values = (0.0, 0.1, 0.2, 0.3, 0.5)
    model = create_model(name, 4, width=0.125, stage_lr_multipliers=values)
    plan = model.plan
    expected = {conv.name: values[0] for conv in plan.stem} | {plan.naming.classifier: 1.0}
    for blocks, value in zip(plan.stages, values[1:], strict=True):
        expected |= {block.name: value for block in blocks}
    seen = set()
    for key, parameter in model.named_parameters():
        if not parameter.trainable:  # Paddle counts the running statistics among the parameters
            continue
        # the longest name that fits: "_conv1_1" and "_conv1_10", "conv1_1" and "bb_0_0.conv1"
        owner = max((prefix for prefix in expected if key.startswith(f"{prefix}.")), key=len)
        assert parameter.optimize_attr["learning_rate"] == expected[owner], key
        seen.add(owner)
    assert seen == set(expected)


def test_the_optimizer_obeys_the_multipliers() -> None:
    paddle.seed(0)
    model = create_model("ResNet18", 4, width=0.125, stage_lr_multipliers=(0.0, 0.1, 1.0, 1.0, 1.0))
    parameters = {key: value for key, value in model.named_parameters() if value.trainable}
    before = {key: value.numpy() for key, value in parameters.items()}
    optimizer = paddle.optimizer.Momentum(0.5, parameters=model.parameters())
    model(paddle.randn([4, 3, 40, 40])).square().mean().backward()
    gradients = {key: value.grad.numpy() for key, value in parameters.items()}
    optimizer.step()
    for key, rate in (("stem.0.conv.weight", 0.0), ("blocks.1.conv0.conv.weight", 0.05), ("fc.weight", 0.5)):
        assert np.abs(gradients[key]).max() > 0, key
        np.testing.assert_allclose(parameters[key].numpy(), before[key] - rate * gradients[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("values", [(), (1.0,) * 4, (1.0,) * 6, (1.0, 1.0, -0.1, 1.0, 1.0), (float("nan"),) * 5])
def test_multipliers_that_do_not_fit_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must be five values >= 0"):
        create_model("ResNet18", 4, width=0.125, stage_lr_multipliers=values)


# --- building ---------------------------------------------------------------------------------


def test_training_moves_the_stored_statistics_and_evaluation_does_not() -> None:
    model = create_model("ResNet18", 4, width=0.125)
    norm = getattr(model, "stem.0").bn
    images = paddle.to_tensor(np.random.default_rng(4).normal(2.0, 3.0, size=(4, 3, 28, 28)).astype("float32"))
    model.eval()
    model(images)
    assert not norm._mean.numpy().any()
    model.train()
    model(images)
    convolved = getattr(model, "stem.0").conv(images).numpy()
    np.testing.assert_allclose(norm._mean.numpy(), 0.1 * convolved.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert norm._variance.numpy() == pytest.approx(0.9 + 0.1 * convolved.var(axis=(0, 2, 3)), rel=1e-2)


def test_several_networks_live_together() -> None:
    """Parameter names, by which an optimizer's state is kept, do not depend on what was built before."""
    first = create_model("ResNeXt101_32x8d_wsl", 4, width=0.05)
    student = create_model("ResNet18", 4, width=0.125)
    second = create_model("ResNeXt101_32x8d_wsl", 4, width=0.05)
    assert [value.name for value in first.parameters()] == [value.name for value in second.parameters()]
    again = create_model("ResNet18", 4, width=0.125)
    assert [value.name for value in student.parameters()] == [value.name for value in again.parameters()]
    randomised(second, seed=5)
    key = "_conv1_0._conv1._conv.weight"
    assert not np.array_equal(first.state_dict()[key].numpy(), second.state_dict()[key].numpy())
    copied = copy.deepcopy(student)
    randomised(student, seed=6)
    images = paddle.ones([1, 3, 28, 28])
    assert not np.array_equal(copied(images).numpy(), student(images).numpy())


def test_the_seed_decides_the_initial_weights() -> None:
    states = []
    for seed in (7, 7, 8):
        paddle.seed(seed)
        model = create_model("ResNet18_vd", 10, width=0.25)
        states.append({key: value.numpy() for key, value in model.state_dict().items()})
    same = [all(np.array_equal(one[key], other[key]) for key in one) for one, other in pairwise(states)]
    assert same == [True, False]


def test_weights_are_initialised_as_published() -> None:
    paddle.seed(0)
    model = create_model("ResNet50", 100, width=0.5)
    weight = model.state_dict()["blocks.5.conv1.conv.weight"].numpy()
    assert weight.std() == pytest.approx((2 / np.prod(weight.shape[1:])) ** 0.5, rel=0.05)
    bound = model.fc.weight.shape[0] ** -0.5
    assert 0.98 * bound < np.abs(model.fc.weight.numpy()).max() <= bound
    assert model.fc.weight.numpy().std() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not model.fc.bias.numpy().any()
    norm = getattr(model, "stem.0").bn
    assert (norm._momentum, norm._epsilon) == (0.9, 1e-5)


def test_an_unknown_data_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data_format must be one of .*received 'CHWN'"):
        create_model("ResNet18", data_format="CHWN")
