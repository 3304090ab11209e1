import re
import shutil
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from distill.recipe.file import load_recipe
from distill.stages import run_recipe

HOSTILE = "<script>alert(1)<"


class Page(HTMLParser):
    """Collects tags and what they refer to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.text, self.words = set(), [], text, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="session")
def digit_folders(tmp_path_factory):
    """A folder of PNG files a class, 12 digits each; the first class has a hostile name."""
    from sklearn.datasets import load_digits

    root = tmp_path_factory.mktemp("folders")
    bunch = load_digits()
    for label in range(10):
        folder = root / (HOSTILE if label == 0 else f"digit{label}")
        folder.mkdir()
        for number, image in enumerate(bunch.images[bunch.target == label][:12]):
            enlarged = np.kron(image * (255 / 16), np.ones((4, 4))).astype(np.uint8)
            assert cv2.imwrite(str(folder / f"{number}.png"), enlarged)
    return root


@pytest.fixture(scope="session")
def runs(digits, digit_folders, teacher_weights, tmp_path_factory):
    """A run without a teacher and one with."""
    folder = tmp_path_factory.mktemp("runs")
    source = {"kind": "class_folders", "root": str(digit_folders)}
    common = {
        "data": {"sources": [source]},
        "evaluation": {"sources": [source], "resize_short_px": 28, "crop_px": 28},
        "description": "Small <script>",
    }
    teacher = {
        "teacher": {
            "batch_norm": "stored",
            "models": [{"name": "ResNet18_vd", "width": 0.125, "weights": str(teacher_weights)}],
        },
        "loss": {"kl": {"weight": 1.0, "temperature": 2.0}},
    }
    for name, changes in {"alone": {}, "taught": teacher}.items():
        recipe = digits.recipe(folder / f"{name}.yaml", **common, **changes)
        run_recipe(load_recipe(recipe), folder / name, device="cpu")
    return folder


def test_a_page_compares_runs_and_needs_nothing_else(run_cli, runs, tmp_path):
    status, output, errors = run_cli(
        "report", runs / "alone", runs / "taught", "-o", tmp_path / "r.html", "--device=cpu"
    )
    assert (status, output) == (0, f"the report is in {tmp_path / 'r.html'}\n"), errors
    page = Page((tmp_path / "r.html").read_text())
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert page.references
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "url(" not in page.text
    assert "&lt;script&gt;alert(1)&lt;" in page.text
    for expected in ("Loss term kl", "Learning rate", "Top-1 accuracy", "the recipe has no teacher", "label_smoothing"):
        assert expected in page.text
    assert len(re.findall(r"<li><img", page.text)) == 12  # of the taught run
    assert page.text.count('<polyline class="line1"') == 7
    assert page.text.count("<td") == page.text.count("<td data-of=")  # on a narrow page a column's name stands there


@pytest.mark.parametrize("batch_norm", ["stored", "batch"])
def test_answers_that_depend_on_the_batch_are_marked(run_cli, runs, tmp_path, batch_norm):
    run = tmp_path / "run"
    shutil.copytree(runs / "taught", run)
    recipe = (run / "recipe.yaml").read_text()
    assert "batch_norm: stored" in recipe
    (run / "recipe.yaml").write_text(recipe.replace("batch_norm: stored", f"batch_norm: {batch_norm}"))
    status, _, errors = run_cli("report", run, "--images", 8, "--device=cpu")
    assert status == 0, errors
    text = (run / "report.html").read_text()
    assert ("here over 8 images at once" in text) == (batch_norm == "batch")
    assert f"the model card {run / 'MODEL_CARD.md'}" in Page(text).words


def test_a_missing_teacher_is_named_and_left_out(run_cli, runs, tmp_path, teacher_weights):
    hidden = teacher_weights.with_suffix(".hidden")
    teacher_weights.rename(hidden)
    try:
        status, _, errors = run_cli("report", runs / "taught", "-o", tmp_path / "r.html", "--images", 7, "--device=cpu")
    finally:
        hidden.rename(teacher_weights)
    assert status == 0, errors
    text = (tmp_path / "r.html").read_text()
    assert "Left out:" in text
    assert teacher_weights.name in text
    assert "Of 7 of the 120 evaluation images" in text


def test_an_unfinished_run_has_a_page_too(run_cli, runs, tmp_path):
    run = tmp_path / "begun"
    run.mkdir()
    (run / "recipe.yaml").write_bytes((runs / "alone" / "recipe.yaml").read_bytes())
    status, _, errors = run_cli("report", run, "--device=cpu")
    assert status == 0, errors
    assert "the run has not finished" in (run / "report.html").read_text()


def test_no_run_is_refused(run_cli, tmp_path):
    status, _, errors = run_cli("report", tmp_path)
    assert status == 2
    assert "is no run" in errors
