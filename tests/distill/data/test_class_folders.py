import pytest

from distill.data.class_folders import open_class_folders
from distill.errors import UserError


@pytest.fixture
def tree(tmp_path, make_picture):
    import cv2

    for path in ("b/2.png", "b/1.png", "a/deep/x.PNG", "a/y.png", "c/z.png", ".hidden/h.png", "a/.h.png", "a/.t/i.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(cv2.imencode(".png", make_picture(len(path), 8, 9))[1].tobytes())
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "loose.png").write_bytes(b"")
    return tmp_path


def test_classes_and_files_in_sorted_order(tree):
    images = open_class_folders(tree, 3)
    names = [images.name(index).removeprefix(f"{tree}/") for index in range(len(images))]
    assert names == ["a/deep/x.PNG", "a/y.png", "b/1.png", "b/2.png", "c/z.png"]
    assert images.labels.tolist() == [0, 0, 1, 1, 2]
    assert images.read(4).shape == (8, 9, 3)


def test_labels_withheld(tree):
    assert open_class_folders(tree, None).labels.tolist() == [-1] * 5


def test_names_that_are_no_utf8(tree):
    import os

    os.rename(tree / "c" / "z.png", os.fsencode(tree / "c") + b"/\xff.png")
    images = open_class_folders(tree, 3)
    assert images.name(4).endswith("c/\\xff.png")
    assert images.read(4).shape == (8, 9, 3)


def test_errors(tree, tmp_path):
    with pytest.raises(UserError, match="3 class folders, but num_classes is 2"):
        open_class_folders(tree, 2)
    with pytest.raises(UserError, match="it does not exist"):
        open_class_folders(tmp_path / "none", 2)
    with pytest.raises(UserError, match="it is not a folder"):
        open_class_folders(tree / "loose.png", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images found in its 0 sub-folder"):
        open_class_folders(tmp_path / "empty", 2)
