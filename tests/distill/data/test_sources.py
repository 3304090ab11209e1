import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

import distill.data
from distill.data.sources import open_sources
from distill.errors import UserError
from distill.recipe import AnySource

ADAPTER = TypeAdapter(AnySource)


@pytest.fixture
def opened(image_folder):
    def open_list(*changes, num_classes=7):
        base = {"kind": "image_list", "path": str(image_folder / "list.txt"), "root": str(image_folder)}
        return open_sources([ADAPTER.validate_python(base | change) for change in changes], num_classes)

    return open_list


def test_sources_follow_one_another(opened):
    images = opened({"range": [2, 5], "repeat": 2}, {"use_labels": False}, {"range": [22, 23]})
    own = [2, 3, 4, 2, 3, 4, *range(23), 22]
    assert len(images) == len(own)
    assert images.labels.tolist() == [2, 3, 4, 2, 3, 4, *[-1] * 23, 1]
    for index, place in enumerate(own):
        assert f"/{place:02d}." in images.name(index)
    np.testing.assert_array_equal(images.read(3), opened({}).read(2))


@pytest.mark.parametrize("index", [-1, 23])
def test_an_index_outside(opened, index):
    with pytest.raises(IndexError):
        opened({}).read(index)


def test_kinds_can_be_mixed(opened, image_folder, tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    (tmp_path / "i.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 4, 3) + pixels.tobytes()))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes((image_folder / "00.png").read_bytes())
    sections = [
        {"kind": "idx", "images": str(tmp_path / "i.gz")},
        {"kind": "class_folders", "root": str(tmp_path)},
        {"kind": "image_list", "path": str(image_folder / "list.txt"), "root": str(image_folder)},
    ]
    images = open_sources([ADAPTER.validate_python(section) for section in sections], 7)
    assert images.labels.tolist()[:5] == [-1, -1, 0, 0, 1] and len(images) == 26
    np.testing.assert_array_equal(images.read(2), images.read(3))


def test_a_range_that_exceeds_its_source(opened):
    with pytest.raises(UserError, match=r"list\.txt: range \[5, 24\) exceeds its 23 images"):
        opened({"range": [5, 24]})


def test_withheld_labels_are_not_checked(opened):
    with pytest.raises(UserError, match="line 3: label 2 is outside the classes"):
        opened({}, num_classes=2)
    assert set(opened({"use_labels": False}, num_classes=2).labels) == {-1}


def test_the_data_modules_do_not_import_paddle():
    modules = [f"distill.data.{path.stem}" for path in Path(distill.data.__file__).parent.glob("[!_]*.py")]
    assert "distill.data.loader" in modules
    code = f"import sys\nfor name in {modules}: __import__(name)\nassert 'paddle' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
