import tarfile

import cv2
import numpy as np
import pyarrow as pa
import pytest

from data_mining import index, pack
from data_mining.recipe import PackSection
from data_mining.workspace import Part, Workspace, read_table, write_table
from distill.data.decode import decode_image
from distill.data.image_list import open_image_list
from distill.errors import RunError, UserError

SIDES = [(72, 80), (120, 60), (40, 50), (64, 200), (33, 32)]


@pytest.fixture
def packed(tmp_path, recipe_of, draw, write, monkeypatch):
    """Packs some images of a pool of five; the arguments are the chosen (image, label) and settings."""
    for number, (height, width) in enumerate(SIDES):
        write(tmp_path / "pool" / f"{number}.png", draw(number, height, width))

    def run(chosen=((4, 1), (1, 0), (0, 2), (2, 0)), part=None, workers=1, output="out", **section):
        section = {"short_side_px": 48, "images_per_tar": 3, **section}
        recipe = recipe_of(tmp_path / "pool", pack=section, runtime={"workers": workers})
        with Workspace(tmp_path / output) as workspace:
            index.run(workspace, recipe)
        with Workspace(tmp_path / output, part) as workspace:
            images, labels = zip(*chosen, strict=True)
            columns = {"path": ["?"] * len(images), "label": pa.array(labels, pa.int32()), "image": images}
            selected = workspace.path("select", "selected", "test", ".parquet")
            write_table(selected, pa.table(columns))
            monkeypatch.setattr(pack, "selected_path", lambda *_: selected)
            return pack.run(workspace, recipe)

    return run


def artefacts(root):
    return {path.name: path.read_bytes() for path in sorted((root / "pack").iterdir())}


def test_the_list_of_the_packed_images_is_one_that_training_reads(tmp_path, packed, draw):
    report = packed()
    assert report.counts["packed"] == 4 and report.counts["tars"] == 2
    for name in ("packed.txt", "packed.parquet"):
        images = open_image_list(tmp_path / "out" / name, tmp_path, 3)
        assert images.labels.tolist() == [1, 0, 2, 0]
        for row, number in enumerate([4, 1, 0, 2]):
            picture, original = images.read(row), draw(number, *SIDES[number])
            if min(original.shape[:2]) <= 48:
                np.testing.assert_array_equal(picture, original)
            else:
                assert min(picture.shape[:2]) == 48
                scale = 48 / min(original.shape[:2])
                assert picture.shape[:2] == tuple(round(side * scale) for side in original.shape[:2])
                size = picture.shape[1::-1]
                smaller = cv2.resize(original, size, interpolation=cv2.INTER_AREA)
                assert np.abs(picture.astype(int) - smaller).mean() < 12  # JPEG's loss at sharp corners


def test_the_tars_have_the_webdataset_layout_and_no_time(tmp_path, packed):
    packed()
    (first, second) = sorted((tmp_path / "out" / "pack").glob("*.tar"))
    with tarfile.open(first) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
        assert {(member.mtime, member.uid, member.uname) for member in tar.getmembers()} == {(0, 0, "")}
    assert list(members) == [
        f"{n:09d}{suffix}" for n, kind in ((0, ".jpg"), (1, ".jpg"), (2, ".png")) for suffix in (kind, ".cls")
    ]
    assert [members[f"{number:09d}.cls"] for number in range(3)] == [b"2", b"0", b"0"]
    with tarfile.open(second) as tar:
        assert tar.getnames() == ["000000004.png", "000000004.cls"]


def test_a_repeated_image_is_packed_once(tmp_path, packed):
    assert packed([(1, 0), (1, 0), (0, 2), (1, 0)]).counts["packed"] == 2
    paths = read_table(tmp_path / "out" / "packed.parquet")["path"].to_pylist()
    assert paths[0] == paths[1] == paths[3] != paths[2]


def test_parts_workers_and_a_second_run_do_not_show(tmp_path, packed, monkeypatch):
    key = packed().key
    before = artefacts(tmp_path / "out")
    packed(workers=2, output="workers")
    for part in (Part(1, 2), Part(0, 2)):
        packed(part=part, output="parts")
    assert artefacts(tmp_path / "workers") == artefacts(tmp_path / "parts") == before
    monkeypatch.setattr(pack, "map_shards", lambda _, plans, *__, **___: plans and pytest.fail("written twice"))
    assert packed().key == key


def test_another_quality_is_another_tar(tmp_path, packed):
    keys = {packed(quality=quality).key for quality in (90, 50)}
    assert len(keys) == 2 and len(list((tmp_path / "out" / "pack").glob("*.tar"))) == 4


def test_an_image_that_has_vanished_is_named(tmp_path, packed):
    packed(chosen=[(0, 0)])
    (tmp_path / "pool" / "1.png").unlink()
    (tmp_path / "pool" / "9.png").write_bytes(b"")  # the shard changes, the index does not: it is read again
    with pytest.raises(UserError, match="cannot be decoded"):
        packed()


def test_an_image_that_vanishes_while_it_is_packed_leaves_no_tar(tmp_path, packed, monkeypatch):
    def vanish(*_):
        raise RunError("gone")

    monkeypatch.setattr(index.Reader, "encoded", vanish)
    with pytest.raises(RunError, match="gone"):
        packed()
    assert artefacts(tmp_path / "out") == {}


def test_a_recipe_without_the_section(tmp_path, recipe_of):
    with Workspace(tmp_path / "out") as workspace, pytest.raises(UserError, match="add one, such as"):
        pack.run(workspace, recipe_of(tmp_path))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_small_image_keeps_its_bytes(draw, suffix):
    data = cv2.imencode(suffix, draw(1))[1].tobytes()
    section = PackSection(short_side_px=72)
    assert pack.repacked(data, f"a{suffix.upper()}", section) == (data, suffix)
    smaller, kind = pack.repacked(data, f"a{suffix}", PackSection(short_side_px=71))
    assert kind == ".jpg" and decode_image(smaller, "a").shape == (71, 79, 3)
