"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import distill


class DeviceName(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


def _print_version(context: typer.Context, value: bool) -> None:
    if value:
        typer.echo(f"{context.find_root().info_name} {distill.__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
]
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's file, or its name in `recipes`.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a value of the recipe, as if the file said so; repeatable. KEY is dotted "
        "(optimizer.learning_rate, stages.NAME.epochs), VALUE is YAML, null removes.",
    ),
]
DeviceOption = Annotated[
    DeviceName, typer.Option("--device", help="Where to compute; auto takes the GPU where Paddle sees one.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
RunOrRecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE_OR_RUN", help="A run's folder, or a recipe's file or name (with --weights).")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="A .safetensors or .pdparams file. Default: the run's student, or the recipe's model.weights.",
    ),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="The run's folder. Default: runs/<the recipe's name>.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in the folder from its last checkpoint, or start it.")
]
RecordsOption = Annotated[
    Path, typer.Option("--records", metavar="FILE", help="Where measured accuracies are kept, a JSON object a line.")
]
DEFAULT_RECORDS = Path("runs/measured.jsonl")
ScaleDownDataOption = Annotated[
    Path | None,
    typer.Option(
        "--scale-down-data",
        metavar="FOLDER_OR_LIST",
        help="Images for --scale-down, which it implies: a folder with a sub-folder a class, or an image list with "
        "labels whose paths are relative to its folder. Default: data/fashion-mnist.",
    ),
]
