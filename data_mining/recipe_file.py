"""From a mining recipe's file, and `--set` options, to a validated recipe."""

from collections.abc import Sequence
from pathlib import Path

from data_mining.recipe import MiningRecipe
from distill.errors import UserError, did_you_mean
from distill.recipe.file import parse_sections, read_recipe_text
from distill.recipe.index import CHECKOUT


def load_mining_recipe(path: Path | str, overrides: Sequence[str] = ()) -> MiningRecipe:
    """Reads and validates a recipe.

    Args:
        path: The YAML file.
        overrides: `--set` options such as "leaks.min_cosine=0.6"; the value is YAML.

    Raises:
        UserError: States everything that is wrong: dotted key, expected, received, file and line, nearest name.
    """
    return parse_sections(read_recipe_text(Path(path)), str(path), MiningRecipe, overrides)


def find_mining_recipe(name: str) -> Path:
    """The file that is meant by a path, or by the name of a file in `recipes/mining`.

    Raises:
        UserError: There is no such file; names the nearest.
    """
    if Path(name).is_file():
        return Path(name)
    files = recipe_files()
    if name in files:
        return files[name]
    near = did_you_mean(name, files)
    raise UserError(f"there is no mining recipe {name!r}, expected a file or one of: {', '.join(files)}.{near}")


def recipe_files() -> dict[str, Path]:
    """The files in `recipes/mining`, here or in the checkout, by name."""
    for folder in (Path("recipes/mining"), CHECKOUT / "recipes/mining"):
        if folder.is_dir():
            return {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    return {}
