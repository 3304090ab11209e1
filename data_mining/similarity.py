"""All pairs of vectors with at least a given cosine: none is missed, and few are computed in full.

The idea. Rotate the vectors so that the first m coordinates hold most of their length (PCA). By Cauchy and
Schwarz the remaining coordinates add at most the product of their lengths, so with one more coordinate, the
length of what remains,

    <x, y>  <=  <x[:m], y[:m]> + |x[m:]| |y[m:]|,

a product of m + 1 numbers is an upper bound of one of D. A small matrix product finds the pairs whose bound
reaches the threshold; those few are computed in full. Rounding is bounded too, so the join is exact: it
finds what a loop over all pairs in float64 finds.

Measured, 100,000 vectors of 512 dimensions, all pairs >= 0.9: see `scripts/benchmarks/join.py`.
"""

import functools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from data_mining.vectors import Pairs, Rows, Vectors, cosines
from distill.errors import RunError

SAMPLE_ROWS = 2_000
"""Of each side, for choosing m."""

MAX_CANDIDATE_RATE = 1e-3
"""Of all pairs: with so few, the exact check costs about as little as the product."""

_PCA_ROWS = 20_000
_BLOCK_QUERIES, _BLOCK_BASE = 2**9, 2**11  # the scores of a block, 4 MB, stay in the processor's cache
_CANDIDATES_AT_A_TIME = 2**12
_BYTES_PER_PAIR = 80  # while pairs are gathered and sorted
_SMALLEST_CHUNK = 2**10
_UNIT_ROUNDOFF = 2.0**-24  # of float32


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Bound:
    """The rotation that makes the upper bound.

    Attributes:
        basis: float32 [D, m], orthonormal columns; None: all D dimensions are used as they are, which is no bound
            but the product itself.
        slack: What rounding may add: a candidate's bound reaches the threshold less this.
        candidate_rate: Of the pairs of the sample, those whose bound reaches the threshold.
    """

    basis: NDArray[np.float32] | None
    slack: float
    candidate_rate: float

    @property
    def dimensions(self) -> int | None:
        """m; None where no smaller number of dimensions is good enough."""
        return None if self.basis is None else self.basis.shape[1]

    def shorten(self, unit: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, D] of length 1 (or 0) -> [N, m + 1], whose products are upper bounds, less `slack`, of the cosines."""
        if self.basis is None:
            return unit
        short = np.empty((len(unit), self.basis.shape[1] + 1), np.float32)
        np.matmul(unit, self.basis, out=short[:, :-1])
        rest = 1.0 - np.einsum("ij,ij->i", short[:, :-1], short[:, :-1])
        short[:, -1] = np.sqrt(np.maximum(rest, 0.0) + np.float32(self.slack))  # near 0 the root magnifies rounding
        return short


def fit_bound(
    first: Vectors, second: Vectors, min_cosine: float, *, max_candidate_rate: float = MAX_CANDIDATE_RATE
) -> Bound:
    """Finds the smallest m whose candidates are few enough, on a sample of both sides.

    Args:
        first: One side of the join.
        second: The other side; may be the same object: then a row with itself is no pair. The rotation is fitted
            to it.
        min_cosine: The join's threshold.
        max_candidate_rate: Of all pairs.
    """
    dimension = second.dimension
    slack = 8.0 * dimension * _UNIT_ROUNDOFF  # covers length, rotation, product and length of the rest
    one, two = _sampled(first, SAMPLE_ROWS), _sampled(second, SAMPLE_ROWS)
    if not len(one) or not len(two):
        return Bound(None, slack, 0.0)
    met_itself = len(one) if first is second else 0
    with threadpool_limits(1, "blas"):  # threads that wait for each other cost more than these products
        basis = _principal_axes(_sampled(second, _PCA_ROWS))
        for m in _sizes(dimension):
            bound = Bound(np.ascontiguousarray(basis[:, :m]), slack, 0.0)
            rate = _share(bound.shorten(one) @ bound.shorten(two).T >= min_cosine - slack, met_itself)
            if rate <= max_candidate_rate:
                return Bound(bound.basis, slack, rate)
        return Bound(None, slack, _share(one @ two.T >= min_cosine - slack, met_itself))


def _share(passed: NDArray[np.bool_], of_no_interest: int) -> float:
    """Of the pairs that are of interest, those that pass; the others all do."""
    return max(0, int(passed.sum()) - of_no_interest) / max(1, passed.size - of_no_interest)


def similar_pairs(
    queries: Vectors,
    base: Vectors,
    min_cosine: float,
    *,
    memory_bytes: int,
    threads: int = 1,
    bound: Bound | None = None,
    own_rows_from: int | None = None,
) -> Iterator[Pairs]:
    """Finds all pairs (query, row of base) with a cosine of at least `min_cosine`.

    The cosine is rounded to float32 before it is compared. Vectors of zeros are like nothing, unless the threshold
    is 0 or less.

    Args:
        queries: One side.
        base: The other.
        min_cosine: The threshold.
        memory_bytes: What the arrays here may take; the base is read once for as many queries as fit into a quarter.
        threads: That multiply and check blocks at the same time.
        bound: Where given, from `fit_bound`; changes the speed only.
        own_rows_from: The queries are the rows of base from here on. Then each pair is found once, a query
            with the rows before it, and none with itself. For a join of a set with itself, or a part of it.

    Yields:
        All pairs sorted by query, then row, in portions that depend on the memory.

    Raises:
        RunError: Embeddings are not finite, or so many pairs are alike that they do not fit into the memory.
    """
    if not len(queries) or not len(base):
        return
    if bound is None:
        all_of_it = own_rows_from is not None and len(queries) == len(base)
        bound = fit_bound(base if all_of_it else queries, base, min_cosine)
    chunk = _rows_in(memory_bytes // 4, base.dimension)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(queries), chunk):
            end = min(first + chunk, len(queries))
            group = _Prepared.of(queries, first, end, bound)
            limit = len(base) if own_rows_from is None else own_rows_from + end
            budget = _Budget(memory_bytes // 2, (end - first) * limit, min_cosine, base.title)
            held: list[Pairs] = []
            for start in range(0, limit, chunk):
                other = _Prepared.of(base, start, min(start + chunk, limit), bound)
                join = functools.partial(_join, group, other, min_cosine, bound.slack, own_rows_from, budget)
                for pairs in pool.map(join, range(0, end - first, _BLOCK_QUERIES)):
                    held += pairs
            yield _sorted(held)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Some rows, ready to be multiplied.

    Attributes:
        vectors: Where they come from.
        first: The number of the first.
        unit: float32 [N, D], of length 1; 0 stays 0.
        short: float32 [N, m + 1], see `Bound.shorten`.
    """

    vectors: Vectors
    first: int
    unit: NDArray[np.float32]
    short: NDArray[np.float32]

    @classmethod
    def of(cls, vectors: Vectors, first: int, end: int, bound: Bound) -> "_Prepared":
        unit = vectors.unit(first, end)
        return cls(vectors, first, unit, bound.shorten(unit))


