"""Training with stored answers, from the recipe to the student's bits."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from distill.data.loader import TrainLoader
from distill.data.sampler import epoch_order
from distill.data.sources import open_sources
from distill.errors import UserError
from distill.labels.manifest import WITHOUT_PART, label_store, store_key
from distill.labels.records import Status
from distill.labels.store import DamagedShard
from distill.labels.verify import verify_labels
from distill.learner import Learner
from distill.metrics import read_metrics
from distill.parallel import Device
from distill.recipe import Stage
from distill.recipe.file import load_recipe
from distill.stages import run_recipe


def student(folder):
    return (folder / "student.safetensors").read_bytes()


@pytest.fixture
def train(tmp_path):
    def run(path, name, *overrides, **options):
        run_recipe(load_recipe(path, overrides), tmp_path / name, device="cpu", **options)
        return student(tmp_path / name)

    return run


@pytest.fixture
def no_teacher(monkeypatch):
    """From now on whoever builds a teacher fails."""
    return lambda: monkeypatch.setattr("distill.learner.open_teacher", lambda *_: pytest.fail("a teacher was built"))


def store_of(path, *overrides, create=False):
    recipe = load_recipe(path, overrides)
    return label_store(recipe, 0, open_sources(recipe.stages[0].data.sources, 10), create=create)


def test_a_run_that_computes_and_one_that_reads_end_with_the_same_bits(taught, train, no_teacher, capsys):
    recipe = taught()
    first = train(recipe, "first")
    said = capsys.readouterr().err
    assert "0 of 200 answers are in" in said and "the others are computed" in said
    assert "the teacher computes with Paddle Inference" in said
    no_teacher()
    assert train(recipe, "second") == first
    said = capsys.readouterr().err
    assert "200 of 200 answers are in" in said and "the teacher is not needed" in said
    assert "the teacher computes" not in said


def test_with_all_classes_the_loss_is_that_of_the_live_teacher(taught, train, tmp_path):
    """But for the rounding to float16."""
    recipe = taught(runtime={"log_every_steps": 1}, labels={"top_classes": "all"})
    train(recipe, "stored")
    train(recipe, "live", "teacher.labels=null")
    stored, live = (read_metrics(tmp_path / name / "metrics.jsonl")[0]["kl"] for name in ("stored", "live"))
    assert stored == pytest.approx(live, rel=1e-3)
    assert stored != live


def test_another_student_and_another_loss_read_the_same_store(taught, train, no_teacher, tmp_path):
    train(taught(), "first")
    no_teacher()
    dist = {"dist": {"weight": 1.0, "temperature": 1.0, "beta": 1.0, "gamma": 1.0}}
    both = {"kl": {"weight": 1.0, "temperature": 4.0}, "cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}}
    other = {"name": "ResNet34", "width": 0.0625, "data_format": "NHWC"}
    for name, changes in {
        "loss": {"loss": dist},
        "student": {"model": other, "loss": both},
        "batches": {"global_batch_size": 40, "device_batch_size": 8},
    }.items():
        train(taught(name, **changes), name)
    assert store_of(taught()).stored_in_all() == 200


def test_view_epochs_recur(taught, train, no_teacher, tmp_path):
    recipe = taught(labels={"views": 2}, epochs=3)
    first = train(recipe, "first")
    store = store_of(recipe)
    assert store.view_epochs() == [0, 1] and store.stored_in_all() == 400
    no_teacher()
    assert train(recipe, "second") == first
    train(taught("shorter", labels={"views": 1}, epochs=4), "shorter")  # of the same views
    train(taught("plain", epochs=2), "plain")


def test_recurring_epochs_see_the_same_batches(taught):
    recipe = load_recipe(taught(labels={"views": 2}, epochs=3))
    source = open_sources(recipe.stages[0].data.sources, 10)
    loader = TrainLoader(source, recipe.stages[0], recipe.runtime, seed=3, stage_index=0)
    epochs = [list(loader.batches(n * loader.steps_per_epoch, (n + 1) * loader.steps_per_epoch)) for n in range(3)]
    assert [batch.epoch for batch in epochs[2]] == [2] * len(epochs[2])
    for batch, same, other in zip(epochs[0], epochs[2], epochs[1], strict=True):
        for name in ("images", "indices", "partner", "lam"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(same, name))
        assert not len(batch.images) or not np.array_equal(batch.images, other.images)


def test_answers_to_cut_and_changed_views_are_stored_and_read(taught, train, no_teacher):
    """What the teacher answered to is what the student sees, with its boxes: checked by computing it again."""
    view = {"size_px": 28, "crop": {"kind": "padded", "padding_px": 2}, "horizontal_flip": 0.5}
    view |= {"policy": {"kind": "autoaugment"}}
    view |= {"erasing": {"probability": 0.5, "area": [0.02, 0.3], "aspect": [0.5, 2.0]}}
    mixing = {
        "mixup": {"alpha": 0.2, "group_size": 4, "probability": 0.4},
        "cutmix": {"alpha": 1.0, "group_size": 4, "probability": 0.5},
    }
    recipe = taught(view=view, **mixing)
    live = train(recipe, "live", "teacher.labels=null")
    stored = train(recipe, "stored")
    verified = verify_labels(load_recipe(recipe), 0, Device("cpu", 2), samples=200, repair=False)
    assert verified.compared == 200 and verified.differing == []
    no_teacher()
    assert train(recipe, "again") == stored
    assert live != stored  # the store rounds and keeps some classes only
    with pytest.raises(UserError, match=r"cutmix\.alpha: 1\.0 in the store, 0\.5 in the recipe"):
        train(recipe, "other", "cutmix.alpha=0.5")
    with pytest.raises(UserError, match=r"view\.policy\.kind: autoaugment in the store, absent in the recipe"):
        train(recipe, "plainer", "view.policy=null")


def test_a_run_killed_while_it_stores_ends_with_the_same_bits(taught, train, train_and_kill, tmp_path, small_blocks):
    recipe = taught(runtime={"log_every_steps": 3, "checkpoint_every_steps": 3}, epochs=2)
    whole = train(recipe, "whole", f"teacher.labels.folder={tmp_path / 'other'}")
    store_of(recipe, create=True)  # the children's store has small blocks too
    for kill_at in (5, 8, 12, 9):
        train_and_kill(recipe, tmp_path / "killed", kill_at, "record")
    train_and_kill(recipe, tmp_path / "killed", -1)
    assert student(tmp_path / "killed") == whole
    store = store_of(recipe)
    shards = [shard for epoch in (0, 1) for shard in store.shards(epoch)]
    assert len(shards) == 8
    for shard in shards:
        store.check_shard(shard)
        other = tmp_path / "other" / "stage-0" / store.path(shard, ".labels").relative_to(store.folder)
        assert store.path(shard, ".labels").read_bytes() == other.read_bytes()


def test_ranks_fill_one_store_with_the_answers_of_one(taught, train, tmp_path):
    recipe = load_recipe(taught())
    source = open_sources(recipe.stages[0].data.sources, 10)
    train(taught(), "one", f"teacher.labels.folder={tmp_path / 'one_store'}")
    store = label_store(recipe, 0, source, create=True)
    learner = Learner(recipe, 0, Device("cpu", 2), None, store)
    for rank in (1, 0):
        options = {"seed": 3, "stage_index": 0, "rank": rank, "world_size": 2, "labels": store}
        loader = TrainLoader(source, recipe.stages[0], recipe.runtime, **options)
        for batch in loader.batches(0, loader.steps_per_epoch):
            learner.accumulate(batch)
    shard = store.shards(0)[0]
    assert (
        store.path(shard, ".labels").read_bytes()
        == (tmp_path / "one_store" / "stage-0" / "view-00000" / "shard-00000.labels").read_bytes()
    )
    for rank in range(2):
        options = {"seed": 3, "stage_index": 0, "rank": rank, "world_size": 2, "labels": store}
        loader = TrainLoader(source, recipe.stages[0], recipe.runtime, **options)
        assert all(batch.slot.usable.all() for batch in loader.batches(0, loader.steps_per_epoch))


def test_the_loaders_processes_read_the_store(taught, train, no_teacher):
    first = train(taught(), "first")
    no_teacher()
    assert train(taught(), "second", "runtime.loader_processes=1") == first


# --- undecodable images -------------------------------------------------------------------------


@pytest.fixture
def folder_recipe(taught, tmp_path):
    """A recipe of 40 pictures of which number 7 is damaged; and that file with its intact content."""
    images = tmp_path / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    for i in range(40):
        cv2.imwrite(str(images / f"{i:02d}.png"), random.integers(0, 255, (28, 28, 3), dtype=np.uint8))
    (images / "list.txt").write_text("".join(f"{i:02d}.png {i % 10}\n" for i in range(40)))
    broken = images / "07.png"
    intact = broken.read_bytes()
    broken.write_bytes(b"\x89PNG no".ljust(len(intact), b"\0"))  # of the same size
    source = {"kind": "image_list", "path": str(images / "list.txt"), "root": str(images)}
    data = {"sources": [source], "max_undecodable_fraction": 0.1}
    sizes = {"global_batch_size": 8, "device_batch_size": 8, "mixup": {"alpha": 0.2, "group_size": 2}}
    return taught(data=data, **sizes), broken, intact


def test_an_undecodable_image_has_no_answer_and_shifts_no_other(folder_recipe, train, no_teacher):
    recipe, _, _ = folder_recipe
    first = train(recipe, "first")
    assert store_of(recipe).is_sealed(store_of(recipe).shards(0)[0])
    no_teacher()
    assert train(recipe, "second") == first


def test_a_batch_of_undecodable_images_is_stored_too(folder_recipe, train, no_teacher, tmp_path):
    recipe, _, _ = folder_recipe
    for index in epoch_order(3, 0, 0, 40)[6:8]:
        (tmp_path / "images" / f"{index:02d}.png").write_bytes(b"no")
    first = train(recipe, "first", "device_batch_size=2")
    store = store_of(recipe)
    assert (store.read(0, 6, 8)[1] == Status.UNDECODABLE).all() and store.is_sealed(store.shards(0)[0])
    no_teacher()
    assert train(recipe, "second", "device_batch_size=2") == first


def test_an_image_that_was_mended_gets_its_answer_from_the_teacher(folder_recipe, train, tmp_path, no_teacher):
    recipe, broken, intact = folder_recipe
    train(recipe, "before")
    broken.write_bytes(intact)
    mended = train(recipe, "mended")  # its partner's view is another one too
    assert mended == train(recipe, "anew", f"teacher.labels.folder={tmp_path / 'anew_store'}")


def test_where_nobody_may_compute_it_its_group_is_left_out_and_named(folder_recipe, train, tmp_path):
    recipe, broken, intact = folder_recipe
    train(recipe, "before")
    broken.write_bytes(intact)
    train(recipe, "waiting", "teacher.labels.missing=wait")
    entries = read_metrics(tmp_path / "waiting" / "metrics.jsonl")
    left_out = [entry for entry in entries if entry["kind"] == "undecodable"]
    place = int(np.flatnonzero(epoch_order(3, 0, 0, 40) == 7)[0]) // 2 * 2
    assert [entry["file"] for entry in left_out] == [f"position {p} of view epoch 0" for p in (place, place + 1)]
    assert "its stored soft label is of another view" in left_out[0]["reason"]
    assert [entry["images"] for entry in entries if entry["kind"] == "train"][-1] == 38
    broken.write_bytes(b"gone".ljust(len(intact), b"\0"))
    other = tmp_path / "images" / f"{int(epoch_order(3, 0, 0, 40)[(place + 2) % 40]):02d}.png"
    other.write_bytes(b"gone too".ljust(other.stat().st_size, b"\0"))
    train(recipe, "fewer", "teacher.labels.missing=wait")
    entries = read_metrics(tmp_path / "fewer" / "metrics.jsonl")
    assert len([entry for entry in entries if entry["kind"] == "undecodable"]) == 3  # the two, and a partner


# --- a store of something else ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("seed=4", "seed: 3 in the store, 4 in the recipe"),
        ("teacher.labels.top_classes=5", "top_classes: 4 in the store, 5 in the recipe"),
        ("view.crop.padding_px=3", "view.crop.padding_px: 2 in the store, 3 in the recipe"),
        ("mixup.alpha=0.3", "mixup.alpha: 0.2 in the store, 0.3 in the recipe"),
        ("mixup=null", "mixup.group_size: 4 in the store, absent in the recipe"),
        ("normalization.mean=[0,0,0]", r"teachers.0.normalization.mean: \[0.3, 0.3, 0.3\] in the store, \[0.0, 0"),
        ("data.sources.0.range=[0,199]", "images.count: 200 in the store, 199 in the recipe"),
        ("data.sources.0.range=[1,201]", r"images.listed: \w+ in the store, \w+ in the recipe"),
    ],
)
def test_a_store_of_something_else_is_refused_with_the_difference(taught, train, override, difference):
    recipe = taught()
    store_of(recipe, create=True)
    with pytest.raises(UserError, match=difference) as error:
        train(recipe, "other", override)
    assert "Name another folder with teacher.labels.folder" in str(error.value)
    assert str(error.value).count(" in the recipe") <= 3


def test_every_setting_of_a_stage_that_may_matter_is_in_the_key(taught):
    recipe = load_recipe(taught())
    stated = set(recipe.stages[0].model_dump(exclude_none=True))
    key = store_key(recipe, 0, open_sources(recipe.stages[0].data.sources, 10))
    assert stated - set(key) == stated & set(WITHOUT_PART)
    assert {"view", "mixup"} <= set(key) and set(WITHOUT_PART) <= set(Stage.model_fields)


def test_other_weights_are_refused_and_absent_ones_said(taught, train, teacher_weights, tmp_path, capsys):
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes(teacher_weights.read_bytes())
    recipe = taught()
    change = f"teacher.models.0.weights={weights}"
    first = train(recipe, "first", change)
    weights.rename(tmp_path / "moved.safetensors")
    assert train(recipe, "second", change) == first
    assert f"{weights} is not there: nothing says that the stored answers are this teacher's" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"Cannot read the weights {weights}: {tmp_path / 'none'} holds no soft labels"):
        train(recipe, "third", change, f"teacher.labels.folder={tmp_path / 'none'}")
    with pytest.raises(UserError, match=rf"Cannot read the weights {weights}"):
        train(recipe, "fourth", change, "epochs=2")
    weights.write_bytes((tmp_path / "first" / "student.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"teachers.0.weights_sha256: \w+ in the store, \w+ in the recipe"):
        train(recipe, "fifth", change)


def test_a_damaged_shard_stops_training_and_is_named(taught, train):
    recipe = taught()
    train(recipe, "first")
    store = store_of(recipe)
    path = store.path(store.shards(0)[0], ".labels")
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedShard, match=f"{path} are damaged: its SHA-256 .* --repair"):
        train(recipe, "second")


def test_a_folder_that_cannot_be_made_is_named(taught, train, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match=r"cannot make .*file/x/stage-0.*teacher\.labels\.folder"):
        train(taught(), "run", f"teacher.labels.folder={tmp_path / 'file' / 'x'}")


def test_a_manifest_that_is_damaged_is_named(taught, train):
    recipe = taught()
    path = store_of(recipe, create=True).folder / "labels.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(Exception, match=f"{path} cannot be read .* Delete {path.parent}"):
        train(recipe, "run")


def test_where_the_store_lies_is_no_change_of_the_run(taught, tmp_path):
    path = taught()
    run_recipe(load_recipe(path), tmp_path / "run", device="cpu")
    moved = Path(os.rename(tmp_path / "store", tmp_path / "moved") or tmp_path / "moved")
    changed = load_recipe(path, [f"teacher.labels.folder={moved}", "teacher.labels.missing=wait"])
    run_recipe(changed, tmp_path / "run", resume=True, device="cpu")
    with pytest.raises(UserError, match=r"teacher\.labels\.top_classes: 4 -> 5"):
        run_recipe(load_recipe(path, ["teacher.labels.top_classes=5"]), tmp_path / "run", resume=True, device="cpu")
