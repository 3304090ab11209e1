"""Training the classifier alone at another size, from the recipe to the weights."""

import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from distill import checkpoint
from distill.data.loader import TrainLoader
from distill.data.sources import open_sources
from distill.engines.engine import TOLERANCE
from distill.errors import RunError, UserError
from distill.learner import Learner
from distill.metrics import read_metrics
from distill.models import build_model
from distill.normalization import normalize, to_unit_range
from distill.parallel import Device
from distill.recipe.file import load_recipe
from distill.stages import run_recipe
from distill.trunk import Trunk
from distill.weights import load_into, read_weights, write_weights

CPU = Device("cpu", 2)
MODEL = {"name": "ResNet18_vd", "width": 0.0625}
CLASSIFIER = {"fc.weight", "fc.bias"}


@pytest.fixture(scope="module")
def weights(digits, tmp_path_factory):
    """A network that was trained at 28 px, so that its statistics are no longer 0 and 1."""
    folder = tmp_path_factory.mktemp("weights")
    recipe = load_recipe(digits.recipe(folder / "r.yaml"), ["data.sources.0.range=[0, 600]", "epochs=4"])
    run_recipe(recipe, folder / "run", device="cpu")
    return folder / "run" / "student.safetensors"


@pytest.fixture
def fix(digits, weights, tmp_path):
    """Writes a recipe that finetunes the classifier at 36 px; keywords replace its keys."""

    def write(name="fix", **changes):
        content = {
            "epochs": 3,
            "model": MODEL | {"weights": str(weights)},
            "freeze": ["stem.*", "blocks.*"],
            "view": {"size_px": 36, "crop": {"kind": "center", "resize_short_px": 36}, "horizontal_flip": 0.0},
        }
        return digits.recipe(tmp_path / f"{name}.yaml", **(content | changes))

    return write


@pytest.fixture
def train(tmp_path):
    def run(path, name, *overrides, **options):
        run_recipe(load_recipe(path, overrides), tmp_path / name, device="cpu", **options)
        return (tmp_path / name / "student.safetensors").read_bytes()

    return run


@pytest.fixture
def views(monkeypatch):
    """Counts the training views that are made."""
    from distill.data import loader

    made, make = [], loader.train_view
    monkeypatch.setattr(loader, "train_view", lambda *arguments: made.append(1) or make(*arguments))
    return made


@pytest.fixture
def computed(monkeypatch):
    """Counts the images that went through the trunk."""
    counts, call = [], Trunk.__call__
    monkeypatch.setattr(Trunk, "__call__", lambda self, images: counts.append(len(images)) or call(self, images))
    return counts


def changed(before, after):
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


def test_the_classifier_is_trained_as_by_numpy(fix, train, weights):
    constant = {"kind": "constant", "warmup_epochs": 0}
    path = fix(schedule=constant, epochs=2)
    override = ["optimizer.weight_decay=0", "optimizer.nesterov=false"]
    train(path, "run", *override)
    trained = read_weights(path.parent / "run" / "student.safetensors")

    recipe = load_recipe(path, override)
    stage = recipe.stages[0]
    model = build_model(recipe.model, 10)
    load_into(model, weights)
    model.eval()
    weight, bias = (model.state_dict()[name].numpy().astype(np.float64) for name in ("fc.weight", "fc.bias"))
    velocities = [np.zeros_like(weight), np.zeros_like(bias)]
    loader = TrainLoader(open_sources(stage.data.sources, 10), stage, recipe.runtime, seed=3, stage_index=0)
    gradients = [np.zeros_like(weight), np.zeros_like(bias)]
    for batch in loader.batches(0, 2 * loader.steps_per_epoch):
        if len(batch.labels):
            inputs = normalize(to_unit_range(batch.images), stage.normalization)
            features = model.taps(inputs, ["embedding"])["embedding"].numpy().astype(np.float64)
            logits = features @ weight + bias
            probabilities = np.exp(logits - logits.max(1, keepdims=True))
            probabilities /= probabilities.sum(1, keepdims=True)
            target = 0.9 * np.eye(10)[batch.labels] + 0.1 / 10  # label smoothing 0.1
            error = (probabilities - target) / batch.global_count
            gradients = [gradients[0] + features.T @ error, gradients[1] + error.sum(0)]
        if batch.ends_step:
            velocities = [0.9 * v + g for v, g in zip(velocities, gradients, strict=True)]
            weight, bias = weight - 0.05 * velocities[0], bias - 0.05 * velocities[1]
            gradients = [np.zeros_like(weight), np.zeros_like(bias)]
    start = read_weights(weights)
    assert np.abs(weight - start["fc.weight"]).max() > 0.01
    # The trunk's float32 features come from another engine: on one core 4e-5 in the end.
    np.testing.assert_allclose(trained["fc.weight"], weight, atol=1e-4)
    np.testing.assert_allclose(trained["fc.bias"], bias, atol=1e-4)


