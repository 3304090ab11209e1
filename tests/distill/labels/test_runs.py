"""Training with stored answers, from the recipe to the student's bits."""

import pytest

from distill.recipe_file import load_recipe
from distill.stages import run_recipe


def student(folder):
    return (folder / "student.safetensors").read_bytes()


@pytest.fixture
def train(tmp_path):
    def run(path, name, *overrides, **options):
        run_recipe(load_recipe(path, overrides), tmp_path / name, device="cpu", **options)
        return student(tmp_path / name)

    return run


def test_a_run_that_computes_and_one_that_reads_end_with_the_same_bits(taught, train, monkeypatch, capsys):
    recipe = taught()
    first = train(recipe, "first")
    said = capsys.readouterr().err
    assert "0 of 200 answers are in" in said and "the others are computed" in said
    assert "the teacher computes with Paddle Inference" in said
    monkeypatch.setattr("distill.learner.open_teacher", lambda *_: pytest.fail("the teacher was built"))
    assert train(recipe, "second") == first
    said = capsys.readouterr().err
    assert "200 of 200 answers are in" in said and "the teacher is not needed" in said
    assert "the teacher computes" not in said
