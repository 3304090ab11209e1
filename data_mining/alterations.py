"""Protected images as copies of them may look: cut out of the middle of things, or framed.

The embedding of a crop, or of an image with a frame, is far from the original's: measured on CIFAR-10 and photographs,
at a threshold that makes one pair in a thousand a candidate, 42-50 % of the crops to half of the area were near, 5-15 %
of those to a quarter, and 33-59 % of the framed. The copy's embedding is near to that of the original altered alike:
99 %, 84 % and 96 % (`scripts/experiments/mining_evidence.py` states what is found in all). So the few protected images
are embedded in all these forms, rather than the many of the pool.
"""

from collections.abc import Iterator

import cv2
import numpy as np

from distill.data.types import Image

CROPS = ((0.5, 3), (0.25, 4))
"""Share of the area, and places along each side: neighbouring boxes share two thirds of their area, and a half."""

FRAME_SHARE = 0.12
"""Of the sides, the width of the frame on each of the four."""

FRAME_SHADES = (0, 128, 255)

ALTERATIONS = sum(places**2 for _, places in CROPS) + len(FRAME_SHADES)
"""Forms of an image that `altered` gives."""


def altered(image: Image) -> Iterator[Image]:
    """The image's crops, by size and place, and the image in a black, a grey and a white frame.

    Args:
        image: uint8 [H, W, 3].

    Yields:
        `ALTERATIONS` images uint8 [h, w, 3] of other sizes, each at least 1 px high and wide.
    """
    height, width = image.shape[:2]
    for area, places in CROPS:
        h, w = (max(1, round(side * area**0.5)) for side in (height, width))
        for top in _places(height - h, places):
            for left in _places(width - w, places):
                yield np.ascontiguousarray(image[top : top + h, left : left + w])
    y, x = (max(1, round(side * FRAME_SHARE)) for side in (height, width))
    for shade in FRAME_SHADES:
        yield cv2.copyMakeBorder(image, y, y, x, x, cv2.BORDER_CONSTANT, value=(shade,) * 3)


def _places(room_px: int, count: int) -> list[int]:
    """So many places from 0 to `room_px`, evenly spread."""
    places: list[int] = np.linspace(0, room_px, count).round().astype(int).tolist()
    return places
