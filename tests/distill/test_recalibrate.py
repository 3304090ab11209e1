import numpy as np
import paddle
import pytest
from paddle import nn

from distill.data.augment import evaluation_view
from distill.data.sampler import epoch_order
from distill.data.sources import open_sources
from distill.models import create_model
from distill.recalibrate import recalibrate, recalibrate_stage
from distill.recipe.file import load_recipe

EPSILON = 1e-5


class Tiny(nn.Layer):
    """Two 1x1 convolutions, each with batch normalisation, a ReLU between them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2D(3, 4, 1, bias_attr=False), nn.Conv2D(4, 5, 1, bias_attr=False)
        self.bn1, self.bn2 = nn.BatchNorm2D(4, epsilon=EPSILON), nn.BatchNorm2D(5, epsilon=EPSILON)

    def forward(self, images):
        # not BatchNorm2D's own forward, which warns in training mode
        for convolution, bn, last in ((self.first, self.bn1, False), (self.second, self.bn2, True)):
            images = nn.functional.batch_norm(
                convolution(images),
                bn._mean,
                bn._variance,
                bn.weight,
                bn.bias,
                training=bn.training,
                momentum=bn._momentum,
                epsilon=EPSILON,
            )
            images = images if last else nn.functional.relu(images)
        return images


def convolved(weight, images):
    return np.einsum("oi,nihw->nohw", weight.numpy()[:, :, 0, 0].astype(np.float64), images)


def expected_statistics(model, batches):
    """Mean and variance of both layers' inputs over all images, every batch normalised by its own."""
    inputs = {1: [], 2: []}
    for batch in batches:
        first = convolved(model.first.weight, batch)
        mean, variance = first.mean((0, 2, 3), keepdims=True), first.var((0, 2, 3), keepdims=True)
        hidden = np.maximum((first - mean) / np.sqrt(variance + EPSILON), 0)
        inputs[1].append(first)
        inputs[2].append(convolved(model.second.weight, hidden))
    return {k: (np.concatenate(v).mean((0, 2, 3)), np.concatenate(v).var((0, 2, 3))) for k, v in inputs.items()}


@pytest.fixture
def tiny():
    paddle.seed(0)
    return Tiny()


def test_statistics_are_those_over_all_images(tiny):
    random = np.random.default_rng(0)
    batches = [(random.standard_normal((n, 3, 5, 5)) * n + n).astype(np.float32) for n in (8, 8, 3)]
    weights = [p.numpy().copy() for p in (tiny.first.weight, tiny.bn1.weight, tiny.bn1.bias)]
    assert recalibrate(tiny, (paddle.to_tensor(batch) for batch in batches)) == 19
    for number, (mean, variance) in expected_statistics(tiny, batches).items():
        layer = getattr(tiny, f"bn{number}")
        np.testing.assert_allclose(layer._mean.numpy(), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer._variance.numpy(), variance, rtol=1e-4)
        assert layer._momentum == 0.9 and not layer.training
    for parameter, before in zip((tiny.first.weight, tiny.bn1.weight, tiny.bn1.bias), weights, strict=True):
        np.testing.assert_array_equal(parameter.numpy(), before)


def test_without_images_and_after_an_error_the_statistics_are_the_old_ones(tiny):
    def failing():
        yield paddle.ones([2, 3, 4, 4])
        raise RuntimeError("the disk is gone")

    before = {name: value.numpy().copy() for name, value in tiny.state_dict().items()}
    assert recalibrate(tiny, []) == 0
    with pytest.raises(RuntimeError, match="the disk is gone"):
        recalibrate(tiny, failing())
    for name, value in tiny.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
    assert tiny.bn1._momentum == 0.9 and not tiny.training


@pytest.mark.parametrize(("images", "used"), [(40, 40), (10_000, 200)])
def test_a_stage_takes_the_first_images_of_its_first_epoch_in_its_view(digits, tmp_path, images, used, capsys):
    changes = {
        "view": {"size_px": 36, "crop": {"kind": "center", "resize_short_px": 40}, "horizontal_flip": 0.0},
        "mixup": {"alpha": 0.2, "group_size": 4},
        "freeze": ["stem.*", "blocks.*"],
        "recalibrate_bn": {"images": images},
    }
    recipe = load_recipe(digits.recipe(tmp_path / "r.yaml", **changes))
    paddle.seed(0)
    model = create_model("ResNet18_vd", 10, width=0.0625)
    source = open_sources(recipe.stages[0].data.sources, 10)
    assert recalibrate_stage(model, recipe, 0, source) == used
    assert f"statistics of {used} images at 36 px" in capsys.readouterr().err
    views = np.stack([evaluation_view(source.read(i), 40, 36) for i in epoch_order(3, 0, 0, 200)[:used].tolist()])
    inputs = (views.transpose(0, 3, 1, 2) / 255 - 0.3) / 0.38
    convolution, bn = (getattr(getattr(model, "stem.0"), name) for name in ("conv", "bn"))
    features = convolution(paddle.to_tensor(inputs.astype(np.float32))).numpy()
    np.testing.assert_allclose(bn._mean.numpy(), features.mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(bn._variance.numpy(), features.var((0, 2, 3)), rtol=1e-4)
    again = create_model("ResNet18_vd", 10, width=0.0625)
    again.set_state_dict(model.state_dict())
    recalibrate_stage(again, load_recipe(tmp_path / "r.yaml", ["runtime.loader_threads=1"]), 0, source)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), again.state_dict()[name].numpy())
