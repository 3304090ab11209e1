"""What `distill train --dry-run` finds, measures and says; and that it leaves nothing behind."""

import os
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from distill.errors import RunError, UserError
from distill.labels.inventory import Inventory
from distill.parallel import Device
from distill.recipe.file import load_recipe
from distill.rehearsal import report, trial
from distill.rehearsal.checks import StageCheck, chance_of, check_run
from distill.rehearsal.report import dry_run, needs
from distill.rehearsal.trial import Memory, Speed, StageRehearsal, shortened
from distill.signals import Interrupted
from distill.stages import run_recipe
from distill.weights import read_weights, sha256_of

TEACHER = {"name": "ResNet18_vd", "width": 0.125}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 0.1)


@pytest.fixture
def taught(digits, teacher_weights, tmp_path):
    """A recipe of two stages: stored answers, then the classifier alone on views that do not change."""
    weights = tmp_path / "teacher.safetensors"
    shutil.copy(teacher_weights, weights)
    teacher = {
        "batch_norm": "stored",
        "models": [TEACHER | {"weights": str(weights)}],
        "labels": {"folder": str(tmp_path / "labels"), "top_classes": 4, "views": 2},
    }
    center = {"size_px": 28, "crop": {"kind": "center", "resize_short_px": 28}, "horizontal_flip": 0.0}
    return digits.recipe(
        tmp_path / "taught.yaml",
        epochs=6,
        stages=[
            {
                "name": "pool",
                "teacher": teacher,
                "loss": {"cross_entropy": None, "kl": {"weight": 1.0, "temperature": 1.0}},
                "mixup": {"alpha": 0.2, "group_size": 4},
                "ema_decay": 0.9,
            },
            {"name": "classifier", "freeze": ["stem.*", "blocks.*"], "view": center},
        ],
    )


