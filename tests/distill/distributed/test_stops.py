"""What stops ranks that train together: each time all of them, each time with a reason."""

import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np

from distill import checkpoint
from distill.metrics import read_metrics

CONSTANT = {"kind": "constant", "warmup_epochs": 0}


def test_a_signal_to_one_rank_stops_all_and_any_number_of_ranks_goes_on(digits, start_ranks, tmp_path):
    changes = {"schedule": CONSTANT, "runtime": {"log_every_steps": 1}, "epochs": 1000}
    path = digits.recipe(tmp_path / "r.yaml", **changes)
    command = ["train", str(path), "--device", "cpu", "--output"]
    ranks = start_ranks(*[[*command, str(tmp_path / "1")]] * 2)
    log = tmp_path / "1/metrics.jsonl"
    while not (log.exists() and '"step": 3' in log.read_text()):
        assert all(process.poll() is None for process in ranks.processes)
        time.sleep(0.01)
    ranks.processes[1].send_signal(signal.SIGTERM)
    ended = ranks.ended()
    assert [rank.status for rank in ended] == [128 + signal.SIGTERM] * 2, ended
    said = {rank.said.partition("stopped by SIGTERM at ")[2] for rank in ended}
    assert len(said) == 1  # the same step
    assert "the state is saved, --resume goes on" in said.pop()

    step = checkpoint.latest(tmp_path / "1/stages/0-train/checkpoints").step
    epochs = ["--set", f"epochs={step // 7 + 1}"]
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    resume = [*epochs, "--resume", "--accept-change", "epochs"]
    runs = {
        "1": start_ranks([*command, str(tmp_path / "1"), *resume]),
        "2": start_ranks(*[[*command, str(tmp_path / "2"), *resume]] * 2),
        "never stopped": start_ranks(*[[*command, str(tmp_path / "never stopped"), *epochs]] * 2),
    }
    for ranks in runs.values():
        assert {rank.status for rank in ranks.ended()} == {0}
    for name in runs:  # what is left to see, once
        assert read_metrics(tmp_path / name / "metrics.jsonl")[-2]["images"] == 200 * (step // 7 + 1)
    same = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("2", "never stopped")]
    assert same[0] == same[1]


def image_list(folder: Path, count: int, *, broken: tuple[int, ...] = ()) -> None:
    """Writes `count` images of noise and a list of them, relative to the folder."""
    folder.mkdir()
    random = np.random.default_rng(count)
    for number in range(count):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), random.integers(0, 255, (28, 28, 3), dtype=np.uint8))
        if number in broken:
            path.write_bytes(b"\x89PNG no")
    (folder / "list.txt").write_text("".join(f"{number}.png {number % 10}\n" for number in range(count)))


LISTED = {"sources": [{"kind": "image_list", "path": "list.txt", "root": "."}]}


def test_ranks_that_do_not_agree_are_named(digits, start_ranks, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    image_list(folders[0], 40)
    image_list(folders[1], 41)
    path = digits.recipe(tmp_path / "r.yaml", data=LISTED, epochs=1)
    command = ["train", str(path), "--device", "cpu", "--output"]
    by_list = start_ranks(*[[*command, str(tmp_path / "list")]] * 2, folders=folders)
    command.append(str(tmp_path / "rate"))
    rate = start_ranks(command, [*command, "--set", "optimizer.learning_rate=0.1"], folders=[folders[0]] * 2)
    for rank in by_list.ended():
        assert rank.status == 2
        assert "stages.train: images, count: 40 on rank 0 (" in rank.said
        assert "41 on rank 1 (" in rank.said
    for rank in rate.ended():
        assert rank.status == 2
        assert "recipe.stages.0.optimizer.learning_rate: 0.05 on rank 0 (" in rank.said
        assert "0.1 on rank 1 (" in rank.said
        assert "Traceback" not in rank.said


def test_what_a_rank_cannot_decode_is_named_and_counted_by_rank_0(digits, start_ranks, tmp_path):
    image_list(tmp_path / "images", 64, broken=tuple(range(0, 64, 9)))
    data = LISTED | {"max_undecodable_fraction": 0.2}
    changes = {"epochs": 1, "global_batch_size": 16, "device_batch_size": 8}
    lax = digits.recipe(tmp_path / "lax.yaml", data=data, **changes)
    strict = digits.recipe(tmp_path / "strict.yaml", data=data | {"max_undecodable_fraction": 0.1}, **changes)
    for size, name in [(1, "one"), (2, "two")]:
        command = ["train", str(lax), "--output", str(tmp_path / name), "--device", "cpu"]
        ranks = start_ranks(*[command] * size, folders=[tmp_path / "images"] * size).ended()
        assert [rank.status for rank in ranks] == [0] * size, ranks
    alone, together = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    named = [sorted((e["step"], e["file"]) for e in log if e["kind"] == "undecodable") for log in (alone, together)]
    assert len(named[0]) == 8
    assert named[0] == named[1]
    assert [log[-2]["images"] for log in (alone, together)] == [56, 56]

    command = ["train", str(strict), "--output", str(tmp_path / "strict"), "--device", "cpu"]
    for rank in start_ranks(command, command, folders=[tmp_path / "images"] * 2).ended():
        assert rank.status == 1
        assert "7 of the 64 images of epoch 0 cannot be decoded" in rank.said


def test_one_message_for_a_loss_that_is_not_finite_and_one_for_a_rank_that_is_gone(digits, start_ranks, tmp_path):
    path = digits.recipe(tmp_path / "r.yaml", schedule=CONSTANT)
    command = ["train", str(path), "--output", str(tmp_path / "nan"), "--device", "cpu"]
    command += ["--set", "runtime.log_every_steps=1"]
    diverges = [*command, "--set", "optimizer.learning_rate=1e30"]
    ranks = start_ranks(diverges, diverges).ended()
    assert [rank.status for rank in ranks] == [1, 1]
    said = {rank.said.partition("error: ")[2] for rank in ranks}
    assert len(said) == 1
    assert "the loss is not finite at step" in said.pop()

    command[3] = str(tmp_path / "gone")
    ranks = start_ranks(*[[*command, "--set", "epochs=1000"]] * 2)
    while not (tmp_path / "gone/metrics.jsonl").exists():
        time.sleep(0.01)
    ranks.processes[1].send_signal(signal.SIGKILL)
    first, _ = ranks.ended()
    assert first.status == 1
    assert "rank 1 ended without a word" in first.said or "could not sum with the other ranks" in first.said


def test_more_ranks_than_work_and_synchronised_batch_norm_on_a_cpu_are_refused(digits, start_ranks, tmp_path):
    path = digits.recipe(tmp_path / "r.yaml", device_batch_size=32)
    command = ["train", str(path), "--output", str(tmp_path / "run"), "--device", "cpu"]
    for rank in start_ranks(command, command).ended():
        assert rank.status == 2
        assert "has work for 1 devices of device_batch_size 32, but there are 2" in rank.said
    [rank] = start_ranks(
        ["train", str(path), "-o", str(tmp_path / "sync"), "--device", "cpu", "--set", "sync_batch_norm=true"]
    ).ended()
    assert rank.status == 2
    assert "sync_batch_norm: Paddle has no CPU kernel of it" in rank.said
