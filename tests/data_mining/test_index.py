import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest

from data_mining import index
from data_mining.index import Reader, location, read_failures, read_index
from data_mining.pixels import perceptual_hash
from data_mining.shards import shards_of
from data_mining.workspace import Part, Workspace
from distill.data.image_list import open_image_list
from distill.errors import RunError, UserError

PLACE = ("path", "tar", "offset", "bytes")


@pytest.fixture
def png(draw):
    def encoded(number):
        return cv2.imencode(".png", cv2.cvtColor(draw(number), cv2.COLOR_RGB2BGR))[1].tobytes()

    return encoded


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def tar_recipe(recipe_of, path, **pool):
    return recipe_of("", pool={"sources": [{"kind": "tar", "path": str(path)}], **pool})


def run(root, recipe, part=None):
    with Workspace(root, part) as workspace:
        return index.run(workspace, recipe)


def rows(root, recipe, read=read_index, set_name="pool"):
    with Workspace(root) as workspace:
        return read(workspace, recipe, set_name).to_pylist()


def artefacts(root):
    return {path.name: path.read_bytes() for path in (root / "index").iterdir() if path.suffix == ".parquet"}


def test_files_and_members_are_described_and_found_again(tmp_path, recipe_of, draw, png, write):
    write(tmp_path / "pool" / "1.png", draw(1))
    tar = write_tar(tmp_path / "pool.tar", {"a/x.png": png(2), "a/x.cls": b"7\n", "a/y.json": b"{}", "a/z.PNG": png(3)})
    sources = [{"kind": "folder", "root": str(tmp_path / "pool")}, {"kind": "tar", "path": str(tar)}]
    recipe = recipe_of("", pool={"sources": sources})
    report = run(tmp_path / "out", recipe)
    assert report.counts == {"images": 3, "undecodable": 0}
    found = rows(tmp_path / "out", recipe)
    assert [(row["path"], row["tar"], row["label"]) for row in found] == [
        (str(tmp_path / "pool" / "1.png"), None, -1),
        ("a/x.png", str(tar), 7),
        ("a/z.PNG", str(tar), -1),
    ]
    for number, row in enumerate(found, start=1):
        image = draw(number)
        assert (row["height"], row["width"]) == image.shape[:2]
        assert row["pixels_sha256"] == hashlib.sha256(b"72x80:" + image.tobytes()).digest()
        assert row["phash"] == perceptual_hash(image)
        with Reader() as reader:
            np.testing.assert_array_equal(reader.image(*(row[name] for name in PLACE)), image)
    # the places are those that an image list of `distill` understands
    lines = [f"{location(*(row[name] for name in PLACE))} 0\n" for row in found]
    (tmp_path / "list.txt").write_text("".join(lines))
    images = open_image_list(tmp_path / "list.txt", tmp_path, 10)
    for number in range(3):
        np.testing.assert_array_equal(images.read(number), draw(number + 1))


