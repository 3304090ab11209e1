import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.augment import evaluation_view, train_view
from distill.data.image_list import open_image_list
from distill.data.loader import EvaluationLoader, TrainLoader
from distill.data.mix import mix_plan
from distill.data.random import Stream, generator
from distill.data.sampler import epoch_order
from distill.data.types import Failure, UndecodableImage
from distill.errors import RunError, UserError


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        for name in ("images", "labels", "indices", "partner", "lam", "cut"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(other, name), err_msg=name)
        for name in ("epoch", "step", "ends_step", "global_count", "failures"):
            assert getattr(batch, name) == getattr(other, name), name


def samples(batches):
    """What every sample became: {(epoch, index): (view, label, partner's index, lambda)}."""
    found = {}
    for batch in batches:
        for place, index in enumerate(batch.indices.tolist()):
            key = (batch.epoch, index)
            assert key not in found
            mixed = (int(batch.indices[batch.partner[place]]), float(batch.lam[place])) if batch.lam is not None else ()
            found[key] = (batch.images[place].tobytes(), int(batch.labels[place]), *mixed)
    return found


class Pictures:
    """Pictures made from their index; `broken` maps an index to what reading it raises."""

    def __init__(self, count, broken=()):
        self.labels = np.arange(count, dtype=np.int64) % 7
        self.broken = dict(broken)

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        if index in self.broken:
            raise self.broken[index]
        random = np.random.default_rng(index)
        return random.integers(0, 256, (*random.integers(33, 60, 2), 3), dtype=np.uint8)

    def open(self, index):
        return self.read(index)

    def name(self, index):
        return f"pictures/{index}"


@pytest.fixture(scope="module")
def loader(make_stage, runtime):
    def make(source, *, threads=2, processes=0, stage=None, seed=5, stage_index=1, **options):
        return TrainLoader(
            source,
            make_stage(**(stage or {})),
            runtime(loader_threads=threads, loader_processes=processes),
            seed=seed,
            stage_index=stage_index,
            **options,
        )

    return make


@pytest.fixture(scope="module")
def reference(loader, images):
    """Three epochs of the image folder, one thread, one rank: 23 images are 2 full steps of 8 and one of 7."""
    one = loader(images, threads=1)
    return list(one.batches(0, 3 * one.steps_per_epoch))


def test_every_batch_follows_from_its_definition(reference, images, make_stage):
    """The views, labels and order, computed here from the pure functions alone."""
    stage = make_stage()
    order = {epoch: epoch_order(5, 1, epoch, 23) for epoch in range(3)}
    for epoch in range(3):
        visited = np.concatenate([batch.indices for batch in reference if batch.epoch == epoch])
        np.testing.assert_array_equal(visited, order[epoch])
    for batch in reference:
        assert batch.images.shape == (len(batch.indices), 3, 32, 32) and batch.images.dtype == np.uint8
        assert batch.labels.dtype == batch.indices.dtype == batch.partner.dtype == np.int64
        assert batch.lam.dtype == np.float32
        assert batch.failures == ()
        for place, index in enumerate(batch.indices.tolist()):
            view = train_view(images.read(index), stage.view, generator(5, 1, batch.epoch, index, Stream.VIEW))
            np.testing.assert_array_equal(batch.images[place], view.transpose(2, 0, 1))
            assert batch.labels[place] == index % 7
    assert [(b.step, len(b.indices), b.ends_step, b.global_count) for b in reference[:6]] == [
        (0, 4, False, 8),
        (0, 4, True, 8),
        (1, 4, False, 8),
        (1, 4, True, 8),
        (2, 4, False, 7),
        (2, 3, True, 7),
    ]


def test_epochs_and_samples_see_other_views(reference):
    views = [view for view, *_ in samples(reference).values()]
    assert len(set(views)) == len(views) == 3 * 23


@pytest.mark.parametrize("threads", [2, 4])
def test_the_same_batches_with_any_number_of_threads(loader, images, reference, threads):
    several = loader(images, threads=threads)
    assert_same(list(several.batches(0, 9)), reference)


def test_the_same_batches_with_worker_processes(loader, images, reference):
    several = loader(images, threads=2, processes=2)
    assert_same(list(several.batches(1, 9)), reference[2:])


