"""Every operation against Pillow's own, bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from skimage import data

from distill.data import operations


def photograph(height, width):
    """A part of a real photograph: a cat."""
    return np.ascontiguousarray(data.chelsea()[40 : 40 + height, 60 : 60 + width])


def noise(height, width, low=0, high=256):
    return np.random.default_rng(0).integers(low, high, (height, width, 3), dtype=np.uint8)


IMAGES = {
    "photograph": photograph(224, 224),
    "wide": photograph(97, 310),
    "noise": noise(28, 31),
    "faint": noise(33, 29, 100, 110),
    "one colour": np.full((30, 30, 3), (7, 128, 255), np.uint8),
    "black and white": noise(40, 40, 0, 2) * 255,
}


@pytest.fixture(params=IMAGES.values(), ids=IMAGES.keys())
def image(request):
    return request.param


def check(image, received, expected):
    """`expected` is Pillow's; neither may have changed the image."""
    assert received.dtype == np.uint8 and received.flags.c_contiguous
    np.testing.assert_array_equal(received, np.asarray(expected), strict=True)


def affine(image, *matrix):
    return Image.fromarray(image).transform(
        image.shape[1::-1], Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=(128, 128, 128)
    )


@pytest.mark.parametrize("factor", [-0.3, -0.1, 0.0, 0.01, 1 / 6, 0.3])
def test_shear(image, factor):
    check(image, operations.shear_x(image, factor), affine(image, 1, factor, 0, 0, 1, 0))
    check(image, operations.shear_y(image, factor), affine(image, 1, 0, 0, factor, 1, 0))


@pytest.mark.parametrize("pixels", [-100.3, -1.5, -0.4, 0.0, 0.5, 3.2, 44.7, 1000.0])
def test_translate(image, pixels):
    check(image, operations.translate_x(image, pixels), affine(image, 1, 0, pixels, 0, 1, 0))
    check(image, operations.translate_y(image, pixels), affine(image, 1, 0, 0, 0, 1, pixels))


@pytest.mark.parametrize("degrees", [-30.0, -80 / 3, -10 / 3, 0.0, 0.1, 10.0, 27.0, 30.0, 89.0])
def test_rotate(image, degrees):
    fill = (128, 128, 128)
    check(image, operations.rotate(image, degrees), Image.fromarray(image).rotate(degrees, fillcolor=fill))


@pytest.mark.parametrize("name", ["invert", "autocontrast", "equalize"])
def test_without_a_setting(image, name):
    check(image, getattr(operations, name)(image), getattr(ImageOps, name)(Image.fromarray(image)))


@pytest.mark.parametrize("threshold", [0, 0.5, 25.6, 1024 / 9, 128, 255, 256])
def test_solarize(image, threshold):
    check(image, operations.solarize(image, threshold), ImageOps.solarize(Image.fromarray(image), threshold))


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize(image, bits):
    check(image, operations.posterize(image, bits), ImageOps.posterize(Image.fromarray(image), bits))


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.19, 0.5, 1.0, 1.123, 1.4, 1.81, 1.9])
@pytest.mark.parametrize("name", ["color", "contrast", "brightness", "sharpness"])
def test_enhancements(image, name, factor):
    enhance = getattr(ImageEnhance, name.capitalize())
    check(image, getattr(operations, name)(image, factor), enhance(Image.fromarray(image)).enhance(factor))


@given(st.integers(3, 40), st.integers(3, 40), st.integers(0, 250), st.integers(1, 256), st.floats(-0.3, 0.3))
def test_images_of_any_size_and_range(height, width, low, span, strength):
    image = noise(height, width, low, min(256, low + span))
    check(image, operations.shear_x(image, strength), affine(image, 1, strength, 0, 0, 1, 0))
    pillow = Image.fromarray(image)
    turned = pillow.rotate(100 * strength, fillcolor=(128, 128, 128))
    check(image, operations.rotate(image, 100 * strength), turned)
    check(image, operations.equalize(image), ImageOps.equalize(pillow))
    check(image, operations.autocontrast(image), ImageOps.autocontrast(pillow))
    for name in ("color", "contrast", "sharpness"):
        expected = getattr(ImageEnhance, name.capitalize())(pillow).enhance(1 + 3 * strength)
        check(image, getattr(operations, name)(image, 1 + 3 * strength), expected)


def test_equalizing_makes_values_equally_frequent():
    received = operations.equalize(photograph(224, 224))
    for channel in range(3):
        shares = np.histogram(received[:, :, channel], bins=4, range=(0, 256))[0] / (224 * 224)
        assert abs(shares - 0.25).max() < 0.05


def test_the_image_itself_never_changes():
    image = photograph(64, 80)
    before = image.copy()
    for call in (
        lambda: operations.shear_x(image, 0.2),
        lambda: operations.rotate(image, 10.0),
        lambda: operations.equalize(image),
        lambda: operations.color(image, 1.5),
        lambda: operations.sharpness(image, 0.5),
    ):
        assert not np.shares_memory(call(), image)
        np.testing.assert_array_equal(image, before)
