"""Reading that ends in time: a file on a dead network disk say is named, whatever stage reads it."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import starmap
from typing import TypeVar

from distill.data.watch import StuckReading, reading, slowest_reading, watched

READ_TIMEOUT_SECONDS = 600.0
"""A file whose reading takes longer ends the run."""

Element = TypeVar("Element")


def in_time(elements: Iterator[Element]) -> Iterator[Element]:
    """Passes on what is read, each in time; see `noted`.

    Raises:
        StuckReading: A reading hangs; names the file.
    """
    try:
        yield from watched(elements, READ_TIMEOUT_SECONDS)
    except StuckReading:
        raise StuckReading(
            f"no image for {READ_TIMEOUT_SECONDS:g} s. The file being read: {slowest_reading()}. Check the disk or the "
            "network behind it; the finished shards are kept, run again to go on"
        ) from None


def noted(name: str, elements: Iterator[Element]) -> Iterator[Element]:
    """Passes the elements on, each read from the file that messages call `name`."""
    while True:
        with reading(_Named(name), 0):
            try:
                element = next(elements)
            except StopIteration:
                return
        yield element


def read_noted(name: str, read: Callable[[], Element]) -> Element:
    """Reads one element; messages call its file `name`."""
    with reading(_Named(name), 0):
        return read()


class Requests(threading.local):
    """What each thread asks of a reading thread of its own, which it leaves behind where a reading hangs."""

    def __init__(self) -> None:
        self._asked: deque[tuple[str, Callable[[], bytes]]] = deque()
        self._answers = in_time(starmap(_bytes_or_error, iter(self._asked.popleft, None)))

    def read(self, name: str, read: Callable[[], bytes]) -> bytes:
        """Calls `read`; messages call its file `name`.

        Raises:
            StuckReading: It does not return in time; whatever else `read` raises comes through.
        """
        self._asked.append((name, read))
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _bytes_or_error(name: str, read: Callable[[], bytes]) -> bytes | Exception:
    try:
        return read_noted(name, read)
    except Exception as error:  # raised by who asked: the thread goes on
        return error


@dataclass(frozen=True)
class _Named:
    text: str

    def name(self, _index: int) -> str:
        """As in `distill.data.types.ImageSource`."""
        return self.text
