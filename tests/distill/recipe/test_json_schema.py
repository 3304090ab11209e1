import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from distill.recipe.file import parse_recipe, resolved_yaml
from distill.recipe.index import recipe_files
from distill.recipe.json_schema import json_schema, schema_text
from distill.recipe.yaml_nodes import read_yaml

HERE = Path(__file__).parent
RECIPES = HERE.parents[2] / "recipes"
EXAMPLE = (HERE / "example_recipe.yaml").read_text()
VALIDATOR = Draft202012Validator(json_schema())


def values(text):
    """What an editor sees: YAML 1.2, nulls included."""

    def bare(node):
        if isinstance(node.value, dict):
            return {key: bare(child) for key, child in node.value.items()}
        return [bare(child) for child in node.value] if isinstance(node.value, list) else node.value

    return bare(read_yaml(text, "r.yaml")[0])


def test_it_is_a_schema():
    Draft202012Validator.check_schema(json_schema())


def test_the_repositorys_file_is_current():
    assert (RECIPES / "recipe.schema.json").read_text() == schema_text(), (
        "run: distill schema --output recipes/recipe.schema.json"
    )


@pytest.mark.parametrize("path", recipe_files(RECIPES), ids=lambda path: path.stem)
def test_each_recipe_satisfies_it_and_names_it_in_its_first_line(path):
    text = path.read_text()
    assert list(VALIDATOR.iter_errors(values(text))) == []
    assert list(VALIDATOR.iter_errors(values(resolved_yaml(parse_recipe(text, str(path)))))) == []
    marker, _, schema = text.splitlines()[0].partition("=")
    assert marker == "# yaml-language-server: $schema"
    assert (path.parent / schema).resolve() == RECIPES / "recipe.schema.json"


def test_the_example_satisfies_it_in_both_forms():
    assert list(VALIDATOR.iter_errors(values(EXAMPLE))) == []
    assert list(VALIDATOR.iter_errors(values(resolved_yaml(parse_recipe(EXAMPLE, "r"))))) == []


def with_value(*path, value):
    recipe = values(EXAMPLE)
    section = recipe
    for part in path[:-1]:
        section = section[part]
    section[path[-1]] = value
    return recipe


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("seed",), "x"),
        (("sed",), 1),
        (("model", "name"), "ResNet19"),
        (("optimizer", "learning_rate"), -1),
        (("optimizer", "learning_rat"), 1),
        (("schedule", "kind"), "cosin"),
        (("schedule", "power"), 2),
        (("data", "sources", 0), {"kind": "idx"}),
        (("stages", 1, "loss", "kl"), {"temperature": 0}),
        (("stages", 1, "seed"), 1),
        (("stages", 1), {"epochs": 3}),
        (("normalization", "mean"), [0.1, 0.2]),
    ],
)
def test_an_editor_sees_what_is_wrong(path, value):
    assert list(VALIDATOR.iter_errors(with_value(*path, value=value)))


def test_descriptions_are_there_for_hovering():
    definitions = json.loads(schema_text())["$defs"]
    assert definitions["TemperatureTerm"]["properties"]["temperature"]["description"] == "Typical: 1-4."
    assert definitions["Stage"]["properties"]["teacher"]["anyOf"][-1] == {"type": "null"}
