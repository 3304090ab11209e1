"""Which recipe and which weights a command means that takes a run's folder or a recipe."""

from collections.abc import Sequence
from pathlib import Path

from distill.errors import UserError
from distill.recipe import Recipe
from distill.recipe.file import load_recipe
from distill.recipe.index import find_recipe


def find_trained(
    recipe_or_run: str, weights: Path | None = None, overrides: Sequence[str] | None = None
) -> tuple[Recipe, Path]:
    """Finds a trained network.

    Args:
        recipe_or_run: The folder of a run, or the file or name of a recipe.
        weights: Default: the run's student, or the recipe's `model.weights`.
        overrides: `--set` options.

    Raises:
        UserError: There is no such recipe or file, or no weights are named.
    """
    run = Path(recipe_or_run)
    recipe = load_recipe(find_recipe(str(run / "recipe.yaml") if run.is_dir() else recipe_or_run), overrides or ())
    if weights is None and run.is_dir():
        weights = run / "student.safetensors"
    elif weights is None and recipe.model.weights:
        weights = Path(recipe.model.weights)
    if weights is None:
        raise UserError(f"{recipe_or_run} is a recipe without model.weights: say which are meant with --weights FILE")
    if not weights.is_file():
        raise UserError(f"there are no weights {weights}: the run has not finished, or --weights names a wrong file")
    return recipe, weights
