"""`distill card`: parse, call, print."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

from pathlib import Path
from typing import Annotated

import typer

from distill.commands.options import DebugOption


def card(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that has finished.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: MODEL_CARD.md in the run's folder.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Write the model card of a finished run, as training writes it at its end.

    Markdown: the network and its results, data, teachers, recipe, licence notes, how to use it. It says only what the
    run has noted; a run of an older version has noted less.

    \b
    Examples:
      distill card runs/distilled
      distill card runs/distilled --output README.md
    """
    from distill.run_report.card import write_card

    typer.echo(f"the model card is in {write_card(run, output)}")
