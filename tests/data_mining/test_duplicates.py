"""Duplicates: who stays against a loop, and the whole stage on drawn images with known copies."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mining import duplicates, edges, index, leaks, score
from data_mining.components import rank_of
from data_mining.duplicates import Streams, resolve
from data_mining.edges import first_of_identical
from data_mining.shards import LABELLED, POOL
from data_mining.workspace import Workspace, read_table
from distill.errors import RunError, UserError


def streams(pairs):
    array = np.array(pairs, np.int64).reshape(-1, 2)
    return Streams(lambda: [(array[:, 0], array[:, 1])], lambda: [(array[:, 0], array[:, 1])])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40))
def test_first_of_identical(hashes):
    """Eight bytes that agree are not yet a hash that does."""
    digests = np.array([head for head, _ in hashes], np.uint64)
    whole = np.zeros((len(hashes), 32), np.uint8)
    whole[:, 0], whole[:, 31] = (np.array([h[i] for h in hashes] or np.empty(0), np.uint8) for i in (0, 1))
    found = first_of_identical(digests, lambda rows: whole[rows])
    assert found.tolist() == [hashes.index(each) for each in hashes]


def test_the_best_stays_and_who_is_out_of_the_game_represents_nobody():
    first = np.array([0, 1, 2, 1, 4, 5])
    rank = np.array([5, 0, 1, 2, 3, 4])
    alive = np.array([1, 1, 1, 1, 1, 1], bool)
    pairs = [(0, 1), (1, 2), (4, 5)]
    found = resolve(first, alive, rank, streams(pairs), None)
    assert found.representative.tolist() == [1, 1, 1, 1, 4, 4]
    assert found.component.tolist() == [0, 0, 0, 0, 4, 4]
    # 1 is a leak, but not its identical copy 3: that stands for both
    alive[1] = False
    assert resolve(first, alive, rank, streams(pairs), None).representative.tolist() == [3, -1, 3, 3, 4, 4]
    # both are: nothing holds 0 and 2 together
    alive[3] = False
    assert resolve(first, alive, rank, streams(pairs), None).representative.tolist() == [0, -1, 2, -1, 4, 4]


def test_pairs_that_the_search_missed_are_checked_against_the_best():
    first, rank, alive = np.arange(4), np.array([0, 1, 2, 3]), np.ones(4, bool)
    chain = streams([(0, 1), (1, 2), (2, 3)])
    assert resolve(first, alive, rank, chain, None).representative.tolist() == [0, 0, 2, 2]
    asked = []

    def alike(a, b):
        asked.extend(zip(a.tolist(), b.tolist(), strict=True))
        return b != 2

    assert resolve(first, alive, rank, chain, alike).representative.tolist() == [0, 0, 2, 0]
    assert asked == [(0, 1), (0, 2), (0, 3)]


# --- the stage --------------------------------------------------------------------------------------


def jpeg(image, quality):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


@pytest.fixture(scope="module")
def world(tmp_path_factory, draw, write):
    """Pool: 12 images, some of them again in other folders; labelled: one of them and another one."""
    root = tmp_path_factory.mktemp("duplicates")
    for number in range(12):
        write(root / f"pool/a/{number:02d}.png", draw(number))
    for number in (0, 1):
        write(root / f"pool/b/identical {number}.bmp", draw(number))
        write(root / f"pool/b/identical again {number}.png", draw(number))
    for number in (1, 2, 3):
        write(root / f"pool/c/jpeg {number}.png", jpeg(draw(number), 60))
    write(root / "pool/c/small 4.png", cv2.resize(draw(4), (50, 45), interpolation=cv2.INTER_AREA))
    write(root / "labelled/0/five.png", jpeg(draw(5), 80))
    write(root / "labelled/1/other.png", draw(77))
    write(root / "test/0/zero.png", draw(0))
    return root


@pytest.fixture(scope="module")
def sections(world):
    def folder(below, **more):
        return {"sources": [{"kind": "folder", "root": str(world / below), "labels": "sub_folders"}], **more}

    return {
        "labelled": folder("labelled", name="train"),
        "protected": [folder("test", name="test")],
        "duplicates": {"min_cosine": 0.97, "max_hash_bits": 4},
    }


EXPECTED = [
    {"00.png", "identical 0.bmp", "identical again 0.png"},
    {"01.png", "identical 1.bmp", "identical again 1.png", "jpeg 1.png"},
    {"02.png", "jpeg 2.png"},
    {"03.png", "jpeg 3.png"},
    {"04.png", "small 4.png"},
]


@pytest.fixture
def run(world, teacher_file, recipe_of, sections, tmp_path_factory):
    """Runs the stages; gives the report, the names of those who leave, and the table with names."""

    def run(root=None, leaks_section=None, runtime=None, **section):
        recipe = recipe_of(
            world / "pool",
            teacher_file,
            **sections | {"duplicates": sections["duplicates"] | section, "leaks": leaks_section},
            runtime={"device": "cpu", "workers": 1} | (runtime or {}),
        )
        with Workspace(root or tmp_path_factory.mktemp("out")) as workspace:
            index.run(workspace, recipe)
            score.run(workspace, recipe)
            if leaks_section:
                leaks.run(workspace, recipe)
            report = duplicates.run(workspace, recipe)
            names = {
                name: [path.split("/")[-1] for path in index.read_index(workspace, recipe, name)["path"].to_pylist()]
                for name in (POOL, LABELLED)
            }
            table = read_table(duplicates.groups_path(workspace, recipe)).to_pylist()
            removed = {names[POOL][number] for number in duplicates.removed_images(workspace, recipe)}
            confidence = np.concatenate(
                [
                    score.read_ranking(score.scores_path(workspace, recipe, shard)).probabilities[:, 0]
                    for shard in edges.shards_of(workspace, recipe, POOL)
                ]
            )
        for row in table:
            row["confidence"] = confidence[row["image"]]
            row["image"] = names[POOL][row["image"]]
            row["representative"] = names[row["representative_set"]][row["representative"]]
        return report, removed, table

    return run


def groups(table):
    found = {}
    for row in table:
        if row["representative_set"] == POOL:
            found.setdefault(row["representative"], set()).add(row["image"])
    return sorted(found.values(), key=sorted)


def test_one_of_each_group_stays_the_best_scored(run):
    report, removed, table = run()
    assert groups(table) == sorted(EXPECTED, key=sorted)
    for row in table:
        if row["representative_set"] == POOL and row["image"] != row["representative"]:
            best = next(each for each in table if each["image"] == row["representative"])
            assert best["confidence"] >= row["confidence"]
            assert best["image"] not in removed
    (labelled,) = [row for row in table if row["representative_set"] == LABELLED]
    assert (labelled["image"], labelled["representative"]) == ("05.png", "five.png")
    assert len(removed) == 2 + 3 + 1 + 1 + 1 + 1
    # each folder is a shard of its own, and two of them are in another order than their names
    assert report.counts["images"] == 20
    assert report.counts["identical pixels"] + report.counts["alike"] == 8
    assert report.counts["labelled already"] == 1
    assert report.counts["images left"] == 11
    assert report.facts["components"] == 6
    assert report.facts["largest_components"][:2] == [4, 3]


def test_faiss_finds_the_same_and_its_recall_is_in_the_report(run):
    _, removed, table = run()
    report, by_faiss, other = run(search={"exact_up_to_images": 0, "nprobe": 1})
    assert (by_faiss, other) == (removed, table)
    recall = report.facts["recall"]
    assert recall["found"] == recall["pairs"] > 0
    assert recall["recall"] == 1.0
    assert 0.3 < recall["low"] < recall["high"] == 1.0
    assert report.facts["factory"] == "IVF1,SQfp16"


def test_sift_confirms_pairs(run):
    report, removed, _ = run(min_cosine=-1.0, verify={"side_px": 128, "drop_inliers": 15, "review_inliers": 6})
    assert report.facts["pairs_found"] > 100
    assert report.facts["pairs_confirmed_by_sift"] < 30
    assert {"05.png"} <= removed
    assert len(removed) == 9


def test_leaks_take_no_part(run):
    rule = {"min_cosine": 1.0, "max_hash_bits": 2, "verification": {"side_px": 128}, "certain_hash_bits": -1}
    report, removed, table = run(leaks_section=rule)
    assert report.counts["images"] == 17
    leaked = {"00.png", "identical 0.bmp", "identical again 0.png"}
    assert not leaked & ({row["image"] for row in table} | removed)


def test_the_guard_against_chains_asks_for_more(run):
    report, removed, table = run(min_cosine=0.0, max_hash_bits=0, min_cosine_to_representative=0.97)
    assert report.facts["largest_components"][0] > 5
    assert report.facts["stay_in_a_chain"] > 0
    for row in table:
        if row["image"] in removed:
            assert row["cosine"] >= 0.97 or row["identical"]


def test_against_labelled_can_be_left_out(run):
    report, removed, _ = run(against_labelled=False)
    assert "05.png" not in removed
    assert report.counts["labelled already"] == 0


def test_done_work_is_not_done_again(run, tmp_path, monkeypatch):
    first = run(tmp_path)
    files = {path: path.read_bytes() for path in (tmp_path / "duplicates").iterdir() if path.suffix == ".parquet"}
    for path in list(files)[::2]:
        path.unlink()
    assert run(tmp_path, runtime={"workers": 2, "memory": "64MiB"})[1:] == first[1:]
    assert {path: path.read_bytes() for path in files} == files
    for name in ("search", "resolve", "_write_fingerprints"):
        module = duplicates if name == "resolve" else edges
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("done again"))
    assert run(tmp_path)[1:] == first[1:]


def test_new_images_leave_old_tiles_as_they_are(run, tmp_path, world, draw, write, monkeypatch):
    monkeypatch.setattr(edges, "TILE_ROWS", 4)
    run(tmp_path)
    before = {path.name for path in (tmp_path / "duplicates").glob("edges-*")}
    new = write(world / "pool/d/new.png", jpeg(draw(7), 70))
    try:
        _, removed, _ = run(tmp_path)
    finally:
        new.unlink()
        new.parent.rmdir()
    after = {path.name for path in (tmp_path / "duplicates").glob("edges-*")}
    assert len(after - before) == 1
    assert len(removed) == 10


def test_nan_embeddings_stop_the_stage(run, tmp_path, monkeypatch):
    run(tmp_path)
    for path in (tmp_path / "score").glob("embeddings-*.npy"):
        array = np.load(path)
        array[-1, 3] = np.nan
        np.save(path, array)
    with pytest.raises(RunError, match="NaN or infinite"):
        run(tmp_path, min_cosine=0.98)


def test_all_images_identical(draw, write, tmp_path, teacher_file, recipe_of):
    for number in range(30):
        write(tmp_path / f"pool/{number}.png", draw(1))
    recipe = recipe_of(tmp_path / "pool", teacher_file, duplicates={"min_cosine": 0.9, "max_hash_bits": 4})
    with Workspace(tmp_path / "out") as workspace:
        index.run(workspace, recipe)
        score.run(workspace, recipe)
        report = duplicates.run(workspace, recipe)
        assert duplicates.removed_images(workspace, recipe).tolist() == list(range(1, 30))
    assert report.counts == {
        "images": 30,
        "identical pixels": 29,
        "alike": 0,
        "labelled already": 0,
        "images left": 1,
    }
    assert report.facts["pairs_found"] == 0


def test_a_recipe_without_the_section_is_told(tmp_path, recipe_of):
    with Workspace(tmp_path) as workspace, pytest.raises(UserError, match="section `duplicates`"):
        duplicates.run(workspace, recipe_of(tmp_path))


def test_the_ranks_of_equal_scores_are_those_of_the_hashes():
    scores, ties = np.array([0.5, 0.9, 0.5, np.inf]), np.array([7, 1, 3, 0])
    assert rank_of(np.lexsort((ties, -scores)), 4).tolist() == [3, 1, 2, 0]
