import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from data_mining import index as index_stage
from data_mining import leaks, report, score, select
from data_mining.workspace import Workspace
from distill.errors import RunError

LEAKS = {"min_cosine": 0.9, "max_hash_bits": 6, "verification": {"side_px": 96}}


class Page(HTMLParser):
    """What a browser would fetch, run and show."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.tags, self.words, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "img"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def pool(tmp_path_factory, draw, write):
    """40 images, one file that is none, and copies of two of the five protected images."""
    root = tmp_path_factory.mktemp("world")
    for number in range(40):
        write(root / "pool" / "a & <b>" / f"{number:02d}.png", draw(number))
    for number in range(5):
        write(root / "test" / f"{number}.png", draw(1000 + number))
    write(root / "pool" / "copies" / "same.png", draw(1000))
    write(root / "pool" / "copies" / "mirrored.png", draw(1001)[:, ::-1])
    (root / "pool" / "copies" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    return root


def run_stages(root, recipe, stages=(index_stage, score, leaks, select, report)):
    with Workspace(root) as workspace:
        for stage in stages:
            workspace.save_report(stage.run(workspace, recipe))
    return json.loads((root / "report.json").read_text()), Page((root / "report.html").read_text())


def make_recipe(recipe_of, pool, teacher_file, **sections):
    protected = [{"name": "test", "sources": [{"kind": "folder", "root": str(pool / "test")}]}]
    values = {
        "description": "Is <b>this</b> & that safe?",
        "pool": {"sources": [{"kind": "folder", "root": str(pool / "pool")}], "max_undecodable_fraction": 0.1},
        "protected": protected,
        "leaks": LEAKS,
        "select": {"kind": "by_class", "images_per_class": 4, "min_confidence": 0.3},
    }
    return recipe_of(pool / "pool", teacher_file, **values | sections)


@pytest.fixture(scope="module")
def world(pool, teacher_file, tmp_path_factory):
    return pool, teacher_file, tmp_path_factory.mktemp("out")


@pytest.fixture
def reported(world, recipe_of):
    pool, teacher_file, out = world
    recipe = make_recipe(recipe_of, pool, teacher_file)
    if not (out / "report.json").exists():
        run_stages(out, recipe)
    return recipe, json.loads((out / "report.json").read_text()), Page((out / "report.html").read_text())


def test_the_funnel_adds_up(reported, world):
    _, summary, page = reported
    steps = summary["funnel"]
    assert [step["name"] for step in steps][:2] == ["found in the pool", "decoded"]
    assert (steps[0]["images"], steps[1]["images"], steps[1]["left_out"]) == (43, 42, 1)
    for before, after in itertools.pairwise(steps):
        assert after["images"] == before["images"] - after["left_out"]
    lines = (world[2] / "selected.txt").read_text().splitlines()
    assert steps[-1]["images"] == len(lines) == sum(summary["classes_on_list"])
    assert "43 found in the pool" in page.text and f"{len(lines)} chosen" in page.text


def test_distributions_count_every_image(reported):
    _, summary, _ = reported
    assert sum(summary["classes_in_pool"]) == sum(summary["confidence_in_pool"]) == 42
    assert sum(summary["confidence_on_list"]) == sum(summary["classes_on_list"])
    assert max(summary["classes_on_list"]) <= summary["quota"] == 4


def test_leaks_lie_beside_what_they_show(reported):
    _, summary, page = reported
    pairs = {pair["pool"]["path"].rsplit("/", 1)[1]: pair for pair in summary["leaks"]}
    assert set(pairs) == {"same.png", "mirrored.png"}
    assert pairs["same.png"]["protected"]["path"].endswith("test/0.png") and pairs["same.png"]["inliers"] is None
    assert pairs["mirrored.png"]["protected"]["path"].endswith("test/1.png") and pairs["mirrored.png"]["mirrored"]
    assert "no SIFT needed" in page.text and "mirrored" in page.text
    assert pairs["same.png"]["reason"] == "identical pixels" and "What decided: identical pixels 1" in page.text


def test_refused_images_have_a_true_reason(reported, world):
    recipe, summary, _ = reported
    chosen = {line.rsplit(" ", 1)[0] for line in (world[2] / "selected.txt").read_text().splitlines()}
    least = recipe.select.min_confidence
    seen = set()
    for sample in summary["samples"]:
        assert {each["image"]["path"] for each in sample["chosen"]} <= chosen
        for each in sample["refused"]:
            assert each["image"]["path"] not in chosen
            copy = "copies" in each["image"]["path"]
            expected = "leak" if copy else "not confident enough" if each["score"] < least else "no room left"
            assert each["why"] == expected
            seen.add(each["why"])
    assert {"leak", "no room left"} <= seen


def test_undecodable_files_are_named(reported):
    _, summary, page = reported
    ((name, reason),) = summary["undecodable"]
    assert name.endswith("broken.jpg") and "JPEG" in reason and "broken.jpg" in page.text


def test_the_page_needs_nothing_else(reported, world):
    _, _, page = reported
    text = (world[2] / "report.html").read_text()
    assert page.open == [] and "script" not in page.tags and "link" not in page.tags
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", text)
    assert '<meta name="viewport" content="width=device-width' in text


def test_names_are_text(reported):
    _, _, page = reported
    assert "Is <b>this</b> & that safe?" in page.text
    assert "this" not in [word.strip() for word in page.words]  # no element of its own


def test_settings_versions_and_times_are_there(reported):
    recipe, summary, page = reported
    assert summary["settings"] == recipe.model_dump(mode="json")
    assert set(summary["stages"]) == {"index", "score", "leaks", "select"}
    assert all(stage["seconds"] >= 0 for stage in summary["stages"].values())
    assert summary["versions"]["numpy"] == np.__version__
    assert "min_cosine: 0.9" in page.text


def test_an_image_that_has_vanished_does_not_spoil_the_report(pool, teacher_file, recipe_of, tmp_path):
    recipe = make_recipe(recipe_of, pool, teacher_file, leaks=None)
    with Workspace(tmp_path) as workspace:
        for stage in (index_stage, score, select):
            workspace.save_report(stage.run(workspace, recipe))
        path = (tmp_path / "selected.txt").read_text().splitlines()[0].rsplit(" ", 1)[0]
        with open(path, "rb") as file:
            kept = file.read()
        try:
            with open(path, "wb"):
                pass
            report.run(workspace, recipe)
        finally:
            with open(path, "wb") as file:
                file.write(kept)
    page = Page((tmp_path / "report.html").read_text())
    assert any(source.startswith("data:image/svg+xml") for source in page.sources)
    assert "The review band" not in page.text


def test_repeats_are_told_apart(pool, teacher_file, recipe_of, tmp_path):
    section = {"kind": "by_class", "images_per_class": 30, "fill_by_repeating": True}
    recipe = make_recipe(recipe_of, pool, teacher_file, leaks=None, select=section)
    summary, page = run_stages(tmp_path, recipe, (index_stage, score, select, report))
    chosen, lines = summary["funnel"][-2:]
    assert lines["images"] == 30 * sum(count > 0 for count in summary["classes_on_list"]) > chosen["images"]
    assert f"{lines['images'] - chosen['images']} repeats fill short classes" in page.text


def test_a_stage_that_has_not_run_is_named(pool, teacher_file, recipe_of, tmp_path):
    recipe = make_recipe(recipe_of, pool, teacher_file)
    with Workspace(tmp_path) as workspace:
        for stage in (index_stage, score):
            stage.run(workspace, recipe)
        with pytest.raises(RunError, match=r"run the stage 'select' first"):
            report.run(workspace, recipe)
