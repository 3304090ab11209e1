"""Builders beside training: a process for each of `teacher.devices`, which ends with the run whatever ends that."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distill.commands.command_line import run_command
from distill.distributed.tether import die_with_parent
from distill.errors import RunError
from distill.files import write_atomically
from distill.recipe import Recipe
from distill.recipe.file import load_recipe, resolved_yaml

_SHOWN_LINES = 5
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Builder:
    """A process that computes a teacher's answers, and where it says what it does."""

    device: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raises RunError where the process has failed."""
        status = self.process.poll()
        if status:
            last = "\n  ".join(self.log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
            raise RunError(f"the teacher on {self.device} (teacher.devices) ended with status {status}:\n  {last}")


@contextlib.contextmanager
def teacher_processes(recipe: Recipe, number: int, folder: Path, start: bool = True) -> Iterator[list[Builder]]:
    """Runs a builder on each of the stage's `teacher.devices` for as long as the context lasts.

    Args:
        recipe: The whole recipe.
        number: Of the stage.
        folder: The stage's own: takes the recipe that they read, and their logs.
        start: Whether it is this process that runs them; of several ranks the first does.
    """
    stage = recipe.stages[number]
    devices = stage.teacher.devices if stage.teacher is not None and start else ()
    builders: list[Builder] = []
    if devices:
        write_atomically(folder / "builders.yaml", resolved_yaml(recipe))
    try:
        for place, device in enumerate(devices):
            builders.append(_start(folder, number, device, place))
        yield builders
    finally:
        for builder in builders:
            builder.process.terminate()
        for builder in builders:
            with contextlib.suppress(subprocess.TimeoutExpired):
                builder.process.wait(_PATIENCE_SECONDS)
            builder.process.kill()
            builder.process.wait()


def visible_gpu(device: str, visible: str | None) -> str:
    """CUDA_VISIBLE_DEVICES for a builder: none for "cpu"; "gpu:1" is the second of those that this process sees.

    Args:
        device: "cpu", "gpu" (the first) or "gpu:N".
        visible: This process's CUDA_VISIBLE_DEVICES; None: all.

    Raises:
        RunError: This process sees fewer.
    """
    if device == "cpu":
        return ""
    place = int(device.partition(":")[2] or 0)
    if visible is None:
        return str(place)
    names = [name for name in visible.split(",") if name]
    if place >= len(names):
        raise RunError(f"teacher.devices: there is no {device}, CUDA_VISIBLE_DEVICES shows {len(names)}: {visible!r}")
    return names[place]


def _start(folder: Path, number: int, device: str, place: int) -> Builder:
    log = folder / f"builder-{place}.log"
    kind = device.partition(":")[0]
    command = [sys.executable, "-m", __name__, str(folder / "builders.yaml"), str(number), kind, str(os.getpid())]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": visible_gpu(device, os.environ.get("CUDA_VISIBLE_DEVICES"))}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the run alone, which then ends its builders
        )
    return Builder(device, process, log)


def _build(arguments: list[str], prog_name: str) -> None:
    from distill.labels.build import build_labels
    from distill.parallel import setup_process

    path, number, device, parent = arguments
    die_with_parent(int(parent), signal.SIGTERM)
    recipe = load_recipe(path)
    kind = setup_process("gpu" if device == "gpu" else "cpu", seed=recipe.seed)
    print(build_labels(recipe, int(number), kind))


if __name__ == "__main__":
    run_command(_build, "builder", sys.argv[1:])
