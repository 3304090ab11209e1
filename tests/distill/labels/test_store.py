import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import RunError
from distill.labels.records import Layout, Status, encode, undecodable
from distill.labels.store import DamagedShard, LabelStore

LAYOUT = Layout(10, 3)


def answers(count, seed=0):
    return encode(np.random.default_rng(seed).standard_normal((count, 10)).astype(np.float32), LAYOUT)


@pytest.fixture
def store(tmp_path):
    """23 positions: shards of 8 in groups of 2, the last one short."""
    return LabelStore(tmp_path / "store", LAYOUT, 23, group_size=2, block_positions=4, shard_blocks=2)


def test_what_was_added_is_read_in_any_slices(store):
    rows = answers(23)
    for first, end in [(6, 10), (0, 6), (10, 23)]:  # the first one crosses a border between shards
        assert (store.read(1, first, end)[1] == Status.EMPTY).all()
        store.add(1, first, rows[first:end])
    for first, end in [(0, 23), (3, 9), (7, 8), (16, 23), (5, 5)]:
        found, status = store.read(1, first, end)
        np.testing.assert_array_equal(found[:, 2:], rows[first:end, 2:])
        assert (status == Status.RECORD).all()
    assert not store.read(0, 0, 23)[1].any() and not store.read(2, 0, 23)[1].any()
    assert store.view_epochs() == [1] and store.stored_in_all() == store.stored(1) == 23


def test_shards_are_sealed_when_they_are_full(store):
    rows = answers(23)
    store.add(0, 0, rows[:6])
    names = lambda: sorted(path.name for path in (store.folder / "view-00000").iterdir())  # noqa: E731
    assert names() == ["lock", "shard-00000.partial"]
    store.add(0, 6, rows[6:12])
    assert names() == ["lock", "shard-00000.json", "shard-00000.labels", "shard-00001.partial"]
    store.add(0, 12, rows[12:])
    assert names() == ["lock", *(f"shard-0000{n}.{end}" for n in range(3) for end in ("json", "labels"))]
    assert [len(shard) for shard in store.shards(0)] == [8, 8, 7]
    assert not store.empty(0, 0, 23).any()


def test_what_is_there_stays(store):
    rows = answers(23)
    store.add(0, 0, rows[:8])
    store.add(0, 4, answers(8, seed=1))
    found, _ = store.read(0, 0, 12)
    np.testing.assert_array_equal(found[:8, 2:], rows[:8, 2:])
    np.testing.assert_array_equal(found[8:, 2:], answers(8, seed=1)[4:, 2:])
    assert store.stored(0) == 12


def test_undecodable_images_shift_nobody(store):
    rows = answers(8)
    rows[[2, 3, 7]] = undecodable(3, LAYOUT)
    store.add(0, 0, rows)
    places = np.array([0, 1, 4, 5, 6])
    slot = store.slot(0, 0, 8, places)
    assert slot.usable.all() and slot.complete
    np.testing.assert_array_equal(slot.rows[:, 2:], rows[places, 2:])
    assert store.is_sealed(store.shards(0)[0])


def test_a_group_whose_decodable_images_changed_has_no_usable_answer(store):
    rows = answers(8)
    rows[3] = undecodable(1, LAYOUT)[0]
    store.add(0, 0, rows)
    every = np.arange(8)
    slot = store.slot(0, 0, 8, every)  # 3 can be decoded now: so its partner 2 is mixed with it
    assert slot.usable.tolist() == [True, True, False, False, True, True, True, True]
    slot = store.slot(0, 0, 8, every[every != 4])  # 3 too, and 4 is lost: its partner 5 stays unmixed
    assert slot.usable.tolist() == [True, True, False, False, False, True, True]
    assert slot.complete
    assert store.slot(0, 0, 0, every[:0]).usable.all()


def test_a_torn_write_counts_as_empty_with_its_group_and_is_done_again(store):
    rows = answers(6)
    store.add(0, 0, rows)
    partial = store.path(store.shards(0)[0], ".partial")
    content = bytearray(partial.read_bytes())
    content[64 + 3 * LAYOUT.record_bytes + 5] ^= 1
    partial.write_bytes(content)
    assert store.empty(0, 0, 8).tolist() == [False, False, False, True, False, False, True, True]
    assert store.slot(0, 0, 6, np.arange(6)).usable.tolist() == [True, True, False, False, True, True]
    store.recount(0)
    assert store.stored(0) == 5
    store.add(0, 0, rows)
    assert store.slot(0, 0, 6, np.arange(6)).usable.all()
    assert store.stored(0) == 6


def test_a_file_that_a_killed_writer_left_short_is_completed(store):
    shard = store.shards(0)[0]
    store.path(shard, ".partial").parent.mkdir(parents=True)
    for content in (b"", b"distill labels 1"):
        store.path(shard, ".partial").write_bytes(content)
        assert not store.read(0, 0, 8)[1].any() and store.stored(0) == 0
    store.add(0, 0, answers(8))
    assert store.is_sealed(shard)


