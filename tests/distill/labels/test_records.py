import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, logsumexp

from distill.errors import RunError
from distill.labels.records import Layout, Status, encode, expand, status_of, undecodable, with_checks

UNIT = 2.0**-11  # float16 rounds by no more than this share


def any_logits(classes=6, elements=None):
    elements = elements or st.floats(-60, 60, width=32) | st.sampled_from([0.0, 1.0, 30.0])
    return arrays(np.float32, st.tuples(st.integers(1, 4), st.just(classes)), elements=elements)


def rounding(values):
    return np.maximum(UNIT * np.abs(values), 2.0**-25) * 1.001


def parts(rows, layout):
    """Classes, their log-probabilities and the rest's, read by hand from the layout's description."""
    classes = rows[:, 3 : 3 + layout.kept].astype(int)
    values = rows[:, 3 + layout.kept :].copy().view(np.float16).astype(np.float64)
    return classes, values, rows[:, 2].copy().view(np.float16).astype(np.float64)


@given(any_logits(), st.integers(1, 5))
def test_the_most_probable_classes_in_order_and_the_mass_of_the_others(logits, kept):
    layout = Layout(6, kept)
    rows = encode(logits, layout)
    assert rows.shape == (len(logits), 3 + 2 * kept) and rows.dtype == np.uint16
    classes, values, rest = parts(rows, layout)
    exact = log_softmax(logits.astype(np.float64), axis=1)
    expected = np.argsort(-logits, axis=1, kind="stable")  # equal ones by class id
    np.testing.assert_array_equal(classes, expected[:, :kept])
    own = np.take_along_axis(exact, expected[:, :kept], axis=1)
    assert (np.abs(values - own) <= rounding(own)).all()
    assert (np.diff(values, axis=1) <= 0).all()
    others = logsumexp(np.take_along_axis(exact, expected[:, kept:], axis=1), axis=1)
    assert (np.abs(rest - others) <= rounding(others)).all()


@given(any_logits(), st.integers(1, 6))
def test_expanded_they_are_a_distribution_within_the_bound(logits, kept):
    layout = Layout(6, kept)
    dense = expand(encode(logits, layout), layout).astype(np.float64)
    assert dense.shape == logits.shape and np.isfinite(dense).all()
    exact = log_softmax(logits.astype(np.float64), axis=1)
    stored = np.argsort(-logits, axis=1, kind="stable")[:, :kept]
    near = np.take_along_axis(np.abs(dense - exact), stored, axis=1)
    assert (near <= rounding(np.take_along_axis(exact, stored, axis=1))).all()
    bound = np.expm1(rounding(np.maximum(np.abs(dense), np.log(6)).max(axis=1)))
    assert (np.abs(np.exp(dense).sum(axis=1) - 1) <= bound + 1e-6).all()
    if kept < 6:
        others = np.ones_like(dense, dtype=bool)
        np.put_along_axis(others, stored, False, axis=1)
        assert all(len(set(row[mask])) == 1 for row, mask in zip(dense, others, strict=True))


@pytest.mark.parametrize(("classes", "top", "size"), [(1000, 10, 46), (10, "all", 24), (10, 10, 24), (10, 99, 24)])
def test_the_size_of_a_record(classes, top, size):
    assert Layout(classes, top).record_bytes == size


def test_high_class_ids_survive():
    layout = Layout(65536, 3)
    logits = np.zeros((1, 65536), dtype=np.float32)
    logits[0, [65535, 2049, 4097]] = 30, 20, 10
    classes, _, _ = parts(encode(logits, layout), layout)
    assert classes.tolist() == [[65535, 2049, 4097]]
    assert np.argsort(-expand(encode(logits, layout), layout)[0])[:3].tolist() == [65535, 2049, 4097]


def test_a_tiny_mass_and_an_absurd_one():
    layout = Layout(4, 2)
    rows = encode(np.array([[0, -20, -40, -41], [0, -1e6, -1e6, -1e6]], dtype=np.float32), layout)
    _, values, rest = parts(rows, layout)
    assert rest[0] == pytest.approx(-40 + np.log(1 + np.exp(-1)), rel=UNIT)  # e^-40 itself is no float16
    assert values[1].tolist() == [0, -65504] and rest[1] == -65504
    dense = expand(rows, layout)
    assert np.isfinite(dense).all()
    assert np.exp(dense[1]).tolist() == [1, 0, 0, 0]


def test_answers_that_are_not_finite_or_of_other_classes_are_refused():
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(RunError, match="1 of 2 images is not finite"):
            encode(np.array([[0, 1], [value, 0]], dtype=np.float32), Layout(2, "all"))
    with pytest.raises(ValueError, match=r"\[N, 3\], received \[1, 2\]"):
        encode(np.zeros((1, 2), dtype=np.float32), Layout(3, "all"))


# --- checks -----------------------------------------------------------------------------------


@pytest.fixture(params=[3, "all"])
def rows(request):
    layout = Layout(20, request.param)
    logits = np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32)
    return with_checks(encode(logits, layout), 2, 70)


def status(rows, view_epoch, first):
    """The layout follows from the number of words: 22 for all of 20 classes."""
    return status_of(rows, Layout(20, "all" if rows.shape[1] == 22 else 3), view_epoch, first)


def test_a_record_is_known_at_its_own_place_only(rows):
    assert (status(rows, 2, 70) == Status.RECORD).all()
    assert not status(rows, 2, 71).any()
    assert not status(rows, 3, 70).any()
    assert not status(np.zeros_like(rows), 2, 70).any()


def test_every_changed_bit_is_noticed(rows):
    for place in range(50):
        for bit in np.random.default_rng(place).choice(rows.shape[1] * 16, 20, replace=False):
            damaged = rows.copy()
            damaged[place, bit // 16] ^= np.uint16(1 << (bit % 16))
            assert status(damaged, 2, 70)[place] == Status.EMPTY


def test_a_torn_record_is_noticed(rows):
    for words in range(1, rows.shape[1]):
        torn = rows.copy()
        torn[:, words:] = 0
        assert not status(torn, 2, 70).any()


def test_an_undecodable_image_is_no_record():
    for top in (3, "all"):
        marks = with_checks(undecodable(4, Layout(20, top)), 0, 0)
        assert (status(marks, 0, 0) == Status.UNDECODABLE).all()


def test_what_no_teacher_answered_is_no_record_though_its_check_is_right(rows):
    for place in (2, rows.shape[1] - 1):
        for value in (np.nan, -np.nan, np.inf, -np.inf):
            wrong = rows.copy()
            wrong[7, place] = np.float16(value).view(np.uint16)
            expected = Status.UNDECODABLE if place == 2 and np.isnan(value) and not np.signbit(value) else Status.EMPTY
            assert status(with_checks(wrong, 2, 70), 2, 70)[7] == expected
            assert (np.delete(status(with_checks(wrong, 2, 70), 2, 70), 7) == Status.RECORD).all()


def test_a_class_that_the_recipe_does_not_have_is_no_record():
    layout = Layout(20, 3)
    wrong = encode(np.zeros((2, 20), np.float32), layout)
    wrong[1, 4] = 20
    assert status_of(with_checks(wrong, 0, 0), layout, 0, 0).tolist() == [Status.RECORD, Status.EMPTY]
