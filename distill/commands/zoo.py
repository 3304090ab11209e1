"""`distill zoo`: parse, call, print."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

from pathlib import Path
from typing import Annotated

import typer

from distill.commands.command_line import console
from distill.commands.options import DEFAULT_RECORDS, DebugOption, RecordsOption


def zoo(
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="FOLDER", help="Draw accuracy against FLOPs, parameters and latency there."),
    ] = None,
    records: RecordsOption = DEFAULT_RECORDS,
    debug: DebugOption = False,
) -> None:
    """Print the networks of the series.

    Published accuracy, FLOPs and parameters beside what we count ourselves; then what `distill evaluate --record`
    measured here. The figures (PNG and SVG) show what is published; stars in them are what was measured here on
    ImageNet-1k's whole validation set.

    \b
    Examples:
      distill zoo
      distill zoo --figures runs/figures
    """
    from distill.benchmark.measurements import read_measurements
    from distill.benchmark.zoo import zoo_table

    measured = read_measurements(records)
    zoo_table(console(), measured)
    if figures is not None:
        from distill.benchmark.figures import draw_figures

        for path in draw_figures(figures, measured):
            typer.echo(f"wrote {path}", err=True)
