import gzip
import os
import struct
import tracemalloc

import numpy as np
import pytest

from distill.data.idx import IdxImages, read_idx
from distill.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 3, 1, 9, 2], dtype=np.uint8)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def written(tmp_path):
    def write(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_images_and_labels(written, compress):
    images = IdxImages(written("i", compress(idx(PIXELS))), written("l", compress(idx(LABELS))), 10)
    assert len(images) == 5 and images.labels.dtype == np.int64
    assert images.labels.tolist() == LABELS.tolist()
    np.testing.assert_array_equal(images.read(3), np.stack([PIXELS[3]] * 3, axis=2))
    assert images.name(3).endswith("/i#3")


def test_without_labels(written):
    path = written("i", idx(PIXELS))
    assert IdxImages(path, None, 10).labels.tolist() == [-1] * 5
    assert IdxImages(path, written("l", idx(LABELS)), None).labels.tolist() == [-1] * 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b"hello", "expected it to start with 00000803, received 68656c6c"),
        (idx(LABELS), "expected it to start with 00000803, received 00000801"),
        (idx(PIXELS)[:-1], r"announces \[5, 4, 3\], but 59 bytes"),
        (idx(PIXELS) + b"\0", r"announces \[5, 4, 3\], but more than 60 bytes"),
        (idx(PIXELS)[:9], "it ends in its header"),
        (idx(PIXELS[:0]), r"announces \[0, 4, 3\]"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12, "announces"),
        (gzip.compress(idx(PIXELS), mtime=0)[:-9], "cannot be read"),
        (b"\x1f\x8b garbage", "cannot be read"),
    ],
)
def test_damaged_files(written, data, message):
    path = written("i", data)
    with pytest.raises(UserError, match=message) as error:
        read_idx(path, 3)
    assert str(error.value).startswith(f"{path}: ")


def test_what_a_small_gzip_holds_is_not_unpacked_beyond_what_is_announced(written):
    bomb = gzip.compress(idx(PIXELS) + bytes(2**26), compresslevel=1)
    path = written("i", bomb)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="but more than 60 bytes"):
            read_idx(path, 3)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_header_that_announces_much_takes_no_memory_for_it(written, compress):
    path = written("i", compress(bytes([0, 0, 8, 3]) + struct.pack(">III", 2**28, 4, 3) + bytes(100)))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"announces \[268435456, 4, 3\], but 100 bytes"):
            read_idx(path, 3)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(10)
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "i")
    with pytest.raises(UserError, match="not a regular file"):
        read_idx(tmp_path / "i", 3)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_idx(tmp_path / "none", 3)


def test_labels_that_do_not_fit(written):
    images = written("i", idx(PIXELS))
    with pytest.raises(UserError, match=r"4 labels, but .*/i has 5 images"):
        IdxImages(images, written("l", idx(LABELS[:4])), 10)
    with pytest.raises(UserError, match=r"label 9 of image 3 is outside the classes 0\.\.4"):
        IdxImages(images, written("l", idx(LABELS)), 5)
