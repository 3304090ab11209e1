import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distill.errors import RunError, UserError
from distill.metrics import read_metrics
from distill.parallel import setup_process
from distill.recipe.file import load_recipe
from distill.stages import prepare_folder, run_recipe
from distill.weights import read_weights


@pytest.fixture
def everything(digits, teacher_weights, tmp_path):
    """A recipe with all that has state or is drawn: two stages, teacher, projection, views, accumulation, EMA."""
    return digits.recipe(
        tmp_path / "everything.yaml",
        teacher={
            "batch_norm": "stored",
            "models": [{"name": "ResNet18_vd", "width": 0.125, "weights": str(teacher_weights)}],
        },
        view={
            "size_px": 28,
            "crop": {"kind": "padded", "padding_px": 2},
            "horizontal_flip": 0.5,
            "policy": {"kind": "randaugment", "operations": 2, "magnitude": 5},
            "erasing": {"probability": 0.3, "area": [0.02, 0.2], "aspect": [0.5, 2.0]},
        },
        mixup={"alpha": 0.2, "group_size": 4, "probability": 0.5},
        cutmix={"alpha": 1.0, "group_size": 4, "probability": 0.4},
        ema_decay=0.9,
        loss={
            "symmetric_kl": {"weight": 1.0, "temperature": 2.0},
            "feature_mse": {"weight": 0.1, "student_layer": "stage3", "teacher_layer": "stage3"},
        },
        runtime={"log_every_steps": 3, "checkpoint_every_steps": 3},
        stages=[{"name": "first"}, {"name": "second", "epochs": 1, "loss": {"feature_mse": None}}],
    )


def test_a_run_killed_anywhere_ends_with_the_same_bits(everything, train_and_kill, tmp_path):
    run_recipe(load_recipe(everything), tmp_path / "whole", device="cpu")
    draw = random.Random(0)
    killed = tmp_path / "killed"
    kills = [
        (draw.randint(1, 3), "update"),  # before the first checkpoint
        (draw.randint(4, 6), "update"),
        (draw.randint(1, 2), "checkpoint"),  # inside the writing of a checkpoint
        (draw.randint(7, 9), "update"),
        (2, "update"),  # in the second stage
        (5, "update"),  # there too, behind a checkpoint
    ]
    for kill_at, where in kills:
        train_and_kill(everything, killed, kill_at, where)
    train_and_kill(everything, killed, -1)
    assert (killed / "student.safetensors").read_bytes() == (tmp_path / "whole" / "student.safetensors").read_bytes()
    steps = [
        [(e["kind"], e["stage"], e["step"]) for e in read_metrics(f / "metrics.jsonl")]
        for f in (killed, tmp_path / "whole")
    ]
    assert steps[0] == steps[1]


def test_a_finished_run_describes_itself(digits, tmp_path):
    recipe = load_recipe(digits.recipe(tmp_path / "digits.yaml"))
    result = run_recipe(recipe, tmp_path / "run", device="cpu")
    folder = tmp_path / "run"
    assert load_recipe(folder / "recipe.yaml") == recipe
    sittings = json.loads((folder / "environment.json").read_text())["sittings"]
    assert sittings[0]["threads"] == setup_process("cpu").threads
    assert "numpy" in sittings[0]["packages"]
    recorded = json.loads((folder / "result.json").read_text())["train"]
    assert recorded["evaluation"]["top1"] == result.final.evaluation.top1
    assert recorded["steps"] == 14
    assert (folder / "first_views_train.png").read_bytes().startswith(b"\x89PNG")
    assert any((folder / "visualdl").iterdir())
    entries = read_metrics(folder / "metrics.jsonl")
    assert [e["step"] for e in entries if e["kind"] == "evaluation"] == [7, 14]
    train = [e for e in entries if e["kind"] == "train"]
    assert [e["step"] for e in train] == [3, 6, 7, 9, 12, 14]
    assert all(0 <= e["data_wait_share"] <= 1 and e["images_per_second"] > 0 for e in train)
    assert train[-1]["images"] == 400
    np.testing.assert_allclose([e["loss"] for e in train], [e["cross_entropy"] for e in train], rtol=1e-6)
    checkpoints = sorted(p.name for p in (folder / "stages" / "0-train" / "checkpoints").iterdir())
    assert checkpoints == ["step-00000007", "step-00000014"]
    assert not any("teacher" in name for name in read_weights(folder / "student.safetensors"))


def test_learning_happens(digits, tmp_path):
    recipe = load_recipe(digits.recipe(tmp_path / "digits.yaml"), ["data.sources.0.range=[0, 600]", "epochs=8"])
    assert run_recipe(recipe, tmp_path / "run", device="cpu").final.evaluation.top1 > 0.5


