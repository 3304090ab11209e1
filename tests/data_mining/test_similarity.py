"""The join against a loop over all pairs in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mining import similarity
from data_mining.similarity import fit_bound, similar_pairs
from data_mining.vectors import Vectors
from distill.errors import RunError

MEMORY = 2**28


def clustered(seed, count, dimension, noise=0.3, dtype=np.float16):
    """Vectors as embeddings are: a falling spectrum, clusters, some rows twice, some zero."""
    rng = np.random.default_rng(seed)
    spectrum = 1.0 / (1.0 + np.arange(dimension))
    centres = rng.standard_normal((max(1, count // 10), dimension)) * spectrum
    rows = centres[rng.integers(0, len(centres), count)] + noise * rng.standard_normal((count, dimension)) * spectrum
    rows[rng.integers(0, count, count // 20)] = rows[rng.integers(0, count, count // 20)]
    rows[rng.integers(0, count, 2)] = 0
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.maximum(lengths, 1e-9)).astype(dtype)


def all_cosines(first, second):
    first, second = (rows.astype(np.float64) for rows in (first, second))
    lengths = np.linalg.norm(first, axis=1)[:, None] * np.linalg.norm(second, axis=1)
    return (first @ second.T / np.maximum(lengths, 1e-300)).astype(np.float32)


def collected(pairs):
    pairs = list(pairs)
    return [
        np.concatenate([getattr(each, name) for each in pairs] or [np.empty(0, np.int64)])
        for name in ("first", "second", "cosine")
    ]


def check_across(queries, base, threshold, **settings):
    found = collected(similar_pairs(Vectors([queries], "q"), Vectors([base], "b"), threshold, **settings))
    expected = all_cosines(queries, base)
    first, second = np.nonzero(expected >= np.float32(threshold))
    np.testing.assert_array_equal(found[0], first)
    np.testing.assert_array_equal(found[1], second)
    np.testing.assert_allclose(found[2], expected[first, second], atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(2, 80), st.integers(2, 80)),
    dimension=st.integers(2, 40),
    threshold=st.sampled_from([-0.5, 0.0, 0.3, 0.6, 0.9, 0.99, 1.0]),
    noise=st.sampled_from([0.0, 0.01, 0.3, 2.0]),
    dtype=st.sampled_from([np.float16, np.float32]),
)
def test_across_finds_exactly_all_pairs(seed, sizes, dimension, threshold, noise, dtype):
    queries, base = (clustered(seed + number, size, dimension, noise, dtype) for number, size in enumerate(sizes))
    check_across(queries, base, threshold, memory_bytes=MEMORY)


@pytest.mark.parametrize("m", [1, 2, 8, 40])
def test_any_m_is_lossless(m):
    """Also an m far too small, where the bound lets nearly every pair through."""
    rows = clustered(3, 700, 48)
    vectors = Vectors([rows], "test")
    basis = np.linalg.qr(np.random.default_rng(m).standard_normal((48, 48)))[0][:, :m].astype(np.float32)
    bound = similarity.Bound(basis, 8 * 48 * 2.0**-24, 0.0)
    check_across(rows, rows, 0.8, memory_bytes=MEMORY, bound=bound)
    assert len(vectors) == 700


@pytest.mark.parametrize("length", [1e-3, 1.0, 40.0])
def test_nearly_parallel_vectors_at_the_threshold(length):
    """Where sqrt(1 - |x|^2) is all rounding error, and many cosines lie within it of the threshold."""
    rng = np.random.default_rng(0)
    centre = rng.standard_normal(64)
    rows = (length * (centre + 1e-3 * rng.standard_normal((400, 64)))).astype(np.float32)
    threshold = float(np.median(all_cosines(rows, rows)))
    check_across(rows, rows, threshold, memory_bytes=MEMORY)


@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_change_nothing(monkeypatch, threads):
    rows = clustered(5, 3_000, 32)
    vectors = Vectors([rows[:10], rows[10:1_500], rows[1_500:]], "test")
    whole = collected(similar_pairs(vectors, vectors, 0.97, memory_bytes=MEMORY, own_rows_from=0))
    monkeypatch.setattr(similarity, "_BLOCK_QUERIES", 100)
    monkeypatch.setattr(similarity, "_BLOCK_BASE", 128)
    monkeypatch.setattr(similarity, "_CANDIDATES_AT_A_TIME", 7)
    monkeypatch.setattr(similarity, "_rows_in", lambda memory, dimension: 1_100)
    small = list(similar_pairs(vectors, vectors, 0.97, memory_bytes=MEMORY, own_rows_from=0, threads=threads))
    assert len(small) == 3
    for one, other in zip(whole, collected(small), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("cut", [0, 1, 599, 900])
def test_a_set_with_itself_in_parts(monkeypatch, cut):
    monkeypatch.setattr(similarity, "_rows_in", lambda memory, dimension: 256)
    monkeypatch.setattr(similarity, "_BLOCK_BASE", 64)
    rows = clustered(7, 1_000, 24)
    parts = [
        collected(
            similar_pairs(Vectors([rows[a:b]], "q"), Vectors([rows], "b"), 0.9, memory_bytes=MEMORY, own_rows_from=a)
        )
        for a, b in ((0, cut), (cut, len(rows)))
    ]
    offset = np.concatenate([np.zeros(len(parts[0][0]), np.int64), np.full(len(parts[1][0]), cut)])
    found = np.concatenate([parts[0][0], parts[1][0]]) + offset, np.concatenate([parts[0][1], parts[1][1]])
    expected = np.nonzero(np.tril(all_cosines(rows, rows) >= np.float32(0.9), -1))
    np.testing.assert_array_equal(found, expected)


def test_bound_is_the_smallest_that_leaves_few_candidates():
    spectrum = 1.0 / np.sqrt(1.0 + np.arange(128) / 4)
    rows = Vectors([np.random.default_rng(0).standard_normal((4_000, 128)) * spectrum], "test")
    bound = fit_bound(rows, rows, 0.9)
    assert bound.dimensions is not None
    assert 0 < bound.candidate_rate <= 1e-3
    tighter = fit_bound(rows, rows, 0.9, max_candidate_rate=0.2)
    assert tighter.dimensions is not None
    assert tighter.dimensions < bound.dimensions


def test_vectors_without_structure_are_multiplied_in_full():
    rows = np.random.default_rng(0).standard_normal((3_000, 32)).astype(np.float32)
    vectors = Vectors([rows], "test")
    assert fit_bound(vectors, vectors, 0.05).dimensions is None
    check_across(rows[:300], rows, 0.5, memory_bytes=MEMORY)


def test_more_pairs_than_memory_are_an_error_and_no_crash():
    rows = np.ones((4_000, 8), np.float16)
    vectors = Vectors([rows], "pool")
    with pytest.raises(RunError, match=r"pool: more than .* pairs have a cosine of at least 0.9: .* Raise min_cosine"):
        list(similar_pairs(vectors, vectors, 0.9, memory_bytes=2**24, threads=2))


def test_nan_is_an_error_that_names_it():
    rows = clustered(0, 50, 16)
    rows[31, 3] = np.nan
    with pytest.raises(RunError, match="number 31"):
        list(similar_pairs(Vectors([rows], "pool"), Vectors([rows], "pool"), 0.9, memory_bytes=MEMORY))


def test_nothing_to_join():
    empty, some = Vectors([np.empty((0, 16), np.float16)], "none"), Vectors([clustered(0, 9, 16)], "some")
    assert list(similar_pairs(empty, some, 0.9, memory_bytes=MEMORY)) == []
    assert list(similar_pairs(some, empty, 0.9, memory_bytes=MEMORY)) == []
