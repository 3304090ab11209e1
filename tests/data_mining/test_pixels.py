"""The hashes of pixels, on bundled photographs and on arrays that Hypothesis makes."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.fft import dctn
from skimage import data

from data_mining.pixels import MIRROR_BITS, bits_apart, mirrored, perceptual_hash, pixels_sha256

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "immunohistochemistry")
hashes = hnp.arrays(np.uint64, st.integers(1, 20), elements=st.integers(0, 2**64 - 1))


def photograph(name):
    return np.ascontiguousarray(getattr(data, name)()[..., :3])


@pytest.fixture(scope="module", params=PHOTOGRAPHS)
def image(request):
    return photograph(request.param)


def apart(first, second):
    return int(bits_apart(perceptual_hash(np.ascontiguousarray(first)), perceptual_hash(np.ascontiguousarray(second))))


def test_perceptual_hash_is_the_signs_of_the_lowest_frequencies(image):
    small = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    spectrum = dctn(small.astype(np.float64), norm="ortho")
    order = sorted(np.ndindex(32, 32), key=lambda at: (at[0] ** 2 + at[1] ** 2, at))[1:65]
    expected = sum(1 << bit for bit, at in enumerate(order) if spectrum[at] > 1e-3)
    assert int(perceptual_hash(image)) == expected


def test_mirrored_hash_needs_no_image(image):
    assert mirrored(perceptual_hash(image)) == perceptual_hash(np.ascontiguousarray(image[:, ::-1]))


@pytest.mark.parametrize(
    ("edit", "most"),
    [
        (lambda x: cv2.imdecode(cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, 25])[1], cv2.IMREAD_COLOR), 4),
        (lambda x: cv2.resize(x, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA), 4),
        (lambda x: cv2.resize(x, (200, 300), interpolation=cv2.INTER_AREA), 4),
        (lambda x: cv2.GaussianBlur(x, (0, 0), 3), 4),
        (lambda x: (255 * (x / 255.0) ** 1.3).astype(np.uint8), 8),
    ],
    ids=["jpeg", "half", "stretched", "blurred", "gamma"],
)
def test_edits_change_few_bits(image, edit, most):
    assert apart(image, edit(image)) <= most


def test_unrelated_photographs_differ_in_many_bits():
    codes = np.array([perceptual_hash(photograph(name)) for name in PHOTOGRAPHS])
    different = bits_apart(codes[:, None], codes)[np.triu_indices(len(codes), 1)]
    assert different.min() > 16


def test_one_colour_has_hash_zero():
    assert perceptual_hash(np.full((40, 60, 3), 119, np.uint8)) == 0


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (28, 28, 3), (300, 2, 3)])
def test_any_size_has_a_hash(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert perceptual_hash(image).dtype == np.uint64


@settings(deadline=None)
@given(hashes, hashes)
def test_bits_apart_counts(first, second):
    expected = [[bin(int(a) ^ int(b)).count("1") for b in second] for a in first]
    np.testing.assert_array_equal(bits_apart(first[:, None], second), expected)


@settings(deadline=None)
@given(hashes)
def test_mirroring_twice_changes_nothing(codes):
    np.testing.assert_array_equal(mirrored(mirrored(codes)), codes)
    assert bits_apart(codes, mirrored(codes)).tolist() == [bin(int(MIRROR_BITS)).count("1")] * len(codes)


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3))))
def test_sha256_tells_pixels_and_sizes_apart(image):
    assert pixels_sha256(image) == pixels_sha256(image.copy(order="F"))
    changed = image.copy()
    changed[0, 0, 0] ^= 1
    assert pixels_sha256(changed) != pixels_sha256(image)
    height, width, _ = image.shape
    if height != width:
        assert pixels_sha256(image.reshape(width, height, 3)) != pixels_sha256(image)


def test_sha256_does_not_depend_on_the_file_format(image):
    lossless = cv2.imdecode(cv2.imencode(".png", image)[1], cv2.IMREAD_COLOR)
    assert pixels_sha256(lossless) == pixels_sha256(image)
