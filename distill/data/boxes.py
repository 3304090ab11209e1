"""Boxes at random places of an image: what a crop keeps and what random erasing covers."""

import math
from typing import Literal, NamedTuple

import numpy as np

from distill.data.types import Image


class Box(NamedTuple):
    """A part of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


def random_area_box(
    random: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    sampling: Literal["published", "usual"],
) -> Box:
    """A box of random area and aspect ratio inside an image.

    'published' is PaddleClas' `RandCropImage`: the ratio is drawn uniformly, the area's interval is clamped
    so that the box always fits, and nothing is tried twice. 'usual' is that of Inception and torchvision:
    log-uniform ratio, ten tries, then the largest centre box of an allowed ratio.

    Args:
        random: Generator.
        height: The image's, >= 1.
        width: The image's, >= 1.
        scale: Least and greatest share of the image's area, in (0, 1].
        ratio: Least and greatest width / height, > 0.
        sampling: Which of the two.
    """
    if sampling == "published":
        return _published_box(random, height, width, scale, ratio)
    return _usual_box(random, height, width, scale, ratio)


def _published_box(
    random: np.random.Generator, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    box_ratio = random.uniform(*ratio)
    # the largest share of the area that a box of this ratio can have inside the image
    bound = min(width / height / box_ratio, height / width * box_ratio)
    side = math.sqrt(width * height * random.uniform(min(scale[0], bound), min(scale[1], bound)))
    # rounding may miss the image by one pixel, and a sliver of an image may round to nothing
    box_width = min(max(int(side * math.sqrt(box_ratio)), 1), width)
    box_height = min(max(int(side / math.sqrt(box_ratio)), 1), height)
    return place_box(random, height, width, box_height, box_width)


def _usual_box(
    random: np.random.Generator, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    box = fitting_box(random, height, width, scale, ratio)
    if box is not None:
        return box
    box_width = max(min(width, round(height * ratio[1])), 1)
    box_height = max(min(height, round(width / ratio[0])), 1)
    return Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)


def fitting_box(
    random: np.random.Generator, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box | None:
    """The first of at most ten boxes that fits into the image: uniform area, log-uniform ratio, anywhere.

    Args:
        random: Generator.
        height: The image's, >= 1.
        width: The image's, >= 1.
        scale: Least and greatest share of the image's area, in (0, 1].
        ratio: Least and greatest width / height, > 0.
    """
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        box_ratio = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width = round(math.sqrt(area * box_ratio))
        box_height = round(math.sqrt(area / box_ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            return place_box(random, height, width, box_height, box_width)
    return None


def place_box(random: np.random.Generator, height: int, width: int, box_height: int, box_width: int) -> Box:
    """A box of this size, anywhere inside the image."""
    left = int(random.integers(0, width - box_width, endpoint=True))
    top = int(random.integers(0, height - box_height, endpoint=True))
    return Box(left, top, box_width, box_height)


def cut_box(image: Image, box: Box) -> Image:
    """The pixels of the box: a view, no copy."""
    return image[box.top : box.top + box.height, box.left : box.left + box.width]
