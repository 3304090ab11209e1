"""The experiment of scripts/experiments in small: photographs that packages bring, polluted, mined, and counted."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_mining.stages import run_stages
from data_mining.workspace import Workspace
from distill.data.decode import decode_image

EXPERIMENTS = Path(__file__).parent.parent.parent / "scripts" / "experiments"
PROTECTED = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "china.jpg", "flower.jpg")
OTHERS = ("motorcycle_left.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "moon.png", "brick.png", "coins.png")
OFF_TOPIC = ("page.png", "text.png")
SHORT_SIDE = 160


@pytest.fixture(scope="module")
def scripts():
    """The modules `pollute` and `findings`, which are scripts' neighbours and in no package."""
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        import findings
        import pollute
    finally:
        sys.path.remove(str(EXPERIMENTS))
    return pollute, findings


@pytest.fixture(scope="module")
def pictures(scripts):
    import skimage
    import sklearn.datasets

    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images")

    def read(name):
        path = next(folder / name for folder in folders if (folder / name).exists())
        image = decode_image(path.read_bytes(), name)
        scale = SHORT_SIDE / min(image.shape[:2])
        size = round(image.shape[1] * scale), round(image.shape[0] * scale)
        return scripts[0].array_picture(cv2.resize(image, size, interpolation=cv2.INTER_AREA), f"photographs/{name}")

    return {name: read(name) for name in PROTECTED + OTHERS + OFF_TOPIC}


@pytest.fixture
def polluted(tmp_path, scripts, pictures):
    pollute = scripts[0]
    entries = pollute.plan_pool(
        [pictures[name] for name in OTHERS],
        [pictures[name] for name in PROTECTED],
        [pictures[name] for name in OFF_TOPIC],
        duplicates=3,
        copies_per_edit=len(PROTECTED),
        seed=5,
    )
    return pollute.write_pool(tmp_path / "pool", entries, seed=5)


def test_mining_finds_what_was_planted_and_nothing_else(tmp_path, scripts, pictures, polluted, recipe_of, teacher_file):
    for name in PROTECTED:
        (tmp_path / "test").mkdir(exist_ok=True)
        (tmp_path / "test" / name).with_suffix(".png").write_bytes(pictures[name].encoded())
    recipe = recipe_of(
        tmp_path / "pool" / "images",
        teacher_file,
        protected=[{"name": "test", "sources": [{"kind": "folder", "root": str(tmp_path / "test")}]}],
        leaks={
            "min_cosine": 0.5,
            "max_hash_bits": 12,
            "verification": {"side_px": SHORT_SIDE, "drop_inliers": 12, "review_inliers": 8},
        },
        duplicates={"min_cosine": 0.9999, "max_hash_bits": 0},
        select={"kind": "by_class", "images_per_class": 100},
    )
    with Workspace(tmp_path / "out") as workspace:
        run_stages(workspace, recipe, ["index", "score", "leaks", "duplicates", "select"], tell=lambda line: None)
    findings = scripts[1]
    values = findings.findings(polluted, findings.read_fates(tmp_path / "out", recipe, tmp_path / "pool" / "images"))

    recall = {row["edit"]: row["recall"] for row in values["leaks_by_edit"]}
    assert set(recall) == set(scripts[0].EDITS)
    assert all(recall[edit] == 1 for edit in recall if edit not in ("crop_25", "border")), recall
    assert recall["crop_25"] >= 0.5 and recall["border"] >= 0.8
    assert values["leak_removal"]["drop"]["precision"] == 1
    assert values["false_removals"] == []
    assert values["duplicates"]["recall"] == 1 and values["duplicates"]["both_left"] == 0
    assert values["composition"]["clean"]["list"] + values["composition"]["duplicate"]["list"] == len(OTHERS)
    text = findings.as_markdown(values)
    assert "| photographs | crop_25 | 6 |" in text


