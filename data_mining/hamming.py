"""All pairs of 64-bit hashes that differ in at most a few bits: none is missed.

Two ways. Across two sets faiss counts the bits of every pair, 2e9 a second and core: 14.2 M images against 50,000
protected ones and their mirror images take a quarter of an hour. Within a set of millions that would be a day;
there the pigeonhole principle helps (Norouzi, Punjani and Fleet 2012, "Fast search in Hamming space with
multi-index hashing"): cut the 64 bits into b blocks, and d differing bits leave at least b - d blocks equal. So
hashes are sorted by each choice of b - d blocks, and only those that agree in such a choice are compared.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_mining.pixels import HASH_BITS, bits_apart
from data_mining.vectors import Rows
from distill.errors import RunError

Hashes = NDArray[np.uint64]

_POSITIONS_AT_A_TIME = 2**20
_MOST_CHOICES = 400
_SORT_NS, _COMPARE_NS = 120.0, 30.0  # a hash, a pair: they decide between the ways to cut, not the result
_BYTES_PER_PAIR = 64  # while pairs are gathered and sorted


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class HashPairs:
    """M pairs of rows whose hashes are near.

    Attributes:
        first: int64 [M].
        second: int64 [M].
        bits: uint8 [M], how many differ.
    """

    first: Rows
    second: Rows
    bits: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.first)


def near_across(first: Hashes, second: Hashes, max_bits: int, *, memory_bytes: int) -> Iterator[HashPairs]:
    """Finds all pairs of a hash of `first` and one of `second` that differ in at most `max_bits` bits.

    Args:
        first: uint64 [N], the larger set.
        second: uint64 [M]; held in memory.
        max_bits: 0 to 64.
        memory_bytes: What the arrays here may take, even where every pair is near.

    Yields:
        The pairs, sorted by first, then second.
    """
    import faiss

    if not len(first) or not len(second):
        return
    index = faiss.IndexBinaryFlat(HASH_BITS)
    index.add(_bytes(second))
    step = max(1, memory_bytes // (len(second) * _BYTES_PER_PAIR))
    for start in range(0, len(first), step):
        limits, distances, found = index.range_search(_bytes(first[start : start + step]), max_bits + 1)
        query = np.repeat(np.arange(len(limits) - 1, dtype=np.int64), np.diff(limits.astype(np.int64)))
        order = np.lexsort((found, query))
        yield HashPairs(query[order] + start, found[order], distances[order].astype(np.uint8))


def near_within(hashes: Hashes, max_bits: int, *, memory_bytes: int) -> Iterator[HashPairs]:
    """Finds all pairs of rows, first > second, whose hashes differ in at most `max_bits` bits, each pair once.

    Args:
        hashes: uint64 [N]. The search holds 40 bytes for each besides.
        max_bits: 0 to 64.
        memory_bytes: What the pairs found may take.

    Yields:
        The pairs in an order that depends on the hashes alone.

    Raises:
        RunError: So many hashes are near that the pairs do not fit into the memory.
    """
    left = memory_bytes // _BYTES_PER_PAIR
    cut = _cut(len(hashes), max_bits)
    for choice in itertools.combinations(range(cut.blocks), cut.equal):
        held = list(_equal_in(hashes, cut, choice, max_bits))
        left -= sum(map(len, held))
        if left < 0:
            raise RunError(
                f"more than {memory_bytes // _BYTES_PER_PAIR:,} pairs of {len(hashes):,} images have perceptual hashes "
                f"within {max_bits} bits: too much is alike. Lower max_hash_bits, or give more --memory"
            )
        if held:
            first, second = (np.concatenate([getattr(each, name) for each in held]) for name in ("first", "second"))
            order = np.lexsort((second, first))
            yield HashPairs(first[order], second[order], bits_apart(hashes[first[order]], hashes[second[order]]))


@dataclass(frozen=True)
class _Cut:
    """How the 64 bits are cut: into `blocks`, of which hashes that are near agree in at least `equal`."""

    blocks: int
    equal: int

    def masks(self) -> list[np.uint64]:
        """The bits of each block."""
        edges = [HASH_BITS * block // self.blocks for block in range(self.blocks + 1)]
        return [np.uint64((1 << b) - (1 << a)) for a, b in itertools.pairwise(edges)]


def _cut(count: int, max_bits: int) -> _Cut:
    """The cheapest: more choices are more sorting, fewer bits that agree are more pairs to compare."""
    best, least = _Cut(1, 0), _COMPARE_NS * count**2 / 2  # no block: all pairs
    for blocks in range(max_bits + 1, HASH_BITS + 1):
        equal = blocks - max_bits
        choices = math.comb(blocks, equal)
        if choices > _MOST_CHOICES:
            break
        compared = count**2 / 2.0 ** (1 + HASH_BITS * equal / blocks)
        cost = choices * (_SORT_NS * count + _COMPARE_NS * compared)
        if cost < least:
            best, least = _Cut(blocks, equal), cost
    return best


def _equal_in(hashes: Hashes, cut: _Cut, choice: tuple[int, ...], max_bits: int) -> Iterator[HashPairs]:
    """The near pairs that agree in a choice of blocks, and in no choice before it."""
    masks = cut.masks()
    key = hashes & np.bitwise_or.reduce([np.uint64(0), *(masks[block] for block in choice)])
    order = np.argsort(key, kind="stable")
    key, ordered = key[order], hashes[order]
    # Of the blocks before the choice's last, those that are not of it: were one equal, an earlier choice had found
    # the pair.
    earlier = [masks[block] for block in range(max(choice, default=0)) if block not in choice]
    for start in range(0, len(key), _POSITIONS_AT_A_TIME):
        at = np.arange(start, min(start + _POSITIONS_AT_A_TIME, len(key)))
        shift = 0
        while len(at):
            # Neighbours at a growing distance: each step costs as much as there are keys that still agree.
            shift += 1
            at = at[: np.searchsorted(at, len(key) - shift)]
            at = at[key[at] == key[at + shift]]
            near = at[bits_apart(ordered[at], ordered[at + shift]) <= max_bits]
            different = ordered[near] ^ ordered[near + shift]
            for mask in earlier:
                new = (different & mask) != 0
                near, different = near[new], different[new]
            if len(near):
                one, other = order[near], order[near + shift]
                first, second = np.maximum(one, other), np.minimum(one, other)
                yield HashPairs(first, second, bits_apart(hashes[first], hashes[second]))


def _bytes(hashes: Hashes) -> NDArray[np.uint8]:
    return np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, HASH_BITS // 8)
