"""What the benchmarks of steps share: their options, the recipe they train by, and contenders in PyTorch."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from side_by_side import Process, print_rows, summary, take_turns, write_results

from distill.models import model_names
from distill.recipe import NormalizationSection

NUM_CLASSES = 1000
IMAGENET = NormalizationSection(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
AS_IT_COMES = "Paddle as it comes"


def options_parser(
    description: str | None, *, model: str, px: int = 224, torch: bool = True
) -> argparse.ArgumentParser:
    """The options that all of them have; `torch`: whether PyTorch can take part."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=model, choices=model_names(), metavar="NAME", help=f"default: {model}")
    parser.add_argument("--batch", type=int, default=8, help="images a step (default: 8)")
    parser.add_argument("--px", type=int, default=px, help=f"height and width (default: {px})")
    parser.add_argument("--repeats", type=int, default=7, help="rounds in which all have their turn (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    if torch:
        parser.add_argument(
            "--torch-python",
            type=Path,
            metavar="PYTHON",
            help="compare with PyTorch, run by this Python; it needs PyTorch and NumPy alone, so an environment of its "
            "own serves: python3 -m venv torch-venv && torch-venv/bin/pip install torch numpy",
        )
    return parser


def checked(options: argparse.Namespace, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, or an error that says which one cannot be.

    A symbolic link to a virtual environment's Python must stay one: it tells Python which environment it is.
    """
    for name, least in (("batch", 2), ("px", 28), ("repeats", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, received {getattr(options, name)}")
    torch_python = getattr(options, "torch_python", None)
    if torch_python is not None and not torch_python.is_file():
        parser.error(f"--torch-python: there is no {torch_python}")
    return options


def worker(script: str, which: str, options: argparse.Namespace, *, without: Sequence[str] = ()) -> Process:
    """A contender that is this script itself, called with `--worker which`."""
    command = [sys.executable, script, "--worker", which, "--model", options.model]
    return Process([*command, "--batch", str(options.batch), "--px", str(options.px)], without=without)


def torch_worker(options: argparse.Namespace, what: str, model: str, **more: str) -> Process:
    """A contender in PyTorch: `torch_step.py what` on as many threads as we use."""
    command = [str(options.torch_python.absolute()), str(Path(__file__).parent / "torch_step.py"), what]
    settings: Mapping[str, Any] = {
        "model": model,
        "batch": options.batch,
        "px": options.px,
        "threads": len(os.sched_getaffinity(0)),
        **more,
    }
    return Process([*command, *(f"--{name.replace('_', '-')}={value}" for name, value in settings.items())])


def take_turns_and_report(
    options: argparse.Namespace, contenders: Iterable[tuple[str, Process]], fact: str, aims: Mapping[str, str]
) -> None:
    """Lets processes take turns, prints their speeds against `AS_IT_COMES`, and writes --json.

    Args:
        options: Of `options_parser`.
        contenders: Name and process of each.
        fact: Says one thing of each process: a format of its facts.
        aims: By name.
    """
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(process) for name, process in contenders}
        for name, process in processes.items():
            print(f"  {name}: {fact.format_map(process.facts)}")
        seconds = take_turns(processes, options.repeats)
    rows = summary(seconds, options.batch, reference=AS_IT_COMES, aims=aims)
    print_rows(rows, AS_IT_COMES)
    write_results(options.json, rows, describe(options))


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """The settings, as JSON can hold them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