def everything_below(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_whole_recipe_is_rehearsed_and_nothing_is_left(taught, tmp_path, monkeypatch):
    before = everything_below(tmp_path)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    lines = dry_run(load_recipe(taught), tmp_path / "run", device="cpu")
    assert list(temporary.iterdir()) == []
    temporary.rmdir()
    assert everything_below(tmp_path) == before
    text = "\n".join(lines)
    assert "stage 1/2 pool: ResNet18_vd, teacher ResNet18_vd" in lines
    assert "stage 2/2 classifier: ResNet18_vd, teacher none" in lines
    assert "200 images an epoch (200 of 200 sampled images can be decoded)" in text
    assert "297 to evaluate on (256 of 256 sampled images can be decoded)" in text
    assert f"fits ResNet18_vd, SHA-256 {sha256_of(tmp_path / 'teacher.safetensors')}" in text
    assert "steps     42: 6 epochs of 7, 1,200 images" in text
    assert text.count("with stored soft labels") == text.count("with stored features") == 1
    assert "soft labels: 0 of 400 answers are stored" in text
    assert "in all: 84 steps" in lines[-1] and f"free for {tmp_path / 'run'}" in lines[-1]


def test_measured_figures_are_sound(taught, tmp_path):
    recipe = load_recipe(taught)
    checks = check_run(recipe, tmp_path / "run")
    pool, classifier = trial.rehearse(recipe, checks, Device("cpu", 2))
    for found in (pool, classifier):
        assert 0 < found.computing.images_per_second < 1e6
        assert 0 <= found.computing.data_wait <= 1
        assert found.evaluated_per_second > 0
        assert found.memory.baseline < found.memory.peak < found.memory.available
        assert found.checkpoint_bytes > found.student_bytes > 0
    assert pool.memory.student == pytest.approx(2 * classifier.memory.student, rel=0.01)  # with the moving average
    weights = tmp_path / "teacher.safetensors"
    assert pool.memory.teacher == sum(array.nbytes for array in read_weights(weights).values())
    assert classifier.memory.optimizer == 2 * 4 * (32 * 10 + 10)  # velocity and gradient of the classifier
    assert (pool.keeps_features, classifier.keeps_features) == (False, True)


def test_answers_that_are_all_stored_need_no_teacher(taught, tmp_path):
    recipe = load_recipe(taught)
    run_recipe(recipe, tmp_path / "finished", device="cpu")
    (tmp_path / "teacher.safetensors").unlink()
    before = everything_below(tmp_path)
    checks = check_run(recipe, tmp_path / "run")
    assert (checks[0].labels.stored, checks[0].labels.missing) == (400, 0)
    text = "\n".join(dry_run(recipe, tmp_path / "run", device="cpu"))
    assert everything_below(tmp_path) == before
    assert "teacher.safetensors is not there: all its answers are stored" in text
    assert "soft labels: 400 of 400 answers are stored, the others take 0 B" in text


def test_what_is_short_is_the_recipes_own_but_for_size(taught, tmp_path):
    recipe = load_recipe(taught)
    checks = check_run(recipe, tmp_path / "run")
    short = shortened(recipe, 0, checks[0], 3, tmp_path / "temporary")
    pool, own = short.stages[0], recipe.stages[0]
    assert short.stages[1] == recipe.stages[1]
    assert (pool.view, pool.loss, pool.mixup, pool.schedule) == (own.view, own.loss, own.mixup, own.schedule)
    assert (pool.global_batch_size, pool.device_batch_size, pool.epochs) == (16, 16, 2)
    assert pool.optimizer.learning_rate == own.optimizer.learning_rate / 2
    assert pool.data.sources[0].range == (76, 124)  # 48 images from the middle of 200
    assert pool.labels.folder == str(tmp_path / "temporary" / "labels")
    assert short.runtime.features_folder == str(tmp_path / "temporary" / "features")


# --- checks -------------------------------------------------------------------------------------


def test_all_that_is_wrong_is_said_at_once(digits, teacher_weights, tmp_path):
    idx = {"kind": "idx", "images": str(digits.folder / "train-images.gz")}
    teacher = {
        "batch_norm": "stored",
        "models": [
            TEACHER | {"weights": "absent.pdparams"},
            TEACHER | {"weights": str(teacher_weights), "width": 0.25},
        ],
    }
    recipe = load_recipe(
        digits.recipe(
            tmp_path / "wrong.yaml",
            data={"sources": [{"kind": "image_list", "path": "absent.txt", "root": str(tmp_path)}, idx]},
            evaluation={"sources": [idx], "resize_short_px": 28, "crop_px": 28},
            teacher=teacher,
            loss={"kl": {"weight": 1.0, "temperature": 1.0}},
            model={"name": "ResNet18_vd", "width": 0.0625, "weights": str(tmp_path)},
        )
    )
    (tmp_path / "run" / "stages" / "0-train").mkdir(parents=True)
    (tmp_path / "run" / "stages" / "0-train" / "best.safetensors").write_text("")
    (tmp_path / "run" / "recipe.yaml").write_text("")
    with pytest.raises(UserError) as error:
        check_run(recipe, tmp_path / "run")
    lines = str(error.value).splitlines()
    assert lines[0] == "6 problems of digits:"
    text = "\n".join(lines)
    assert "run already holds a run" in text
    assert "stages.train.data.sources.0: absent.txt: the image list cannot be read" in text
    assert "stages.train.evaluation.sources: 1,500 images have no label, the first is " in text
    assert "stages.train.teacher.models.0.weights: Cannot read the weights absent.pdparams" in text
    assert "stages.train.teacher.models.1.weights: " in text and "does not fit the model" in text
    assert "model.weights: " in text


@pytest.fixture
def folders(tmp_path):
    """Forty images of two classes."""
    for number in range(40):
        path = tmp_path / "images" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((32, 32, 3), number, np.uint8))
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("broken", "allowed", "refused"), [(1, 0.001, False), (2, 0.001, True), (1, 0.0, True), (2, 0.1, False)]
)
def test_images_that_cannot_be_decoded(digits, folders, tmp_path, broken, allowed, refused):
    for path in sorted(folders.rglob("*.png"))[:broken]:
        path.write_bytes(b"nothing")
    sources = [{"kind": "class_folders", "root": str(folders)}]
    recipe = load_recipe(
        digits.recipe(tmp_path / "r.yaml", data={"sources": sources, "max_undecodable_fraction": allowed})
    )
    said = rf"{40 - broken} of 40 sampled images can be decoded; not .*\.png"
    if refused:
        with pytest.raises(UserError, match=rf"stages\.train\.data: {said}.*mend or remove them"):
            check_run(recipe, tmp_path / "run")
    else:
        (check,) = check_run(recipe, tmp_path / "run")
        assert check.sampled[0].startswith(f"{40 - broken} of 40 sampled images can be decoded; not ")


