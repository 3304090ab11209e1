import json

import pytest

from distill.data.sources import open_sources
from distill.errors import UserError
from distill.recipe.file import load_recipe
from distill.run_inputs import note_inputs, read_inputs
from distill.weights import sha256_of


@pytest.fixture
def noted(digits, teacher_weights, tmp_path):
    """Notes the inputs of a finetuning whose weights are a copy that may go away."""
    weights = tmp_path / "start.safetensors"
    weights.write_bytes(teacher_weights.read_bytes())
    files = {"kind": "idx", "images": f"{digits.folder}/train-images.gz", "labels": f"{digits.folder}/train-labels.gz"}
    unlabelled = {**files, "use_labels": False, "range": [200, 250], "repeat": 2}
    path = digits.recipe(
        tmp_path / "digits.yaml",
        model={"name": "ResNet18_vd", "width": 0.125, "weights": str(weights)},
        data={"sources": [{**files, "range": [0, 100]}, unlabelled]},
    )
    recipe = load_recipe(path)
    stage = recipe.stages[0]

    def note(fresh):
        images, evaluation = (open_sources(each.sources, 10) for each in (stage.data, stage.evaluation))
        note_inputs(tmp_path, recipe, 0, images=images, evaluation_images=evaluation, teachers=[], fresh=fresh)
        return read_inputs(tmp_path)["train"]

    return note, weights


def test_samples_and_labels_are_counted_by_source(noted):
    note, weights = noted
    found = note(fresh=True)
    assert found["images"]["samples"] == [100, 100]
    assert found["images"]["labelled"] == [100, 0]
    assert found["evaluation_images"]["samples"] == [297]
    assert len(found["images"]["listed"]) == 64
    assert found["started_from"]["sha256"] == sha256_of(weights)


def test_a_resumed_stage_keeps_what_it_started_from(noted):
    note, weights = noted
    first = note(fresh=True)
    weights.unlink()
    assert note(fresh=False) == first
    assert note(fresh=True)["started_from"]["sha256"] is None


def test_a_damaged_file_is_named(tmp_path):
    assert read_inputs(tmp_path) == {}
    for content in ("{", json.dumps([1])):
        (tmp_path / "inputs.json").write_text(content)
        with pytest.raises(UserError, match=r"inputs.json is damaged: .*Restore it, or remove it"):
            read_inputs(tmp_path)