@pytest.mark.parametrize("ema", [None, 0.5])
def test_all_below_the_classifier_stays_bit_for_bit(fix, train, weights, tmp_path, ema):
    train(fix(ema_decay=ema), "run")
    start = read_weights(weights)
    stage = tmp_path / "run" / "stages" / "0-train"
    saved = checkpoint.latest(stage / "checkpoints")
    plain = {name: saved.tensors[f"student.{name}"] for name in start}
    for state in (plain, read_weights(stage / "student.safetensors"), read_weights(stage / "best.safetensors")):
        assert changed(start, state) == CLASSIFIER
    averaged = {key for key in saved.tensors if key.startswith("ema.")}
    assert averaged == ({f"ema.{name}" for name in CLASSIFIER} if ema else set())
    left = read_weights(stage / "student.safetensors")
    assert changed(plain, left) == (CLASSIFIER if ema else set())


def test_learning_at_another_size_beats_the_network_that_was_not_finetuned(fix, train, tmp_path):
    size = ["evaluation.resize_short_px=36", "evaluation.crop_px=36", "data.sources.0.range=[0, 1000]"]
    for name, rate in (("still", 1e-9), ("fix", 0.2)):
        train(fix(), name, *size, f"optimizer.learning_rate={rate}")
    still, fixed = (
        [e["top1"] for e in read_metrics(tmp_path / name / "metrics.jsonl") if e["kind"] == "evaluation"][-1]
        for name in ("still", "fix")
    )
    assert fixed > still + 0.05


# --- features that are computed once --------------------------------------------------------------


def test_with_and_without_reuse_the_bits_are_the_same(fix, train, views, computed, tmp_path, capsys):
    prefetched = ["runtime.prefetch_batches=1", "runtime.loader_threads=1"]
    plain = train(fix(), "plain", "runtime.reuse_features=false", *prefetched)
    assert len(views) == 600 and sum(computed) == 3 * (200 + 297)
    capsys.readouterr()
    del views[:], computed[:]
    assert train(fix(), "reused", *prefetched) == plain
    assert len(views) < 300 and sum(computed) == 200 + 297
    said = capsys.readouterr().err
    assert "the classifier alone is trained; what is below it computes with Paddle Inference, oneDNN, float32" in said
    assert "features are computed once and kept in" in said and ": 26.4 kB, exact" in said
    assert not (tmp_path / "reused" / "stages" / "0-train" / "features").exists()
    kinds = [
        [{k: v for k, v in e.items() if k not in ("images_per_second", "data_wait_share")} for e in entries]
        for entries in (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("plain", "reused"))
    ]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("override", ["model.data_format=NHWC", "runtime.loader_processes=1", "ema_decay=0.9"])
def test_reuse_is_exact_with(fix, train, override):
    assert train(fix(), "reused", override) == train(fix(), "plain", override, "runtime.reuse_features=false")


def test_runs_share_a_folder_of_features(fix, train, views, computed, tmp_path):
    shared = f"runtime.features_folder={tmp_path / 'shared'}"
    first = train(fix(), "first", shared)
    del views[:], computed[:]
    assert train(fix(), "second", shared) == first
    train(fix(), "third", shared, "optimizer.learning_rate=0.5", "loss.cross_entropy.label_smoothing=0", "epochs=1")
    assert not views and not computed
    assert len(list((tmp_path / "shared").glob("*.features"))) == 2
    for number, change in enumerate(["normalization.mean=[0, 0, 0]", "view.size_px=32", "model.stem_stride=2"]):
        train(fix(), f"other{number}", shared, change, "epochs=1")
        assert sum(computed) in (200, 200 + 297)
        del computed[:]


def test_other_weights_do_not_find_the_features_of_these(fix, train, weights, computed, tmp_path):
    shared = f"runtime.features_folder={tmp_path / 'shared'}"
    train(fix(), "first", shared)
    other = read_weights(weights)
    for count, name in ((0, "fc.weight"), (497, "blocks.7.conv1.bn._mean")):
        del computed[:]
        write_weights(tmp_path / "other.safetensors", other | {name: other[name] + np.float32(1)})
        train(fix(), name, shared, f"model.weights={tmp_path / 'other.safetensors'}")
        assert sum(computed) == count


