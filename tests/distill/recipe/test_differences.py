from pathlib import Path

import pytest

from distill.recipe.differences import differences, not_accepted
from distill.recipe.file import parse_recipe

EXAMPLE = Path(__file__).with_name("example_recipe.yaml").read_text()


def compare(*overrides):
    return differences(parse_recipe(EXAMPLE, "old"), parse_recipe(EXAMPLE, "new", overrides))


def test_equal_recipes_do_not_differ():
    assert compare() == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=2", "seed: 1 -> 2"),
        ("model.name=ResNet34", "model.name: 'ResNet18' -> 'ResNet34'"),
        ("optimizer.momentum=0.5", "optimizer.momentum: 0.9 -> 0.5"),
        ("optimizer.learning_rate=0.2", "stages.distill.optimizer.learning_rate: 0.1 -> 0.2"),
        ("mixup={alpha: 0.2, group_size: 8}", "mixup: absent -> {alpha: 0.2, group_size: 8}"),
        ("stages.distill.loss.kl.temperature=3", "stages.distill.loss.kl.temperature: 2.0 -> 3.0"),
        ("data.sources.0.range=[0, 9]", "data.sources.0.range: [0, 1000] -> [0, 9]"),
        ("data.sources.1.range=[0, 9]", "data.sources.1.range: absent -> [0, 9]"),
        ("stages.finetune.name=last", "stages: ['distill', 'finetune'] -> ['distill', 'last']"),
    ],
)
def test_a_change_names_its_key_and_both_values(override, line):
    assert compare(override) == [line]


def test_a_whole_list_is_shown_where_the_number_of_its_entries_changed():
    [line] = compare("data.sources=[{kind: class_folders, root: train}]")
    assert line.startswith("data.sources: [{use_labels: true, ")


@pytest.mark.parametrize(
    "override", ["description=x", "expected=null", "runtime.loader_threads=7", "evaluation.batch_size=3"]
)
def test_what_never_changes_a_result_is_no_difference(override):
    assert compare(override) == []


def test_accepted_keys_are_left_out():
    found = compare("seed=2", "optimizer.learning_rate=0.2", "optimizer.momentum=0.5")
    assert not_accepted(found, ()) == found
    assert not_accepted(found, ("optimizer",)) == ["seed: 1 -> 2"]
    assert not_accepted(found, ("seed", "stages.distill.optimizer.learning_rate")) == ["optimizer.momentum: 0.9 -> 0.5"]
    assert not_accepted(found, ("optim",)) == found
