"""What AutoAugment and RandAugment do to an image: pure functions on uint8 [H, W, 3], RGB.

The policies were found with Pillow's operations, and PaddleClas trained with them. So these give Pillow's bits, which
the tests compare, at OpenCV's and NumPy's speed: lookup tables and whole-array arithmetic, which release Python's lock.
None changes its input.

Shear, translation and rotation take the nearest pixel and fill with grey 128. So did the authors' code for all three,
and PaddleClas' for translation and rotation; its shear interpolates bicubically, which no other library repeats bit
for bit, and which matters to one of the 25 sub-policies of AutoAugment.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from distill.data.types import Image

FILL = 128
_ALL_BYTES = np.arange(256, dtype=np.uint8)
_FIXED = 16  # Pillow's nearest pixel: 16 bits behind the point
# BT.601 in Pillow's fixed point, 16 bits; OpenCV's has 14 or 15 and differs by one here and there
_GREY_R, _GREY_G, _GREY_B = 19595, 38470, 7471
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / np.float32(13)


def shear_x(image: Image, factor: float) -> Image:
    """Moves row y by factor x y pixels to the left: the pixel at (x, y) comes from (x + factor y, y)."""
    return _nearest(image, (1.0, factor, 0.0, 0.0, 1.0, 0.0))


def shear_y(image: Image, factor: float) -> Image:
    """Moves column x by factor x x pixels upwards: the pixel at (x, y) comes from (x, y + factor x)."""
    return _nearest(image, (1.0, 0.0, 0.0, factor, 1.0, 0.0))


def translate_x(image: Image, pixels: float) -> Image:
    """Moves the image to the left."""
    return _nearest(image, (1.0, 0.0, pixels, 0.0, 1.0, 0.0))


def translate_y(image: Image, pixels: float) -> Image:
    """Moves the image upwards."""
    return _nearest(image, (1.0, 0.0, 0.0, 0.0, 1.0, pixels))


def rotate(image: Image, degrees: float) -> Image:
    """Turns the image about its centre, counterclockwise; |degrees| < 90."""
    angle = -math.radians(degrees)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = image.shape[1] / 2, image.shape[0] / 2
    return _nearest(image, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


def invert(image: Image) -> Image:
    """255 - x."""
    return _lookup(image, 255 - _ALL_BYTES)


def solarize(image: Image, threshold: float) -> Image:
    """255 - x where x >= threshold, x elsewhere; threshold in [0, 256], and 256 changes nothing."""
    return _lookup(image, np.where(threshold > _ALL_BYTES, _ALL_BYTES, 255 - _ALL_BYTES))


def posterize(image: Image, bits: int) -> Image:
    """Keeps the `bits` highest bits of a byte, 1-8, and sets the others to 0."""
    return _lookup(image, _ALL_BYTES & np.uint8(256 - (1 << (8 - bits))))


def autocontrast(image: Image) -> Image:
    """Stretches each channel so that its darkest pixel becomes 0 and its brightest 255."""
    tables = [_stretched(int(channel.min()), int(channel.max())) for channel in cv2.split(image)]
    return _lookup(image, np.stack(tables, axis=-1))


def equalize(image: Image) -> Image:
    """Maps each channel so that its values become about equally frequent."""
    histograms = (cv2.calcHist([image], [channel], None, [256], [0, 256]) for channel in range(3))
    tables = [_equalized(histogram.ravel().astype(np.int64)) for histogram in histograms]
    return _lookup(image, np.stack(tables, axis=-1))


def brightness(image: Image, factor: float) -> Image:
    """From black, 0, over the image itself, 1, to brighter ones."""
    return _lookup(image, _blend(np.zeros(256, np.uint8), _ALL_BYTES, factor))


def contrast(image: Image, factor: float) -> Image:
    """From the mean grey, 0, over the image itself, 1, to stronger contrasts."""
    grey = np.full(256, int(float(_grey(image).mean()) + 0.5), np.uint8)
    return _lookup(image, _blend(grey, _ALL_BYTES, factor))


def color(image: Image, factor: float) -> Image:
    """From grey, 0, over the image itself, 1, to stronger colours."""
    return _blend(np.repeat(_grey(image)[:, :, None], 3, axis=2), image, factor)


def sharpness(image: Image, factor: float) -> Image:
    """From smoothed, 0, over the image itself, 1, to sharpened ones; the outermost pixels stay."""
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, _SMOOTH)[1:-1, 1:-1]
    return _blend(smooth, image, factor)


def _nearest(image: Image, matrix: tuple[float, float, float, float, float, float]) -> Image:
    """The pixel at (x, y) comes from (a x + b y + c, d x + e y + f), of pixel centres; FILL outside of the image."""
    a, b, c, d, e, f = matrix
    height, width = image.shape[:2]
    columns, rows = np.arange(width, dtype=np.int32), np.arange(height, dtype=np.int32)[:, None]
    places = np.empty((height, width, 2), dtype=np.int16)
    places[:, :, 0] = (columns * _fixed(a) + (rows * _fixed(b) + _fixed(c + (a + b) / 2))) >> _FIXED
    places[:, :, 1] = (columns * _fixed(d) + (rows * _fixed(e) + _fixed(f + (d + e) / 2))) >> _FIXED
    moved: Image = cv2.remap(
        image, places, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=(FILL, FILL, FILL)
    )
    return moved


def _fixed(value: float) -> int:
    return math.floor(value * (1 << _FIXED) + 0.5)


def _lookup(image: Image, table: NDArray[np.uint8]) -> Image:
    """Replaces bytes by a table's: [256], or [256, 3] with one for each channel."""
    changed: Image = cv2.LUT(image, table if table.ndim == 1 else table[None])
    return changed


def _stretched(low: int, high: int) -> NDArray[np.uint8]:
    if high <= low:
        return _ALL_BYTES
    scale = 255.0 / (high - low)
    stretched: NDArray[np.uint8] = np.clip(_ALL_BYTES * scale - low * scale, 0, 255).astype(np.uint8)
    return stretched


def _equalized(histogram: NDArray[np.int64]) -> NDArray[np.uint8]:
    step = (int(histogram.sum()) - int(histogram[np.flatnonzero(histogram)[-1]])) // 255
    if not step:
        return _ALL_BYTES
    below = np.cumsum(histogram) - histogram
    table: NDArray[np.uint8] = np.minimum((step // 2 + below) // step, 255).astype(np.uint8)
    return table


def _grey(image: Image) -> NDArray[np.uint8]:
    """uint8 [H, W]."""
    red, green, blue = cv2.split(image)
    weighted = np.multiply(red, _GREY_R, dtype=np.uint32)
    weighted += np.multiply(green, _GREY_G, dtype=np.uint32)
    weighted += np.multiply(blue, _GREY_B, dtype=np.uint32)
    weighted += 1 << 15
    weighted >>= 16
    grey: NDArray[np.uint8] = weighted.astype(np.uint8)
    return grey


def _blend(start: NDArray[np.uint8], end: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """The bytes start + factor (end - start): in float32 as Pillow, cut to [0, 255], fractions cut off."""
    mixed = end.astype(np.float32)
    mixed -= start
    mixed *= np.float32(factor)
    mixed += start
    np.clip(mixed, 0, 255, out=mixed)
    return mixed.astype(np.uint8)
