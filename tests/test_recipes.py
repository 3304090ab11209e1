"""Every recipe in the repository is valid and says where it comes from."""

from pathlib import Path

import pytest

from distill.recipe_file import load_recipe

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "mining")


def test_there_are_as_many_as_we_think():
    assert len(RECIPES) == 7


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_its_header_complete(path):
    recipe = load_recipe(path)
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../recipe.schema.json"
    header = [line for line in lines[1:] if line.startswith("#")]
    for fact in ("Source:", "Command:", "Hardware:", "Measured:"):
        assert sum(fact in line for line in header) == 1, fact
    command = next(line for line in header if "Command:" in line)
    assert command.split()[-1] == str(path.relative_to(ROOT))
    measured = next(line for line in header if "Measured:" in line)
    if recipe.measured is None:
        assert measured.endswith("not yet run")
    else:
        assert f"{recipe.measured.top1:.2%}".replace("%", " %") in measured


def test_names_differ():
    names = [load_recipe(path).name for path in RECIPES]
    assert len(set(names)) == len(names)


def test_the_shipped_teacher_fits_its_recipe():
    from distill.models import create_model
    from distill.weights import load_into

    section = load_recipe(ROOT / "recipes/fashion_mnist/distilled.yaml").stages[0].teacher.models[0]
    trained = load_recipe(ROOT / "recipes/fashion_mnist/teacher.yaml").model
    assert (section.name, section.width, section.stem_stride) == (trained.name, trained.width, trained.stem_stride)
    model = create_model(section.name, 10, width=section.width, stem_stride=section.stem_stride)
    load_into(model, ROOT / section.weights)
