"""A full disk, and folders that cannot be written: the last good state is intact, and a resume loses nothing."""

import fcntl
import json

import numpy as np
import pytest

from distill import checkpoint
from distill.errors import RunError, UserError
from distill.metrics import MetricsLog, read_metrics
from distill.recipe.file import load_recipe
from distill.stages import run_recipe

# Each breaks the run at another file: recipe.yaml, the picture of the views, the best weights, a checkpoint.
LARGEST_FILES_BYTES = [500, 20_000, 100_000, 300_000]


@pytest.mark.parametrize("limit_bytes", LARGEST_FILES_BYTES)
def test_a_run_without_room_says_so_and_goes_on_when_there_is(
    small_recipe, whole_run, tmp_path, small_files_only, limit_bytes
):
    recipe, run = load_recipe(small_recipe()), tmp_path / "run"
    with small_files_only(limit_bytes), pytest.raises(RunError, match=r"Cannot write .*Free some space"):
        run_recipe(recipe, run, device="cpu")
    assert not [path for path in run.rglob("*") if path.name.startswith(".tmp-")]
    run_recipe(recipe, run, resume=True, device="cpu")
    assert (run / "student.safetensors").read_bytes() == whole_run


@pytest.mark.parametrize("size_kb", [8, 60, 400, 1000])
def test_a_disk_that_fills_up_says_so_and_loses_nothing(small_recipe, whole_run, small_disk, size_kb):
    run = small_disk(size_kb) / "run"
    recipe = load_recipe(small_recipe())
    with pytest.raises(RunError, match=r"Cannot write .*No space left on device"):
        run_recipe(recipe, run, device="cpu")
    small_disk(100_000, "remount")
    saved = checkpoint.latest(run / "stages/0-train/checkpoints")
    assert saved is None or saved.tensors
    run_recipe(recipe, run, resume=True, device="cpu")
    assert (run / "student.safetensors").read_bytes() == whole_run


def test_the_command_ends_with_status_1_and_one_message(small_recipe, distill, tmp_path):
    arguments = ["train", small_recipe(), "--output", tmp_path / "run", "--device", "cpu"]
    status, said = distill(*arguments, largest_file_bytes=20_000)
    assert status == 1 and "error: Cannot write" in said and "File too large. Free some space" in said


def test_the_command_ends_with_status_2_where_nothing_can_be_written(small_recipe, distill, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", "/proc/run"):
        status, said = distill("train", small_recipe(), "--output", output, "--device", "cpu")
        assert status == 2 and str(output) in said


def test_a_second_run_in_one_folder_is_refused(small_recipe, tmp_path):
    recipe, run = load_recipe(small_recipe()), tmp_path / "run"
    run.mkdir()
    with open(run / ".lock", "w") as held, pytest.raises(UserError, match="another process trains in"):
        fcntl.flock(held, fcntl.LOCK_EX)  # as the first run has it
        run_recipe(recipe, run, device="cpu")
    assert [path.name for path in run.iterdir()] == [".lock"]


# --- logs -------------------------------------------------------------------------------------


def entry(step):
    return {"kind": "train", "stage": 0, "stage_name": "s", "step": step, "loss": 0.5}


def test_a_log_without_room_says_so_and_keeps_whole_lines(tmp_path, small_files_only):
    log = MetricsLog(tmp_path, stage=0, after_step=0)
    with small_files_only(3000), pytest.raises(RunError, match=r"Cannot write .*metrics\.jsonl: "):
        for step in range(1, 1000):
            log.write(entry(step))
    log.close()
    assert (tmp_path / "metrics.jsonl").stat().st_size == 3000
    kept = read_metrics(tmp_path / "metrics.jsonl")
    assert 30 < len(kept) < 60 and kept == [entry(step) for step in range(1, len(kept) + 1)]
    MetricsLog(tmp_path, stage=0, after_step=20).close()
    assert [each["step"] for each in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 21))


def test_curves_without_room_do_not_stop_a_run_and_are_drawn_again(tmp_path, small_files_only, capsys):
    log = MetricsLog(tmp_path, stage=0, after_step=0)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    with small_files_only(5000):
        log.add_picture("noise", noise)
        for step in range(1, 20):
            log.write(entry(step))
        log.close()
    assert "File too large" in capsys.readouterr().out
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 19
    MetricsLog(tmp_path, stage=0, after_step=19).close()
    (curves,) = (tmp_path / "visualdl").iterdir()
    assert curves.stat().st_size > 500


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b'{"kind": "tra', b"\0" * 100])
def test_a_damaged_log_is_read_up_to_the_damage(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(json.dumps(entry(1)).encode() + b"\n" + damage)
    assert read_metrics(path) == [entry(1)]
