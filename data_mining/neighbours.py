"""The exact nearest neighbours of some images among many, in bounded memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Block = tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.float16]]
"""Image numbers [n], tie-breakers [n], embeddings [n, d]."""

# A float32 product of vectors of length 1 is wrong by less; what is that near is decided in float64.
_MARGIN = np.float32(1e-5)


@dataclass(frozen=True)
class Neighbours:
    """Pairs, by query and within a query from the nearest on.

    Attributes:
        query: int64 [M], rows of the queries.
        image: int64 [M].
        tie: uint64 [M], of the image.
        cosine: float32 [M].
    """

    query: NDArray[np.int64]
    image: NDArray[np.int64]
    tie: NDArray[np.uint64]
    cosine: NDArray[np.float32]


def nearest(
    queries: NDArray[np.float16],
    pool: Callable[[], Iterator[Block]],
    count: int,
    *,
    min_cosine: float,
    memory_bytes: int,
) -> Iterator[Neighbours]:
    """The `count` nearest images of each query; of equally near ones those with the lower tie-breaker.

    Candidates come from float32 matrix products, their cosines are computed again in float64, pair by pair: the
    answer depends neither on the blocks nor on the number of threads.

    Args:
        queries: float16 [Q, d], of length 1.
        pool: Starts over: the blocks of the pool, of length 1, in any order.
        count: k, >= 1.
        min_cosine: No neighbours below.
        memory_bytes: Bounds the matrices here; the blocks of the pool are cut as needed.

    Yields:
        Some queries each.
    """
    dimension = queries.shape[1]
    # a quarter for queries and their neighbours so far, half for the products and what is found in them
    per_query = dimension * 12 + count * 32
    size = int(np.clip(memory_bytes // 4 // per_query, 1, 8192))
    rows = int(np.clip(memory_bytes // 2 // (size * 16 + dimension * 12), 1, 65536))
    for first in range(0, len(queries), size):
        best = _Best(queries[first : first + size], count, min_cosine)
        for image, tie, embeddings in pool():
            for start in range(0, len(image), rows):
                part = slice(start, start + rows)
                best.add(image[part], tie[part], np.asarray(embeddings[part]))
        yield best.result(first)


class _Best:
    """The nearest of some queries so far."""

    def __init__(self, queries: NDArray[np.float16], count: int, min_cosine: float) -> None:
        self._queries = np.asarray(queries).astype(np.float32)
        self._count = count
        self._least = np.full(len(queries), np.float32(min_cosine))  # what a neighbour of each query needs
        self._min_cosine = np.float64(np.float32(min_cosine))
        empty = np.empty(0, np.int64)
        self._query, self._image, self._tie = empty, empty, np.empty(0, np.uint64)
        self._cosine = np.empty(0, np.float64)

    def add(self, image: NDArray[np.int64], tie: NDArray[np.uint64], embeddings: NDArray[np.float16]) -> None:
        pool = embeddings.astype(np.float32)
        products = self._queries @ pool.T
        found = products >= (self._least - _MARGIN)[:, None]
        if int(found.sum()) > 4 * self._count * len(found):
            # far more than can stay, as in the first block: only the block's own best have a chance
            at = len(image) - min(self._count, len(image))
            kth = np.partition(products, at, axis=1)[:, at]
            found = products >= (np.maximum(self._least, kth) - _MARGIN)[:, None]
        query, row = np.nonzero(found)
        cosine = _exact_cosines(self._queries, pool, query, row)
        near = cosine >= self._min_cosine
        query, row = query[near], row[near]
        self._query = np.concatenate([self._query, query])
        self._image = np.concatenate([self._image, image[row]])
        self._tie = np.concatenate([self._tie, tie[row]])
        self._cosine = np.concatenate([self._cosine, cosine[near]])
        if len(query):
            self._keep_best()

    def _keep_best(self) -> None:
        order = np.lexsort((self._image, self._tie, -self._cosine, self._query))
        query = self._query[order]
        rank = np.arange(len(query)) - np.searchsorted(query, query)
        order = order[rank < self._count]
        self._query, self._image = self._query[order], self._image[order]
        self._tie, self._cosine = self._tie[order], self._cosine[order]
        full = np.flatnonzero(np.bincount(self._query, minlength=len(self._least)) == self._count)
        ends = np.searchsorted(self._query, full, side="right") - 1
        self._least[full] = np.maximum(self._least[full], self._cosine[ends].astype(np.float32))

    def result(self, first: int) -> Neighbours:
        return Neighbours(self._query + first, self._image, self._tie, self._cosine.astype(np.float32))


def _exact_cosines(
    queries: NDArray[np.float32], pool: NDArray[np.float32], query: NDArray[np.int64], row: NDArray[np.int64]
) -> NDArray[np.float64]:
    """float64 [M]: the products of pairs, some at a time."""
    cosines = np.empty(len(query))
    for first in range(0, len(query), 4096):
        part = slice(first, first + 4096)
        left, right = queries[query[part]].astype(np.float64), pool[row[part]].astype(np.float64)
        cosines[part] = (left * right).sum(axis=1)
    return cosines
