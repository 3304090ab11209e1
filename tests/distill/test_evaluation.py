import cv2
import numpy as np
import paddle
import pytest

from distill.engines.engine import EagerEngine, PredictorEngine, open_engine
from distill.errors import RunError, UserError
from distill.evaluation import evaluate_weights, measure, open_evaluation
from distill.recipe.file import load_recipe
from distill.stages import run_recipe


class ByBrightness(paddle.nn.Layer):
    """Class 1 for bright images, class 0 for dark ones."""

    def forward(self, images):
        brightness = images.mean(axis=[1, 2, 3]).unsqueeze(1)
        return paddle.concat([-brightness, brightness, paddle.full([len(images), 8], -1e3)], axis=1)


@pytest.fixture
def folders(tmp_path):
    """Three dark images of class 0, of which one is bright in truth, and one bright image of class 1."""
    for name, value in [("0/a", 10), ("0/b", 20), ("0/c", 250), ("1/d", 240)]:
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((40, 40, 3), value, np.uint8))
    return tmp_path / "images"


def recipe_for(digits, folder, tmp_path, **evaluation):
    section = {"sources": [{"kind": "class_folders", "root": str(folder)}], "resize_short_px": 32, "crop_px": 28}
    return load_recipe(digits.recipe(tmp_path / "r.yaml", evaluation=section | evaluation))


def measured(recipe):
    stage = recipe.stages[0]
    loader = open_evaluation(stage, recipe)
    return measure(
        ByBrightness(), loader, section=stage.evaluation, normalization=stage.normalization, data_format="NCHW"
    )


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_every_image_counts_once_whatever_the_batch_size(digits, folders, tmp_path, batch_size):
    result = measured(recipe_for(digits, folders, tmp_path, batch_size=batch_size))
    assert (result.top1, result.top5, result.images) == (0.75, 1.0, 4)


def test_an_undecodable_image_fails_an_evaluation_unless_told_otherwise(digits, folders, tmp_path):
    (folders / "0" / "b.png").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"1 of 4 images cannot be decoded \(.*b\.png: "):
        measured(recipe_for(digits, folders, tmp_path))
    result = measured(recipe_for(digits, folders, tmp_path, max_undecodable_fraction=0.5))
    assert (result.images, result.undecodable) == (3, 1)
    assert result.top1 == pytest.approx(2 / 3)


def test_an_image_without_a_label_is_refused(digits, tmp_path):
    source = {"kind": "idx", "images": str(digits.folder / "test-images.gz")}
    section = {"sources": [source], "resize_short_px": 28, "crop_px": 28}
    recipe = load_recipe(digits.recipe(tmp_path / "r.yaml", evaluation=section))
    with pytest.raises(UserError, match="needs a label"):
        open_evaluation(recipe.stages[0], recipe)


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """A recipe, its run's weights and what the run reported."""
    folder = tmp_path_factory.mktemp("run")
    recipe = load_recipe(digits.recipe(folder / "r.yaml", epochs=1))
    result = run_recipe(recipe, folder / "run", device="cpu")
    return recipe, folder / "run" / "student.safetensors", result.final.evaluation


@pytest.fixture
def engines(monkeypatch):
    """What `evaluate_weights` computes with: every engine that is opened."""
    opened = []

    def spy(*arguments, **options):
        opened.append(open_engine(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr("distill.evaluation.open_engine", spy)
    return opened


def agree(measured, reported):
    """Up to one image whose two largest logits are equal but for rounding: so young a network has such."""
    assert (measured.images, measured.undecodable) == (reported.images, reported.undecodable)
    one_image = pytest.approx(0.0, abs=1.5 / reported.images)
    assert (measured.top1 - reported.top1, measured.top5 - reported.top5) == (one_image, one_image)


def test_weights_measure_what_the_run_reported(finished, engines):
    """The run evaluates with the plain network, the command with the fast engine."""
    recipe, weights, reported = finished
    agree(evaluate_weights(recipe, weights, device="cpu"), reported)
    assert [engine.description for engine in engines] == ["Paddle Inference, oneDNN, float32"]


def test_a_network_in_the_other_layout_measures_the_same(finished, engines):
    recipe, weights, reported = finished
    other = recipe.model_copy(update={"model": recipe.model.model_copy(update={"data_format": "NHWC"})})
    agree(evaluate_weights(other, weights, device="cpu"), reported)
    assert isinstance(engines[0], PredictorEngine)


def test_where_the_fast_engine_differs_the_plain_network_measures(finished, engines, monkeypatch, capsys):
    recipe, weights, reported = finished
    monkeypatch.setattr("distill.engines.engine.largest_difference", lambda *_: 0.5)
    assert evaluate_weights(recipe, weights, device="cpu") == reported
    assert isinstance(engines[0], EagerEngine)
    assert "measured without the fast engine: Paddle Inference, oneDNN, float32 differs" in capsys.readouterr().err
