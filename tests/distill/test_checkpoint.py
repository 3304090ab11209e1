import hashlib
import logging
import os
import pickle
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distill import checkpoint
from distill.errors import RunError

DTYPES = st.sampled_from(["f2", "f4", "f8", "i1", "i4", "i8", "u1", "u2", "?"])  # u2 also carries bfloat16


def some_tensors(step=0):
    rng = np.random.default_rng(step)
    return {"student.fc.weight": rng.normal(size=(5, 7)).astype("f4"), "optimizer.velocity": rng.normal(size=40)}


def same(left, right):
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype
        and left[key].shape == right[key].shape
        and left[key].tobytes() == right[key].tobytes()
        for key in left
    )


@settings(max_examples=25, deadline=None)
@given(
    tensors=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda key: key != "__metadata__"),
        DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))),
        max_size=4,
    ),
    state=st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=4,
        ),
    ),
)
def test_everything_comes_back_bit_for_bit(tmp_path_factory, tensors, state):
    folder = tmp_path_factory.mktemp("run")
    checkpoint.save(folder, 7, tensors, state)
    loaded = checkpoint.latest(folder)
    assert loaded.step == 7
    assert loaded.state == state
    assert same(loaded.tensors, tensors)


def test_memory_layout_of_the_source_does_not_matter(tmp_path):
    array = np.arange(12, dtype="f4").reshape(3, 4)
    views = {"transposed": array.T, "sliced": array[:, ::2], "fortran": np.asfortranarray(array)}
    checkpoint.save(tmp_path, 1, views, {})
    loaded = checkpoint.latest(tmp_path).tensors
    for key, view in views.items():
        np.testing.assert_array_equal(loaded[key], view)


def test_keeps_the_newest_and_returns_the_last(tmp_path):
    for step in (1, 20, 300, 4):
        checkpoint.save(tmp_path, step, some_tensors(step), {"step": step}, keep=2)
    # 20 and 300 are whole and later than 4: not this call's to remove
    assert sorted(os.listdir(tmp_path)) == ["step-00000004", "step-00000020", "step-00000300"]
    checkpoint.save(tmp_path, 301, some_tensors(301), {"step": 301}, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-00000300", "step-00000301"]
    assert checkpoint.latest(tmp_path).state == {"step": 301}


def test_no_checkpoint_yet(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "missing") is None


def test_the_folder_can_be_verified_by_hand(tmp_path):
    path = checkpoint.save(tmp_path, 1, some_tensors(), {})
    assert subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=path, capture_output=True).returncode == 0


# --- damage -----------------------------------------------------------------------------------


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("harm", [flip, truncate])
def test_any_damage_is_noticed_and_falls_back(tmp_path, caplog, name, harm):
    rng = random.Random(name)
    checkpoint.save(tmp_path, 1, some_tensors(1), {"best_top1": 0.5})
    last = checkpoint.save(tmp_path, 2, some_tensors(2), {"best_top1": 0.6})
    whole = (last / name).read_bytes()
    for _ in range(25):
        harm(last / name, rng)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            loaded = checkpoint.latest(tmp_path)
        assert loaded.step == 1
        assert same(loaded.tensors, some_tensors(1))
        assert f"{last} is damaged" in caplog.text
        assert "Going on from step 1" in caplog.text
        (last / name).write_bytes(whole)
    assert checkpoint.latest(tmp_path).step == 2


def test_of_two_hundred_damaged_checkpoints_none_gives_other_tensors(tmp_path, caplog):
    """Bits flipped and files cut at random offsets, in both checkpoints at once as well."""
    rng = random.Random(200)
    paths = [checkpoint.save(tmp_path, step, some_tensors(step), {"best_top1": step / 10}) for step in (1, 2)]
    whole = {file: file.read_bytes() for path in paths for file in path.iterdir()}
    seen = {1: 0, None: 0}
    for _ in range(200):
        harmed = paths if rng.random() < 0.25 else paths[1:]
        for path in harmed:
            for name in rng.choice([["tensors.safetensors"], ["state.json"], ["tensors.safetensors", "state.json"]]):
                rng.choice([flip, truncate])(path / name, rng)
        try:
            loaded = checkpoint.latest(tmp_path)
        except RunError as error:
            assert "Every checkpoint" in str(error) and len(harmed) == 2
            seen[None] += 1
        else:
            assert loaded.step == 1 and loaded.state == {"best_top1": 0.1}
            assert same(loaded.tensors, some_tensors(1))
            seen[1] += 1
        for file, content in whole.items():
            file.write_bytes(content)
    assert seen[1] > 100 and seen[None] > 20


def resum(path):
    """Makes the sums fit what is there now, as whoever changes a checkpoint on purpose would."""
    names = ("tensors.safetensors", "state.json")
    lines = [f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (path / "SHA256SUMS").write_text("".join(lines))


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"[]",
        b"{}",
        b'{"step": 2}',
        b'{"step": "2", "state": {}}',
        b'{"step": 2, "state": []}',
        b"\xff",
        b"[" * 9999,
    ],
)
def test_a_state_of_another_kind_is_damage_though_its_sum_fits(tmp_path, caplog, state):
    checkpoint.save(tmp_path, 1, some_tensors(1), {})
    path = checkpoint.save(tmp_path, 2, some_tensors(2), {})
    (path / "state.json").write_bytes(state)
    resum(path)
    assert checkpoint.latest(tmp_path).step == 1
    assert f"{path} is damaged" in caplog.text


