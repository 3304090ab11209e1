"""`distill benchmark`: parse, call, print."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

import json
from typing import Annotated

import typer

from distill.commands.command_line import console, load_named
from distill.commands.latency import latency
from distill.commands.options import DebugOption, JsonOption, RecipeArgument, SetOption
from distill.errors import UserError

benchmark_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Measure what a recipe needs, and networks."
)


@benchmark_app.command("data")
def benchmark_data(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="NAME", help="Whose images and views. Default: the first stage.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="For each measurement, > 0.")] = 10.0,
    threads: Annotated[
        str, typer.Option("--threads", metavar="N,...", help="Numbers of loader threads to measure.")
    ] = "1,2",
    student: Annotated[
        float, typer.Option("--student", min=0.0, help="How many images/s the student takes, to say what it needs.")
    ] = 1000.0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure how fast a recipe's images can be prepared, and what limits it.

    Reads, decodes and crops the recipe's own images as its training does; teacher and student take no part. First
    one thread, part by part; then the loader, as often as --threads has numbers, in images/s. Says in words what the
    bottleneck is and how many cores a student of a given speed needs. Leave the machine alone meanwhile.

    \b
    Examples:
      distill benchmark data recipes/cifar10/teacher.yaml
      distill benchmark data mine.yaml --threads 1,2,4,8 --student 2500
      distill benchmark data mine.yaml --threads 1 --set runtime.loader_processes=4 --json
    """
    _, loaded = load_named(recipe, overrides)
    try:
        counts = [int(count) for count in threads.split(",")]
    except ValueError:
        raise UserError(f"--threads must be numbers such as 1,2, received {threads!r}") from None
    from distill.benchmark import data, data_report

    report = data.benchmark_data(loaded, stage=stage, seconds=seconds, threads=counts)
    if as_json:
        typer.echo(json.dumps(data_report.report_dict(report)))
    else:
        data_report.print_report(report, console(), student)


benchmark_app.command("latency")(latency)
