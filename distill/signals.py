"""Leaving cleanly when a person or a scheduler asks for it."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from distill.errors import RunError

_SAME_REQUEST_SECONDS = 1.0  # a scheduler that signals every process of a job, and who passes it on, both reach us


class Interrupted(RunError):
    """A signal asked the run to stop; its state is saved. The exit status is 128 + the signal, as shells do."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number


@dataclass
class StopRequest:
    """The signal that asked the run to stop, if one did, and when that was (`time.monotonic`)."""

    signal: int | None = None
    seconds: float = 0.0


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turns SIGTERM and SIGINT into a request that the loop honours after the current update."""
    request = StopRequest()

    def note(number: int, _frame: object) -> None:
        now = time.monotonic()
        if request.signal is None:
            request.signal, request.seconds = number, now
        elif now - request.seconds > _SAME_REQUEST_SECONDS:  # asked again: leave at once
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