def test_the_same_seed_gives_the_same_pool(tmp_path, scripts, pictures, polluted):
    pollute = scripts[0]
    again = pollute.plan_pool(
        [pictures[name] for name in OTHERS],
        [pictures[name] for name in PROTECTED],
        [pictures[name] for name in OFF_TOPIC],
        duplicates=3,
        copies_per_edit=len(PROTECTED),
        seed=5,
    )
    assert pollute.write_pool(tmp_path / "again", again, seed=5) == polluted == pollute.read_truth(tmp_path / "pool")
    for line in polluted:
        assert (tmp_path / "again/images" / line.path).read_bytes() == (
            tmp_path / "pool/images" / line.path
        ).read_bytes()


def test_a_pool_holds_what_was_planned(scripts, polluted):
    count = {kind: sum(line.kind == kind for line in polluted) for kind in scripts[0].KINDS}
    assert count == {
        "clean": len(OTHERS),
        "leak": len(PROTECTED) * len(scripts[0].EDITS),
        "duplicate": 3,
        "off_topic": len(OFF_TOPIC),
    }
    for edit in scripts[0].EDITS:
        leaks = [line.original for line in polluted if line.edit == edit]
        assert sorted(leaks) == sorted(f"photographs/{name}" for name in PROTECTED)


def test_impossible_plans_are_refused(scripts, pictures):
    picture = pictures["coins.png"]
    with pytest.raises(ValueError, match="at most the 1 clean pictures, received 2"):
        scripts[0].plan_pool([picture], [], [], duplicates=2, copies_per_edit=0, seed=0)
    with pytest.raises(ValueError, match="needs protected pictures"):
        scripts[0].plan_pool([picture], [], [], duplicates=0, copies_per_edit=1, seed=0)


@pytest.mark.parametrize("size", [(28, 28, 3), (61, 33, 3)])
def test_edits_change_an_image_and_leave_their_argument(scripts, size):
    image = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    before = image.copy()
    shapes = {}
    for name, edit in scripts[0].EDITS.items():
        result = edit(image, np.random.default_rng(1))
        assert result.dtype == np.uint8 and result.shape[2] == 3, name
        assert result.shape != image.shape or not np.array_equal(result, image), name
        assert np.array_equal(image, before), name
        assert np.array_equal(result, edit(image, np.random.default_rng(1))), name
        shapes[name] = result.shape[:2]
    area = image.shape[0] * image.shape[1]
    for name, part in (("crop_80", 0.8), ("crop_50", 0.5), ("crop_25", 0.25)):
        assert shapes[name][0] * shapes[name][1] == pytest.approx(part * area, rel=0.06)
    assert np.array_equal(scripts[0].EDITS["flip"](image, None), image[:, ::-1])


def test_findings_count_what_is_missed_and_what_leaves_for_nothing(scripts):
    pollute, findings = scripts
    truth = [
        pollute.Truth("a.png", "leak", "blur", "photographs/x.png"),
        pollute.Truth("b.png", "leak", "blur", "photographs/y.png"),
        pollute.Truth("c.png", "clean", "", "photographs/z.png"),
        pollute.Truth("d.png", "duplicate", "", "photographs/z.png"),
        pollute.Truth("e.png", "clean", "", "photographs/v.png"),
        pollute.Truth("f.png", "off_topic", "", "text/1"),
    ]
    fates = {
        "a.png": findings.Fate("drop", "/test/x.png", 40),
        "b.png": findings.Fate(chosen=True),
        "c.png": findings.Fate(chosen=True),
        "d.png": findings.Fate(duplicate=True),
        "e.png": findings.Fate("drop", "/test/y.png", 13),
    }
    values = findings.findings(truth, fates)
    (row,) = values["leaks_by_edit"]
    assert (row["planted"], row["dropped"], row["recall"], row["right"], row["in_the_list"]) == (2, 1, 0.5, 1.0, 1)
    assert values["leak_removal"]["drop"] == {
        "clean": 1,
        "leak": 1,
        "duplicate": 0,
        "off_topic": 0,
        "precision": 0.5,
    }
    assert values["leak_removal"]["review"]["precision"] is None
    assert [each["path"] for each in values["false_removals"]] == ["e.png"]
    assert values["duplicates"]["one_left"] == values["duplicates"]["pairs"] == 1
    assert values["composition"]["off_topic"] == {"pool": 1, "list": 0}
    assert values["not_decoded"] == 1
