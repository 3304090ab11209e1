"""Writes the report of runs: reads their folders, asks their networks, renders the page."""

from collections.abc import Sequence
from pathlib import Path

from distill.errors import DistillError, UserError
from distill.files import write_atomically
from distill.parallel import Device, DeviceKind, setup_process
from distill.prediction import read_class_names
from distill.run_report.answers import Answers, ask
from distill.run_report.collect import RunFacts, collect
from distill.run_report.page import render


def write_report(
    runs: Sequence[Path],
    output: Path | None = None,
    *,
    images: int = 2000,
    class_names: Path | None = None,
    device: DeviceKind = "auto",
) -> Path:
    """Writes one HTML page about one or more runs.

    Args:
        runs: Their folders, at least one.
        output: The file; default: `report.html` in the first run's folder.
        images: Evaluation images that the networks answer to, at most, >= 1.
        class_names: A text file with the name of one class a line.
        device: "cpu", "gpu" or "auto".

    Returns:
        The file.

    Raises:
        UserError: A folder is no run, the class names do not fit, or the file cannot be written.
    """
    facts = [collect(run) for run in runs]
    names = [read_class_names(class_names, run.recipe.num_classes) if class_names else None for run in facts]
    chosen = setup_process(device)
    answers = [_answers(run, chosen, images, own) for run, own in zip(facts, names, strict=True)]
    target = output or runs[0] / "report.html"
    try:
        write_atomically(target, render(facts, answers).encode())
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}. Choose another file with --output") from error
    return target


def _answers(run: RunFacts, device: Device, images: int, names: list[str] | None) -> Answers | str:
    """The answers, or why there are none: a report must not fail because images have moved since."""
    weights = run.folder / "student.safetensors"
    if not weights.is_file():
        return "the run has not finished"
    try:
        return ask(run.recipe, weights, device, at_most=images, names=names)
    except DistillError as error:
        return str(error)