def test_the_same_seed_gives_the_same_run_and_another_seed_another(digits, tmp_path):
    path = digits.recipe(tmp_path / "digits.yaml", epochs=1)
    weights = []
    for name, seed in [("a", 3), ("b", 3), ("c", 4)]:
        run_recipe(load_recipe(path, [f"seed={seed}"]), tmp_path / name, device="cpu")
        weights.append((tmp_path / name / "student.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_an_output_folder_is_not_overwritten(digits, tmp_path):
    recipe = load_recipe(digits.recipe(tmp_path / "digits.yaml", epochs=1))
    run_recipe(recipe, tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match="already holds a run: --resume"):
        run_recipe(recipe, tmp_path / "run", device="cpu")


def test_resuming_with_another_recipe_shows_the_difference(digits, tmp_path):
    path = digits.recipe(tmp_path / "digits.yaml", epochs=1)
    run_recipe(load_recipe(path), tmp_path / "run", device="cpu")
    changed = load_recipe(path, ["optimizer.learning_rate=0.2", "runtime.log_every_steps=5"])
    with pytest.raises(UserError, match=r"optimizer.learning_rate: 0.05 -> 0.2\n.*--accept-change") as error:
        run_recipe(changed, tmp_path / "run", resume=True, device="cpu")
    assert "log_every_steps" not in str(error.value)
    run_recipe(changed, tmp_path / "run", resume=True, device="cpu", accept_changes=["optimizer.learning_rate"])


def test_an_unwritable_output_folder_is_named(digits, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make .*file/run"):
        run_recipe(load_recipe(digits.recipe(tmp_path / "digits.yaml")), tmp_path / "file" / "run", device="cpu")


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint(digits, tmp_path):
    path = digits.recipe(tmp_path / "digits.yaml", schedule={"kind": "constant", "warmup_epochs": 0})
    good = load_recipe(path, ["runtime.checkpoint_every_steps=2", "runtime.log_every_steps=1"])
    bad = load_recipe(path, ["optimizer.learning_rate=1e30", "runtime.log_every_steps=1"])
    assert good.stages[0].epochs == 2
    with pytest.raises(RunError, match=r"not finite at step \d+: .*Sample indices: \d+, "):
        run_recipe(bad, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "student.safetensors").exists()


def test_too_many_undecodable_files_stop_and_are_named(digits, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    import cv2

    rng = np.random.default_rng(0)
    lines = []
    for i in range(40):
        cv2.imwrite(str(images / f"{i}.png"), rng.integers(0, 255, (28, 28, 3), dtype=np.uint8))
        lines.append(f"{i}.png {i % 10}")
    (images / "7.png").write_bytes(b"\x89PNG no")
    (images / "list.txt").write_text("\n".join(lines))
    source = {"kind": "image_list", "path": str(images / "list.txt"), "root": str(images)}
    changes = {"epochs": 1, "global_batch_size": 8, "device_batch_size": 8}
    strict = digits.recipe(tmp_path / "strict.yaml", data={"sources": [source]}, **changes)
    with pytest.raises(RunError, match=r"1 of the 40 images .* cannot be decoded.*7\.png"):
        run_recipe(load_recipe(strict), tmp_path / "strict", device="cpu")
    lenient = digits.recipe(
        tmp_path / "lenient.yaml", data={"sources": [source], "max_undecodable_fraction": 0.05}, **changes
    )
    run_recipe(load_recipe(lenient), tmp_path / "lenient", device="cpu")
    entries = read_metrics(tmp_path / "lenient" / "metrics.jsonl")
    assert [Path(e["file"]).name for e in entries if e["kind"] == "undecodable"] == ["7.png"]
    assert [e["images"] for e in entries if e["kind"] == "train"][-1] == 39


def test_sigterm_saves_and_says_so(digits, tmp_path):
    path = digits.recipe(tmp_path / "digits.yaml", epochs=50, runtime={"log_every_steps": 1})
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "distill",
        "train",
        str(path),
        "--output",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        log = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (log.exists() and '"step": 3' in log.read_text()):
            pass
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM at step" in said
    assert "--resume" in said
    assert "Traceback" not in said
    assert list((tmp_path / "run" / "stages" / "0-train" / "checkpoints").glob("step-*"))


def test_a_run_that_was_refused_before_its_first_step_leaves_the_folder_free(digits, tmp_path):
    recipe = load_recipe(digits.recipe(tmp_path / "r.yaml", epochs=1))
    prepare_folder(recipe, tmp_path / "run", resume=False, accept_changes=())
    prepare_folder(recipe, tmp_path / "run", resume=False, accept_changes=())
    (tmp_path / "run/stages/0-train").mkdir(parents=True)
    (tmp_path / "run/stages/0-train/best.safetensors").touch()
    with pytest.raises(UserError, match="already holds a run"):
        prepare_folder(recipe, tmp_path / "run", resume=False, accept_changes=())