def test_the_same_samples_on_two_ranks(loader, images, reference):
    ranks = [list(loader(images, rank=rank, world_size=2).batches(0, 9)) for rank in range(2)]
    assert samples(ranks[0] + ranks[1]) == samples(reference)
    assert [b.step for b in ranks[0]] == [b.step for b in ranks[1]] == list(range(9))
    # and every update sums over the same samples, in the same micro-batches
    assert_same(
        [batch for pair in zip(*ranks, strict=True) for batch in pair],
        [replace(batch, ends_step=True) for batch in reference],
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.data())
def test_every_sample_once_an_epoch_and_the_same_at_any_world_size(loader, count, groups, micro, world_size, data):
    world_size = min(world_size, micro)
    sizes = {"device_batch_size": 2 * groups, "global_batch_size": 2 * groups * micro}
    one = loader(Pictures(count), threads=1, stage=sizes)
    epochs = one.steps_per_epoch, 2 * one.steps_per_epoch
    expected = samples(one.batches(*epochs))
    assert sorted(index for _, index in expected) == list(range(count))
    ranks = [loader(Pictures(count), rank=rank, world_size=world_size, stage=sizes) for rank in range(world_size)]
    assert samples(batch for rank in ranks for batch in rank.batches(*epochs)) == expected


@settings(max_examples=25, deadline=None)
@given(first=st.integers(0, 9), more=st.integers(0, 9), threads=st.integers(1, 4))
def test_a_resume_at_any_step_goes_on_as_if_never_interrupted(loader, images, reference, first, more, threads):
    last = min(first + more, 9)
    again = loader(images, threads=threads)
    assert_same(list(again.batches(first, last)), reference[2 * first : 2 * last])


@settings(max_examples=10, deadline=None)
@given(stopped=st.integers(0, 9))
def test_a_resume_in_mid_epoch_on_another_world_size(loader, images, reference, stopped):
    before = list(loader(images).batches(0, stopped))
    after = [b for rank in range(2) for b in loader(images, rank=rank, world_size=2).batches(stopped, 9)]
    assert samples(before + after) == samples(reference)


def test_breaking_off_leaves_no_threads(loader, images):
    before = threading.active_count()
    batches = loader(images, threads=4).batches(0, 9)
    next(batches)
    batches.close()
    for thread in threading.enumerate():
        if thread.name.startswith("grain-prefetch"):
            thread.join(timeout=10)
    assert threading.active_count() <= before


def test_another_seed_or_stage_has_other_views(loader, images, reference):
    for other in (loader(images, seed=6), loader(images, stage_index=2)):
        assert not set(samples(other.batches(0, 3)).values()) & set(samples(reference).values())


def test_channels_last(loader, images, reference):
    last = list(loader(images, data_format="NHWC").batches(0, 9))
    for batch, expected in zip(last, reference, strict=True):
        np.testing.assert_array_equal(batch.images, expected.images.transpose(0, 2, 3, 1))


def test_without_mixup(loader, images, reference):
    for batch, expected in zip(loader(images, stage={"mixup": None}).batches(0, 2), reference, strict=False):
        assert batch.partner is None and batch.lam is None
        np.testing.assert_array_equal(batch.images, expected.images)


# --- all that a view may be --------------------------------------------------------------------

ALL = {
    "view": {
        "size_px": 32,
        "crop": {"kind": "random_area", "scale": [0.08, 1.0], "ratio": [0.75, 4 / 3], "sampling": "published"},
        "horizontal_flip": 0.5,
        "policy": {"kind": "autoaugment"},
        "erasing": {"probability": 0.5, "area": [0.1, 0.3], "aspect": [0.5, 2.0]},
    },
    "mixup": {"alpha": 0.2, "group_size": 2, "probability": 0.3},
    "cutmix": {"alpha": 1.0, "group_size": 2, "probability": 0.6},
}


@pytest.fixture(scope="module")
def all_of_it(loader, images):
    return list(loader(images, threads=1, stage=ALL).batches(0, 9))


def test_every_view_with_its_box_follows_from_its_definition(all_of_it, images, make_stage):
    stage, kinds = make_stage(**ALL), set()
    for number, batch in enumerate(all_of_it):
        indices = batch.indices.tolist()
        keys = [generator(5, 1, batch.epoch, index, Stream.VIEW) for index in indices]
        views = [train_view(images.read(index), stage.view, key) for index, key in zip(indices, keys, strict=True)]
        first = 8 * (batch.step % 3) + 4 * (number % 2)
        plan = mix_plan(stage, 5, 1, batch.epoch, first, first + len(indices))
        np.testing.assert_array_equal(batch.partner, plan.partner)
        np.testing.assert_array_equal(batch.lam, plan.lam)
        np.testing.assert_array_equal(batch.cut, plan.cut)
        for place, view in enumerate(views):
            left, top, right, bottom = plan.boxes[place]
            expected = view.copy()
            expected[top:bottom, left:right] = views[plan.partner[place]][top:bottom, left:right]
            np.testing.assert_array_equal(batch.images[place], expected.transpose(2, 0, 1))
            kinds.add((bool(batch.cut[place]), batch.partner[place] != place))
    assert kinds == {(True, True), (False, True), (False, False)}  # cut, mixed up, unmixed


