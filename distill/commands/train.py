"""`distill train`: parse, call, print."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.commands.command_line import load_named, require_paddle
from distill.commands.options import (
    DebugOption,
    DeviceName,
    DeviceOption,
    OutputOption,
    RecipeArgument,
    ResumeOption,
    ScaleDownDataOption,
    SetOption,
)
from distill.errors import UserError

if TYPE_CHECKING:
    from distill.recipe import Recipe

ScaleDownOption = Annotated[
    bool,
    typer.Option(
        "--scale-down",
        help="All stages in small, in seconds: narrow networks, small views, teachers with random weights. It shows "
        "that every stage runs; accuracy means nothing.",
    ),
]


def train(
    recipe: RecipeArgument,
    output: OutputOption = None,
    resume: ResumeOption = False,
    accept_changes: Annotated[
        list[str] | None,
        typer.Option(
            "--accept-change",
            metavar="KEY",
            help="With --resume: this key of the recipe has changed on purpose; repeatable. A section's key accepts "
            "all that is in it.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Start nothing: check data, weights and disk, train a few steps of each stage in a temporary folder, "
            "and say what time, memory and disk the run will need.",
        ),
    ] = False,
    small: ScaleDownOption = False,
    small_data: ScaleDownDataOption = None,
    overrides: SetOption = None,
    device: DeviceOption = DeviceName.AUTO,
    debug: DebugOption = False,
) -> None:
    """Run a recipe, all its stages in order.

    Ctrl-C or SIGTERM saves and leaves; --resume goes on as if nothing had happened.

    \b
    Examples:
      distill train recipes/fashion_mnist/distilled.yaml
      distill train distilled --output runs/seed2 --set seed=2
      distill train distilled --resume --set epochs=90 --accept-change epochs
      distill train distilled --dry-run
      distill train distilled --scale-down        # all stages in small, in seconds
    """
    if accept_changes and not resume:
        raise UserError("--accept-change says what may differ from the run that --resume goes on with: add --resume")
    _, loaded = load_named(recipe, overrides)
    require_paddle()
    with contextlib.ExitStack() as temporary:
        if small or small_data is not None:
            inputs = Path(temporary.enter_context(tempfile.TemporaryDirectory())) if dry_run else None
            loaded = _scaled_down(loaded, small_data, output, inputs, device)
        folder = output or Path("runs") / loaded.name
        if dry_run:
            from distill.rehearsal.report import dry_run as rehearsed

            lines = rehearsed(loaded, folder, resume=resume, device=device.value, accept_changes=accept_changes or [])
            typer.echo("\n".join([*lines, "nothing was started, and nothing is left behind"]))
            return
    from distill.distributed.rank import rank_of_environment
    from distill.stages import run_recipe

    result = run_recipe(loaded, folder, resume=resume, device=device.value, accept_changes=accept_changes or [])
    if not rank_of_environment().is_first:
        return
    for name, stage in result.stages.items():
        typer.echo(f"{name}: top-1 {stage.evaluation.top1:.2%}, top-5 {stage.evaluation.top5:.2%}")
    typer.echo(f"the run is in {folder}, the student in {folder / 'student.safetensors'}")


def _scaled_down(
    recipe: "Recipe", data: Path | None, output: Path | None, inputs: Path | None, device: DeviceName
) -> "Recipe":
    """The recipe in small; writes what it needs to `inputs`, None: into the run's folder, unless that run has it."""
    from distill.parallel import setup_process
    from distill.rehearsal.scale_down import WARNING, scale_down, scaled_down_name
    from distill.rehearsal.small_inputs import SmallImages, write_inputs
    from distill.stages import has_begun

    run = output or Path("runs") / scaled_down_name(recipe)
    begun = has_begun(run)  # it may be resumed, with what it has
    folder = run / "inputs" if inputs is None or begun else inputs
    images = SmallImages(data, folder)
    small = scale_down(recipe, images.data, folder)
    setup_process(device.value, seed=recipe.seed)
    if not begun:
        write_inputs(small, images, folder)
    typer.echo(f"scaled down to {images.description}; teachers have random weights; {WARNING}", err=True)
    return small
