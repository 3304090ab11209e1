import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distill.data.random import Stream, generator


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1))
def test_the_same_key_gives_the_same_numbers(seed, stage, epoch, index):
    first, second = (generator(seed, stage, epoch, index, Stream.VIEW).random(5) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_any_other_key_gives_other_numbers():
    keys = list(itertools.product((0, 1), (0, 1), (0, 1), (0, 1), Stream))
    draws = np.array([generator(*key).random(50) for key in keys])
    assert len(np.unique(draws)) == draws.size


def test_stage_and_epoch_do_not_run_into_each_other():
    assert generator(0, 1, 0, 0, Stream.VIEW).random() != generator(0, 0, 1, 0, Stream.VIEW).random()


def test_neighbouring_samples_are_independent_and_uniform():
    draws = np.array([generator(7, 0, 0, index, Stream.VIEW).random(2) for index in range(4000)])
    counts = np.histogram(draws[:, 0], bins=20, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.06
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.06


def test_the_numbers_are_those_of_earlier_versions():
    # A change here makes every interrupted run and every stored soft label wrong.
    raw = generator(1, 2, 3, 4, Stream.MIX).integers(0, 2**64, 2, dtype=np.uint64)
    philox = np.random.Philox(counter=[0, 0, 4, 2], key=[1, 2 * 2**32 + 3])
    np.testing.assert_array_equal(raw, philox.random_raw(2))
    assert raw.tolist() == [6121973392775019156, 11853482386979613722]