def test_a_full_shard_that_nobody_sealed_is_sealed_at_the_next_start(store):
    rows = answers(8)
    store.add(0, 0, rows[:6])
    shard = store.shards(0)[0]
    with store.path(shard, ".partial").open("r+b") as file:  # killed between the records and their count
        file.seek(16)
        file.write((0).to_bytes(8, "little"))
    store.add(0, 6, rows[6:])
    assert not store.is_sealed(shard) and store.stored(0) == 2
    assert store.slot(0, 0, 8, np.arange(8)).usable.all()
    store.recount(0)
    assert store.is_sealed(shard) and store.stored(0) == 8
    store.check_shard(shard)


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "bit":
        content[len(content) // 2] ^= 4
    elif how == "short":
        del content[-3:]
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("bit", "its SHA-256 is not the one in shard-00000.json"),
        ("short", "it has 205 bytes, expected 208"),
        ("checksum", r"its checksum shard-00000.json cannot be read"),
        ("absent", r"its checksum shard-00000.json cannot be read"),
    ],
)
def test_a_damaged_shard_is_named_and_removed_on_request(store, how, reason):
    store.add(0, 0, answers(8))
    shard = store.shards(0)[0]
    store.read(0, 0, 8)
    if how in ("bit", "short"):
        damage(store.path(shard, ".labels"), how)
    elif how == "checksum":
        store.path(shard, ".json").write_text('{"sha256"')
    else:
        store.path(shard, ".json").unlink()
    store.path(shard, ".labels").touch()  # another time: it is looked at anew
    with pytest.raises(DamagedShard, match=reason) as error:
        store.read(0, 2, 4)
    assert str(store.path(shard, ".labels")) in str(error.value)
    assert "distill labels verify RECIPE --repair" in str(error.value)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    with pytest.raises(DamagedShard, match=reason):
        store.check_shard(shard)
    store.remove_shard(shard)
    assert store.empty(0, 0, 8).all()
    store.add(0, 0, answers(8))
    store.check_shard(shard)


def test_a_sealed_shard_of_another_place_is_noticed(store):
    """Checksums alone would not tell, were the two files exchanged."""
    for first in (0, 8):
        store.add(0, first, answers(8, seed=first))
    one, other = store.shards(0)[:2]
    for suffix in (".labels", ".json"):
        store.path(one, suffix).replace(store.path(other, suffix))
    with pytest.raises(DamagedShard, match="a record is no teacher's answer"):
        store.check_shard(other)


def test_a_full_disk_says_so(store, small_files_only):
    with small_files_only(100), pytest.raises(RunError, match=r"Cannot write .*view-00000.*Free some space"):
        store.add(0, 0, answers(8))
    store.add(0, 0, answers(8))
    assert store.stored(0) == 8


def test_it_travels_to_other_processes(store):
    store.add(0, 0, answers(8))
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.read(0, 0, 8)[0], store.read(0, 0, 8)[0])


def test_the_checksum_is_that_of_the_file(store):
    import hashlib

    store.add(0, 0, answers(8))
    shard = store.shards(0)[0]
    digest = hashlib.sha256(store.path(shard, ".labels").read_bytes()).hexdigest()
    assert json.loads(store.path(shard, ".json").read_text()) == {"sha256": digest}


def test_a_store_of_all_classes(tmp_path):
    layout = Layout(10, "all")
    store = LabelStore(tmp_path, layout, 5, group_size=1, block_positions=2, shard_blocks=2)
    rows = encode(np.random.default_rng(0).standard_normal((5, 10)).astype(np.float32), layout)
    store.add(0, 0, rows)
    np.testing.assert_array_equal(store.slot(0, 0, 5, np.arange(5)).rows[:, 2:], rows[:, 2:])
    assert replace(store, group_size=1).stored(0) == 5


@given(data=st.data())
def test_no_damage_gives_another_answer(tmp_path_factory, data):
    """Of a sealed shard, its checksum, or one that is being filled: an error, no answer, or the right one."""
    folder = tmp_path_factory.mktemp("store")
    store = LabelStore(folder, LAYOUT, 12, group_size=2, block_positions=4, shard_blocks=2)
    rows = answers(12)
    store.add(0, 0, rows[:10])
    path = (
        folder
        / "view-00000"
        / data.draw(st.sampled_from(["shard-00000.labels", "shard-00000.json", "shard-00001.partial"]))
    )
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content)) | st.just(len(content))) :]
    path.write_bytes(content)
    try:
        found, status = store.read(0, 0, 12)
    except DamagedShard as error:
        assert "shard-00000" in str(error)
        return
    there = status == Status.RECORD
    np.testing.assert_array_equal(found[there, 2:], rows[there, 2:])
    assert not there[10:].any() and store.stored(0) <= 12
    store.recount(0)
    store.add(0, 8, rows[8:])
    if path.suffix == ".partial":
        found, status = store.read(0, 8, 12)
        assert (status == Status.RECORD).all()
        np.testing.assert_array_equal(found[:, 2:], rows[8:, 2:])
