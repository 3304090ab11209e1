"""Do two images show the same picture? SIFT matches that one affine map explains.

The rule (measured on photographs under ten edits, see `scripts/benchmarks/verify.py`): RootSIFT descriptors
(Arandjelovic and Zisserman, CVPR 2012), mutual nearest neighbours that pass Lowe's ratio test, and the
largest number of them that one plausible affine map brings to within a few pixels. It survives crops,
rotations, overlays and colour changes, where a perceptual hash fails; the hash survives blur, where SIFT fails.

SIFT descriptors are not invariant to mirroring: a mirrored copy is found by describing the mirrored image too.
"""

import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from distill.data.types import Image

MAX_FEATURES = 500
"""Of an image, the strongest: a pair costs their product. 1,000 found 1 % more of the crops to a quarter."""

MIN_CONTRAST = 0.01
"""A quarter of OpenCV's default: fog and enlarged thumbnails have keypoints too, and the strongest are kept anyway."""

HYPOTHESES = 1_000
"""Affine maps tried. With a third of the matches right, the chance that none of 1,000 triples is: 1e-16."""

MAX_SCALE = 8.0
"""Between the two images, either way: beyond it, a few keypoints on a spot match anything."""

MAX_STRETCH = 3.0
"""Ratio of the affine map's singular values. Resizing to a square stretches by 1.3 to 2."""

_SEED = 20_240_913  # any fixed number: the same pair gives the same answer

Points = NDArray[np.float32]


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Features:
    """What SIFT saw in an image.

    Attributes:
        points: float32 [N, 2], x and y in px of the resized image.
        descriptors: uint8 [N, 128], SIFT's own numbers: a quarter of the memory of RootSIFT's, which `match` makes.
    """

    points: Points
    descriptors: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.points.nbytes + self.descriptors.nbytes


def describe(image: Image, side_px: int) -> Features:
    """Finds the keypoints of an image and describes them.

    Args:
        image: uint8 [H, W, 3], RGB.
        side_px: The image is resized to this short side first; a smaller one is enlarged, since SIFT sees
            next to nothing in an image of 32 px. The long side is kept below four times of it.

    Returns:
        At most `MAX_FEATURES`, in an order that depends on the image alone.
    """
    grey = _resized(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), side_px)
    keypoints, descriptors = _sift().detectAndCompute(grey, None)
    if descriptors is None:
        return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
    points = np.array([point.pt for point in keypoints], np.float32)
    strength = np.array([point.response for point in keypoints], np.float32)
    angle = np.array([point.angle for point in keypoints], np.float32)
    order = np.lexsort((angle, points[:, 1], points[:, 0], -strength))[:MAX_FEATURES]
    return Features(points[order], descriptors[order].astype(np.uint8))


def inliers(first: Features, second: Features, *, ratio: float, ransac_px: float) -> int:
    """Counts the matches that one affine map explains; a few for unrelated images, tens for copies.

    Args:
        first: Of one image.
        second: Of the other.
        ratio: Lowe's: the distance to the nearest descriptor over that to the second nearest, below this.
        ransac_px: A match is explained if the map misses it by at most this, in px of the resized images.

    Returns:
        Distinct positions: keypoints on one spot (SIFT describes a spot once for each of its orientations)
        count once. 0 where fewer than three matches exist.
    """
    pairs = mutual_matches(first, second, ratio)
    source, target = first.points[pairs[:, 0]], second.points[pairs[:, 1]]
    explained = largest_consensus(source, target, ransac_px)
    return min(_distinct(source[explained]), _distinct(target[explained]))


def mutual_matches(first: Features, second: Features, ratio: float) -> NDArray[np.intp]:
    """Pairs of descriptors that are each other's nearest and pass the ratio test: intp [M, 2], by first index."""
    if len(first.points) < 2 or len(second.points) < 2:
        return np.zeros((0, 2), np.intp)
    similarity = _root_sift(first.descriptors) @ _root_sift(second.descriptors).T
    nearest = similarity.argmax(axis=1)
    back = similarity.argmax(axis=0)
    rows = np.arange(len(similarity))
    best = similarity[rows, nearest]
    similarity[rows, nearest] = -np.inf
    runner_up = similarity.max(axis=1)
    # |a - b|^2 = 2 - 2ab for unit vectors, so the ratio of the distances is a ratio of these, squared.
    passed = (back[nearest] == rows) & ((1.0 - best) < ratio**2 * (1.0 - runner_up))
    return np.stack([rows[passed], nearest[passed]], axis=1)


