import gc
import io
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distill.data.image_list as image_list
from distill.data.image_list import open_image_list
from distill.data.types import UndecodableImage
from distill.errors import UserError


def content(images):
    """The list as [(path, label)]."""
    paths = [
        os.fsdecode(images.path(index)).removeprefix(os.fsdecode(images._root) + "/") for index in range(len(images))
    ]
    return list(zip(paths, images.labels.tolist(), strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg 3\nb.jpg 0\n", [("a.jpg", 3), ("b.jpg", 0)]),
        ("a.jpg 3\nb.jpg 0", [("a.jpg", 3), ("b.jpg", 0)]),
        ("a.jpg\nb.jpg 7\nc", [("a.jpg", -1), ("b.jpg", 7), ("c", -1)]),
        ("a.jpg\t3\r\nb.jpg\r\n", [("a.jpg", 3), ("b.jpg", -1)]),
        ("\n\n  a.jpg   3  \n \t\nb 1\n\n", [("a.jpg", 3), ("b", 1)]),
        ("my dog  1.jpg 3\n", [("my dog  1.jpg", 3)]),
        ("a 003\n", [("a", 3)]),
        ("\ufeffa.jpg 3\n", [("a.jpg", 3)]),
        ("été/ß.jpg 3\n", [("été/ß.jpg", 3)]),
        ("12\n", [("12", -1)]),
        ("/elsewhere/a.jpg 3\n", [("/elsewhere/a.jpg", 3)]),
        ("a 3\na 3\n", [("a", 3), ("a", 3)]),
        ("path,label\n", [("path,label", -1)]),  # a name like any other: reading it will fail
    ],
)
def test_lines(listed, text, expected):
    images = listed(text)
    assert content(images) == expected
    assert images.labels.dtype == np.int64


words = st.text(st.characters(exclude_characters=" \t\r\n\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
lines = st.lists(st.tuples(words, st.none() | st.integers(0, 999), st.sampled_from(["\n", "\r\n", " \n", "\n\n"])))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=lines, chunk=st.integers(30, 200))
def test_any_list_comes_back_whatever_the_chunks(listed, monkeypatch, lines, chunk):
    lines = [("x", 0, "\n"), *lines]
    monkeypatch.setattr(image_list, "_CHUNK_BYTES", chunk + max(len(path.encode()) for path, *_ in lines))
    text = "".join(f"{path}{'' if label is None else f' {label}'}{end}" for path, label, end in lines)
    images = listed(text.encode(), num_classes=1000)
    assert images.labels.tolist() == [-1 if label is None else label for _, label, _ in lines]
    for index, (path, *_) in enumerate(lines):
        assert images.path(index) == os.path.join(images._root, path.encode())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n \n\t\n", "is empty"),
        ("a.jpg 1\nb.jpg 10\n", r"line 2: label 10 is outside the classes 0\.\.9"),
        ("a.jpg 1\n\nb.jpg -1\n", "line 3: .* the label a whole number; received the label '-1'"),
        ("a.jpg cat\n", "line 1: .*received the label 'cat'"),
        ("a.jpg 1.0\n", "received the label '1.0'"),
        ("a.jpg 1 extra\n", "received the label 'extra'"),
        ("a.jpg \u0661\n", "received the label '\u0661'"),
        ("a.jpg 99999999999999999999\n", "received the label '99999999999999999999'"),
        ("a.jpg " + "9" * 100_000 + "\n", f"received the label '{'9' * 40}'"),
        ("a.jpg 1\nb\0.jpg 1\n", "line 2: a zero byte"),
        ("a.jpg 1\n".encode("utf-16"), "line 1: a zero byte: .*not UTF-16"),
        (b"a.jpg \xff\xfe\n", r"received the label '\\\\xff\\\\xfe'"),
        ("x" * 5_000_000, "line 1: the line is longer than"),
        ("a 1\n" + "x" * 5_000_000 + " 1\n", "line 2: the line is longer than"),
        (b"PAR1 but no Parquet", "cannot be read as Parquet"),
    ],
)
def test_hostile_lists(listed, text, message):
    with pytest.raises(UserError, match=message) as error:
        listed(text)
    assert "list.txt" in str(error.value)


