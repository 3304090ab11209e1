"""Whether a difference between two rows is more than chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIRMED, NOT_CONFIRMED, UNDECIDED = "confirmed", "not confirmed", "undecided"


@dataclass(frozen=True)
class Difference:
    """Of two means.

    Attributes:
        mean: After less before.
        margin: Half of the 95 % confidence interval; None where there are too few values to tell.
    """

    mean: float
    margin: float | None


def compare(after: Sequence[float], before: Sequence[float], *, paired: bool) -> Difference:
    """The difference of two means and its 95 % confidence interval, by Student's t.

    Args:
        after: A value a seed.
        before: Likewise; of the same seeds in the same order where they are paired.
        paired: Whether the values belong together seed by seed, so that only the differences' spread matters.
            Otherwise Welch's interval (Biometrika 34, 1947), which lets the two spreads differ.

    Raises:
        ValueError: There is no value, or paired ones are not as many.
    """
    if paired:
        return _one_sample([a - b for a, b in zip(after, before, strict=True)])
    if not after or not before:
        raise ValueError("expected at least one value on either side")
    mean = float(np.mean(after) - np.mean(before))
    if min(len(after), len(before)) < 2:
        return Difference(mean, None)
    variances = np.array([np.var(values, ddof=1) / len(values) for values in (after, before)])
    total = float(variances.sum())
    if total == 0:
        return Difference(mean, 0.0)
    freedom = total**2 / float((variances**2 / [len(after) - 1, len(before) - 1]).sum())
    return Difference(mean, t_quantile(freedom) * math.sqrt(total))


def _one_sample(values: Sequence[float]) -> Difference:
    if not values:
        raise ValueError("expected at least one value on either side")
    mean = float(np.mean(values))
    if len(values) < 2:
        return Difference(mean, None)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Difference(mean, t_quantile(len(values) - 1) * error)


def t_quantile(freedom: float, confidence: float = 0.95) -> float:
    """The t within which a share `confidence` of Student's distribution lies, for `freedom` >= 1.

    With t = sqrt(freedom) tan(a) the density becomes cos(a) ** (freedom - 1) on (-pi/2, pi/2), which is integrated by
    the trapezoidal rule.
    """
    angles = np.linspace(0.0, math.pi / 2, 100_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(confidence, below / below[-1], angles)))


def verdict(difference: Difference, direction: float) -> str:
    """Confirmed where the whole interval lies on the published side of 0, not confirmed where it lies on the other."""
    if difference.margin is None or abs(difference.mean) <= difference.margin:
        return UNDECIDED
    return CONFIRMED if difference.mean * direction > 0 else NOT_CONFIRMED