def largest_consensus(source: Points, target: Points, tolerance_px: float) -> NDArray[np.bool_]:
    """RANSAC: the matches that the best affine map explains.

    Three matches give a map; all triples are tried if there are at most `HYPOTHESES`, else so many of a fixed
    seed. Maps that mirror, or that scale or stretch beyond `MAX_SCALE` and `MAX_STRETCH`, are no copy's.
    The best is fitted once more to all that it explains. OpenCV's `estimateAffine2D` does the same but
    returns NaN for matches on one line and counts maps that collapse an image onto a spot.

    Args:
        source: float32 [M, 2].
        target: float32 [M, 2].
        tolerance_px: Largest distance of an explained match.

    Returns:
        bool [M]; all False where no plausible map exists.
    """
    nothing = np.zeros(len(source), np.bool_)
    if len(source) < 3:
        return nothing
    triples = _triples(len(source))
    maps = _affine_maps(source[triples].astype(np.float64), target[triples].astype(np.float64))
    if not len(maps):
        return nothing
    homogeneous = np.concatenate([source, np.ones((len(source), 1), np.float32)], axis=1).astype(np.float64)
    explained = _explained(maps, homogeneous, target, tolerance_px)
    best: NDArray[np.bool_] = explained[explained.sum(axis=1).argmax()]
    refined, *_ = np.linalg.lstsq(homogeneous[best], target[best].astype(np.float64), rcond=None)
    if not _plausible(refined[:2].T[None])[0]:
        return best
    again: NDArray[np.bool_] = _explained(refined.T[None], homogeneous, target, tolerance_px)[0]
    return again if again.sum() > best.sum() else best


Key = TypeVar("Key", bound=Hashable)


class FeatureCache(Generic[Key]):
    """Features of the images that come up again and again, in bounded memory; the least recently used go first."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._held: dict[Key, Features] = {}
        self._bytes = 0

    def get(self, key: Key, compute: Callable[[Key], Features]) -> Features:
        """The features of an image; `compute` is called where they are not held."""
        features = self._held.pop(key, None)
        if features is None:
            features = compute(key)
            self._bytes += features.nbytes
        self._held[key] = features  # the last in the dict is the last used
        while self._bytes > self._memory_bytes and len(self._held) > 1:
            oldest = next(iter(self._held))
            self._bytes -= self._held.pop(oldest).nbytes
        return features


def _sift() -> cv2.SIFT:
    return cv2.SIFT.create(nfeatures=MAX_FEATURES, contrastThreshold=MIN_CONTRAST)


def _resized(grey: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    height, width = grey.shape
    scale = min(side_px / min(height, width), 4 * side_px / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(grey, size, interpolation=interpolation)  # type: ignore[no-any-return]


def _root_sift(descriptors: NDArray[np.uint8]) -> NDArray[np.float32]:
    """L1-normalised, then the square root: unit vectors whose product is Hellinger's kernel."""
    values = descriptors.astype(np.float32)
    unit: NDArray[np.float32] = np.sqrt(values / np.maximum(values.sum(axis=1, keepdims=True), 1.0))
    return unit


def _triples(matches: int) -> NDArray[np.intp]:
    if matches * (matches - 1) * (matches - 2) // 6 <= HYPOTHESES:
        return np.array(list(itertools.combinations(range(matches), 3)), np.intp)
    rng = np.random.Generator(np.random.Philox(_SEED))
    triples: NDArray[np.intp] = rng.integers(0, matches, (HYPOTHESES, 3))
    a, b, c = triples.T
    distinct: NDArray[np.intp] = triples[(a != b) & (b != c) & (a != c)]
    return distinct


def _affine_maps(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The plausible maps [K, 2, 3] among those that bring three points [T, 3, 2] exactly to three others."""
    before, after = _edges(source), _edges(target)
    area = _determinants(before)
    usable = np.abs(area) > 1.0  # px^2: three points on a line give no map
    before, after, source, target = before[usable], after[usable], source[usable], target[usable]
    # linear @ before = after; the inverse of a 2 x 2 matrix written out is ten times faster than LAPACK.
    inverse = np.empty_like(before)
    inverse[:, 0, 0], inverse[:, 1, 1] = before[:, 1, 1], before[:, 0, 0]
    inverse[:, 0, 1], inverse[:, 1, 0] = -before[:, 0, 1], -before[:, 1, 0]
    linear = after @ (inverse / area[usable, None, None])
    good = _plausible(linear)
    linear, source, target = linear[good], source[good], target[good]
    shift = target[:, 0, :, None] - linear @ source[:, 0, :, None]
    return np.concatenate([linear, shift], axis=2)


def _edges(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two sides of each triangle [T, 3, 2], as the columns of [T, 2, 2]."""
    return (points[:, 1:] - points[:, :1]).transpose(0, 2, 1)


def _determinants(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    return matrices[:, 0, 0] * matrices[:, 1, 1] - matrices[:, 0, 1] * matrices[:, 1, 0]


def _plausible(linear: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether a copy can be made by the linear maps [K, 2, 2]."""
    determinant = _determinants(linear)
    squares = (linear**2).sum(axis=(1, 2))
    # With singular values s >= t: determinant = st and squares = s^2 + t^2, so squares / determinant = s/t + t/s.
    stretched = squares <= determinant * (MAX_STRETCH + 1.0 / MAX_STRETCH)
    scaled = (determinant >= MAX_SCALE**-2) & (determinant <= MAX_SCALE**2)
    return stretched & scaled  # type: ignore[no-any-return]


def _explained(
    maps: NDArray[np.float64], homogeneous: NDArray[np.float64], target: Points, tolerance_px: float
) -> NDArray[np.bool_]:
    """Bool [K, M]: which of the matches each of the maps explains."""
    count = len(maps)
    moved = maps.reshape(2 * count, 3) @ homogeneous.T
    off = moved.reshape(count, 2, -1) - target.T.astype(np.float64)
    return off[:, 0] ** 2 + off[:, 1] ** 2 <= tolerance_px**2


def _distinct(points: Points) -> int:
    return len(np.unique(np.round(points), axis=0))
