"""Every recipe runs in small, all its stages, on the digits."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from distill.data.sources import open_sources
from distill.errors import UserError
from distill.metrics import read_metrics
from distill.models import build_model
from distill.recipe import IdxSource
from distill.recipe.file import load_recipe, parse_recipe, resolved_yaml
from distill.rehearsal.scale_down import SmallData, scale_down
from distill.rehearsal.small_inputs import SmallImages, random_weights, write_inputs
from distill.stages import run_recipe
from distill.weights import read_weights

ROOT = Path(__file__).parents[3]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "mining")

LARGE = """\
name: large
description: Two stages with everything.
seed: 1
num_classes: 1000
model: {name: ResNet50_vd, weights: weights/start.pdparams}
expected: {top1: 0.83, source: published}
global_batch_size: 1024
device_batch_size: 128
data:
  sources:
    - {kind: image_list, path: labelled.txt, root: /images}
    - {kind: image_list, path: mined.txt, root: /pool, use_labels: false, repeat: 4}
view:
  size_px: 224
  crop: {kind: random_area, scale: [0.08, 1.0], ratio: [0.75, 1.3333], sampling: published}
  horizontal_flip: 0.5
normalization: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
evaluation:
  sources: [{kind: image_list, path: val.txt, root: /images}]
  resize_short_px: 256
  crop_px: 224
teacher:
  batch_norm: stored
  precision: bfloat16
  models: [{name: ResNeXt101_32x16d_wsl, weights: teacher.pdparams}]
loss: {symmetric_kl: {weight: 1.0, temperature: 1.0}}
optimizer:
  {kind: momentum, learning_rate: 1.6, momentum: 0.9, nesterov: false, weight_decay: 0.0001, decay_bias_and_norm: true}
amp: O1
stages:
  - name: pool
    epochs: 360
    mixup: {alpha: 0.2, group_size: 32}
    schedule: {kind: cosine, warmup_epochs: 5, end_learning_rate: 0.1}
    teacher:
      labels: {folder: labels/large, top_classes: 10, views: 8, missing: wait}
      devices: ["gpu:7"]
  - name: classifier
    epochs: 30
    view: {size_px: 320, crop: {kind: center, resize_short_px: 352}}
    freeze: ["stem.*", "blocks.*"]
    ema_decay: 0.99
    schedule: {kind: step, warmup_epochs: 0, boundaries_epochs: [10, 20], factor: 0.1}
    evaluation: {resize_short_px: 320, crop_px: 320, every_epochs: 10}
