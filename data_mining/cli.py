"""The command line `data-mining`: parse, call, print. Whatever takes time to import is imported inside its command."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

import json
import logging
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.commands.command_line import run_command
from distill.commands.options import DebugOption, DeviceName, VersionOption
from distill.errors import UserError

if TYPE_CHECKING:
    from data_mining.recipe import MiningRecipe
    from data_mining.workspace import Part

app = typer.Typer(
    name="data-mining",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich takes longer than everything else of `data-mining --help`
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="""Mine a pool of unlabelled images: without leaks and duplicates, the best of each class.

    A recipe (YAML) states the pool, what is protected, the teacher and the rules. The result is an image list that a
    recipe of `distill` trains on as it is, and a report. Kill it at any time and run it again: it goes on.

    \b
    Begin with:
      data-mining recipes                  what there is
      data-mining validate RECIPE          every error of a recipe, with its line
      data-mining run RECIPE               all stages
    """,
)


class ExecutorName(StrEnum):
    """What runs the workers."""

    LOCAL = "local"
    RAY = "ray"


RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's file, or the name of one in `recipes/mining`.")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="The output folder. Default: runs/<the recipe's name>.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a value of the recipe, as if the file said so; repeatable. KEY is dotted (leaks.min_cosine), "
        "VALUE is YAML, null removes.",
    ),
]
PartOption = Annotated[
    str | None,
    typer.Option(
        "--part", metavar="I/N", help="Of N jobs that share this stage and one output folder, this is number I, from 1."
    ),
]
ExecutorOption = Annotated[
    ExecutorName | None, typer.Option("--executor", help="Processes of this machine, or a Ray cluster.")
]
WorkersOption = Annotated[int | None, typer.Option("--workers", help="Processes. Default: as many as CPU cores.")]
MemoryOption = Annotated[
    str | None, typer.Option("--memory", metavar="SIZE", help="What the run may use, such as 4GiB.")
]
DeviceOption = Annotated[DeviceName | None, typer.Option("--device", help="Where the teacher computes.")]

STAGE_HELP = {
    "index": "Find and decode the images: size, hash of the pixels, perceptual hash.\n\n"
    "What cannot be decoded is listed with the reason.",
    "score": "Ask the teacher: the best classes and the embedding of each image.",
    "leaks": "Find pool images that show a protected image, by embedding, hash and SIFT.",
    "duplicates": "Find pool images that show the same, and keep the best of each group.",
    "select": "Choose the images, and write the list: selected.txt and selected.parquet.",
    "pack": "Write the chosen images as tar files of a small short side, and a list of those.",
    "report": "Write report.json and report.html from what the stages have left.",
}


@app.callback()
def _options(version: VersionOption = False) -> None:
    """The options that belong to no command."""


@app.command()
def run(
    recipe: RecipeArgument,
    output: OutputOption = None,
    overrides: SetOption = None,
    executor: ExecutorOption = None,
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    device: DeviceOption = None,
    debug: DebugOption = False,
) -> None:
    """Run all stages that the recipe has.

    What is done is kept: after a kill, a changed threshold or new shards, only what is missing is computed.

    \b
    Examples:
      data-mining run recipes/mining/fashion_mnist_pool.yaml
      data-mining run imagenet22k_ssld --memory 16GiB --workers 8
      data-mining run imagenet22k_ssld --set select.images_per_class=2000
    """
    from data_mining.stages import stages_of

    loaded = _load(recipe, _with_options(overrides, executor, workers, memory, device))
    root = _run_stages(loaded, output, stages_of(loaded), None)
    for name in ("selected.txt", "packed.txt", "report.html"):
        if (root / name).exists():
            typer.echo(f"wrote {root / name}")


def _stage_command(name: str) -> Callable[..., None]:
    def command(
        recipe: RecipeArgument,
        output: OutputOption = None,
        part: PartOption = None,
        overrides: SetOption = None,
        executor: ExecutorOption = None,
        workers: WorkersOption = None,
        memory: MemoryOption = None,
        device: DeviceOption = None,
        debug: DebugOption = False,
    ) -> None:
        loaded = _load(recipe, _with_options(overrides, executor, workers, memory, device))
        _run_stages(loaded, output, [name], None if part is None else parse_part(part))

    return command


for _name, _help in STAGE_HELP.items():
    app.command(_name, help=f"{_help}\n\n\b\nExample:\n  data-mining {_name} RECIPE --output runs/pool")(
        _stage_command(_name)
    )


@app.command()
def validate(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE", help="Files, or names in `recipes/mining`.")],
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Check recipes without running them.

    States every error at once: the key, what was expected and received, the line.

    \b
    Example:
      data-mining validate recipes/mining/yalniz.yaml --set select.images_per_class=8000
    """
    from data_mining.stages import stages_of

    errors = []
    for name in recipes:
        try:
            recipe = _load(name, overrides or [])
        except UserError as error:
            errors.append(str(error))
        else:
            typer.echo(f"{name} is valid: {recipe.name}, stages: {', '.join(stages_of(recipe))}")
    if errors:
        raise UserError("\n".join(errors))


