import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax

from data_mining.ranking import rank_classes


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 9)),
        elements=st.sampled_from([-40.0, -1.0, 0.0, 0.5, 0.5000001, 90.0]),
    ),
    st.integers(1, 12),
)
def test_against_a_whole_sort(logits, count):
    ranking = rank_classes(logits, count)
    expected = softmax(logits.astype(np.float64), axis=1)
    for row, classes in enumerate(ranking.classes):
        order = sorted(range(logits.shape[1]), key=lambda c: (-logits[row, c], c))[:count]
        assert classes.tolist() == order
        np.testing.assert_allclose(ranking.probabilities[row], expected[row, order], rtol=1e-6, atol=1e-30)
        np.testing.assert_allclose(ranking.rest[row], 1 - expected[row, order].sum(), atol=1e-7)


def test_rows_do_not_depend_on_their_batch():
    logits = np.random.default_rng(0).normal(size=(33, 1000)).astype(np.float32)
    together = rank_classes(logits, 10)
    assert together.classes.dtype == np.uint16
    assert together.probabilities.dtype == together.rest.dtype == np.float32
    for row in (0, 7, 32):
        alone = rank_classes(logits[row : row + 1], 10)
        assert np.array_equal(alone.classes[0], together.classes[row])
        assert np.array_equal(alone.probabilities[0], together.probabilities[row])
        assert alone.rest[0] == together.rest[row]


def test_a_tiny_rest_is_not_lost_to_cancellation():
    logits = np.array([[30.0, 0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_allclose(rank_classes(logits, 1).rest, [3 * np.exp(-30.0)], rtol=1e-5)
