"""Embeddings in several arrays, read as one: the parts that shards left, mapped into memory.

Everything else speaks of row numbers; the cosine of two rows is computed here and only here, in float64 from the
numbers as they are stored, so that it is the same whatever found the pair and in whichever block.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_mining.workspace import read_array
from distill.errors import RunError

Rows = NDArray[np.int64]

_PAIRS_AT_A_TIME = 2**13  # 8 MB of float64 for 128 dimensions


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Pairs:
    """M pairs of rows.

    Attributes:
        first: int64 [M].
        second: int64 [M].
        cosine: float32 [M].
    """

    first: Rows
    second: Rows
    cosine: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.first)

    def take(self, which: NDArray[Any]) -> "Pairs":
        """Some of the pairs, by index or mask."""
        return Pairs(self.first[which], self.second[which], self.cosine[which])


class Vectors:
    """N vectors of D numbers, in parts one after the other.

    Args:
        parts: Arrays of float16 or float32 [n, D], or .npy files of such; there may be none, and empty ones. A
            file is mapped while rows are taken from it and no longer, so that its pages do not gather in this
            process's memory. The vectors need not have length 1.
        title: What a message calls them.
    """

    def __init__(self, parts: Sequence[NDArray[Any] | Path], title: str) -> None:
        shapes = [_opened(part).shape for part in parts]
        self._parts = [part for part, shape in zip(parts, shapes, strict=True) if shape[0]]
        self._ends = np.cumsum([shape[0] for shape in shapes if shape[0]], dtype=np.int64)
        self._chosen: Rows | None = None
        self.title = title
        self.dimension = int(shapes[0][1]) if shapes else 0

    def __len__(self) -> int:
        if self._chosen is not None:
            return len(self._chosen)
        return int(self._ends[-1]) if len(self._ends) else 0

    def only(self, chosen: Rows) -> "Vectors":
        """Some of the vectors, by ascending row, as if there were no others; nothing is copied."""
        some = copy.copy(self)
        some._chosen = chosen if self._chosen is None else self._chosen[chosen]
        return some

    def rows(self, first: int, end: int) -> NDArray[Any]:
        """The rows [first, end) as they are stored; a view where one part holds them all."""
        if self._chosen is not None:
            return self.take(np.arange(first, end))
        pieces = []
        at = int(np.searchsorted(self._ends, first, side="right"))
        while first < end:
            part = _opened(self._parts[at])
            start = int(self._ends[at]) - len(part)
            stop = min(end, int(self._ends[at]))
            pieces.append(part[first - start : stop - start])
            first, at = stop, at + 1
        if not pieces:
            return np.empty((0, self.dimension), np.float16)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def take(self, rows: Rows) -> NDArray[Any]:
        """Some rows in any order: [M, D]."""
        if self._chosen is not None:
            rows = self._chosen[rows]
        if len(self._parts) == 1:
            return np.asarray(_opened(self._parts[0])[rows])
        part_of = np.searchsorted(self._ends, rows, side="right")
        taken = np.empty((len(rows), self.dimension), np.float32)  # holds float16 exactly
        for at in np.unique(part_of):
            here = part_of == at
            part = _opened(self._parts[at])
            taken[here] = part[rows[here] - (self._ends[at] - len(part))]
        return taken

    def sample(self, count: int) -> NDArray[Any]:
        """At most `count` rows, evenly spread."""
        size = min(count, len(self))
        return self.take(np.arange(size, dtype=np.int64) * len(self) // max(1, size))

    def unit(self, first: int, end: int) -> NDArray[np.float32]:
        """The rows [first, end) with length 1, to within D / 2 units in the last place; zeros stay zeros.

        Raises:
            RunError: A number is NaN or infinite; states where.
        """
        rows = self.rows(first, end).astype(np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        if not np.isfinite(lengths).all():
            self._check_finite(rows, first)
            largest = np.abs(rows).max(axis=1, keepdims=True)
            rows /= np.where(largest > 1.0, largest, np.float32(1.0))  # they are finite, but their squares are not
            lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        rows /= np.maximum(lengths, np.finfo(np.float32).tiny)[:, None]
        return rows

    def _check_finite(self, rows: NDArray[np.float32], first: int) -> None:
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1)) + first
        if len(bad):
            raise RunError(
                f"{self.title}: {len(bad)} embeddings are NaN or infinite, the first is number {bad[0]}. "
                "Nothing can be said about their likeness: check the teacher, delete the folder `score`, and run again"
            )


def cosines(first: Vectors, first_rows: Rows, second: Vectors, second_rows: Rows) -> NDArray[np.float32]:
    """The cosines of pairs of rows: float32 [M]; 0 where one of the two is all zeros."""
    found = np.empty(len(first_rows), np.float32)
    for at in range(0, len(first_rows), _PAIRS_AT_A_TIME):
        here = slice(at, at + _PAIRS_AT_A_TIME)
        a = first.take(first_rows[here]).astype(np.float64)
        b = second.take(second_rows[here]).astype(np.float64)
        found[here] = _dots(a, b) / np.maximum(_lengths(a) * _lengths(b), np.finfo(np.float64).tiny)
    return found


def _opened(part: NDArray[Any] | Path) -> NDArray[Any]:
    return read_array(part) if isinstance(part, Path) else part


def _lengths(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(_dots(rows, rows))


def _dots(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    dots: NDArray[np.float64] = np.einsum("ij,ij->i", a, b)
    return dots
