"""The stages in their order, and how they are run."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from data_mining.recipe import MiningRecipe
from data_mining.workspace import StageReport, Workspace
from distill.errors import UserError
from distill.files import write_atomically
from distill.recipe.file import resolved_yaml

STAGES = ("index", "score", "leaks", "duplicates", "select", "pack", "report")
BY_SHARD = ("index", "score", "pack")
"""What a scheduler's jobs can share by --part; everything else looks at all images at once."""

_OPTIONAL = ("leaks", "duplicates", "pack")


def run_stages(
    workspace: Workspace, recipe: MiningRecipe, names: Sequence[str], *, tell: Callable[[str], None]
) -> None:
    """Runs stages one after the other; what is done already is kept.

    Args:
        workspace: Entered.
        recipe: What to do.
        names: Of STAGES, in their order.
        tell: Gets a line for each stage that is done.

    Raises:
        UserError: A stage cannot be shared by parts.
    """
    alone = [name for name in names if name not in BY_SHARD]
    if workspace.part is not None and alone:
        raise UserError(
            f"--part: {', '.join(alone)} needs all images at once; what parts can share is {', '.join(BY_SHARD)}. "
            "When all parts are done, run it without --part"
        )
    if workspace.part is None:
        write_atomically(workspace.root / "recipe.yaml", resolved_yaml(recipe))
    for name in names:
        report = stage_function(name)(workspace, recipe)
        if workspace.part is None:
            workspace.save_report(report)
        tell(describe(report))


def stages_of(recipe: MiningRecipe) -> list[str]:
    """The stages that the recipe has a section for, in their order."""
    return [name for name in STAGES if name not in _OPTIONAL or getattr(recipe, name) is not None]


def stage_function(name: str) -> Callable[[Any, MiningRecipe], StageReport]:
    """The `run` of a stage; its libraries are imported only now."""
    function: Callable[[Any, MiningRecipe], StageReport] = importlib.import_module(f"data_mining.{name}").run
    return function


def describe(report: StageReport) -> str:
    """One line about what a stage did."""
    counts = ", ".join(f"{count:,} {name}" for name, count in report.counts.items())
    return f"{report.stage}: {counts or 'done'} ({report.seconds:.1f} s)"