@pytest.mark.timeout(20)
def test_blanks_without_end_do_not_take_for_ever(listed):
    assert len(listed("a 1" + " " * 4_000_000 + "\n" + ("\n" * 4_000_000) + "b 2\n")) == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(text=st.binary(max_size=300) | st.text("a 1\t\r\n\0é", max_size=60).map(str.encode))
def test_any_bytes_are_a_list_or_a_user_error(listed, text):
    try:
        images = listed(text)
    except UserError:
        return
    assert len(images) >= 1 and ((images.labels >= -1) & (images.labels < 10)).all()
    assert all(images.path(index) and images.name(index).encode() for index in range(len(images)))


def test_withheld_labels_may_lie_outside(listed):
    assert listed("a 5000\nb 1\n", num_classes=None).labels.tolist() == [-1, -1]


def test_missing_files(tmp_path, listed):
    with pytest.raises(UserError, match=r"none\.txt: the image list cannot be read: No such.*the head of the recipe"):
        open_image_list(tmp_path / "none.txt", tmp_path, 10)
    with pytest.raises(UserError, match="the image list cannot be read: Is a directory"):
        open_image_list(tmp_path, tmp_path, 10)
    listed("a 1\n")
    with pytest.raises(UserError, match=r"root must be an existing folder, received .*it does not exist"):
        open_image_list(tmp_path / "list.txt", tmp_path / "none", 10)
    with pytest.raises(UserError, match="it is not a folder"):
        open_image_list(tmp_path / "list.txt", tmp_path / "list.txt", 10)


# --- Parquet ----------------------------------------------------------------------------------


@pytest.fixture
def parquet(tmp_path):
    def write(num_classes=10, row_group_size=None, **columns):
        path = tmp_path / "list.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
        return open_image_list(path, tmp_path, num_classes)

    return write


def test_parquet_with_labels_nulls_and_other_columns(parquet):
    images = parquet(label=[3, None, 0], score=[0.1, 0.2, 0.3], path=["a b.jpg", "é.jpg", "c"], row_group_size=2)
    assert content(images) == [("a b.jpg", 3), ("é.jpg", -1), ("c", 0)]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())])
@pytest.mark.parametrize("label", [pa.int8(), pa.uint16(), pa.int64(), pa.uint64()])
def test_parquet_types(parquet, kind, label):
    paths = ["a", "b", "a"] if kind != pa.binary() else [b"a", b"b", b"a"]
    images = parquet(path=pa.array(paths, kind), label=pa.array([1, 2, None], label))
    assert content(images) == [("a", 1), ("b", 2), ("a", -1)]


def test_parquet_without_labels(parquet):
    assert content(parquet(path=["a", "b"])) == [("a", -1), ("b", -1)]
    assert content(parquet(path=["a"], label=[77], num_classes=None)) == [("a", -1)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": pa.array([], pa.string())}, "is empty"),
        ({"file": ["a"]}, "expected a column `path`, received the columns file"),
        ({"path": ["a"], "label": ["1"]}, "column `label` must hold integers, received string"),
        ({"path": ["a"], "label": [1.0]}, "must hold integers, received double"),
        ({"path": ["a", "b"], "label": [1, 10]}, "row 1: label 10 is outside"),
        ({"path": ["a", "b"], "label": [1, -1]}, "row 1: label -1 is outside"),
        ({"path": ["a"], "label": pa.array([2**64 - 1], pa.uint64())}, "cannot be read as Parquet"),
        ({"path": ["a", None]}, "row 1: the path is empty"),
        ({"path": ["a", ""]}, "row 1: the path is empty"),
        ({"path": ["ab", "c\0d", "e"]}, "row 1: the path contains a zero byte"),
        ({"path": [1, 2]}, "cannot be read as Parquet"),
    ],
)
def test_hostile_parquet(parquet, columns, message):
    with pytest.raises(UserError, match=message) as error:
        parquet(**columns)
    assert "list.parquet" in str(error.value)


