"""`distill predict`: parse, call, print."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

from pathlib import Path
from typing import Annotated

import typer

from distill.commands.command_line import console, require_paddle
from distill.commands.options import DebugOption, DeviceName, DeviceOption, JsonOption
from distill.errors import UserError


def predict(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE", help="Image files, folders of them, or image lists (.txt, .parquet; paths relative to it)."
        ),
    ],
    run: Annotated[
        Path | None, typer.Option("--run", help="A run's folder, or a recipe's file together with --weights.")
    ] = None,
    exported: Annotated[
        Path | None, typer.Option("--model", metavar="FOLDER_OR_FILE", help="Instead: what `distill export` wrote.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A .safetensors or .pdparams file. Default: the run's student.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="How many classes to print.")] = 5,
    class_names: Annotated[
        Path | None,
        typer.Option(
            "--class-names", help="A text file, the name of one class a line. Default: those of --model, if it has any."
        ),
    ] = None,
    device: DeviceOption = DeviceName.AUTO,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Print the most probable classes of images.

    An image that cannot be decoded is named, the others are classified all the same; the exit status is then 1. An
    exported network computes on the CPU.

    \b
    Examples:
      distill predict shoe.png --run runs/distilled
      distill predict photographs --run runs/distilled --top-k 1 --json
      distill predict list.txt --model runs/distilled/export/onnx-int8
    """
    if (run is None) == (exported is None):
        raise UserError("say what classifies: either --run or --model")
    if exported is not None and (weights is not None or device is DeviceName.GPU):
        raise UserError("--model has its own weights and computes on the CPU: leave out --weights and --device")
    require_paddle()
    from distill import prediction

    found_images = prediction.find_images(images)
    if exported is not None:
        found = prediction.predict_exported(exported, found_images, top_k=top_k, class_names=class_names)
    elif run is not None:
        found = prediction.predict(
            run, found_images, top_k=top_k, weights=weights, class_names=class_names, device=device.value
        )
    if as_json:
        typer.echo(prediction.predictions_json(found))
    else:
        console().print(prediction.predictions_table(found))
    if any(each.error is not None for each in found):
        raise typer.Exit(1)