"""


@pytest.fixture(scope="module")
def small_digits(digits):
    parts = {"train": 64, "test": 32}
    training, evaluation = (
        IdxSource(
            kind="idx",
            images=str(digits.folder / f"{part}-images.gz"),
            labels=str(digits.folder / f"{part}-labels.gz"),
            range=(0, count),
        )
        for part, count in parts.items()
    )
    return SmallData(training, evaluation, 10)


def source_of(digits):
    return {"kind": "idx"} | {key: str(digits.folder / f"test-{key}.gz") for key in ("images", "labels")}


class Given:
    """Images that are there already."""

    def write(self, inputs):
        pass


def run(recipe, data, folder):
    small = scale_down(recipe, data, folder / "inputs")
    write_inputs(small, Given(), folder / "inputs")
    return small, run_recipe(small, folder, device="cpu")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: "/".join(path.with_suffix("").parts[-2:]))
def test_every_recipe_runs_in_small(path, small_digits, tmp_path):
    recipe = load_recipe(path)
    small, result = run(recipe, small_digits, tmp_path / "run")
    assert list(result.stages) == [stage.name for stage in recipe.stages]
    logged = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert {entry["stage_name"] for entry in logged if entry["kind"] == "train"} == set(result.stages)
    for stage, own in zip(small.stages, recipe.stages, strict=True):
        assert stage.loss == own.loss
        assert stage.freeze == own.freeze
        assert (stage.teacher is None) == (own.teacher is None)


def test_a_recipe_with_everything_runs_in_small(small_digits, tmp_path):
    small, result = run(parse_recipe(LARGE, "large.yaml"), small_digits, tmp_path / "run")
    assert list(result.stages) == ["pool", "classifier"]
    pool = small.stages[0].labels
    assert sum(path.stat().st_size for path in Path(pool.folder).rglob("*") if path.is_file()) > 0
    first, last = (read_weights(result.folder / "stages" / name / "student.safetensors") for name in
                   ("0-pool", "1-classifier"))  # fmt: skip
    assert all(np.array_equal(first[name], last[name]) for name in first if not name.startswith("fc."))
    assert not np.array_equal(first["fc.weight"], last["fc.weight"])


def test_what_becomes_smaller_and_what_stays(small_digits, tmp_path):
    recipe = parse_recipe(LARGE, "large.yaml")
    small = scale_down(recipe, small_digits, tmp_path)
    pool, classifier = small.stages
    assert (small.name, small.num_classes, small.seed) == ("large_scaled_down", 10, 1)
    assert "accuracy means nothing" in small.description
    assert (small.expected, small.model.weights, small.model.name) == (None, None, "ResNet50_vd")
    assert small.model.width == pool.teacher.models[0].width == 0.0625
    assert (pool.epochs, pool.global_batch_size, pool.device_batch_size, pool.mixup.group_size) == (2, 32, 16, 8)
    assert (pool.view.size_px, classifier.view.size_px, classifier.view.crop.resize_short_px) == (28, 40, 44)
    assert (pool.evaluation.resize_short_px, pool.evaluation.crop_px, classifier.evaluation.crop_px) == (32, 28, 40)
    assert pool.view.model_copy(update={"size_px": 224}) == recipe.stages[0].view
    assert pool.optimizer.learning_rate == pytest.approx(1.6 * 32 / 1024)
    assert pool.schedule.warmup_epochs == pytest.approx(5 * 2 / 360)
    assert pool.schedule.end_learning_rate == pytest.approx(0.1 * 32 / 1024)
    assert classifier.schedule.boundaries_epochs == pytest.approx((10 / 15, 20 / 15))
    assert [source.range for source in pool.data.sources] == [(0, 32), (32, 64)]
    assert [(source.use_labels, source.repeat) for source in pool.data.sources] == [(True, 1), (False, 2)]
    assert (pool.labels.views, pool.labels.missing, pool.teacher.devices) == (1, "compute", ())
    assert (pool.teacher.precision, pool.amp) == ("float32", "O1")
    assert (classifier.freeze, classifier.ema_decay) == (("stem.*", "blocks.*"), 0.99)
    assert (
        pool.teacher.models[0].weights
        == classifier.teacher.models[0].weights
        == str(tmp_path / "teacher-0.safetensors")
    )


def test_it_is_a_pure_function_whose_result_is_a_recipe(small_digits, tmp_path):
    recipe = parse_recipe(LARGE, "large.yaml")
    before = resolved_yaml(recipe)
    small = scale_down(recipe, small_digits, tmp_path)
    assert small == scale_down(recipe, small_digits, tmp_path)
    assert resolved_yaml(recipe) == before
    assert parse_recipe(resolved_yaml(small), "small.yaml") == small
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: "/".join(path.with_suffix("").parts[-2:]))
def test_twice_is_once_but_for_names(path, small_digits, tmp_path):
    """What is small already stays as it is."""
    once = scale_down(load_recipe(path), small_digits, tmp_path)
    twice = scale_down(once, small_digits, tmp_path)
    assert [stage.view for stage in twice.stages] == [stage.view for stage in once.stages]
    assert [stage.global_batch_size for stage in twice.stages] == [stage.global_batch_size for stage in once.stages]
    assert [stage.schedule for stage in twice.stages] == [stage.schedule for stage in once.stages]


def test_a_padded_view_can_be_made_of_small_images(small_digits, digits, tmp_path):
    crop = {"kind": "padded", "padding_px": 4}
    recipe = load_recipe(
        digits.recipe(
            tmp_path / "r.yaml",
            evaluation={"sources": [source_of(digits)], "resize_short_px": 64, "crop_px": 64},
            view={"size_px": 64, "crop": crop, "horizontal_flip": 0.0},
            stages=[{"name": "a"}, {"name": "b", "view": {"size_px": 96}}],
        )
    )
    small = scale_down(recipe, small_digits, tmp_path)
    assert [(s.view.size_px, s.view.crop.padding_px) for s in small.stages] == [(28, 2), (42, 7)]


def test_more_sources_than_images(small_digits, digits, tmp_path):
    recipe = load_recipe(digits.recipe(tmp_path / "r.yaml"))
    source = recipe.stages[0].data.sources[0]
    stage = recipe.stages[0]
    many = stage.model_copy(update={"data": stage.data.model_copy(update={"sources": (source,) * 5})})
    few = dataclasses.replace(small_digits, training=small_digits.training.model_copy(update={"range": (0, 3)}))
    small = scale_down(recipe.model_copy(update={"stages": (many,)}), few, tmp_path)
    assert [s.range for s in small.stages[0].data.sources] == [(0, 1), (1, 2), (2, 3), (0, 1), (1, 2)]


def test_random_teachers_stay_within_bounds_however_deep_they_are(tmp_path):
    """BN with mean 0 and variance 1 would let activations grow by 2^50 through the blocks of ResNet200_vd."""
    import paddle

    recipe = parse_recipe(LARGE.replace("ResNeXt101_32x16d_wsl", "ResNet200_vd"), "large.yaml")
    section = recipe.stages[0].teacher.models[0].model_copy(update={"width": 0.0625})
    weights = random_weights(section, 10, seed=3)
    again = random_weights(section, 10, seed=3)
    assert all(np.array_equal(weights[name], again[name]) for name in weights)
    model = build_model(section, 10)
    model.set_state_dict({name: paddle.to_tensor(value) for name, value in weights.items()})
    model.eval()
    logits = model(paddle.randn([4, 3, 28, 28])).numpy()
    assert 0.1 < np.abs(logits).max() < 10
    assert logits.std(0).max() > 0  # it tells images apart


# --- images -------------------------------------------------------------------------------------


@pytest.fixture
def folders(digits, tmp_path):
    """Ten digits in each of three classes, as files."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for label in range(3):
        folder = tmp_path / "my images" / str(label)
        folder.mkdir(parents=True)
        for place, image in enumerate(bunch.images[bunch.target == label][:10]):
            cv2.imwrite(str(folder / f"{place}.png"), np.kron(image, np.ones((4, 4))) * 15)
    return tmp_path / "my images"


