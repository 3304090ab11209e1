import io
from pathlib import Path

import pytest
from rich.console import Console

from distill.errors import UserError
from distill.recipe.index import find_recipe, print_table, read_entries, recipe_files, recipes_folder

EXAMPLE = Path(__file__).with_name("example_recipe.yaml").read_text()
MEASURED = "measured: {top1: 0.876, source: a test}\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "small.yaml").write_text(EXAMPLE)
    (tmp_path / "broken.yaml").write_text("seed: x\n")
    (tmp_path / "recipe.schema.json").write_text("{}")
    return tmp_path


def test_recipes_are_found_in_all_folders(folder):
    assert recipe_files(folder) == [folder / "a" / "small.yaml", folder / "broken.yaml"]


@pytest.mark.parametrize("name", ["small", "example"])
def test_a_recipe_is_found_by_its_files_name_and_its_own(folder, name):
    assert find_recipe(name, folder) == folder / "a" / "small.yaml"


def test_a_path_needs_no_folder(folder):
    path = str(folder / "broken.yaml")
    assert find_recipe(path, folder / "absent") == Path(path)


def test_an_unknown_name_lists_the_valid_ones_and_the_nearest(folder):
    with pytest.raises(
        UserError, match=r"no recipe 'exmple', expected a path or one of: example. Did you mean 'example'"
    ):
        find_recipe("exmple", folder)
    with pytest.raises(UserError, match=r"no recipe x/y.yaml"):
        find_recipe("x/y.yaml", folder)


def test_a_name_that_two_recipes_have_is_an_error(folder):
    (folder / "small.yaml").write_text(EXAMPLE)
    with pytest.raises(UserError, match="several recipes are named 'small', give a path"):
        find_recipe("small", folder)


def test_a_folder_without_recipes(tmp_path):
    with pytest.raises(UserError, match="holds no recipe"):
        recipe_files(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        recipe_files(tmp_path / "absent")


def test_the_folder_here_comes_before_the_checkouts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipes_folder().is_absolute()
    (tmp_path / "recipes").mkdir()
    assert recipes_folder() == Path("recipes")


def test_recipes_are_sorted_by_the_size_of_their_numbers(tmp_path):
    names = ["ResNet18", "ResNet18_vd", "ResNet50", "ResNet101"]
    for name in names:
        (tmp_path / f"{name}.yaml").write_text("seed: x\n")
    assert [file.stem for file in recipe_files(tmp_path)] == names


def test_the_table_says_what_is_known_and_what_is_not(folder):
    (folder / "measured.yaml").write_text(EXAMPLE.replace("name: example", "name: done", 1) + MEASURED)
    console = Console(width=300, record=True, file=io.StringIO())
    print_table(read_entries(recipe_files(folder)), console)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    header = "recipe teacher student data expected measured"
    assert lines[:3] == [f"{folder}/a/", header, "example ResNet34 ResNet18 x0.25 train-images 85.0 -"]
    assert lines[4:6] == [f"{folder}/", header]
    assert "done ResNet34 ResNet18 x0.25 train-images 85.0 87.6" in lines
    [row] = [line for line in lines if line.startswith("broken")]
    assert f"distill validate {folder}/broken.yaml" in row