class _Budget:
    """Counts the pairs of several threads, and stops them before they fill the memory."""

    def __init__(self, memory_bytes: int, possible: int, min_cosine: float, title: str) -> None:
        self._left = memory_bytes // _BYTES_PER_PAIR
        self._lock = threading.Lock()
        self._message = (
            f"{title}: more than {self._left:,} of {possible:,} pairs have a cosine of at least {min_cosine:g}: "
            "too much is alike. Raise min_cosine, or give more --memory"
        )

    def spend(self, pairs: int) -> None:
        with self._lock:
            self._left -= pairs
            if self._left < 0:
                raise RunError(self._message)


def _join(
    group: _Prepared,
    other: _Prepared,
    min_cosine: float,
    slack: float,
    own_rows_from: int | None,
    budget: _Budget,
    i: int,
) -> list[Pairs]:
    """The pairs of the queries from `i` on, one block of them, with all rows of `other`; in no useful order."""
    rows = group.short[i : i + _BLOCK_QUERIES]
    last_query = None if own_rows_from is None else own_rows_from + group.first + i + len(rows) - 1
    scores = np.empty((len(rows), _BLOCK_BASE), np.float32)
    passed = np.empty((len(rows), _BLOCK_BASE), np.bool_)
    kept = []
    for j in range(0, len(other.unit), _BLOCK_BASE):
        if last_query is not None and other.first + j >= last_query:
            break  # all of them are behind all of these queries
        columns = other.short[j : j + _BLOCK_BASE]
        if len(columns) < _BLOCK_BASE:  # the last: contiguous arrays again
            scores = np.empty((len(rows), len(columns)), np.float32)
            passed = np.empty((len(rows), len(columns)), np.bool_)
        np.matmul(rows, columns.T, out=scores)
        found = np.flatnonzero(np.greater_equal(scores, np.float32(min_cosine - slack), out=passed))
        # A block may be all candidates; they are checked in slices, which take no more memory than the scores.
        for at in range(0, len(found), _CANDIDATES_AT_A_TIME):
            query, row = np.divmod(found[at : at + _CANDIDATES_AT_A_TIME], len(columns))
            pairs = _checked(group, query + i, other, row + j, min_cosine, slack, own_rows_from)
            budget.spend(len(pairs))
            if len(pairs):
                kept.append(pairs)
    return kept


