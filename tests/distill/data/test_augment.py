import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.data.augment import evaluation_view, train_view
from distill.data.boxes import random_area_box
from distill.data.erasing import erase
from distill.data.policies import apply_policy
from distill.errors import UserError
from distill.recipe import ViewSection

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def view_of(crop, size_px=32, horizontal_flip=0.0):
    return ViewSection.model_validate({"size_px": size_px, "crop": crop, "horizontal_flip": horizontal_flip})


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_random_area_view_is_the_resized_box():
    image = noise(60, 90)
    crop = {"kind": "random_area", "scale": SCALE, "ratio": RATIO, "sampling": "published"}
    view = train_view(image, view_of(crop), np.random.default_rng(4))
    box = random_area_box(np.random.default_rng(4), 60, 90, SCALE, RATIO, "published")
    part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    np.testing.assert_array_equal(view, cv2.resize(part, (32, 32), interpolation=cv2.INTER_LINEAR))


@pytest.mark.parametrize("size_px", [28, 33, 224])
def test_a_flipped_view_is_the_mirror_image(size_px):
    image = noise(300, 257)
    crop = {"kind": "random_area", "scale": SCALE, "ratio": RATIO, "sampling": "published"}
    for seed in range(5):
        plain = train_view(image, view_of(crop, size_px, 0.0), np.random.default_rng(seed))
        mirror = train_view(image, view_of(crop, size_px, 1.0), np.random.default_rng(seed))
        np.testing.assert_array_equal(mirror, plain[:, ::-1])
        assert mirror.flags.c_contiguous


def test_padded_view_moves_the_image_over_zeros():
    image = noise(32, 32) | 1  # no zero of its own
    offsets = set()
    for seed in range(200):
        view = train_view(image, view_of({"kind": "padded", "padding_px": 4}), np.random.default_rng(seed))
        rows, columns = view.any(axis=(1, 2)), view.any(axis=(0, 2))
        top, left = 4 - rows.argmax() + (~rows[::-1]).argmin(), 4 - columns.argmax() + (~columns[::-1]).argmin()
        expected = np.pad(image, ((4, 4), (4, 4), (0, 0)))[top : top + 32, left : left + 32]
        np.testing.assert_array_equal(view, expected)
        offsets.add((top, left))
    assert {top for top, _ in offsets} == {left for _, left in offsets} == set(range(9))


def test_an_image_that_is_too_small_for_a_padded_crop():
    with pytest.raises(UserError, match=r"has 20 x 30 px; even with view\.crop\.padding_px 2 .* view\.size_px 32"):
        train_view(noise(30, 20), view_of({"kind": "padded", "padding_px": 2}), np.random.default_rng(0))


def test_policy_and_erasing_come_after_crop_and_flip():
    """And they leave crop and flip as they are without them."""
    image = noise(60, 90)
    crop = {"kind": "random_area", "scale": SCALE, "ratio": RATIO, "sampling": "published"}
    plain = {"size_px": 32, "crop": crop, "horizontal_flip": 0.5}
    changed = plain | {
        "policy": {"kind": "randaugment", "operations": 2, "magnitude": 9},
        "erasing": {"probability": 0.7, "area": [0.1, 0.3], "aspect": [0.5, 2.0]},
    }
    view = ViewSection.model_validate(changed)
    differing = 0
    for seed in range(30):
        random = np.random.default_rng(seed)
        expected = train_view(image, ViewSection.model_validate(plain), random)  # leaves `random` behind the flip
        expected = erase(apply_policy(expected, view.policy, random), view.erasing, random)
        received = train_view(image, view, np.random.default_rng(seed))
        np.testing.assert_array_equal(received, expected, strict=True)
        differing += not np.array_equal(received, train_view(image, view_of(crop), np.random.default_rng(seed)))
    assert differing > 25


def test_an_image_in_memory_is_never_changed():
    image = noise(32, 32)
    before = image.copy()
    view = ViewSection.model_validate(
        {
            "size_px": 32,
            "crop": {"kind": "center", "resize_short_px": 32},  # takes the image as it is
            "horizontal_flip": 0.0,
            "policy": {"kind": "randaugment", "operations": 1, "magnitude": 9},
            "erasing": {"probability": 1.0, "area": [0.2, 0.4], "aspect": [0.5, 2.0]},
        }
    )
    for seed in range(40):
        train_view(image, view, np.random.default_rng(seed))
        np.testing.assert_array_equal(image, before)


def test_flip_probability():
    image = noise(32, 32)
    for probability, expected in ((0.0, 0), (1.0, 500), (0.3, 150)):
        view = view_of({"kind": "center", "resize_short_px": 32}, horizontal_flip=probability)
        flipped = 0
        for seed in range(500):
            received = train_view(image, view, np.random.default_rng(seed))
            same = np.array_equal(received, image)
            assert same or np.array_equal(received, image[:, ::-1])
            flipped += not same
        assert abs(flipped - expected) <= 4 * math.sqrt(500 * probability * (1 - probability))


def test_centre_crop_in_training_is_the_evaluation_view():
    image = noise(70, 50)
    view = train_view(image, view_of({"kind": "center", "resize_short_px": 40}), np.random.default_rng(0))
    np.testing.assert_array_equal(view, evaluation_view(image, 40, 32))


def bilinear(image, height, width):
    """Bilinear interpolation without antialiasing, pixel centres at half integers."""
    rows = np.clip((np.arange(height) + 0.5) * image.shape[0] / height - 0.5, 0, image.shape[0] - 1)
    columns = np.clip((np.arange(width) + 0.5) * image.shape[1] / width - 0.5, 0, image.shape[1] - 1)
    top, left = rows.astype(int), columns.astype(int)
    bottom, right = np.minimum(top + 1, image.shape[0] - 1), np.minimum(left + 1, image.shape[1] - 1)
    row_part, column_part = (rows - top)[:, None, None], (columns - left)[None, :, None]
    upper = image[top][:, left] * (1 - column_part) + image[top][:, right] * column_part
    lower = image[bottom][:, left] * (1 - column_part) + image[bottom][:, right] * column_part
    return upper * (1 - row_part) + lower * row_part


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (333, 500), (100, 90), (256, 256), (224, 1000)])
def test_evaluation_view_against_a_computation_by_hand(height, width):
    image = noise(height, width)
    factor = 256 / min(height, width)
    resized = bilinear(image.astype(float), round(height * factor), round(width * factor))
    top, left = (resized.shape[0] - 224) // 2, (resized.shape[1] - 224) // 2
    received = evaluation_view(image, 256, 224)
    assert received.shape == (224, 224, 3) and received.dtype == np.uint8 and received.flags.c_contiguous
    difference = np.abs(received - resized[top : top + 224, left : left + 224])
    assert difference.max() <= 1.01  # OpenCV calculates in fixed point


@given(st.integers(1, 400), st.integers(1, 400), st.integers(28, 64), st.integers(0, 20))
def test_evaluation_view_has_its_size_whatever_the_image(height, width, crop_px, more):
    assert evaluation_view(noise(height, width), crop_px + more, crop_px).shape == (crop_px, crop_px, 3)


def test_a_crop_larger_than_the_short_side():
    with pytest.raises(UserError, match="centre crop of 33 px does not fit into a short side of 32 px"):
        evaluation_view(noise(50, 50), 32, 33)
