"""Vectors in parts: rows, lengths, cosines, and numbers that are none."""

import numpy as np
import pytest

from data_mining.vectors import Vectors, cosines
from distill.errors import RunError


@pytest.fixture(params=["arrays", "files"])
def parts(request, tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((n, 5)).astype(np.float16) for n in (3, 0, 1, 4)]
    if request.param == "arrays":
        return arrays
    paths = [tmp_path / f"{number}.npy" for number in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return paths


@pytest.fixture
def whole(parts):
    return np.concatenate([part if isinstance(part, np.ndarray) else np.load(part) for part in parts])


def test_every_range_of_rows(parts, whole):
    vectors = Vectors(parts, "test")
    assert (len(vectors), vectors.dimension) == whole.shape
    for first in range(len(whole) + 1):
        for end in range(first, len(whole) + 1):
            np.testing.assert_array_equal(vectors.rows(first, end), whole[first:end])


def test_rows_in_any_order(parts, whole):
    rows = np.array([7, 0, 3, 3, 2, 6])
    np.testing.assert_array_equal(Vectors(parts, "test").take(rows), whole[rows])


def test_only_some_rows(parts, whole):
    chosen = np.array([1, 2, 4, 7])
    some = Vectors(parts, "test").only(chosen)
    assert len(some) == 4
    np.testing.assert_array_equal(some.rows(1, 4), whole[[2, 4, 7]])
    np.testing.assert_array_equal(some.take(np.array([3, 0])), whole[[7, 1]])
    np.testing.assert_array_equal(some.only(np.array([0, 3])).rows(0, 2), whole[[1, 7]])
    np.testing.assert_allclose(np.linalg.norm(some.unit(0, 4), axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(some.sample(2), whole[[1, 4]])


def test_cosines_are_those_of_float64(parts, whole):
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, len(whole), (2, 30))
    wide = whole.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    expected = (unit[first] * unit[second]).sum(axis=1)
    np.testing.assert_array_equal(
        cosines(Vectors(parts, "a"), first, Vectors(parts, "b"), second), expected.astype(np.float32)
    )


def test_unit_has_length_one_but_zeros_stay():
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [1e30, 1e30], [1e-6, 0.0]], np.float32)
    expected = [[0.6, 0.8], [0, 0], [2**-0.5] * 2, [1, 0]]
    np.testing.assert_allclose(Vectors([rows], "test").unit(0, 4), expected, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_named(bad):
    rows = np.ones((10, 4), np.float16)
    rows[6, 2] = bad
    with pytest.raises(RunError, match="pool: 1 embeddings are NaN or infinite, the first is number 6"):
        Vectors([rows[:4], rows[4:]], "pool").unit(3, 10)


def test_no_vectors_at_all():
    assert len(Vectors([], "none")) == 0
    assert len(Vectors([np.empty((0, 8), np.float16)], "none").sample(5)) == 0