@pytest.mark.parametrize(("threads", "processes", "first"), [(4, 0, 0), (2, 2, 4)])
def test_all_of_it_is_the_same_whoever_makes_it_and_wherever_it_begins(
    loader, images, all_of_it, threads, processes, first
):
    again = loader(images, threads=threads, processes=processes, stage=ALL)
    assert_same(list(again.batches(first, 9)), all_of_it[2 * first :])


@pytest.mark.parametrize("sizes", [(8, 8), (8, 2), (16, 4)])
def test_all_of_it_is_the_same_in_batches_of_any_size(loader, images, all_of_it, sizes):
    stage = ALL | {"global_batch_size": sizes[0], "device_batch_size": sizes[1]}
    other = loader(images, stage=stage)
    assert samples(other.batches(0, 3 * other.steps_per_epoch)) == samples(all_of_it)


def test_all_of_it_is_the_same_on_two_ranks_and_in_another_layout(loader, images, all_of_it):
    ranks = [list(loader(images, rank=rank, world_size=2, stage=ALL).batches(0, 9)) for rank in range(2)]
    assert samples(ranks[0] + ranks[1]) == samples(all_of_it)
    for batch, expected in zip(loader(images, data_format="NHWC", stage=ALL).batches(0, 9), all_of_it, strict=True):
        np.testing.assert_array_equal(batch.images, expected.images.transpose(0, 2, 3, 1))


def test_a_sample_whose_partner_cannot_be_decoded_is_not_cut(loader):
    stage = ALL | {"mixup": None, "cutmix": {"alpha": 1.0, "group_size": 2}}
    broken = samples(loader(Pictures(24, {7: UndecodableImage("pictures/7", "bad")}), stage=stage).batches(0, 3))
    plain = samples(loader(Pictures(24), stage=ALL | {"mixup": None} | {"cutmix": None}).batches(0, 3))
    intact = samples(loader(Pictures(24), stage=stage).batches(0, 3))
    [alone] = [key for key, sample in intact.items() if sample[2] == 7]
    assert broken[alone] == (plain[alone][0], plain[alone][1], alone[1], 1.0)
    assert intact[alone][0] != plain[alone][0]
    for key in broken.keys() - {alone}:
        assert broken[key] == intact[key]


def test_repeated_samples_have_views_of_their_own(loader, make_stage):
    from distill.data.sources import Images, Part

    source = Images([Part(Pictures(3), 0, 3, 4)])
    found = samples(loader(source).batches(0, 2))
    assert len(found) == 12
    assert len({view for view, *_ in found.values()}) == 12


# --- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [0, 1])
def test_damaged_files_are_left_out_and_named(loader, image_folder, tmp_path, processes):
    for path in image_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    jpeg = tmp_path / "07.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:-50])
    (tmp_path / "12.png").unlink()
    source = open_image_list(tmp_path / "list.txt", tmp_path, 7)
    intact = open_image_list(image_folder / "list.txt", image_folder, 7)
    broken = loader(source, processes=processes)
    batches = list(broken.batches(0, 3))
    failures = [failure for batch in batches for failure in batch.failures]
    assert sorted(f.name for f in failures) == [str(tmp_path / "07.jpg"), str(tmp_path / "12.png")]
    assert {f.reason for f in failures} == {
        "damaged JPEG: Premature end of JPEG file",
        "cannot be read: No such file or directory",
    }
    received, expected = samples(batches), samples(loader(intact).batches(0, 3))
    assert set(expected) - set(received) == {(0, 7), (0, 12)}
    for key, sample in received.items():
        if expected[key][2] in (7, 12):  # its partner failed: unmixed
            assert sample == (*expected[key][:2], key[1], 1.0)
        else:
            assert sample == expected[key]
    assert [b.global_count for b in batches] == [8, 8, 8, 8, 7, 7]


def test_a_batch_may_lose_all_its_samples(loader):
    source = Pictures(6, {index: UndecodableImage(f"pictures/{index}", "bad") for index in range(6)})
    batches = list(loader(source).batches(0, 1))
    assert [batch.images.shape for batch in batches] == [(0, 3, 32, 32)] * 2
    assert [len(batch.partner) for batch in batches] == [0, 0]
    assert sorted(f.name for b in batches for f in b.failures) == [f"pictures/{i}" for i in range(6)]
    assert Failure("pictures/0", "bad") in [f for b in batches for f in b.failures]


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("of no kind that anybody expects"), OSError(5, "Input/output error"), MemoryError()]
)
@pytest.mark.parametrize("threads", [1, 4])
def test_a_reader_that_raises_comes_back_naming_the_file(loader, error, threads):
    broken = loader(Pictures(30, {17: error}), threads=threads)
    message = f"pictures/17: this image could not be prepared: {type(error).__name__}"
    with pytest.raises(RunError, match=message) as raised:
        list(broken.batches(0, 4))
    assert raised.value.__cause__ is error


