"""A reading that hangs, on a dead network disk say, ends as an error that names the file."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from distill.errors import RunError

Element = TypeVar("Element")
Made = TypeVar("Made", covariant=True)

POLL_SECONDS = 1.0
"""How often `watched` looks whether it waits in vain."""
LAST_WORDS_SECONDS = 15.0
"""How long it still waits then, for whoever knows the reason better."""

# Which image each thread is reading, and since when. Of the process, because Grain owns the threads.
_READING: dict[int, tuple["Named", int, float]] = {}


class Named(Protocol):
    """An `ImageSource`, as far as messages need it."""

    def name(self, index: int) -> str:
        """What a message calls the image."""


class StuckReading(RunError):
    """A file could not be read in time. Its thread cannot be ended: end the process without waiting for it."""

    leave_at_once = True


@contextmanager
def reading(source: Named, index: int) -> Iterator[None]:
    """Notes that this thread reads an image."""
    thread = threading.get_ident()
    _READING[thread] = (source, index, time.monotonic())
    try:
        yield
    finally:
        del _READING[thread]


def slowest_reading() -> str | None:
    """The image that has been read for longest, with the time; None where no thread of this process reads."""
    now = time.monotonic()
    readings = sorted(_READING.copy().values(), key=lambda entry: entry[2])
    if not readings:
        return None
    source, index, since = readings[0]
    return f"{source.name(index)} (for {now - since:.0f} s)"


class ChildProcesses:
    """The processes that this one starts from now on.

    Those that the kernel knows, and those of `multiprocessing`, which asks for the ends of its own and forgets them. Of
    one that is killed while it starts `multiprocessing` does not know yet, and the thread that starts it waits for good
    to hand it its work, for the other end of the pipe is open in this process too.
    """

    def __init__(self) -> None:
        self._pids_before = _children()
        self._before = set(multiprocessing.active_children())
        self._started: set[multiprocessing.process.BaseProcess] = set()

    def killed_by(self) -> int | None:
        """The signal that ended one of them, if one was."""
        # The kernel first: active_children() forgets those that have ended since the last question.
        signal = next(filter(None, map(_signal_that_ended, _children() - self._pids_before)), None)
        self._started |= set(multiprocessing.active_children()) - self._before
        codes = (process.exitcode for process in self._started)
        return signal or next((-code for code in codes if code is not None and code < 0), None)


def _children() -> set[int]:
    """The processes that this one started and whose end nobody has asked for yet, whoever started them."""
    found = set()
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # the thread has ended
            found |= {int(pid) for pid in (thread / "children").read_text().split()}
    return found


def _signal_that_ended(pid: int) -> int | None:
    """Of a child; leaves its end to whoever waits for it."""
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return ended.si_status if ended is not None and ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED) else None


def watched(
    elements: Iterator[Element], timeout_seconds: float, in_vain: Callable[[], str | None] | None = None
) -> Iterator[Element]:
    """Passes the elements on, waiting no longer than `timeout_seconds` for each.

    Args:
        elements: Are asked in a thread.
        timeout_seconds: The most that each may take.
        in_vain: Asked for each element, and about once a second while it is waited for, why none will come; a message
            or None. What has come nevertheless is passed on.

    Raises:
        StuckReading: An element took longer, and the file is named; or none will come.
    """
    wanted: SimpleQueue[bool] = SimpleQueue()
    results: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    end = object()

    def fetch() -> None:
        while wanted.get():
            try:
                results.put((next(elements, end), None))
            except BaseException as error:
                results.put((end, error))

    # A daemon: a thread stuck in the kernel must not keep the process alive.
    threading.Thread(target=fetch, name="watched-reading", daemon=True).start()
    try:
        while True:
            wanted.put(True)
            element, error = _wait_for(results, timeout_seconds, in_vain)
            if error is not None:
                raise error
            if element is end:
                return
            yield element
    finally:
        wanted.put(False)


def _wait_for(
    results: "SimpleQueue[tuple[Any, BaseException | None]]",
    timeout_seconds: float,
    in_vain: Callable[[], str | None] | None,
) -> tuple[Any, BaseException | None]:
    """The next result; raises as `watched`."""
    end = time.monotonic() + timeout_seconds
    message: str | None = None
    while True:
        if in_vain is not None and message is None and (message := in_vain()) is not None:
            end = min(end, time.monotonic() + LAST_WORDS_SECONDS)
        left = max(0.0, end - time.monotonic())
        try:
            return results.get(timeout=min(left, POLL_SECONDS) if in_vain is not None else left)
        except Empty:
            if time.monotonic() >= end:
                raise StuckReading(message or _stuck(timeout_seconds)) from None


class RandomAccess(Protocol[Made]):
    """What makes any of its elements at any time."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int) -> Made: ...


@dataclass(frozen=True)
class Timed(Generic[Made]):
    """Elements each of which is made in time, or ends as an error that names the file; for the loader's processes.

    Attributes:
        elements: Without a limit.
        timeout_seconds: For each.
    """

    elements: RandomAccess[Made]
    timeout_seconds: float

    def __len__(self) -> int:
        return len(self.elements)

    def __getitem__(self, place: int) -> Made:
        """Raises StuckReading where it takes longer; its thread goes on waiting."""
        return next(watched(map(self.elements.__getitem__, (place,)), self.timeout_seconds))


def _stuck(timeout_seconds: float) -> str:
    slowest = slowest_reading() or "unknown: a process of the loader (runtime.loader_processes) answers no more"
    return (
        f"no batch for {timeout_seconds:g} s (runtime.read_timeout_seconds). The file being read: {slowest}. "
        "Check the disk or the network behind it; the last checkpoint is intact"
    )