def test_a_folder_of_class_folders(folders, tmp_path):
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    images = SmallImages(folders, inputs)
    assert list(inputs.iterdir()) == []
    images.write(inputs)
    training = open_sources([images.data.training], images.data.num_classes)
    evaluation = open_sources([images.data.evaluation], images.data.num_classes)
    assert (len(training), len(evaluation), images.data.num_classes) == (20, 10, 3)
    names = {source.name(index) for source in (training, evaluation) for index in range(len(source))}
    assert len(names) == 30
    assert set(training.labels) == set(evaluation.labels) == {0, 1, 2}
    for index in range(20):
        assert Path(training.name(index)).parent.name == str(training.labels[index])
        assert training.read(index).shape == (32, 32, 3)


def test_a_list_whose_paths_are_relative_to_its_folder(folders, tmp_path):
    paths = sorted(folders.rglob("*.png"))
    listed = folders / "list.txt"
    listed.write_text("".join(f"{path.relative_to(folders)} {path.parent.name}\n" for path in paths))
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    images = SmallImages(listed, inputs)
    images.write(inputs)
    assert len(open_sources([images.data.training], 3)) == 20
    assert open_sources([images.data.evaluation], 3).read(0).shape == (32, 32, 3)


def test_images_that_cannot_serve(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data/fashion-mnist is not here.*--scale-down-data"):
        SmallImages(None, tmp_path)
    with pytest.raises(UserError, match="there is no folder and no image list absent"):
        SmallImages(Path("absent"), tmp_path)
    unlabelled = folders / "unlabelled.txt"
    unlabelled.write_text("0/0.png\n0/1.png\n1/0.png 1\n")
    with pytest.raises(UserError, match="1 of its 3 images have labels, expected at least 3"):
        SmallImages(unlabelled, tmp_path)


def test_fashion_mnist_is_found_where_its_script_puts_it(digits, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    names = {"train-images": "train-images-idx3-ubyte.gz", "train-labels": "train-labels-idx1-ubyte.gz",
             "test-images": "t10k-images-idx3-ubyte.gz", "test-labels": "t10k-labels-idx1-ubyte.gz"}  # fmt: skip
    for own, name in names.items():
        (folder / name).write_bytes((digits.folder / f"{own}.gz").read_bytes())
    monkeypatch.chdir(tmp_path)
    images = SmallImages(None, tmp_path / "inputs")
    assert images.description == "256 images of data/fashion-mnist"
    assert len(open_sources([images.data.training], 10)) == 256
    assert len(open_sources([images.data.evaluation], 10)) == 128
    assert images.data == SmallImages(Path("data/fashion-mnist"), tmp_path).data
