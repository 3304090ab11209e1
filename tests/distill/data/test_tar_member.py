import io
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.data.image_list import open_image_list
from distill.data.tar_member import member_path, parse_member_path
from distill.data.types import UndecodableImage


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(0, 2**50), st.integers(0, 2**50))
def test_a_place_comes_back(name, offset, size):
    path = f"/pool/{name}.tar"
    assert parse_member_path(member_path(path, offset, size).encode()) == (path.encode(), offset, size)


@pytest.mark.parametrize(
    "path",
    ["a.jpg", "a.tar", "a.tar@1", "a.tar@1+", "a.tar@-1+2", "a.tgz@1+2", "a.tar@1+2.jpg", ".tar@1+2", "a@1+2.tar"],
)
def test_the_path_of_a_file_is_none(path):
    assert parse_member_path(path.encode()) is None


@pytest.fixture
def tar(tmp_path, image_folder):
    """A tar of three images, and their places by name."""
    names = ["00.png", "01.jpg", "02.jpg"]
    with tarfile.open(tmp_path / "my shard.tar", "w") as file:
        for name in names:
            data = (image_folder / name).read_bytes()
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    with tarfile.open(tmp_path / "my shard.tar") as file:
        return {os.path.basename(m.name): (m.offset_data, m.size) for m in file}


@pytest.mark.parametrize("root", [".", "elsewhere"])
def test_members_are_read_like_files(tmp_path, tar, images, root):
    (tmp_path / "elsewhere").mkdir()
    prefix = "" if root == "." else f"{tmp_path}/"
    paths = [member_path(f"{prefix}my shard.tar", *place) for place in tar.values()]
    (tmp_path / "list.txt").write_text("".join(f"{path} {label}\n" for label, path in enumerate(paths)))
    pq.write_table(pa.table({"path": paths, "label": [0, 1, 2]}), tmp_path / "list.parquet")
    for name in ("list.txt", "list.parquet"):
        listed = open_image_list(tmp_path / name, tmp_path / root, 3)
        assert listed.labels.tolist() == [0, 1, 2]
        for index in range(3):
            np.testing.assert_array_equal(listed.read(index), images.read(index))


def test_a_place_beyond_the_tar_is_an_undecodable_image(tmp_path, tar, listed):
    size = (tmp_path / "my shard.tar").stat().st_size
    places = [(size - 10, 11), (10 * size, 5), (0, 10**17), (512, 0)]
    files = listed("".join(f"{member_path('my shard.tar', *place)} 0\n" for place in places))
    for index in range(3):
        with pytest.raises(UndecodableImage, match=r"the tar ends before byte"):
            files.read(index)
    with pytest.raises(UndecodableImage, match="the file is empty"):
        files.read(3)
    missing = listed("missing.tar@512+10 0\n")
    with pytest.raises(UndecodableImage, match=r"missing\.tar@512\+10: cannot be read: No such file"):
        missing.read(0)


def test_a_digest_tells_entries_apart(listed):
    entries = listed("a.jpg 1\nb.jpg 2\nc.jpg\n")
    same = listed("a.jpg 1\nb.jpg 2\nc.jpg\nd.jpg 4\n")
    assert entries.digest(0, 3) == same.digest(0, 3)
    others = [entries.digest(0, 2), entries.digest(1, 3), same.digest(0, 4)]
    others += [listed(text).digest(0, 3) for text in ("a.jpg 1\nb.jpg 3\nc.jpg\n", "a.jpg 1\nbb.jpg 2\nc.jpg\n")]
    assert len({entries.digest(0, 3), *others}) == 6
    assert entries.digest(1, 1) == entries.digest(0, 0)
