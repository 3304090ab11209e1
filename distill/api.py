"""The framework from Python: `from distill import create_model, evaluate, load_recipe, predict, train`."""

from collections.abc import Sequence
from pathlib import Path

from distill.errors import UserError
from distill.evaluation import Evaluation, evaluate_weights
from distill.models import create_model
from distill.parallel import DeviceKind
from distill.prediction import predict
from distill.recipe import Recipe
from distill.recipe.file import load_recipe
from distill.stages import RunResult, run_recipe
from distill.trained import find_trained

__all__ = ["Evaluation", "Recipe", "RunResult", "create_model", "evaluate", "load_recipe", "predict", "train"]


def train(
    recipe: Recipe | Path | str,
    output: Path | str,
    *,
    resume: bool = False,
    device: DeviceKind = "auto",
    accept_changes: Sequence[str] = (),
) -> RunResult:
    """Trains all stages of a recipe, as `distill train` does.

    Args:
        recipe: What `load_recipe` returned, or a recipe's file.
        output: The run's folder.
        resume: Go on with the run in `output` from its last checkpoint, or start it.
        device: "cpu", "gpu" or "auto".
        accept_changes: Dotted keys whose change against the resumed run is meant.

    Raises:
        UserError: As `distill.stages.run_recipe`.
        RunError: Training failed.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    return run_recipe(loaded, Path(output), resume=resume, device=device, accept_changes=accept_changes)


def evaluate(
    recipe_or_run: Recipe | Path | str, weights: Path | str | None = None, *, device: DeviceKind = "auto"
) -> Evaluation:
    """Measures weights as the recipe's last stage evaluates, as `distill evaluate` does.

    Args:
        recipe_or_run: A run's folder, a recipe's file or name, or what `load_recipe` returned.
        weights: A .safetensors or .pdparams file; default: the run's student, or the recipe's `model.weights`.
        device: "cpu", "gpu" or "auto".

    Raises:
        UserError: There is no such run, recipe or file; or no weights are named.
        RunError: Too many images cannot be decoded.
    """
    given = Path(weights) if weights is not None else None
    if not isinstance(recipe_or_run, Recipe):
        recipe, given = find_trained(str(recipe_or_run), given)
        return evaluate_weights(recipe, given, device=device)
    return evaluate_weights(recipe_or_run, _named(recipe_or_run, given), device=device)


def _named(recipe: Recipe, weights: Path | None) -> Path:
    if weights is None and recipe.model.weights:
        weights = Path(recipe.model.weights)
    if weights is None or not weights.is_file():
        raise UserError(f"evaluate: expected weights of {recipe.name}, received {weights}: name a file that exists")
    return weights
