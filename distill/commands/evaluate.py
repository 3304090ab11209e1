"""`distill evaluate`: parse, call, print."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

import json
from typing import Annotated

import typer

from distill.commands.command_line import require_paddle
from distill.commands.options import (
    DEFAULT_RECORDS,
    DebugOption,
    DeviceName,
    DeviceOption,
    JsonOption,
    RecordsOption,
    RunOrRecipeArgument,
    SetOption,
    WeightsOption,
)


def evaluate(
    recipe_or_run: RunOrRecipeArgument,
    weights: WeightsOption = None,
    overrides: SetOption = None,
    record: Annotated[
        bool, typer.Option("--record", help="Keep the result, with all that says what it means, for `distill zoo`.")
    ] = False,
    records: RecordsOption = DEFAULT_RECORDS,
    device: DeviceOption = DeviceName.AUTO,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure the accuracy of weights.

    On the images and with the preprocessing of the recipe's last stage.

    \b
    Examples:
      distill evaluate runs/distilled
      distill evaluate runs/distilled --record
      distill evaluate distilled --weights runs/seed2/student.safetensors --json
    """
    from distill.trained import find_trained

    loaded, weights = find_trained(recipe_or_run, weights, overrides)
    if record:
        from distill.benchmark.measurements import check_recordable

        check_recordable(loaded)
    require_paddle()
    from distill.evaluation import evaluate_weights

    result = evaluate_weights(loaded, weights, device=device.value)
    if record:
        from distill.benchmark import measurements
        from distill.parallel import setup_process

        found = measurements.measurement(loaded, weights, result, setup_process(device.value))
        measurements.record(records, found)
        typer.echo(f"recorded in {records}", err=True)
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
        return
    undecodable = f", {result.undecodable} could not be decoded" if result.undecodable else ""
    typer.echo(f"top-1 {result.top1:.2%}, top-5 {result.top5:.2%} of {result.images} images{undecodable} ({weights})")