def test_a_small_parquet_cannot_ask_for_much(tmp_path):
    path = tmp_path / "list.parquet"
    with pq.ParquetWriter(path, pa.schema([("path", pa.string())]), compression="zstd") as writer:
        for _ in range(8):
            writer.write_table(pa.table({"path": pa.array(["a" * 200]).take(pa.array(np.zeros(2**18, np.int8)))}))
    size = path.stat().st_size
    arrow_before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"list\.parquet, row \d+: the paths take more than 1000 times the file"):
            open_image_list(path, tmp_path, None)
        assert tracemalloc.get_traced_memory()[1] < 3 * 2**26 + 3000 * size < 8 * 2**18 * 200
    finally:
        tracemalloc.stop()
    assert pa.total_allocated_bytes() - arrow_before < 2**26
    longest = pa.DictionaryArray.from_arrays(np.zeros(2**16, np.int8), ["a" * 2**20])  # as text 64 GiB
    pq.write_table(pa.table({"path": longest}), path)
    with pytest.raises(UserError, match="a path of 1048576 bytes, expected at most 8192"):
        open_image_list(path, tmp_path, None)


REAL_PARQUET = io.BytesIO()
pq.write_table(pa.table({"path": [f"{i}.jpg" for i in range(9)] * 3, "label": list(range(9)) * 3}), REAL_PARQUET)


@given(data=st.data())
def test_a_damaged_parquet_is_a_list_or_a_user_error(tmp_path_factory, data):
    content = bytearray(REAL_PARQUET.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    path.write_bytes(content)
    try:
        images = open_image_list(path, path.parent, 10)
    except UserError as error:
        assert "damaged.parquet" in str(error)
        return
    assert ((images.labels >= -1) & (images.labels < 10)).all()
    assert all(images.path(index) for index in range(len(images)))


# --- reading ----------------------------------------------------------------------------------


def test_reading(images, make_picture):
    assert images.read(0).shape == make_picture(0, 40, 90).shape
    np.testing.assert_array_equal(images.read(0), make_picture(0, 40, 90))  # a PNG
    assert np.abs(images.read(1).astype(int) - make_picture(1, 43, 88)).mean() < 4  # a JPEG


@pytest.mark.timeout(10)
def test_a_list_that_is_a_pipe_or_a_device_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", Path("/dev/zero")):
        with pytest.raises(UserError, match="the image list cannot be read: not a regular file"):
            open_image_list(path, tmp_path, 10)


@pytest.mark.timeout(10)
def test_what_is_no_readable_file_is_named(listed, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "empty").touch()
    paths = ["missing.jpg", "folder", "pipe", "loop", "empty", "/dev/zero", "list.txt/x", "x" * 300, "list.txt"]
    images = listed("\n".join(paths))
    for index, path in enumerate(paths):
        with pytest.raises(UndecodableImage) as error:
            images.read(index)
        assert error.value.name == str(tmp_path / path)
        assert error.value.reason


def test_a_file_that_arrives_in_parts_is_read_whole(images, monkeypatch):
    whole = os.pread
    expected = images.read(1)
    monkeypatch.setattr(os, "pread", lambda descriptor, size, offset: whole(descriptor, min(size, 100), offset))
    np.testing.assert_array_equal(images.read(1), expected)


def test_no_descriptor_is_left_open(listed, tmp_path):
    (tmp_path / "folder").mkdir()
    images = listed("folder\nmissing\nlist.txt")
    gc.collect()  # descriptors of other tests' garbage must not be closed while we count
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        for index in range(3):
            with pytest.raises(UndecodableImage):
                images.read(index)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_error_of_the_machine_is_not_blamed_on_the_file(images, monkeypatch):
    def no_more_descriptors(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(image_list.os, "open", no_more_descriptors)
    with pytest.raises(OSError, match="Too many open files"):
        images.read(0)


# --- size -------------------------------------------------------------------------------------

OPEN_AND_MEASURE = """
import sys
from pathlib import Path
from distill.data.image_list import open_image_list
images = open_image_list(Path(sys.argv[1]), Path("/"), 1000)
peak_kb = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(len(images), images.name(4_999_999), images.labels[4_999_999], peak_kb)
"""


def test_five_million_lines_stay_below_600_mb(tmp_path):
    path = tmp_path / "list.txt"
    block = "".join(f"n{i % 1000:08d}/n{i % 1000:08d}_{i:08d}.JPEG {i % 1000}\n" for i in range(50_000))
    with path.open("w") as file:
        for _ in range(100):
            file.write(block)
    command = [sys.executable, "-c", OPEN_AND_MEASURE, str(path)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    count, name, label, peak_kb = result.stdout.split()
    assert (int(count), name, int(label)) == (5_000_000, "/n00000999/n00000999_00049999.JPEG", 999)
    assert int(peak_kb) < 600_000
