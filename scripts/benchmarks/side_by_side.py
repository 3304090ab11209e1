"""Contenders timed side by side: each is asked for one repeat in turn, so that noise hits all of them alike.

A contender is a function of this process, or a process of its own where it needs its own environment. Needs the
standard library alone, so that a Python with PyTorch and nothing else can be a contender.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

LEAST_SECONDS = 0.5  # of a repeat: what is quicker is called several times
SPIN_SECONDS = 0.3  # OpenMP's threads spin for 0.2 s behind their work, at the cost of whoever comes next

# What decides how Paddle computes on a CPU; a contender "as it comes" gets none of it from this process.
PADDLE_VARIABLES = ("MKL_DEBUG_CPU_TYPE", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Repeat = Callable[[], float]
"""Makes one repeat and returns the seconds of one step."""


class Steps:
    """A repeat of a step in this process: as many calls as fill `LEAST_SECONDS`."""

    def __init__(self, step: Callable[[], object]) -> None:
        """Makes two steps: the first one builds kernels and takes memory, the second one is timed."""
        self._step = step
        step()
        self._calls = 1
        self._calls = max(1, round(LEAST_SECONDS / self()))

    def __call__(self) -> float:
        """See `Repeat`."""
        started = time.perf_counter()
        for _ in range(self._calls):
            self._step()
        return (time.perf_counter() - started) / self._calls


def serve(build: Callable[[], tuple[Callable[[], object], Mapping[str, Any]]]) -> None:
    """What a contender's process does: builds its step, then makes a repeat for every line on standard input.

    Args:
        build: Returns the step and facts about it, which `Process.facts` then holds.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print on standard output is no answer
    step, facts = build()
    repeat = Steps(step)
    print(json.dumps(dict(facts)), file=answers)
    for _ in sys.stdin:
        print(json.dumps(repeat()), file=answers)


class Process:
    """A contender in a process of its own, which calls `serve`; use as a context.

    Attributes:
        facts: What it said about itself.
    """

    def __init__(self, command: Sequence[str], *, without: Sequence[str] = ()) -> None:
        """Starts it and waits until it is ready.

        Args:
            command: Of its process.
            without: Variables of the environment that it does not get.

        Raises:
            RuntimeError: It ended, with what it wrote on standard error.
        """
        environment = {name: value for name, value in os.environ.items() if name not in without}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )
        try:
            self.facts: dict[str, Any] = self._answer()
        except BaseException:
            self._end()
            raise

    def __call__(self) -> float:
        """See `Repeat`."""
        if self._process.stdin is None:
            raise RuntimeError("the contender has no standard input")
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def _answer(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace")[-4000:]
            raise RuntimeError(f"{' '.join(map(str, self._process.args))} ended:\n{said}")
        return json.loads(line)


def take_turns(contenders: Mapping[str, Repeat], repeats: int) -> dict[str, list[float]]:
    """Seconds of one step of each contender: `repeats` rounds, in each of which all have their turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(1, repeats + 1):
        for name, repeat in contenders.items():
            show(f"round {number} of {repeats}: {name}", stays=False)
            time.sleep(SPIN_SECONDS)
            seconds[name].append(repeat())
        show(f"round {number} of {repeats} is done", stays=True)
    return seconds


def show(line: str, *, stays: bool) -> None:
    """Progress: on a terminal in one line, elsewhere the lines that stay."""
    if sys.stderr.isatty():
        print(f"\r{line:70}", end="\n" if stays else "", file=sys.stderr, flush=True)
    elif stays:
        print(line, file=sys.stderr, flush=True)


def summary(
    seconds: Mapping[str, Sequence[float]], batch: int, *, reference: str, aims: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """One row a contender: the median step, and its ratio to the reference's.

    The ratio is the median of the ratios within each round, which a slow spell of the machine leaves alone.

    Args:
        seconds: What `take_turns` returned.
        batch: Images in a step.
        reference: Whose step counts 1.
        aims: Of the speed, by contender.
    """
    rows = []
    for name, own in seconds.items():
        faster = statistics.median(base / mine for base, mine in zip(seconds[reference], own, strict=True))
        rows.append(
            {
                "name": name,
                "step_ms": 1e3 * statistics.median(own),
                "spread_percent": 100 * (max(own) - min(own)) / statistics.median(own),
                "images_per_second": batch / statistics.median(own),
                "faster": faster,
                "aim": (aims or {}).get(name, ""),
                "seconds": list(own),
            }
        )
    return rows


def print_rows(rows: Sequence[Mapping[str, Any]], reference: str, *, step: str = "step") -> None:
    """The table of `summary`; "faster" is the reference's step over the own one; `step`: what that is."""
    width = max(len(row["name"]) for row in rows)
    print(f"{'':{width}} {'ms/' + step:>9} {'spread':>7} {'images/s':>9} {'faster':>7}  aim")
    for row in rows:
        speed = f"{row['step_ms']:9.1f} {row['spread_percent']:6.0f}% {row['images_per_second']:9.2f}"
        print(f"{row['name']:{width}} {speed} {row['faster']:6.2f}x  {row['aim']}")
    print(f"faster: the {step} of {reference!r} over the own one, median of the rounds; spread: (max - min) / median")


def write_results(path: Path | None, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Writes everything as JSON, where a file is wanted."""
    if path is None:
        return
    from distill.parallel import Device
    from distill.report import environment

    device = Device("cpu", len(os.sched_getaffinity(0)))
    path.write_text(
        json.dumps({"environment": environment(device), "settings": settings, "results": list(rows)}, indent=2) + "\n"
    )