def test_damaged_features_are_computed_again(fix, train, computed, tmp_path):
    shared = f"runtime.features_folder={tmp_path / 'shared'}"
    first = train(fix(), "first", shared)
    del computed[:]
    for path in (tmp_path / "shared").glob("*.features"):
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)
    assert train(fix(), "second", shared) == first
    assert computed == [1, 1]


def test_a_run_killed_anywhere_ends_with_the_same_bits(fix, train, train_and_kill, tmp_path):
    path = fix(
        runtime={"log_every_steps": 3, "checkpoint_every_steps": 4}, ema_decay=0.9, recalibrate_bn={"images": 64}
    )
    whole = train(path, "whole")
    for kill_at, where in ((3, "update"), (40, "record"), (10, "record"), (6, "update")):
        train_and_kill(path, tmp_path / "killed", kill_at, where)
    assert (tmp_path / "killed" / "stages" / "0-train" / "features").exists()
    train_and_kill(path, tmp_path / "killed", -1)
    assert (tmp_path / "killed" / "student.safetensors").read_bytes() == whole


def test_a_full_disk_stops_the_run_with_what_to_do(fix, train, small_files_only, monkeypatch):
    monkeypatch.setattr("distill.features.FeatureStore.record_bytes", 2**40)  # far behind what a file may be
    with small_files_only(2**30), pytest.raises(RunError, match=r"cannot write the features to .*reuse_features=false"):
        train(fix(), "run")


# --- what a stage may ask for besides -------------------------------------------------------------


@pytest.fixture
def taught(fix, weights, tmp_path):
    """A teacher of its own; of its answers `store` is made where labels are wanted."""

    def write(name="taught", labels=None, **changes):
        teacher = {"batch_norm": "stored", "models": [MODEL | {"weights": str(weights)}], "labels": labels}
        loss = {"kl": {"weight": 1.0, "temperature": 2.0}, "cross_entropy": {"weight": 0.5, "label_smoothing": 0.1}}
        return fix(name, teacher=teacher, loss=loss, **changes)

    return write


def test_mixed_images_go_through_the_trunk_every_time(fix, train, views, computed, tmp_path):
    path = fix(mixup={"alpha": 0.2, "group_size": 4})
    assert train(path, "a") == train(path, "b", "runtime.reuse_features=false")
    assert len(views) == 2 * 600
    assert sum(computed) == 600 + 297 + 3 * (200 + 297)


def test_the_gradient_is_that_of_the_whole_network(taught, tmp_path):
    """Mixup, a live teacher and two losses, with the trunk and without."""
    recipe = load_recipe(taught(mixup={"alpha": 0.2, "group_size": 4}))
    stage = recipe.stages[0]
    loader = TrainLoader(open_sources(stage.data.sources, 10), stage, recipe.runtime, seed=3, stage_index=0)
    batch = next(loader.batches(0, 1))
    gradients = []
    for fast in (False, True):
        learner = Learner(recipe, 0, CPU, None)
        if fast:
            learner.open_trunk()
        terms = learner.accumulate(batch)
        gradients.append({name: p.grad.numpy() for name, p in learner.parameters} | {"loss": terms["loss"].numpy()})
    assert gradients[0].keys() == {*CLASSIFIER, "loss"}
    for name, gradient in gradients[0].items():
        assert np.abs(gradient).max() > 1e-3
        np.testing.assert_allclose(gradients[1][name], gradient, atol=1e-5)


def test_a_live_teacher_sees_every_image_and_the_trunk_each_once(taught, train, views, computed):
    assert train(taught(), "reused") == train(taught(), "plain", "runtime.reuse_features=false")
    assert len(views) == 2 * 600
    assert sum(computed) == (200 + 297) + 3 * (200 + 297)


def test_with_stored_answers_and_stored_features_no_image_is_read(taught, train, views, computed, tmp_path):
    path = taught(labels={"folder": str(tmp_path / "labels"), "top_classes": 4, "views": 1})
    shared = f"runtime.features_folder={tmp_path / 'shared'}"
    first = train(path, "first", shared)
    assert 200 <= len(views) < 400
    del views[:], computed[:]
    assert train(path, "second", shared) == first
    assert not views and not computed
    shutil.rmtree(tmp_path / "labels")
    assert train(path, "third", shared) == first  # the teacher looks again, the trunk does not
    assert 200 <= len(views) < 400 and not computed


@pytest.fixture
def damaged(fix, tmp_path):
    """A recipe of 40 pictures of which number 7 is damaged."""
    images = tmp_path / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    for i in range(40):
        cv2.imwrite(str(images / f"{i:02d}.png"), random.integers(0, 255, (40, 40, 3), dtype=np.uint8))
    (images / "list.txt").write_text("".join(f"{i:02d}.png {i % 10}\n" for i in range(40)))
    (images / "07.png").write_bytes(b"\x89PNG no")
    source = {"kind": "image_list", "path": str(images / "list.txt"), "root": str(images)}
    return fix(data={"sources": [source], "max_undecodable_fraction": 0.1}, global_batch_size=8, device_batch_size=8)


