"""Which images form a group of duplicates, and which of a group stay.

Two steps over a stream of edges (pairs of alike images), none of which holds more than the edges that still matter:

1. Connected components, for the numbers and the galleries: a union-find whose merging works on whole arrays.
2. The choice. Alikeness is no equivalence: frames of a film form a chain whose ends show different things. So an
   image leaves only for one that it is alike itself: going down from the best image, an image stays unless it has an
   edge to a better one that stays. What is not alike a representative thereby leaves its group and may represent
   others, no two that stay are alike, and the result does not depend on the order of the edges.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Nodes = NDArray[np.int64]
Edges = tuple[Nodes, Nodes]  # of one portion of the stream: both ends


class Components:
    """A union-find of N nodes; after all edges each node's root is the smallest node of its component.

    Args:
        count: N.
    """

    def __init__(self, count: int) -> None:
        self._parents = np.arange(count, dtype=np.int64)

    def merge(self, first: Nodes, second: Nodes) -> None:
        """Joins the components of the ends of some edges."""
        while len(first):
            first, second = self._roots(first), self._roots(second)
            apart = first != second
            low, high = np.minimum(first, second)[apart], np.maximum(first, second)[apart]
            # Where several edges want to hang the same root, one wins, and the others try again with its new root.
            # Roots hang below smaller ones only, so there is no circle.
            self._parents[high] = low
            first, second = low, high

    def roots(self) -> Nodes:
        """int64 [N]: the component of each node, named by its smallest node."""
        self._parents = self._roots(self._parents)
        return self._parents

    def _roots(self, nodes: Nodes) -> Nodes:
        found = self._parents[nodes]
        while True:
            above = self._parents[found]
            if np.array_equal(above, found):
                break
            found = self._parents[above]
        self._parents[nodes] = found  # the next search is shorter
        return found


def choose_representatives(count: int, rank: Nodes, edges: Callable[[], Iterable[Edges]]) -> Nodes:
    """Decides who stays: from the best down, each node that is not alike a better one that stays.

    That is the lexicographically first maximal independent set, found in rounds on whole arrays (Blelloch,
    Fineman and Shun 2012, "Greedy sequential maximal independent set and matching are parallel on average"): in each,
    every undecided node without an undecided better neighbour stays, and its neighbours leave.

    Args:
        count: N.
        rank: int64 [N], all different; the smallest is the best.
        edges: Gives the stream of edges from its start; an edge may come more than once, in either direction.

    Returns:
        int64 [N]: who represents each node: itself if it stays, else the best of those that stay and that it has an
        edge to.
    """
    undecided, stays, leaves = np.int8(0), np.int8(1), np.int8(2)
    state = np.zeros(count, np.int8)
    relevant: Callable[[], Iterable[Edges]] = edges
    while True:
        blocked = np.zeros(count, np.bool_)
        kept: list[Edges] = []
        for first, second in relevant():
            better, worse = _directed(rank, first, second)
            open_ = (state[worse] == undecided) & (state[better] != leaves)
            better, worse = better[open_], worse[open_]
            settled = state[better] == stays
            state[worse[settled]] = leaves
            better, worse = better[~settled], worse[~settled]
            blocked[worse] = True
            kept.append((better, worse))
        state[(state == undecided) & ~blocked] = stays
        if not blocked.any():
            break
        # From the second round on, few edges are left: those between undecided nodes.
        relevant = _given(kept)
    return _best_neighbour(count, rank, state == stays, edges)


def rank_of(order: Nodes, count: int) -> Nodes:
    """The ranks that an order of nodes means: rank[order[i]] = i; int64 [count]."""
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _given(edges: list[Edges]) -> Callable[[], Iterable[Edges]]:
    return lambda: edges


def _directed(rank: Nodes, first: Nodes, second: Nodes) -> Edges:
    """The edges as (better, worse), without those from a node to itself."""
    real = first != second
    first, second = first[real], second[real]
    swap = rank[first] > rank[second]
    return np.where(swap, second, first), np.where(swap, first, second)


def _best_neighbour(count: int, rank: Nodes, stays: NDArray[np.bool_], edges: Callable[[], Iterable[Edges]]) -> Nodes:
    best = np.where(stays, rank, np.iinfo(np.int64).max)
    for first, second in edges():
        better, worse = _directed(rank, first, second)
        counts = stays[better] & ~stays[worse]
        np.minimum.at(best, worse[counts], rank[better[counts]])
    by_rank = np.empty(count, np.int64)
    by_rank[rank] = np.arange(count)
    return by_rank[best]  # type: ignore[no-any-return]