@app.command()
def recipes(debug: DebugOption = False) -> None:
    """List the recipes in `recipes/mining`.

    \b
    Example:
      data-mining recipes
    """
    from data_mining.recipe_file import load_mining_recipe, recipe_files

    files = recipe_files()
    width = max(map(len, files), default=0)
    for name, path in files.items():
        try:
            about = load_mining_recipe(path).description
        except UserError:
            about = f"not valid: data-mining validate {path}"
        typer.echo(f"{name:{width}}  {about}")


@app.command()
def schema(debug: DebugOption = False) -> None:
    """Print the JSON schema of mining recipes, from which editors complete and check.

    \b
    Example:
      data-mining schema > recipes/mining/mining.schema.json
    """
    from data_mining.recipe import MiningRecipe

    values = {"$schema": "https://json-schema.org/draft/2020-12/schema", **MiningRecipe.model_json_schema()}
    typer.echo(json.dumps(values, indent=2))


def parse_part(text: str) -> "Part":
    """The part that "2/8" states.

    Raises:
        UserError: It is not I/N with I from 1 to N.
    """
    from data_mining.workspace import Part

    first, separator, second = text.partition("/")
    if separator and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
        return Part(int(first) - 1, int(second))
    raise UserError(f"--part must be I/N with I from 1 to N, such as 2/8, received {text!r}")


def _with_options(
    overrides: list[str] | None,
    executor: ExecutorName | None,
    workers: int | None,
    memory: str | None,
    device: DeviceName | None,
) -> list[str]:
    options = {
        "executor": executor and executor.value,
        "workers": workers,
        "memory": memory and json.dumps(memory),
        "device": device and device.value,
    }
    given = [f"runtime.{name}={value}" for name, value in options.items() if value is not None]
    return [*(overrides or []), *given]


def _load(name: str, overrides: list[str]) -> "MiningRecipe":
    from data_mining.recipe_file import find_mining_recipe, load_mining_recipe

    return load_mining_recipe(find_mining_recipe(name), overrides)


def _run_stages(recipe: "MiningRecipe", output: Path | None, names: list[str], part: "Part | None") -> Path:
    from data_mining.stages import run_stages
    from data_mining.workspace import Workspace

    # faiss tells which of its builds it loads; Paddle has opened the root logger for that
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    with Workspace(output or Path("runs") / recipe.name, part) as workspace:
        run_stages(workspace, recipe, names, tell=typer.echo)
        return workspace.root


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and ends the process; see `run_command` for the exit status.

    Args:
        arguments: Default: the process's own.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--debug" in arguments:
        os.environ["DATA_MINING_DEBUG"] = "1"  # workers look here
    run_command(app, "data-mining", arguments, interrupted="interrupted; run again to go on")