def test_undecodable_images_are_named_in_every_epoch(damaged, train, computed, tmp_path):
    assert train(damaged, "reused") == train(damaged, "plain", "runtime.reuse_features=false")
    assert sum(computed) == (39 + 297) + 3 * (39 + 297)
    for name in ("reused", "plain"):
        entries = read_metrics(tmp_path / name / "metrics.jsonl")
        named = [entry["file"] for entry in entries if entry["kind"] == "undecodable"]
        assert len(named) == 3 and all(file.endswith("07.png") for file in named)
        assert [entry["images"] for entry in entries if entry["kind"] == "train"][-1] == 3 * 39


def test_recalibrated_statistics_are_kept_through_the_stage_and_in_its_result(fix, train, weights, tmp_path):
    train(fix(ema_decay=0.9, recalibrate_bn={"images": 64}), "run")
    start, left = read_weights(weights), read_weights(tmp_path / "run" / "student.safetensors")
    statistics = {name for name in start if name.endswith(("._mean", "._variance"))}
    assert changed(start, left) == statistics | CLASSIFIER
    best = read_weights(tmp_path / "run" / "stages" / "0-train" / "best.safetensors")
    assert not statistics & changed(left, best)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": {"feature_mse": {"weight": 1.0, "student_layer": "stage4", "teacher_layer": "stage4"}}},
            r"stages\.train\.loss\.feature_mse compares the student's 'stage4', but freeze leaves the classifier alone",
        ),
        (
            {"freeze": ["stem.*"], "recalibrate_bn": {"images": 8}},
            r"recalibrate_bn needs all but the classifier frozen, but blocks\.0\.conv0\.conv\.weight is trained",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(taught, train, changes, message):
    recipe = taught(**{key: value for key, value in changes.items() if key != "loss"})
    overrides = [f"loss={changes['loss']}"] if "loss" in changes else ["teacher=null", "loss.kl=null"]
    with pytest.raises(UserError, match=message):
        train(recipe, "run", *overrides)


def test_weights_are_not_rounded_to_float16(fix):
    with pytest.raises(UserError, match=r"stages\.train\.amp: 'O2' would round the frozen weights.*Use 'O1'"):
        Learner(load_recipe(fix(amp="O2")), 0, Device("gpu", 1), None)


def test_statistics_are_estimated_for_frozen_layers_alone(fix):
    with pytest.raises(UserError, match=r"recalibrate_bn must come with freeze: training itself moves"):
        load_recipe(fix(freeze=[], recalibrate_bn={"images": 8}))
    with pytest.raises(UserError, match=r"recalibrate_bn\.images must be >= 1, received 0"):
        load_recipe(fix(recalibrate_bn={"images": 0}))


def test_an_engine_that_disagrees_is_replaced_by_the_plain_model(fix, train, tmp_path, monkeypatch, capsys):
    fast = read_weights(_trained(train, fix(), "fast", tmp_path))
    monkeypatch.setitem(TOLERANCE, "float32", -1.0)
    plain = read_weights(_trained(train, fix(), "plain", tmp_path))
    assert "computes with eager Paddle (Paddle Inference, oneDNN, float32 differs from the plain model" in (
        capsys.readouterr().err
    )
    np.testing.assert_allclose(plain["fc.weight"], fast["fc.weight"], atol=1e-3)


def _trained(train, path, name, folder):
    train(path, name)
    return folder / name / "student.safetensors"


def test_weights_from_the_command_line_start_a_fix_recipe(digits, weights, tmp_path):
    """A recipe that names no weights of its own."""
    recipe = digits.recipe(
        tmp_path / "fix.yaml",
        epochs=1,
        freeze=["stem.*", "blocks.*"],
        view={"size_px": 36, "crop": {"kind": "center", "resize_short_px": 36}, "horizontal_flip": 0.0},
    )
    command = [sys.executable, "-W", "ignore", "-m", "distill", "train", str(recipe), "--device", "cpu"]
    options = ["--set", f"model.weights={weights}", "--output", str(tmp_path / "run")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert changed(read_weights(weights), read_weights(tmp_path / "run" / "student.safetensors")) == CLASSIFIER
    missing = subprocess.run(
        [*command, "--set", "model.weights=no/such.safetensors", "--output", str(tmp_path / "other")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert missing.returncode == 2 and "no/such.safetensors" in missing.stderr