def test_batches_before_the_error_arrive(loader):
    order = epoch_order(5, 1, 0, 24).tolist()
    batches = loader(Pictures(24, {order[13]: ValueError("x")})).batches(0, 3)  # in the 4th micro-batch
    assert [next(batches).step for _ in range(3)] == [0, 0, 1]
    with pytest.raises(RunError, match=f"pictures/{order[13]}"):
        next(batches)


def test_an_error_in_a_worker_process_names_the_file(loader, image_folder):
    crop = {"kind": "padded", "padding_px": 1}
    view = {"size_px": 64, "crop": crop, "horizontal_flip": 0.0}
    source = open_image_list(image_folder / "list.txt", image_folder, 7)
    with pytest.raises(UserError, match=rf"{image_folder}/\d\d\..* px; even with view\.crop\.padding_px 1"):
        list(loader(source, processes=1, stage={"view": view}).batches(0, 3))


def test_wrong_steps(loader, images):
    for steps in ((-1, 3), (3, 2)):
        with pytest.raises(ValueError, match="first_step"):
            loader(images).batches(*steps)
    assert list(loader(images).batches(4, 4)) == []


def test_more_ranks_than_micro_batches(loader, images):
    with pytest.raises(UserError, match="has work for 2 devices"):
        loader(images, rank=0, world_size=3)


# --- evaluation -------------------------------------------------------------------------------


@pytest.fixture
def evaluation(make_stage, runtime):
    def make(source, threads=2, processes=0, **options):
        settings = runtime(loader_threads=threads, loader_processes=processes)
        return EvaluationLoader(source, make_stage().evaluation, settings, **options)

    return make


def test_evaluation_in_order(evaluation, images):
    loader = evaluation(images)
    batches = list(loader)
    assert len(loader) == len(batches) == 5
    np.testing.assert_array_equal(np.concatenate([b.indices for b in batches]), np.arange(23))
    np.testing.assert_array_equal(np.concatenate([b.labels for b in batches]), images.labels)
    views = np.concatenate([b.images for b in batches])
    for index in range(23):
        np.testing.assert_array_equal(views[index], evaluation_view(images.read(index), 40, 32).transpose(2, 0, 1))
    assert all(b.partner is None and b.ends_step and b.failures == () for b in batches)
    assert [b.step for b in batches] == list(range(5))


def test_evaluation_is_the_same_a_second_time_and_in_another_layout(evaluation, images):
    loader = evaluation(images, threads=4)
    assert_same(list(loader), list(loader))
    for batch, other in zip(loader, evaluation(images, data_format="NHWC"), strict=True):
        np.testing.assert_array_equal(batch.images.transpose(0, 2, 3, 1), other.images)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_evaluation_on_several_ranks(evaluation, images, world_size):
    ranks = [list(evaluation(images, rank=rank, world_size=world_size)) for rank in range(world_size)]
    together = sorted((batch for rank in ranks for batch in rank), key=lambda batch: batch.step)
    assert_same(together, list(evaluation(images)))


def test_evaluation_reports_what_it_cannot_decode(evaluation):
    source = Pictures(12, {3: UndecodableImage("pictures/3", "bad")})
    batches = list(evaluation(source))
    assert [len(b.indices) for b in batches] == [4, 5, 2]
    assert batches[0].failures == (Failure("pictures/3", "bad"),)
    assert 3 not in batches[0].indices


def test_evaluation_needs_labels(evaluation):
    source = Pictures(4)
    source.labels[2] = -1
    with pytest.raises(UserError, match="1 of 4 have none, the first is pictures/2"):
        evaluation(source)


def test_nothing_is_printed(image_folder):
    """Neither Grain's remark on a profiler nor OpenCV's on a damaged file."""
    code = f"""
from pathlib import Path
from distill.data.image_list import open_image_list
from distill.data.loader import EvaluationLoader
from distill.recipe import EvaluationSection, RuntimeSection
root = Path({str(image_folder)!r})
sources = ({{"kind": "class_folders", "root": "x"}},)
evaluation = EvaluationSection(sources=sources, resize_short_px=40, crop_px=32)
loader = EvaluationLoader(open_image_list(root / "list.txt", root, 7), evaluation, RuntimeSection())
assert sum(len(batch.indices) for batch in loader) == 23
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout + result.stderr == ""
