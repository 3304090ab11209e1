import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.data.erasing import erase
from distill.recipe import ErasingSection


def section(probability=1.0, area=(0.02, 0.4), aspect=(0.3, 10 / 3)):
    return ErasingSection(probability=probability, area=area, aspect=aspect)


def flat(height, width):
    return np.full((height, width, 3), 77, np.uint8)


def erased_box(image, received):
    """Top, bottom, left and right of what has changed, and the share of changed pixels inside it."""
    changed = (received != image).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    box = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return *box, changed[box[0] : box[1], box[2] : box[3]].mean()


@given(st.integers(28, 90), st.integers(28, 90), st.integers(0, 2**32))
def test_a_box_of_allowed_area_and_shape_becomes_noise(height, width, seed):
    image = flat(height, width)
    received = erase(image, section(area=(0.1, 0.3), aspect=(0.5, 2.0)), np.random.default_rng(seed))
    assert received.shape == image.shape and received.dtype == np.uint8
    assert (image == 77).all()
    top, bottom, left, right, share = erased_box(image, received)
    assert share > 0.99  # a byte of noise is 77 once in 256 times, all three of a pixel hardly ever
    # sides are rounded to whole pixels
    assert 0.08 < (bottom - top) * (right - left) / (height * width) < 0.33
    assert 0.42 < (right - left) / (bottom - top) < 2.4


def test_noise_is_uniform_over_bytes():
    received = erase(flat(300, 300), section(area=(0.4, 0.4), aspect=(1.0, 1.0)), np.random.default_rng(0))
    bytes_ = received[received != 77]
    assert abs(bytes_.mean() - 127.7) < 1 and bytes_.min() == 0 and bytes_.max() == 255


@pytest.mark.parametrize(("probability", "expected"), [(1.0, 1000), (0.25, 250)])
def test_how_often(probability, expected):
    image = flat(32, 32)
    count = sum(erase(image, section(probability), np.random.default_rng(seed)) is not image for seed in range(1000))
    assert abs(count - expected) <= 4 * math.sqrt(1000 * probability * (1 - probability))


def test_the_same_key_gives_the_same_noise():
    one, same, other = (erase(flat(40, 40), section(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_box_that_never_fits_erases_nothing():
    image = flat(40, 40)
    assert erase(image, section(area=(0.9, 1.0), aspect=(3.0, 4.0)), np.random.default_rng(0)) is image


def test_wide_and_tall_boxes_are_equally_likely():
    image, wide = flat(64, 64), 0
    for seed in range(600):
        top, bottom, left, right, _ = erased_box(image, erase(image, section(), np.random.default_rng(seed)))
        wide += (right - left > bottom - top) + 0.5 * (right - left == bottom - top)
    assert abs(wide - 300) < 50
