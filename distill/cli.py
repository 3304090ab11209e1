"""The command line of `distill`, put together; each command is a file in `distill.commands`."""

import sys

import typer

from distill.commands.benchmark import benchmark_app
from distill.commands.board import board
from distill.commands.card import card
from distill.commands.command_line import run_command
from distill.commands.evaluate import evaluate
from distill.commands.export import export
from distill.commands.labels import labels_app
from distill.commands.launch import launch
from distill.commands.options import VersionOption
from distill.commands.predict import predict
from distill.commands.recipes import recipes_app, schema, validate
from distill.commands.report import report
from distill.commands.train import train
from distill.commands.weights import weights_app
from distill.commands.zoo import zoo

app = typer.Typer(
    name="distill",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich takes longer than everything else of `distill --help`
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="""Train small image classifiers that learn from large ones, on PaddlePaddle.

    A recipe (YAML) states a whole experiment; these commands list, check and run it. A run is a folder that
    describes itself.

    \b
    Begin with:
      distill recipes                      what there is
      distill validate RECIPE              every error of a recipe, with its line
      distill train RECIPE                 run it
      distill launch RECIPE                run it on several GPUs or hosts
      distill labels info RECIPE           what storing the teacher's answers would need
      distill evaluate runs/NAME           its accuracy
      distill predict IMAGE --run runs/NAME
      distill export runs/NAME --format onnx    its student for other programs
      distill report runs/NAME             a page about it
      distill card runs/NAME               its model card, which training leaves too
    """,
)
app.add_typer(recipes_app, name="recipes")
app.add_typer(labels_app, name="labels")
app.add_typer(weights_app, name="weights")
app.add_typer(benchmark_app, name="benchmark")
for command in (validate, schema, zoo, train, launch, evaluate, predict, export, report, board, card):
    app.command(command.__name__)(command)


@app.callback()
def _options(version: VersionOption = False) -> None:
    """The options that belong to no command."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and ends the process; see `run_command` for the exit status.

    Args:
        arguments: Default: the process's own.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    run_command(app, "distill", arguments)
