"""Places for the names of points in a picture, so that no name covers another, a point or the picture's edge.

A box is (left, bottom, right, top) in pixels, y growing upwards; boxes are float64 [N, 4].
"""

import math

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]

DIRECTIONS = 16
DISTANCES_PX = (4.0, 12.0, 22.0, 34.0, 48.0, 64.0, 82.0, 102.0, 124.0)
_PASSES = 8
_COVERING = 100.0


def place_labels(points: Boxes, sizes: Boxes, picture: Boxes, blocked: Boxes, *, radius_px: float) -> Boxes:
    """A box for each label, near its point.

    Each label takes the place that costs least, one after the other, and a few times again once the others have
    theirs: a square pixel shared with labels, points, what is blocked or the outside costs as much as a hundred pixels
    of distance.

    Args:
        points: float64 [N, 2], their centres.
        sizes: float64 [N, 2], width and height of each label.
        picture: float64 [4], where labels may lie.
        blocked: float64 [M, 4], what labels should not cover either.
        radius_px: Of a point's mark.

    Returns:
        float64 [N, 4].
    """
    fixed = np.concatenate([points - radius_px, points + radius_px], axis=1)
    fixed = np.concatenate([fixed, blocked])
    around, distances = _places()
    # The first turn meets the others' labels nowhere: their boxes are empty.
    chosen = np.full((len(points), 4), -np.inf)
    for _ in range(_PASSES):
        before = chosen.copy()
        for place, (point, size) in enumerate(zip(points, sizes, strict=True)):
            middles = point + around * (distances[:, None] + radius_px + size / 2)
            candidates = np.concatenate([middles - size / 2, middles + size / 2], axis=1)
            others = np.concatenate([np.delete(chosen, place, axis=0), fixed])
            outside = size.prod() - shared_area(candidates, picture[None])[:, 0]
            covered = outside + shared_area(candidates, others).sum(1)
            chosen[place] = candidates[np.argmin(_COVERING * covered + distances)]
        if np.array_equal(chosen, before):
            break
    return chosen


def shared_area(first: Boxes, second: Boxes) -> Boxes:
    """What each box of `first` has in common with each of `second`: float64 [N, M], square pixels."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    area: Boxes = np.maximum(high - low, 0.0).prod(2)
    return area


def _places() -> tuple[Boxes, Boxes]:
    """Directions float64 [P, 2] and distances float64 [P] of a label from its point, the best first."""
    turns = sorted(range(DIRECTIONS), key=lambda turn: min(turn, DIRECTIONS - turn))  # to the right first
    angles = [2 * math.pi * turn / DIRECTIONS for turn in turns]
    around = np.array([(math.cos(angle), math.sin(angle)) for angle in angles])
    return np.tile(around, (len(DISTANCES_PX), 1)), np.repeat(DISTANCES_PX, DIRECTIONS)


def nearest_point(box: Boxes, point: Boxes) -> Boxes:
    """The point of a box [4] that is nearest to a point [2], where a line from there ends."""
    return np.clip(point, box[:2], box[2:])