@given(st.integers(0, 20), st.integers(20, 256), st.floats(0, 1))
def test_the_chance_of_failures_is_binomial(failures, sampled, share):
    assert chance_of(failures, sampled, share) == pytest.approx(binom.sf(failures - 1, sampled, share), abs=1e-9)


# --- what it will take --------------------------------------------------------------------------


def measured(**changes):
    memory = Memory(student=10, optimizer=20, teacher=30, peak=200, baseline=100, available=1000)
    speed = {"computing": Speed(100.0, 0.1, 9, 0.16), "reading": None, "keeps_features": False}
    return StageRehearsal(
        **speed
        | {"evaluated_per_second": 50.0, "memory": memory, "checkpoint_bytes": 1000, "student_bytes": 100}
        | changes
    )


def checked(**changes):
    return StageCheck(**{"images": 1000, "source_images": [1000], "evaluation_source_images": [150, 50]} | changes)


def test_time_and_disk_of_a_plain_stage(digits, tmp_path):
    recipe = load_recipe(digits.recipe(tmp_path / "r.yaml", epochs=5))
    need = needs(recipe, 0, checked(), measured())
    assert (need.steps, need.images) == (5 * 32, 5000)
    assert (need.training_seconds, need.evaluation_seconds, need.seconds) == (50.0, 20.0, 70.0)
    assert (need.run_bytes, need.labels_bytes) == (3 * 1000 + 2 * 100, 0)
    every_two = load_recipe(
        digits.recipe(tmp_path / "r.yaml", epochs=5), ["evaluation.every_epochs=2", "ema_decay=0.9"]
    )
    assert needs(every_two, 0, checked(), measured()).evaluation_seconds == 2 * 3 * 200 / 50
    assert measured().memory.rest == 40


def test_time_with_stored_answers(taught):
    recipe = load_recipe(taught)
    fast = measured(reading=Speed(400.0, 0.1, 9, 0.04))
    half = checked(labels=Inventory(needed=2000, stored=1500, record_bytes=46))
    need = needs(recipe, 0, half, fast)
    assert need.training_seconds == 500 / 100 + (6000 - 500) / 400
    assert need.labels_bytes == 500 * 46
    waiting = load_recipe(taught, ["stages.pool.teacher.labels.missing=wait"])
    assert needs(waiting, 0, half, fast).training_seconds == 6000 / 400


def test_time_with_features_that_are_kept(taught):
    recipe = load_recipe(taught)
    fast = measured(reading=Speed(1000.0, 0.1, 9, 0.02), keeps_features=True)
    need = needs(recipe, 1, checked(), fast)
    assert need.training_seconds == 1000 / 100 + 5000 / 1000
    assert need.run_bytes == 3200 + (1000 + 200) * (4 + 4 * 32)


def test_a_disk_that_is_too_small(digits, tmp_path, monkeypatch):
    recipe = load_recipe(digits.recipe(tmp_path / "r.yaml"))
    monkeypatch.setattr(report, "_free_bytes", lambda path: 3000)
    with pytest.raises(UserError, match=r"the disk is too small: 3\.3 kB are needed for run\. Free some space"):
        report.report(recipe, [checked(sampled=["", ""])], [measured()], Path("run"), Device("cpu", 2))


# --- how it ends --------------------------------------------------------------------------------


def test_what_would_end_the_run_ends_the_rehearsal(digits, tmp_path):
    recipe = load_recipe(
        digits.recipe(tmp_path / "r.yaml"), ["optimizer.learning_rate=1e38", "schedule.warmup_epochs=0"]
    )
    with pytest.raises(RunError, match="the loss is not finite at step"):
        dry_run(recipe, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_signal_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    handler = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(Interrupted, match="the dry run was stopped") as error,
        trial._leaves_nothing_behind() as folder,
    ):
        (folder / "file").write_text("")
        os.kill(os.getpid(), signal.SIGTERM)
    assert error.value.exit_status == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is handler
