"""A student that knows the digits, trained in seconds."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest

from distill.data.sources import Images, open_sources
from distill.models import build_model
from distill.models.resnet import ResNet
from distill.normalization import normalize, to_unit_range
from distill.recipe import Recipe
from distill.recipe.file import load_recipe, resolved_yaml
from distill.weights import write_weights

STEPS, BATCH_SIZE = 80, 64


@dataclass(frozen=True)
class Trained:
    """A run's folder, what it holds, and some of its test images as files."""

    run: Path
    recipe: Recipe
    model: ResNet
    source: Images
    photographs: Path


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    model_section = {"name": "ResNet18_vd", "width": 0.125, "stem_stride": 2}
    recipe = load_recipe(digits.recipe(folder / "given.yaml", model=model_section))
    paddle.seed(0)
    model = build_model(recipe.model, recipe.num_classes)
    stage = recipe.stages[0]
    _train(model, open_sources([stage.data.sources[0].model_copy(update={"range": None})], 10), stage.normalization)
    run = folder / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(resolved_yaml(recipe))
    write_weights(run / "student.safetensors", {key: value.numpy() for key, value in model.state_dict().items()})
    source = open_sources(stage.evaluation.sources, 10)
    photographs = folder / "photographs"
    (photographs / "more").mkdir(parents=True)
    for number in range(6):
        image = cv2.resize(source.read(number), (28 + 4 * number, 28))
        cv2.imwrite(str(photographs / ("more" if number % 2 else "") / f"{number}.png"), image)
    return Trained(run, recipe, model, source, photographs)


def _train(model, source, normalization):
    pixels = np.stack([source.read(index) for index in range(len(source))]).transpose(0, 3, 1, 2)
    optimizer = paddle.optimizer.Momentum(
        paddle.optimizer.lr.PolynomialDecay(0.1, STEPS), parameters=model.parameters()
    )
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        chosen = random.choice(len(source), BATCH_SIZE, replace=False)
        images = normalize(to_unit_range(np.ascontiguousarray(pixels[chosen])), normalization)
        loss = paddle.nn.functional.cross_entropy(model(images), paddle.to_tensor(source.labels[chosen]))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        optimizer._learning_rate.step()
