"""A full disk and a dead one in every stage: one error that says where, and the next run ends with the same bytes."""

import threading

import cv2
import pytest

from data_mining import index, reading, tars
from data_mining.index import read_index
from data_mining.stages import STAGES, run_stages
from data_mining.workspace import Workspace
from distill.data.watch import StuckReading
from distill.errors import RunError

# They hold times, and how the recipe was run.
NEVER_EQUAL = ("report.json", "report.html", "recipe.yaml")


def run(root, recipe, *names):
    with Workspace(root) as workspace:
        run_stages(workspace, recipe, names or STAGES, tell=lambda _: None)


def artefacts(root):
    """What must not depend on how the run went; the tars' list names the output folder."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name not in NEVER_EQUAL]
    files = [path for path in files if not path.name.startswith((".lock", "packed"))]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def reference():
    """Filled by the first test that needs it."""
    return {}


@pytest.fixture
def undisturbed(reference, small, tmp_path_factory):
    if not reference:
        root = tmp_path_factory.mktemp("undisturbed") / "out"
        run(root, small())
        sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file()]
        reference.update(files=artefacts(root), pages=sum(-(-size // 4096) for size in sizes))
    return reference


# --- a full disk --------------------------------------------------------------------------------


def test_every_stage_says_that_its_files_find_no_room(undisturbed, small, small_files_only, tmp_path):
    out, recipe = tmp_path / "out", small()
    for stage in STAGES:
        with small_files_only(10), pytest.raises(RunError, match=r"Cannot write .*File too large\. Free some space"):
            run(out, recipe, stage)
        assert not list(out.rglob(".tmp-*"))
        run(out, recipe, stage)
    assert artefacts(out) == undisturbed["files"]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_a_disk_that_fills_up_on_the_way_loses_nothing(undisturbed, small, small_disk, share):
    size_kb = 4 * int(share * undisturbed["pages"])
    out, recipe = small_disk(size_kb) / "out", small()
    with pytest.raises(RunError, match=r"Cannot write .*No space left on device\. Free some space"):
        run(out, recipe)
    assert not list(out.rglob(".tmp-*"))
    small_disk(100_000, "remount")
    run(out, recipe)
    assert artefacts(out) == undisturbed["files"]


# --- a dead disk --------------------------------------------------------------------------------


@pytest.fixture
def hanging(monkeypatch):
    """From now on the reading of the named files hangs, and a second is too long."""
    released = threading.Event()

    def hang(*names):
        plain = index.read_encoded

        def read(path):
            if path.decode().endswith(names):
                released.wait(60)
            return plain(path)

        monkeypatch.setattr(index, "read_encoded", read)
        monkeypatch.setattr(reading, "READ_TIMEOUT_SECONDS", 1.0)

    yield hang
    released.set()


VERIFIED = {
    "min_cosine": 0.98,
    "max_hash_bits": 4,
    "verify": {"side_px": 144, "drop_inliers": 12, "review_inliers": 8},
}
READERS = {
    "score": ("a/00.png",),
    "leaks": ("a/leak.jpg",),
    "duplicates": ("c/near.jpg",),
    "pack": (".png", ".jpg", ".bmp"),
    "report": (".png", ".jpg", ".bmp"),
}


@pytest.fixture
def with_a_near_duplicate(world, draw, write, small):
    """`verify` looks at pairs that are alike; equal pixels need no look."""
    picture = draw(5)
    write(world / "pool" / "c" / "near.jpg", cv2.resize(picture, None, fx=0.9, fy=0.9, interpolation=cv2.INTER_AREA))
    yield small(duplicates=VERIFIED)
    (world / "pool" / "c" / "near.jpg").unlink()


@pytest.mark.parametrize("stage", READERS)
def test_a_reading_that_hangs_is_named_in_time_by_every_stage_that_reads(
    with_a_near_duplicate, tmp_path, hanging, stage
):
    out, before = tmp_path / "out", STAGES[: STAGES.index(stage)]
    run(out, with_a_near_duplicate, *before)
    hanging(*READERS[stage])
    with pytest.raises(StuckReading, match=r"no image for 1 s\. The file being read: .*\.(png|jpg|bmp) \(for \d s\)"):
        run(out, with_a_near_duplicate, stage)
    assert not list(out.rglob(".tmp-*"))


def test_what_reads_no_image_does_not_wait_for_one(small, tmp_path, hanging):
    run(tmp_path / "out", small(), "index", "score", "leaks")
    hanging("")
    run(tmp_path / "out", small(), "duplicates", "select")  # without duplicates.verify


def test_the_headers_of_a_tar_are_read_in_time(recipe_of, draw, write, tmp_path, monkeypatch):
    import tarfile

    write(tmp_path / "0.png", draw(0))
    with tarfile.open(tmp_path / "pool.tar", "w") as tar:
        tar.add(tmp_path / "0.png", "0.png")
    recipe = recipe_of(tmp_path, pool={"sources": [{"kind": "tar", "path": str(tmp_path / "pool.tar")}]})
    released, plain = threading.Event(), tars._TarFile.read
    monkeypatch.setattr(tars._TarFile, "read", lambda *arguments: released.wait(60) and plain(*arguments))
    monkeypatch.setattr(reading, "READ_TIMEOUT_SECONDS", 1.0)
    with Workspace(tmp_path / "out") as workspace:
        with pytest.raises(StuckReading, match=r"The file being read: .*/pool\.tar \(for 1 s\)"):
            index.run(workspace, recipe)
        released.set()
        index.run(workspace, recipe)
        assert read_index(workspace, recipe, "pool")["path"].to_pylist() == ["0.png"]
