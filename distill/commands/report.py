"""`distill report`: parse, call, print."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

from pathlib import Path
from typing import Annotated

import typer

from distill.commands.options import DebugOption, DeviceName, DeviceOption


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, to be compared.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Default: report.html in the first run's folder."),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", metavar="N", min=1, help="Evaluation images shown to student and teacher.")
    ] = 2000,
    class_names: Annotated[
        Path | None, typer.Option("--class-names", metavar="FILE", help="A text file, the name of one class a line.")
    ] = None,
    device: DeviceOption = DeviceName.AUTO,
    debug: DebugOption = False,
) -> None:
    """Write a page about runs: curves, mistakes, environment, recipe.

    One HTML file that needs nothing else. Of a run that has finished, the student, and the teacher where its weights
    are there, answer to evaluation images.

    \b
    Examples:
      distill report runs/distilled
      distill report runs/baseline runs/distilled --output compared.html
    """
    from distill.parallel import import_paddle

    import_paddle()
    from distill.run_report.write import write_report

    written = write_report(runs, output, images=images, class_names=class_names, device=device.value)
    typer.echo(f"the report is in {written}")
