import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from distill.data.sources import open_sources
from distill.errors import RunError, UserError
from distill.labels.build import Block, Claims, Share, blocks_of, build_labels, parse_epochs, parse_share
from distill.labels.manifest import label_store
from distill.labels.records import Layout
from distill.labels.store import LabelStore
from distill.parallel import Device
from distill.recipe.file import load_recipe
from distill.stages import run_recipe

CPU = Device("cpu", 2)


def store_of(path, *overrides, create=False):
    recipe = load_recipe(path, overrides)
    return label_store(recipe, 0, open_sources(recipe.stages[0].data.sources, 10), create=create)


def shards_of(store):
    return {
        str(path.relative_to(store.folder)): path.read_bytes() for path in sorted(store.folder.glob("view-*/*.labels"))
    }


def builder(recipe, *arguments):
    command = [sys.executable, "-W", "ignore", "-m", "distill", "labels", "build", str(recipe), "--device", "cpu"]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def trained(taught, tmp_path, small_blocks):
    """A recipe, the student that a run computed its own answers for, and the store that it left."""
    recipe = taught(epochs=2)
    folder = tmp_path / "trained_store"
    run_recipe(load_recipe(recipe, [f"teacher.labels.folder={folder}"]), tmp_path / "trained", device="cpu")
    store = store_of(recipe, f"teacher.labels.folder={folder}")
    return recipe, (tmp_path / "trained" / "student.safetensors").read_bytes(), shards_of(store)


def test_a_builder_stores_what_training_stores(trained, capsys):
    recipe, _, shards = trained
    built = build_labels(load_recipe(recipe), 0, CPU)
    assert (built.images, built.undecodable, built.with_others) == (400, 0, 0)
    assert shards_of(store_of(recipe)) == shards
    assert build_labels(load_recipe(recipe), 0, CPU).images == 0
    assert "400 of 400 answers are in" in capsys.readouterr().err


def test_parts_and_epochs_make_up_the_whole(trained):
    recipe, _, shards = trained
    loaded = load_recipe(recipe)
    first = build_labels(loaded, 0, CPU, epochs=range(1, 2), share=Share(1, 2)).images
    assert store_of(recipe).view_epochs() == [1]
    second = build_labels(loaded, 0, CPU, share=Share(0, 2)).images
    third = build_labels(loaded, 0, CPU, share=Share(1, 2)).images
    assert min(first, second, third) > 0 and first + second + third == 400
    assert shards_of(store_of(recipe)) == shards


def test_parts_of_machines_without_a_common_folder_are_copied_together(trained, tmp_path):
    recipe, _, shards = trained
    for number in range(2):
        loaded = load_recipe(recipe, [f"teacher.labels.folder={tmp_path / 'part'}{number}"])
        build_labels(loaded, 0, CPU, share=Share(number, 2))
        shutil.copytree(tmp_path / f"part{number}", tmp_path / "store", dirs_exist_ok=True)
    assert shards_of(store_of(recipe)) == shards


