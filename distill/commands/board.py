"""`distill board`: parse, call, print."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

from pathlib import Path
from typing import Annotated

import typer

from distill.commands.options import DebugOption


def board(
    folder: Annotated[Path, typer.Argument(metavar="RUN_OR_FOLDER", help="A run's folder, or one with runs in it.")],
    port: Annotated[int, typer.Option("--port", metavar="N", min=1, max=65535, help="Of this machine.")] = 8040,
    debug: DebugOption = False,
) -> None:
    """Show the curves of runs in a browser (VisualDL).

    The server listens on this machine's loopback interface alone and sends nothing elsewhere. Ctrl-C ends it.

    \b
    Examples:
      distill board runs
      distill board runs/distilled --port 8041
    """
    from distill.board import HOST, serve

    typer.echo(f"curves of {folder}: http://{HOST}:{port} (Ctrl-C ends the server)")
    serve(folder, port)
