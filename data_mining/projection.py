"""Centring and PCA of embeddings: fewer dimensions, and cosines that tell images apart.

ReLU features share a large mean, which makes every pair look alike: it is subtracted first. The directions that vary
most tell the classes apart, not the images of one class: whitening gives every direction an equal say, as copy
detection does (Pizzi et al. 2022, SSCD, arXiv 2202.10261). With the embeddings of a classifier of CIFAR-10, among a
million candidate pairs of 48,000 x 10,000 images, 93 % instead of 63 % of the copies cropped to 80 % were candidates,
and 92 % instead of 61 % of those rotated.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RANK_TOLERANCE = 1e-9  # of the largest variance: below it a direction holds rounding errors only
_WHITENING_FLOOR = 1e-4  # of the largest variance, added to each: smaller ones are noise, and must not be made equal


@dataclass(frozen=True)
class Projection:
    """y = normalised((x - mean) components).

    Attributes:
        mean: float32 [D].
        components: float32 [D, d], orthogonal columns, descending by variance, the largest entry of each positive; of
            length 1, or when whitened of at least 1 and at most 100.
        explained: The share of the variance that they keep, in [0, 1].
    """

    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    explained: float

    def to_array(self) -> NDArray[np.float32]:
        """float32 [2 + d, D]: mean, explained (repeated), components; for a .npy file."""
        explained = np.full_like(self.mean, self.explained)
        return np.vstack([self.mean, explained, self.components.T]).astype(np.float32)

    @classmethod
    def from_array(cls, array: NDArray[np.float32]) -> "Projection":
        """What `to_array` made."""
        return cls(np.array(array[0]), np.ascontiguousarray(array[2:].T), float(array[1, 0]))

    def apply(self, embeddings: NDArray[np.float32]) -> NDArray[np.float16]:
        """Projects [N, D] to float16 [N, d] of length 1; what equals the mean becomes 0.

        Computed in float64, so that neither the batch nor the number of threads shows in float16.
        """
        centred = embeddings.astype(np.float64) - self.mean
        projected = centred @ self.components.astype(np.float64)
        length = np.linalg.norm(projected, axis=1, keepdims=True)
        # A remainder of rounding errors must not be blown up to a direction.
        gain = float(np.linalg.norm(self.components, axis=0).max())
        floor = 1e-6 * gain * (np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True) + 1e-30)
        unit: NDArray[np.float64] = np.where(length > floor, projected / np.maximum(length, floor), 0.0)
        return unit.astype(np.float16)


def fit_projection(embeddings: NDArray[np.float32], dimension: int, *, whiten: bool = False) -> Projection:
    """Mean and principal components of a sample.

    Args:
        embeddings: float32 [N, D], N >= 1, finite.
        dimension: d at most; fewer where the sample spans fewer, but at least 1.
        whiten: Divide each direction by its standard deviation, relative to the first.
    """
    sample = embeddings.astype(np.float64)
    mean = sample.mean(axis=0)
    sample -= mean
    variances, vectors = np.linalg.eigh(sample.T @ sample / len(sample))
    variances, vectors = np.maximum(variances[::-1], 0.0), vectors[:, ::-1]
    # below float32's resolution of the values themselves there is no direction either
    floor = max(variances[0] * _RANK_TOLERANCE, (np.finfo(np.float32).eps * np.abs(mean).max(initial=0.0)) ** 2)
    kept = max(1, min(dimension, int((variances > floor).sum())))
    components = vectors[:, :kept]
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=0)[None], axis=0)
    components = components * np.where(largest < 0, -1.0, 1.0)
    if whiten and variances[0] > 0:
        ridge = _WHITENING_FLOOR * variances[0]
        components = components * np.sqrt((variances[0] + ridge) / (variances[:kept] + ridge))
    total = float(variances.sum())
    explained = float(variances[:kept].sum()) / total if total > 0 else 1.0
    return Projection(mean.astype(np.float32), components.astype(np.float32), explained)