def test_killed_and_concurrent_builders_leave_the_same_store(trained):
    recipe, _, shards = trained
    store = store_of(recipe, create=True)
    killed = builder(recipe)
    while store.stored_in_all() < 40 and killed.poll() is None:
        time.sleep(0.001)
    killed.kill()
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL and shards_of(store) != shards
    both = [builder(recipe) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert shards_of(store) == shards
    images = [int(output.split("stored ")[1].split(" ")[0]) for output, _ in said]
    assert 0 < sum(images) < 400  # what the first one stored was not computed again


def test_training_waits_for_a_builder_and_ends_with_the_same_bits(trained, tmp_path, capsys, monkeypatch):
    recipe, expected, _ = trained
    store_of(recipe, create=True)
    monkeypatch.setattr("distill.labels.waiting.POLL_SECONDS", 0.01)
    monkeypatch.setattr("distill.learner.open_teacher", lambda *_: pytest.fail("a teacher was built"))
    process = builder(recipe)
    run_recipe(load_recipe(recipe, ["teacher.labels.missing=wait"]), tmp_path / "run", device="cpu")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert (tmp_path / "run" / "student.safetensors").read_bytes() == expected
    said = capsys.readouterr().err
    assert "training waits for the others" in said and "waiting for the teacher: view epoch 0, positions 0-15" in said


def test_waiting_in_vain_ends_with_an_error(taught, tmp_path, monkeypatch):
    monkeypatch.setattr("distill.labels.waiting.POLL_SECONDS", 0.01)
    recipe = load_recipe(
        taught(), ["teacher.labels.missing=wait", "runtime.read_timeout_seconds=0.3", "data.sources.0.range=[0,64]"]
    )
    with pytest.raises(RunError, match=r"nothing was added to .*stage-0 for 0.3 s .*distill labels build RECIPE"):
        run_recipe(recipe, tmp_path / "run", device="cpu")


def test_a_signal_ends_the_waiting(taught, tmp_path, monkeypatch):
    monkeypatch.setattr("distill.labels.waiting.POLL_SECONDS", 0.01)

    def say(line):
        if "waiting for the teacher" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("distill.display.Display.say", lambda _, line: say(line))
    with pytest.raises(RunError, match="stopped while waiting for the teacher; --resume") as error:
        run_recipe(load_recipe(taught(), ["teacher.labels.missing=wait"]), tmp_path / "run", device="cpu")
    assert error.value.exit_status == 128 + signal.SIGTERM


def test_blocks_come_in_the_order_of_training_and_shares_are_whole_shards(tmp_path):
    store = LabelStore(tmp_path, Layout(10, 3), 23, group_size=2, block_positions=4, shard_blocks=2)
    blocks = list(blocks_of(store, [0, 1], Share()))
    assert blocks[0] == Block(0, 0, 4, 0) and blocks[5] == Block(0, 20, 23, 5) and blocks[6] == Block(1, 0, 4, 6)
    assert [block.number for block in blocks] == list(range(12))
    for count in (2, 3, 7):
        parts = [set(blocks_of(store, [0, 1], Share(number, count))) for number in range(count)]
        assert set.union(*parts) == set(blocks) and sum(map(len, parts)) == len(blocks)
        shards = [{(block.view_epoch, block.first // 8) for block in part} for part in parts]
        assert all(not one & other for i, one in enumerate(shards) for other in shards[:i])


def test_a_claimed_block_is_taken_by_nobody_else_until_its_owner_ends(tmp_path):
    code = f"""
import sys
from pathlib import Path
from distill.labels.build import Block, Claims
with Claims(Path({str(tmp_path)!r})) as claims:
    print(*(claims.take(Block(0, 0, 4, number)) for number in (3, 5)), flush=True)
    claims.release(Block(0, 0, 4, 5))
    print("released", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert [other.stdout.readline() for _ in range(2)] == ["True True\n", "released\n"]
    with Claims(tmp_path) as claims:
        assert [claims.take(Block(0, 0, 4, number)) for number in (3, 4, 5)] == [False, True, True]
        other.kill()
        other.communicate(timeout=60)
        assert claims.take(Block(0, 0, 4, 3))


def test_options_are_read_and_refused(taught):
    stage = load_recipe(taught(epochs=3)).stages[0]
    assert parse_share("2/4") == Share(1, 4) and parse_epochs("1:3", stage) == range(1, 3)
    for text in ("0/2", "3/2", "1", "a/b", "1/2/3"):
        with pytest.raises(UserError, match=r"--part must be i/N"):
            parse_share(text)
    for text in ("0:4", "2:2", "3", "-1:2"):
        with pytest.raises(UserError, match=r"first < end <= 3, the epochs of stage train"):
            parse_epochs(text, stage)


def test_undecodable_images_are_named_and_counted(taught, tmp_path, capsys):
    import cv2

    for i in range(12):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((28, 28, 3), 20 * i, np.uint8))
    for i in (3, 8):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("".join(f"{i}.png\n" for i in range(12)))
    source = {"kind": "image_list", "path": str(tmp_path / "list.txt"), "root": str(tmp_path)}
    sizes = {"device_batch_size": 1, "mixup": None}  # so that some batches are empty
    recipe = load_recipe(taught(data={"sources": [source], "max_undecodable_fraction": 0.2}, **sizes))
    built = build_labels(recipe, 0, CPU)
    assert (built.images, built.undecodable) == (10, 2)
    assert str(built) == "computed and stored 10 answers; 2 images cannot be decoded and have none"
    assert f"cannot decode {tmp_path / '3.png'}" in capsys.readouterr().err
    assert build_labels(recipe, 0, CPU).images == 0
    assert store_of(taught(data={"sources": [source]}, **sizes)).stored_in_all() == 12
    strict = load_recipe(taught(data={"sources": [source]}, **sizes), [f"teacher.labels.folder={tmp_path / 'strict'}"])
    with pytest.raises(RunError, match=r"1 of the 12 images of epoch 0 cannot be decoded; .*Mend or remove them"):
        build_labels(strict, 0, CPU)


def test_a_reader_that_fails_ends_the_building_with_its_error(taught, monkeypatch):
    monkeypatch.setattr("distill.data.idx.IdxImages.read", lambda *_: 1 / 0)
    with pytest.raises(RunError, match=r"train-images\.gz#\d+: this image could not be prepared: ZeroDivisionError"):
        build_labels(load_recipe(taught()), 0, CPU)
    assert not [thread for thread in threading.enumerate() if thread.name == "labels-read-ahead"]


def test_an_answer_that_is_not_finite_ends_the_building(taught, monkeypatch):
    def broken(*_):
        return lambda images: {"logits": images.sum(axis=[1, 2, 3]).unsqueeze(1) * np.full(10, np.nan, np.float32)}

    monkeypatch.setattr("distill.labels.build.open_teacher", broken)
    with pytest.raises(RunError, match=r"the teacher's answer to 16 of 16 images is not finite"):
        build_labels(load_recipe(taught()), 0, CPU)
    assert store_of(taught()).stored_in_all() == 0


# --- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["build", "info", "verify"])
def test_every_command_explains_itself(run_cli, command):
    status, output, _ = run_cli("labels", command, "--help")
    assert status == 0
    assert output.startswith(f"Usage: distill labels {command} ") and "Example" in output
    assert f"  {command} " in run_cli("labels", "--help")[1]


def test_the_commands_from_info_to_repair(run_cli, taught):
    recipe = taught(epochs=3, labels={"views": 2})
    status, output, errors = run_cli("labels", "info", recipe)
    assert status == 0, errors
    assert "an answer  top 4 of 10 classes, 22 B each" in output
    assert "stored     0 of 400 answers (0.0%), 0 B" in output
    assert "needed     200 images x 2 views, for 3 epochs: 8.8 kB" in output
    assert "instead    views: 1 4.4 kB, a view an epoch 13.2 kB" in output
    assert "for the 400 that are missing, at " in output and "Paddle Inference" in output
    assert not store_of(recipe).folder.exists()

    assert run_cli("labels", "build", recipe, "--epochs", "0:1")[1] == "train: computed and stored 200 answers\n"
    status, output, _ = run_cli("labels", "info", recipe, "--no-measure")
    assert "stored     200 of 400 answers (50.0%), " in output and "images/s" not in output

    status, output, errors = run_cli("labels", "verify", recipe, "--samples", "40")
    assert status == 0, errors
    assert "1 of 1 sealed shards match their checksums; " in output
    assert re.search(r"(\d\d) of \1 sampled answers are the teacher's, bit for bit", output)

    store = store_of(recipe)
    path = store.path(store.shards(0)[0], ".labels")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    status, _, errors = run_cli("labels", "verify", recipe)
    assert status == 1
    assert f"{path} is damaged: its SHA-256 is not the one" in errors and "--repair removes it" in errors
    status, _, errors = run_cli("labels", "verify", recipe, "--repair")
    assert status == 1 and "removed: the next run computes it again" in errors
    assert run_cli("labels", "build", recipe)[1] == "train: computed and stored 400 answers\n"
    assert run_cli("labels", "verify", recipe)[0] == 0


def test_a_recipe_without_labels_and_an_unknown_stage(run_cli, taught, digits, tmp_path):
    for command in ("build", "info", "verify"):
        status, _, errors = run_cli("labels", command, digits.recipe(tmp_path / "plain.yaml"))
        assert status == 2 and "the recipe digits has no teacher.labels: add `labels: {folder: " in errors
    status, _, errors = run_cli("labels", "info", taught(), "--stage", "trian")
    assert status == 2 and "there is no stage 'trian', expected one of train. Did you mean 'train'?" in errors
