import io
import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_mining.recipe import PackSection
from data_mining.workspace import (
    Part,
    StageReport,
    Workspace,
    make_key,
    new_file,
    read_array,
    read_table,
    stopwatch,
    write_array,
    write_table,
)
from distill.errors import RunError, UserError


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_key_depends_on_all_that_it_is_made_of():
    section = PackSection()
    keys = {
        make_key("pack", section, ["a", "b"]),
        make_key("pack", section, ["b", "a"]),
        make_key("pack", section, ["ab"]),
        make_key("pack", PackSection(quality=80), ["a", "b"]),
        make_key("score", section, ["a", "b"]),
    }
    assert len(keys) == 5 and all(len(key) == 16 for key in keys)
    assert make_key("pack", {"x": 1, "y": 2}) == make_key("pack", {"y": 2, "x": 1})


def test_one_run_at_a_time(tmp_path):
    with (
        Workspace(tmp_path),
        pytest.raises(UserError, match=r"another run works in .* choose another folder"),
        Workspace(tmp_path),
    ):
        pass
    with Workspace(tmp_path):
        pass  # the lock went with the run


def test_parts_work_side_by_side_and_keep_everyone_else_out(tmp_path):
    with Workspace(tmp_path, Part(0, 2)), Workspace(tmp_path, Part(1, 2)):
        for part in (None, Part(1, 2)):
            with pytest.raises(UserError, match="another run"), Workspace(tmp_path, part):
                pass


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / "score").mkdir()
    (tmp_path / "score" / ".tmp-classes.parquet-host-1").write_bytes(b"half")
    (tmp_path / "score" / "classes-1.parquet").write_bytes(b"whole")
    with Workspace(tmp_path):
        assert files_of(tmp_path / "score") == ["classes-1.parquet"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Cannot write"), Workspace(tmp_path / "file" / "out"):
        pass


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "a") as path:
        path.write_text("half")
        raise ZeroDivisionError
    assert files_of(tmp_path) == []
    (tmp_path / "a").write_text("old")
    with new_file(tmp_path / "a") as path:
        path.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert files_of(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "new"


def test_a_full_disk_leaves_nothing_behind(tmp_path, small_files_only):
    noise = np.random.default_rng(0).integers(0, 2**60, 4096)
    with small_files_only(2000):
        with pytest.raises(RunError, match=r"Cannot write .*t\.parquet"):
            write_table(tmp_path / "t.parquet", pa.table({"x": noise}))
        with pytest.raises(RunError, match=r"Cannot write .*a\.npy"):
            write_array(tmp_path / "a.npy", noise)
    assert files_of(tmp_path) == []


def test_equal_tables_are_equal_files(tmp_path):
    whole = pa.table({"x": range(100), "y": ["t"] * 100})
    pieces = pa.concat_tables([whole.slice(0, 7), whole.slice(7)])
    write_table(tmp_path / "a", whole)
    write_table(tmp_path / "b", pieces)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_table(tmp_path / "a", ["y"]) == whole.select(["y"])


@pytest.mark.parametrize("read", [read_table, read_array])
def test_what_is_missing_or_damaged_is_explained(tmp_path, read):
    path = tmp_path / "score" / "x"
    with pytest.raises(RunError, match="is missing: run the stage 'score' first"):
        read(path)
    path.parent.mkdir()
    path.write_bytes(b"not what it should be")
    with pytest.raises(RunError, match=r"cannot be read: .*Delete it and run again"):
        read(path)


def npy(header, content=b""):
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + content


def zipped():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(2))
    return buffer.getvalue()


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_an_array_of_objects_runs_nothing(tmp_path):
    path, proof = tmp_path / "score" / "a.npy", tmp_path / "proof"
    path.parent.mkdir()
    np.save(path, np.array([Exploit(str(proof))], dtype=object), allow_pickle=True)
    with pytest.raises(RunError, match=r"a\.npy cannot be read: .*Python objects"):
        read_array(path)
    assert not proof.exists()
    np.load(path, allow_pickle=True)  # the exploit is a real one
    assert proof.exists()


@pytest.mark.parametrize(
    "content",
    [
        zipped(),
        pickle.dumps([1]),
        npy(b"{'descr':'<f4','fortran_order':False,'shape':(1099511627776,1099511627776),}"),
        npy(b"{'descr':'<f4','fortran_order':False,'shape':(1099511627776,),}", bytes(8)),
        npy(b"{'descr':'<f4','fortran_order':False,'shape':(-2,),}", bytes(8)),
        npy(b"{'descr':[('a','|O')],'fortran_order':False,'shape':(1,),}", bytes(8)),
        npy(b"(" * 500),
        npy(b"1+" * 3000 + b"1"),
        npy(b"__import__('os').abort()"),
        npy(b"{'descr':'<f4','fortran_order':False,'shape':(2,),}", bytes(7)),
    ],
)
def test_hostile_arrays_are_refused(tmp_path, content):
    path = tmp_path / "score" / "a.npy"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"a\.npy cannot be read: .*Delete it and run again"):
        read_array(path)


@pytest.mark.parametrize("content", ["", "[]", '{"stage": "score"', "\udc80", '{"stage": 1, "what": 2}'])
def test_a_damaged_report_is_explained(tmp_path, content):
    with Workspace(tmp_path) as workspace:
        workspace.save_report(StageReport("score", "k"))
        (tmp_path / "score" / "report.json").write_text(content, errors="surrogateescape")
        with pytest.raises(RunError, match=r"report\.json cannot be read: .*Delete it and run again"):
            workspace.load_report("score")


TABLE = io.BytesIO()
pq.write_table(pa.table({"x": list(range(40)), "y": ["a", "b"] * 20}), TABLE)
ARRAY = io.BytesIO()
np.save(ARRAY, np.arange(40.0).reshape(8, 5))


@pytest.mark.parametrize(("read", "whole"), [(read_table, TABLE.getvalue()), (read_array, ARRAY.getvalue())])
@given(data=st.data())
def test_any_damage_is_an_artefact_or_a_run_error(tmp_path_factory, read, whole, data):
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content)) | st.just(len(content))) :]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        assert read(path).nbytes >= 0
    except RunError as error:
        assert "damaged cannot be read" in str(error)


def test_the_seconds_of_a_result_add_up(tmp_path):
    with Workspace(tmp_path) as workspace:
        assert workspace.load_report("score") is None
        for key, seconds in (("k", 2.0), ("k", 3.0)):
            workspace.save_report(StageReport("score", key, {"images": 5}, {"recall": 1.0}, seconds))
        assert workspace.load_report("score") == StageReport("score", "k", {"images": 5}, {"recall": 1.0}, 5.0)
        workspace.save_report(StageReport("score", "other", seconds=1.0))
    assert json.loads((tmp_path / "score" / "report.json").read_text())["seconds"] == 1.0


def test_the_stopwatch_has_run_when_its_block_is_over():
    with stopwatch() as seconds:
        assert seconds == []
    assert len(seconds) == 1 and 0 <= seconds[0] < 60
