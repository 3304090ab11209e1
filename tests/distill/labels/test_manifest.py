"""What tells the images of one recipe from those of another."""

import numpy as np
import pytest

from distill.data.idx import IdxImages
from distill.data.image_list import open_image_list
from distill.data.sources import Images, Part


@pytest.fixture
def listed(tmp_path):
    """Opens a list of files that are made, each as long as its name, below a folder of its own."""

    def open_content(content, name="a"):
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        (root / "list.txt").write_text(content)
        for line in content.splitlines():
            path = root / line.rsplit(" ", 1)[0] if line[-1].isdigit() else root / line
            path.write_bytes(b"x" * len(path.name))
        return open_image_list(root / "list.txt", root, 10)

    return open_content


def identity(source, first=0, end=None, repeat=1):
    return Images([Part(source, first, len(source) if end is None else end, repeat)]).identity()


THREE = "one.jpg 1\ntwo b.jpg 2\nthree.jpg 3\n"


def test_the_same_files_elsewhere_and_with_other_labels_are_the_same_images(listed):
    expected = identity(listed(THREE))
    assert identity(listed(THREE, "elsewhere")) == expected
    assert identity(listed("one.jpg\ntwo b.jpg 9\nthree.jpg\n")) == expected


def test_other_files_another_order_part_or_number_are_others(listed):
    source = listed(THREE)
    found = [
        identity(source),
        identity(source, 0, 2),
        identity(source, 1),
        identity(source, repeat=2),
        identity(listed("three.jpg 3\none.jpg 1\ntwo b.jpg 2\n")),
        identity(listed("one.jpg 1\ntwo b.jpg 2\nfour.jpg 3\n")),
        identity(listed("one.jp 1\ngtwo b.jpg 2\nthree.jpg 3\n")),
    ]
    assert len({entry["listed"] for entry in found}) == len(found)


def test_copies_of_another_size_under_the_same_names_are_noticed(listed, tmp_path):
    before = identity(listed(THREE))
    (tmp_path / "a" / "two b.jpg").write_bytes(b"smaller")
    after = identity(open_image_list(tmp_path / "a" / "list.txt", tmp_path / "a", 10))
    assert after["listed"] == before["listed"] and after["sizes"] != before["sizes"]
    (tmp_path / "a" / "two b.jpg").unlink()
    gone = identity(open_image_list(tmp_path / "a" / "list.txt", tmp_path / "a", 10))
    assert len({entry["sizes"] for entry in (before, after, gone)}) == 3


def test_the_hash_does_not_depend_on_how_much_is_hashed_at_once(listed, monkeypatch):
    source = listed("".join(f"{i}/x.jpg\n".replace("/", "_") for i in range(100)))
    whole = source.content_digest(3, 90)
    monkeypatch.setattr("distill.data.image_list._CHUNK_PATHS", 7)
    assert source.content_digest(3, 90) == whole


def test_a_parquet_list_of_the_same_paths_is_the_same(listed, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = listed(THREE)
    pq.write_table(pa.table({"path": ["one.jpg", "two b.jpg", "three.jpg"]}), tmp_path / "list.parquet")
    assert identity(open_image_list(tmp_path / "list.parquet", tmp_path / "a", None)) == identity(text)


def test_idx_files_are_told_apart_by_their_pixels(digits):
    path = digits.folder / "train-images.gz"
    source = IdxImages(path, None, None)
    assert identity(source) == identity(IdxImages(path, digits.folder / "train-labels.gz", 10))
    assert identity(source, 0, 5) != identity(source, 1, 6)
    other = IdxImages(path, None, None)
    other._images = np.array(other._images)
    other._images[3, 14, 14] += 1
    assert identity(other) != identity(source)
