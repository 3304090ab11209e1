import itertools
import os
import tarfile

import pytest

from data_mining.shards import members_path, protected, set_key, set_names, shards_of, to_do
from data_mining.workspace import Part, Workspace, read_table
from distill.errors import UserError


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(str(path).encode())


def listed(root, recipe, set_name="pool"):
    """[[(path, label) of a shard] of all shards]."""
    with Workspace(root) as workspace:
        tables = [read_table(members_path(workspace, shard)) for shard in shards_of(workspace, recipe, set_name)]
    return [list(zip(table["path"].to_pylist(), table["label"].to_pylist(), strict=True)) for table in tables]


def keys(root, recipe, set_name="pool"):
    with Workspace(root) as workspace:
        return [shard.key for shard in shards_of(workspace, recipe, set_name)]


def with_sources(recipe_of, *sources, **pool):
    return recipe_of("", pool={"sources": list(sources), **pool})


def test_folders_are_shards_of_a_size_with_labels_from_their_names(tmp_path, recipe_of):
    pool = tmp_path / "pool"
    images = [pool / "b" / f"{n}.jpg" for n in range(3)] + [pool / "a" / "deep" / "x.PNG"]
    touch(*images, pool / "b" / "notes.txt", pool / ".hidden" / "y.jpg")
    source = {"kind": "folder", "root": str(pool), "labels": "sub_folders"}
    found = listed(tmp_path / "out", with_sources(recipe_of, source, images_per_shard=2))
    assert found == [
        [(str(images[3]), 0)],
        [(str(images[0]), 1), (str(images[1]), 1)],
        [(str(images[2]), 1)],
    ]


def test_a_link_that_leads_in_a_circle_is_followed_once(tmp_path, recipe_of):
    touch(tmp_path / "pool" / "a.jpg")
    (tmp_path / "pool" / "again").symlink_to(tmp_path / "pool")
    assert len(listed(tmp_path / "out", recipe_of(tmp_path / "pool"))) == 1


def test_lists_are_cut_into_shards_that_their_lines_name(tmp_path, recipe_of):
    (tmp_path / "pool.txt").write_text("a.jpg 3\nb.jpg\nc.jpg 70000\n")
    source = {"kind": "image_list", "path": str(tmp_path / "pool.txt"), "root": str(tmp_path)}
    recipe = with_sources(recipe_of, source, images_per_shard=2)
    found = listed(tmp_path / "out", recipe)
    assert found == [
        [(f"{tmp_path}/a.jpg", 3), (f"{tmp_path}/b.jpg", -1)],
        [(f"{tmp_path}/c.jpg", 70_000)],
    ]
    before = keys(tmp_path / "out", recipe)
    (tmp_path / "elsewhere").mkdir()
    moved = with_sources(recipe_of, {**source, "root": str(tmp_path / "elsewhere")}, images_per_shard=2)
    assert set(keys(tmp_path / "out", moved)).isdisjoint(before)


def test_each_tar_is_a_shard(tmp_path, recipe_of):
    for name in ("b.tar", "a.tar"):
        tarfile.open(tmp_path / name, "w").close()
    recipe = with_sources(recipe_of, {"kind": "tar", "path": str(tmp_path / "*.tar")})
    with Workspace(tmp_path / "out") as workspace:
        shards = shards_of(workspace, recipe, "pool")
    assert [shard.path for shard in shards] == [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    before = [shard.key for shard in shards]
    os.utime(tmp_path / "a.tar", (1, 1))
    after = keys(tmp_path / "out", recipe)
    assert before[0] not in after and before[1] in after


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "tar", "path": "{}/*.tar"}, "there is no such tar file"),
        ({"kind": "tar", "path": "{}/pool.tar.gz"}, "A compressed tar has no random access"),
        ({"kind": "folder", "root": "{}/none"}, "none"),
        ({"kind": "folder", "root": "{}/empty"}, r"there is no image below it; expected files \.jpg"),
        ({"kind": "image_list", "path": "{}/empty.txt", "root": "{}"}, r"empty\.txt"),
    ],
    ids=["no tar", "compressed", "no folder", "empty folder", "empty list"],
)
def test_a_source_without_images_is_refused(tmp_path, recipe_of, source, message):
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "pool.tar.gz", tmp_path / "empty" / "readme.md")
    (tmp_path / "empty.txt").write_text("")
    source = {key: value.format(tmp_path) for key, value in source.items()}
    with pytest.raises(UserError, match=message):
        keys(tmp_path / "out", with_sources(recipe_of, source))


def test_new_shards_come_last_and_lost_ones_keep_their_place(tmp_path, recipe_of):
    pool, out = tmp_path / "pool", tmp_path / "out"
    touch(pool / "b" / "1.jpg", pool / "d" / "1.jpg")
    recipe = recipe_of(pool)
    b, d = keys(out, recipe)
    touch(pool / "a" / "1.jpg", pool / "c" / "1.jpg")
    assert keys(out, recipe)[:2] == [b, d]
    a, c = keys(out, recipe)[2:]
    (pool / "b").rename(tmp_path / "away")
    assert keys(out, recipe) == [d, a, c]
    (tmp_path / "away").rename(pool / "b")
    assert keys(out, recipe) == [b, d, a, c]


def test_the_key_of_a_set_is_that_of_its_shards(tmp_path, recipe_of):
    pool, out = tmp_path / "pool", tmp_path / "out"
    touch(pool / "a" / "1.jpg")
    found = []
    for _ in range(2):
        with Workspace(out) as workspace:
            found.append(set_key(workspace, recipe_of(pool), "pool"))
        touch(pool / "b" / "1.jpg")
    assert found[0] != found[1]


def test_every_set_has_a_name(tmp_path, recipe_of):
    source = [{"kind": "folder", "root": str(tmp_path)}]
    recipe = recipe_of(
        tmp_path,
        labelled={"name": "train", "sources": source},
        protected=[{"name": "test", "sources": source}, {"name": "val", "sources": source}],
    )
    assert set_names(recipe) == ["pool", "labelled", protected("test"), protected("val")]


def test_parts_share_all_shards(tmp_path):
    shares = [to_do(Workspace(tmp_path, Part(index, 3)), range(8)) for index in range(3)]
    assert sorted(itertools.chain(*shares)) == list(range(8))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert to_do(Workspace(tmp_path), range(8)) == list(range(8))


def test_a_tar_whose_name_no_table_can_hold_is_refused(tmp_path, recipe_of):
    with open(os.fsencode(tmp_path) + b"/\xff.tar", "wb") as file:
        file.write(bytes(1024))
    recipe = with_sources(recipe_of, {"kind": "tar", "path": str(tmp_path / "*.tar")})
    with pytest.raises(UserError, match=r"\\xff\.tar: expected a name in UTF-8"):
        listed(tmp_path / "out", recipe)
