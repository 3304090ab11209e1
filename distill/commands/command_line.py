"""What commands of this project have alike: how they begin, and how they end.

They end with one clean message, a meaningful exit status, and a traceback only if asked for.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from distill.errors import DistillError

if TYPE_CHECKING:
    from rich.console import Console

    from distill.recipe import Recipe


def load_named(name: str, overrides: Sequence[str] | None) -> "tuple[Path, Recipe]":
    """The recipe that is meant by a file or a name, as `--set` changes it, and its file.

    Raises:
        UserError: There is none, or it has errors.
    """
    from distill.recipe.file import load_recipe
    from distill.recipe.index import find_recipe

    path = find_recipe(name)
    return path, load_recipe(path, overrides or ())


def require_paddle() -> None:
    """One clear line where Paddle is missing, before a module that needs it is imported."""
    from distill.parallel import import_paddle

    import_paddle()


def console() -> "Console":
    """Standard output; where nobody looks at its width (a pipe, a file), no line is broken."""
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=1000)


def run_command(
    app: Callable[..., Any], name: str, arguments: Sequence[str], *, interrupted: str = "interrupted"
) -> None:
    """Runs a Typer application and ends the process where it fails.

    Exit status: 0, 1 for a run that failed, 2 for a wrong input, 130 after Ctrl-C. With `--debug` among the arguments
    an error is raised as it is.

    Args:
        app: The application.
        name: The command's name in its help.
        arguments: What was typed behind it.
        interrupted: What to say after Ctrl-C.
    """
    debug = "--debug" in arguments
    try:
        app(list(arguments), prog_name=name)
    except KeyboardInterrupt:
        _say(interrupted)
        sys.exit(130)
    except DistillError as error:
        if debug:
            raise
        _say(str(error))
        if error.leave_at_once:
            for process in multiprocessing.active_children():
                process.kill()
            os._exit(error.exit_status)
        sys.exit(error.exit_status)
    except Exception as error:
        if debug:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        _say(f"unexpected error, rerun with --debug to see where: {reason}")
        sys.exit(1)


def _say(message: str) -> None:
    colour = None if "NO_COLOR" in os.environ else typer.colors.RED
    typer.secho(f"error: {message}", fg=colour, err=True)