def test_tensors_of_another_kind_are_damage_and_run_nothing(tmp_path, caplog):
    checkpoint.save(tmp_path, 1, some_tensors(1), {})
    path = checkpoint.save(tmp_path, 2, some_tensors(2), {})
    header = b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    hostile = [pickle.dumps({"a": Exploit(tmp_path / "proof")}), len(header).to_bytes(8, "little") + header + bytes(4)]
    for content in hostile:
        (path / "tensors.safetensors").write_bytes(content)
        resum(path)
        assert checkpoint.latest(tmp_path).step == 1
    assert not (tmp_path / "proof").exists()


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@given(data=st.data())
def test_any_content_with_a_fitting_sum_is_a_checkpoint_or_damage(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("run")
    path = checkpoint.save(folder, 2, some_tensors(2), {"best_top1": 0.5, "position": {"step": 2}})
    for name in ("tensors.safetensors", "state.json"):
        content = bytearray((path / name).read_bytes())
        for _ in range(data.draw(st.integers(0, 2))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        (path / name).write_bytes(content)
    resum(path)
    try:
        loaded = checkpoint.load(path)
    except checkpoint.DamagedCheckpoint:
        return
    assert type(loaded.step) is int and type(loaded.state) is dict
    assert all(isinstance(array, np.ndarray) for array in loaded.tensors.values())


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "SHA256SUMS"])
def test_a_missing_file_is_damage(tmp_path, caplog, name):
    checkpoint.save(tmp_path, 1, some_tensors(1), {})
    (checkpoint.save(tmp_path, 2, some_tensors(2), {}) / name).unlink()
    assert checkpoint.latest(tmp_path).step == 1
    assert name in caplog.text


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    for step in (1, 2):
        flip(checkpoint.save(tmp_path, step, some_tensors(), {}) / "state.json", random.Random(0))
    with pytest.raises(RunError, match=r"Every checkpoint .* damaged .*step-00000002.*step-00000001"):
        checkpoint.latest(tmp_path)


def test_a_damaged_later_one_does_not_outlive_the_run_that_passed_it(tmp_path):
    checkpoint.save(tmp_path, 1, some_tensors(1), {}, keep=2)
    flip(checkpoint.save(tmp_path, 9, some_tensors(9), {}, keep=2) / "tensors.safetensors", random.Random(0))
    checkpoint.save(tmp_path, 5, some_tensors(5), {}, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-00000001", "step-00000005"]


def test_a_damaged_one_of_the_same_step_is_replaced(tmp_path):
    flip(checkpoint.save(tmp_path, 5, some_tensors(1), {}) / "state.json", random.Random(0))
    checkpoint.save(tmp_path, 5, some_tensors(5), {})
    assert os.listdir(tmp_path) == ["step-00000005"]
    assert same(checkpoint.latest(tmp_path).tensors, some_tensors(5))


# --- interruption -----------------------------------------------------------------------------


def test_half_written_folders_are_ignored_and_removed(tmp_path):
    checkpoint.save(tmp_path, 1, some_tensors(1), {})
    left = tmp_path / ".tmp-step-00000002-4242"
    left.mkdir()
    (left / "tensors.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path).step == 1
    checkpoint.save(tmp_path, 3, some_tensors(3), {})
    assert not left.exists()


def test_full_disk_leaves_the_last_one_intact_and_nothing_else(tmp_path, small_files_only):
    checkpoint.save(tmp_path, 1, some_tensors(1), {})
    with small_files_only(4000), pytest.raises(RunError, match=r"Cannot write .*step-00000002: File too large"):
        checkpoint.save(tmp_path, 2, {"weight": np.zeros(5000)}, {}, keep=1)
    assert os.listdir(tmp_path) == ["step-00000001"]
    assert same(checkpoint.latest(tmp_path).tensors, some_tensors(1))


def test_unwritable_place_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Cannot write"):
        checkpoint.save(tmp_path / "file" / "checkpoints", 1, some_tensors(), {})


WRITER = """
import sys, numpy as np
from pathlib import Path
from distill import checkpoint
print("ready", flush=True)
for step in range(1, 10**6):
    checkpoint.save(Path(sys.argv[1]), step, {"weight": np.full(20000, step)}, {"step": step})
"""


def test_killed_at_any_moment_the_last_state_is_whole(tmp_path):
    rng = random.Random(0)
    reached = 0
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.3))
        writer.kill()
        writer.communicate()
        saved = checkpoint.latest(tmp_path)
        if saved is not None:
            assert saved.state == {"step": saved.step}
            assert (saved.tensors["weight"] == saved.step).all()
            reached = max(reached, saved.step)
    assert reached > 0


@pytest.mark.parametrize("state", [{"loss": float("nan")}, {"best": float("inf")}])
def test_state_that_json_cannot_hold_is_refused(tmp_path, state):
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path, 1, {}, state)
    assert not list(tmp_path.iterdir())
