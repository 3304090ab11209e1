"""The best classes of an image: what is kept of a teacher's logits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ranking:
    """The P most probable classes of N images.

    Attributes:
        classes: uint16 [N, P], descending by probability; of equal ones the lower class first.
        probabilities: float32 [N, P], softmax over all classes.
        rest: float32 [N], the mass of all other classes.
    """

    classes: NDArray[np.uint16]
    probabilities: NDArray[np.float32]
    rest: NDArray[np.float32]


def rank_classes(logits: NDArray[np.float32], count: int) -> Ranking:
    """Softmax in float64, and the `count` best classes (all, where there are fewer).

    A row's result depends on that row alone, bit by bit: not on the batch that it came in.

    Args:
        logits: float32 [N, C], finite, C <= 65536.
        count: P, >= 1.
    """
    count = min(count, logits.shape[1])
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    classes = _best(logits, count)
    best = np.take_along_axis(exponentials, classes, axis=1)
    np.put_along_axis(exponentials, classes, 0.0, axis=1)
    others = exponentials.sum(axis=1)
    total = best.sum(axis=1) + others
    return Ranking(
        classes.astype(np.uint16),
        (best / total[:, None]).astype(np.float32),
        (others / total).astype(np.float32),
    )


def _best(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Indices [N, count] of the greatest values of each row, descending, the lower index first of equal ones."""
    if count == logits.shape[1]:
        return np.argsort(-logits, axis=1, kind="stable")
    found = np.sort(np.argpartition(-logits, count - 1, axis=1)[:, :count], axis=1)
    values = np.take_along_axis(logits, found, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    best = np.take_along_axis(found, order, axis=1)
    # argpartition takes any of equal values: where the last place is shared, sort the whole row
    shared = (logits >= values.min(axis=1, keepdims=True)).sum(axis=1) > count
    best[shared] = np.argsort(-logits[shared], axis=1, kind="stable")[:, :count]
    return best
