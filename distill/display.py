"""What a person sees of a long run: a progress bar on a terminal, plain lines elsewhere; sizes and times in words."""

import sys
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

PLAIN_LINE_SECONDS = 15.0

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


class _BarAboveFacts(Progress):
    """A bar, and below it a line of facts, which would leave the bar no room beside them."""

    facts = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.facts, style="dim")


class Display:
    """The progress of one long task.

    On a terminal a bar with the time left; where output is not a terminal, a line at most every
    `PLAIN_LINE_SECONDS`. A quiet one shows nothing, on ranks but the first.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, unit: str = "step", quiet: bool = False) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._first = self._done = done
        self._started = self._printed = time.monotonic()
        self.console = Console(file=sys.stderr, highlight=False, soft_wrap=True, quiet=quiet)
        self._bar: _BarAboveFacts | None = None
        if self.console.is_terminal and not quiet:
            self._bar = _BarAboveFacts(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
                expand=True,
            )
            self._task = self._bar.add_task(title, total=total, completed=done)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, done: int, facts: Mapping[str, str]) -> None:
        """Shows that `done` of the total are behind us, with some facts such as {"loss": "0.31"}."""
        self._done = done
        text = "  ".join(f"{name} {value}" for name, value in facts.items())
        if self._bar is not None:
            self._bar.facts = text
            self._bar.update(self._task, completed=done)
        elif time.monotonic() - self._printed >= PLAIN_LINE_SECONDS:
            self._printed = time.monotonic()
            self.say(f"{self._title}: {self._unit} {done}/{self._total}  {text}  ETA {self._time_left()}")

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        self.console.print(line, markup=False)

    def _time_left(self) -> str:
        elapsed = time.monotonic() - self._started
        seconds = elapsed / max(1, self._done - self._first) * (self._total - self._done)
        hours, rest = divmod(round(seconds), 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def readable_bytes(count: float) -> str:
    """Decimal units and three digits, as disks are sold: "82.8 GB"."""
    for unit in _UNITS:
        if count < 999.5 or unit == _UNITS[-1]:
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def readable_time(seconds: float) -> str:
    """Two units at most: "3 d 4 h", "2 h 5 min", "40 s"."""
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    rest = max(round(seconds), 1)
    parts: list[str] = []
    for name, size in units:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])
