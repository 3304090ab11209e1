"""`distill export`: parse, call, print."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from distill.commands.options import DebugOption, RunOrRecipeArgument, SetOption, WeightsOption


class FormatName(StrEnum):
    """What is written."""

    PADDLE = "paddle"
    ONNX = "onnx"
    SAFETENSORS = "safetensors"


class PrecisionName(StrEnum):
    """How weights are kept."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


def export(
    recipe_or_run: RunOrRecipeArgument,
    file_format: Annotated[
        FormatName,
        typer.Option(
            "--format",
            help="paddle: Paddle Inference. onnx: ONNX Runtime, TensorRT, OpenVINO ... safetensors: the weights alone, "
            "under the published names, batch normalisation as it is.",
        ),
    ],
    weights: WeightsOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Default: export/FORMAT-PRECISION in the run's folder."),
    ] = None,
    precision: Annotated[
        PrecisionName,
        typer.Option(
            "--precision",
            help="float16 halves the files; in onnx it is meant for GPUs. int8 quarters an onnx file, and a CPU "
            "computes it in 8 bits.",
        ),
    ] = PrecisionName.FLOAT32,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="LIST",
            help="With int8: an image list, its paths relative to its folder; up to 512 images are taken, evenly "
            "spread. Default: training images of the last stage.",
        ),
    ] = None,
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing",
            help="The network takes bytes, uint8 [N, H, W, 3] in RGB, and normalises them itself.",
        ),
    ] = False,
    class_names: Annotated[
        Path | None, typer.Option("--class-names", metavar="FILE", help="A text file, the name of one class a line.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="X",
            help="Largest difference of a logit from the student's, relative to the largest logit. Default: 0.0001 in "
            "float32, 0.01 in float16, 0.1 in int8.",
        ),
    ] = None,
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Write the student as files for other programs.

    A folder with the network, with inference.yml (how images are prepared, class names) and with export.json. The
    files are run beside the student on up to 256 images of the recipe's evaluation; if they answer otherwise, the exit
    status is 1 and nothing is left. Computes on the CPU. ONNX needs pip install 'paddle-distill[export]'.

    \b
    Examples:
      distill export runs/distilled --format paddle
      distill export runs/distilled --format onnx --precision int8 --with-preprocessing --output student-int8
      distill export distilled --weights runs/seed2/student.safetensors --format safetensors --precision float16
    """
    from distill.parallel import import_paddle
    from distill.trained import find_trained

    recipe, found = find_trained(recipe_or_run, weights, overrides)
    import_paddle()
    from distill.export.write import ExportOptions, export_student
    from distill.prediction import read_class_names

    options = ExportOptions(
        format=file_format.value,
        precision=precision.value,
        with_preprocessing=with_preprocessing,
        calibration=calibration,
        class_names=tuple(read_class_names(class_names, recipe.num_classes)) if class_names is not None else None,
        tolerance=tolerance,
    )
    run = Path(recipe_or_run) if Path(recipe_or_run).is_dir() else Path("runs") / recipe.name
    folder = output or run / "export" / f"{file_format.value}-{precision.value}"
    agreement = export_student(recipe, found, folder, options)
    typer.echo(f"{agreement}\nthe export is in {folder}")