def test_what_cannot_be_decoded_is_listed_with_the_reason(tmp_path, recipe_of, draw, write):
    pool = tmp_path / "pool"
    for number in range(3):
        write(pool / f"{number}.png", draw(number))
    (pool / "empty.jpg").write_bytes(b"")
    (pool / "text.jpg").write_text("no image")
    (pool / "half.png").write_bytes((pool / "0.png").read_bytes()[:300])
    (pool / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (pool / "line\nbreak.png").write_bytes((pool / "0.png").read_bytes())
    pool_section = {"sources": [{"kind": "folder", "root": str(pool)}], "max_undecodable_fraction": 0.7}
    recipe = recipe_of("", pool=pool_section)
    assert run(tmp_path / "out", recipe).counts == {"images": 3, "undecodable": 5}
    failures = {os.path.basename(row["path"]): row["reason"] for row in rows(tmp_path / "out", recipe, read_failures)}
    assert sorted(failures) == ["empty.jpg", "gone.jpg", "half.png", "line\nbreak.png", "text.jpg"]
    assert "line break" in failures["line\nbreak.png"] and all(failures.values())
    strict = recipe_of("", pool=pool_section | {"max_undecodable_fraction": 0.5})
    with pytest.raises(UserError, match=r"5 of 8 images cannot be decoded, expected at most .* 0\.5(.|\n)*empty\.jpg"):
        run(tmp_path / "out", strict)


def test_a_pool_without_a_single_image_is_an_error(tmp_path, recipe_of):
    tar = write_tar(tmp_path / "pool.tar", {"readme.txt": b"no images"})
    recipe = tar_recipe(recipe_of, tar, max_undecodable_fraction=1.0)
    with pytest.raises(UserError, match="at least one image"):
        run(tmp_path / "out", recipe)


@pytest.mark.parametrize("lost", [0, 1, 600, 1500])
def test_a_truncated_tar_is_reported_and_its_whole_images_are_used(tmp_path, recipe_of, png, draw, lost):
    members = {f"{number}.png": png(number) for number in range(4)}
    tar = write_tar(tmp_path / "pool.tar", members)
    blocks = sum(1 + -(-len(data) // 512) for data in members.values())
    os.truncate(tar, 512 * blocks - lost)  # 0: between two members
    recipe = tar_recipe(recipe_of, tar, max_undecodable_fraction=0.9)
    run(tmp_path / "out", recipe)
    failures = rows(tmp_path / "out", recipe, read_failures)
    assert any(row["tar"] == str(tar) and "damaged or truncated" in row["reason"] for row in failures)
    found = rows(tmp_path / "out", recipe)
    assert 3 <= len(found) <= 4
    for number, row in enumerate(found):
        assert row["pixels_sha256"] == hashlib.sha256(b"72x80:" + draw(number).tobytes()).digest()


def test_links_and_folders_inside_a_tar(tmp_path, recipe_of, png):
    tar = write_tar(tmp_path / "pool.tar", {"a.png": png(0)})
    with tarfile.open(tar, "a") as file:
        for name, kind in {"link.png": tarfile.SYMTYPE, "folder.png": tarfile.DIRTYPE}.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            file.addfile(member)
    recipe = tar_recipe(recipe_of, tar, max_undecodable_fraction=0.5)
    assert run(tmp_path / "out", recipe).counts == {"images": 1, "undecodable": 1}
    assert "link" in rows(tmp_path / "out", recipe, read_failures)[0]["reason"]


@pytest.fixture
def pool(tmp_path, draw, write):
    for folder in "abc":
        for number in range(3):
            write(tmp_path / "pool" / folder / f"{number}.png", draw(ord(folder) + number))
    return tmp_path / "pool"


def test_parts_and_workers_do_not_show(tmp_path, recipe_of, pool):
    recipe = recipe_of(pool)
    run(tmp_path / "one", recipe)
    run(tmp_path / "two", recipe_of(pool, runtime={"workers": 2}))
    for number in (2, 0, 1):
        assert run(tmp_path / "parts", recipe, Part(number, 3)).counts == {}
    assert artefacts(tmp_path / "one") == artefacts(tmp_path / "two") == artefacts(tmp_path / "parts")
    assert run(tmp_path / "parts", recipe).key == run(tmp_path / "one", recipe).key


def test_only_new_and_changed_shards_are_indexed(tmp_path, recipe_of, pool, draw, write, monkeypatch):
    recipe, out = recipe_of(pool), tmp_path / "out"
    run(out, recipe)
    before = artefacts(out)
    write(pool / "d" / "0.png", draw(9))
    write(pool / "b" / "1.png", draw(10))
    done, original = [], index.index_shard
    monkeypatch.setattr(index, "index_shard", lambda root, shard: (done.append(shard.title), original(root, shard))[1])
    assert run(out, recipe).counts["images"] == 10
    assert sorted(title.split(",")[0] for title in done) == [f"{pool}/b", f"{pool}/d"]
    after = artefacts(out)
    assert {name: after[name] for name in before} == before
    run(out, recipe)
    assert len(done) == 2


def test_a_shard_that_vanishes_or_changes_midway_is_an_error(tmp_path, recipe_of, png):
    tar = write_tar(tmp_path / "pool.tar", {"a.png": png(0)})
    recipe, out = tar_recipe(recipe_of, tar), tmp_path / "out"
    for change, message in ((tar.unlink, "has vanished"), (lambda: tar.write_bytes(b""), "has changed")):
        with Workspace(out) as workspace:
            shards_of(workspace, recipe, "pool")
            change()
            with pytest.raises(RunError, match=message):
                index.run(workspace, recipe)
        assert not artefacts(out) if (out / "index").exists() else True
        write_tar(tar, {"a.png": png(0)})


def test_the_reader_notices_what_has_changed_since(tmp_path, recipe_of, png, pool):
    tar = write_tar(tmp_path / "pool.tar", {"a.png": png(0)})
    recipe, out = tar_recipe(recipe_of, tar), tmp_path / "out"
    with Workspace(out) as workspace:
        index.run(workspace, recipe)
        shards = shards_of(workspace, recipe, "pool")
        place = [read_index(workspace, recipe, "pool").to_pylist()[0][name] for name in PLACE]
    write_tar(tar, {"b.png": png(1), "a.png": png(0)})
    with Reader(shards) as reader, pytest.raises(RunError, match="has changed"):
        reader.encoded(*place)
    os.truncate(tar, 600)
    with Reader() as reader, pytest.raises(RunError, match=r"bytes were indexed, there are"):
        reader.encoded(*place)
    path = str(pool / "a" / "0.png")
    shutil.copy(pool / "a" / "1.png", path)
    with Reader() as reader, pytest.raises(RunError, match=r"0\.png has changed"):
        reader.encoded(path, None, 0, 1)
    with Reader() as reader, pytest.raises(RunError, match=r"cannot be read now: No such file"):
        reader.encoded(path + "x", None, 0, 1)


def test_more_tars_than_are_kept_open(tmp_path, png, monkeypatch):
    monkeypatch.setattr(index, "_OPEN_TARS", 2)
    tars = [write_tar(tmp_path / f"{number}.tar", {"a.png": png(number)}) for number in range(4)]
    opened = len(os.listdir("/proc/self/fd"))
    with Reader() as reader:
        for number in (0, 1, 2, 3, 0):
            assert reader.encoded("a.png", str(tars[number]), 512, len(png(number))) == png(number)
        assert len(os.listdir("/proc/self/fd")) == opened + 2
    assert len(os.listdir("/proc/self/fd")) == opened


def test_an_image_is_named_by_its_file_or_its_place_in_a_tar():
    assert location("/pool/a.jpg", None, 0, 5) == "/pool/a.jpg"
    assert location("a.jpg", "/pool/1.tar", 512, 5) == "/pool/1.tar@512+5"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reading_that_hangs_is_named_in_time(tmp_path, recipe_of, pool, workers):
    """The program is a file, which the processes of two workers read too."""
    recipe = recipe_of(pool, runtime={"workers": workers})
    code = f"""
import sys, time
from data_mining import index, reading
from data_mining.recipe import MiningRecipe
from data_mining.workspace import Workspace
from distill.commands.command_line import run_command

reading.READ_TIMEOUT_SECONDS = 1.0
plain = index._read_member
index._read_member = lambda member: time.sleep(3600) if member.path.endswith("b/1.png") else plain(member)

def mine(*_, **__):
    recipe = MiningRecipe.model_validate_json({recipe.model_dump_json()!r})
    with Workspace({str(tmp_path / "out")!r}) as workspace:
        index.run(workspace, recipe)

if __name__ == "__main__":
    run_command(mine, "", [])
"""
    (tmp_path / "mine.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(tmp_path / "mine.py")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert f"no image for 1 s. The file being read: {pool}/b/1.png (for 1 s)" in done.stderr
    assert "Traceback" not in done.stderr
