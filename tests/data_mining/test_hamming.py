"""Near hashes against a loop over all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mining import hamming
from data_mining.hamming import near_across, near_within
from distill.errors import RunError

MEMORY = 2**26


def hashes(seed, count, originals=10, flips=12):
    """Hashes in families: each an original with some bits changed."""
    rng = np.random.default_rng(seed)
    families = rng.integers(0, 2**64, originals, dtype=np.uint64)[rng.integers(0, originals, count)]
    for _ in range(flips):
        bit = np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
        families = np.where(rng.random(count) < 0.5, families ^ bit, families)
    return families


def distances(first, second):
    return np.array([[bin(int(a) ^ int(b)).count("1") for b in second] for a in first]).reshape(len(first), len(second))


def rows_of(found):
    return sorted(
        (int(a), int(b), int(c)) for each in found for a, b, c in zip(each.first, each.second, each.bits, strict=True)
    )


def expected_rows(table, max_bits, *, within):
    return [
        (a, b, int(table[a, b]))
        for a, b in np.ndindex(table.shape)
        if table[a, b] <= max_bits and (a > b or not within)
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(0, 40), st.integers(0, 64), st.integers(60, 20_000))
def test_across_finds_all_in_any_memory(seed, first, second, max_bits, memory):
    one, two = hashes(seed, first), hashes(seed, second)
    found = list(near_across(one, two, max_bits, memory_bytes=memory))
    assert rows_of(found) == expected_rows(distances(one, two), max_bits, within=False)
    flat = [(a, b) for each in found for a, b in zip(each.first.tolist(), each.second.tolist(), strict=True)]
    assert flat == sorted(flat)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(0, 64))
def test_within_finds_each_pair_once(seed, count, max_bits):
    codes = hashes(seed, count)
    found = rows_of(near_within(codes, max_bits, memory_bytes=MEMORY))
    assert found == expected_rows(distances(codes, codes), max_bits, within=True)


@pytest.mark.parametrize("max_bits", [0, 1, 4, 8, 11])
@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_every_cut_finds_all(monkeypatch, max_bits, blocks):
    monkeypatch.setattr(hamming, "_cut", lambda *_: hamming._Cut(max_bits + 1 + blocks, 1 + blocks))
    monkeypatch.setattr(hamming, "_POSITIONS_AT_A_TIME", 37)
    codes = hashes(max_bits, 150, originals=5)
    found = rows_of(near_within(codes, max_bits, memory_bytes=MEMORY))
    assert found == expected_rows(distances(codes, codes), max_bits, within=True)


def test_blocks_are_all_bits():
    for blocks in range(1, 65):
        masks = [int(mask) for mask in hamming._Cut(blocks, 1).masks()]
        assert sum(masks) == 2**64 - 1
        assert min(masks) > 0


def test_millions_are_cut_rather_than_compared_one_by_one():
    cut = hamming._cut(14_000_000, 4)
    assert cut.equal >= 1
    assert 64 * cut.equal / cut.blocks >= 16  # bits: groups of some hundreds


def test_many_equal_hashes_are_an_error_and_no_crash():
    with pytest.raises(RunError, match="Lower max_hash_bits"):
        list(near_within(np.zeros(3_000, np.uint64), 4, memory_bytes=2**20))