def _checked(
    group: _Prepared,
    query: Rows,
    other: _Prepared,
    row: Rows,
    min_cosine: float,
    slack: float,
    own_rows_from: int | None,
) -> Pairs:
    """The candidates that are pairs: a product in float32 leaves those that float64 has to decide."""
    if own_rows_from is not None:
        before = other.first + row < own_rows_from + group.first + query
        query, row = query[before], row[before]
    near = np.einsum("ij,ij->i", group.unit[query], other.unit[row]) >= np.float32(min_cosine - slack)
    first, second = query[near] + group.first, row[near] + other.first
    cosine = cosines(group.vectors, first, other.vectors, second)
    return Pairs(first, second, cosine).take(cosine >= np.float32(min_cosine))


def _sampled(vectors: Vectors, count: int) -> NDArray[np.float32]:
    rows = vectors.sample(count)
    return Vectors([rows], vectors.title).unit(0, len(rows))


def _principal_axes(unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """[D, D], the axes as columns, most of the vectors' length first. Not centred: a shift would change the cosines."""
    wide = unit.astype(np.float64)
    _, axes = np.linalg.eigh(wide.T @ wide)
    return np.ascontiguousarray(axes[:, ::-1], dtype=np.float32)


def _sizes(dimension: int) -> list[int]:
    """The numbers m that are tried: 8, 16, 24, 32, 48, 64, 96, ..., below three quarters of D."""
    steps = [8, 16, 24] + [base * factor // 2 for base in (32, 64, 128, 256, 512, 1024) for factor in (2, 3)]
    return [m for m in steps if m < 0.75 * dimension]


def _rows_in(memory_bytes: int, dimension: int) -> int:
    """How many prepared rows fit: as stored, of length 1, and short."""
    rows = memory_bytes // (dimension * (4 + 4 + 4))
    return max(_SMALLEST_CHUNK, rows // _BLOCK_BASE * _BLOCK_BASE)


def _sorted(held: list[Pairs]) -> Pairs:
    if not held:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    first = np.concatenate([pairs.first for pairs in held])
    second = np.concatenate([pairs.second for pairs in held])
    cosine = np.concatenate([pairs.cosine for pairs in held])
    return Pairs(first, second, cosine).take(np.lexsort((second, first)))
