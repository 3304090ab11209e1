"""Which operations an image undergoes, and how strongly: AutoAugment and RandAugment.

A strength in [-1, 1] means the same in both policies. The ranges are those of AutoAugment's paper (Cubuk et al. 2018,
arXiv 1805.09501), read as PaddleClas reads them, whose networks this project repeats: every operation grows stronger
with the level, and color, contrast, brightness and sharpness begin with no change and go either way. The paper gives
the ranges and not their direction; code of its authors runs those four from a factor of 0.1 to one of 1.9 with the
level instead, so that its level 0 is a strong change.

The sign is drawn for every operation that has one. (PaddleClas rotates in one direction only, the authors in both.)
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from distill.data import operations
from distill.data.types import Image
from distill.recipe import AutoAugmentPolicy, RandAugmentPolicy

_MOST_SHEAR = 0.3
_MOST_TRANSLATION = 150 / 331  # of the side; the paper: 150 px of 331
_MOST_DEGREES = 30.0
_MOST_ENHANCEMENT = 0.9  # a factor between 0.1 and 1.9
_POSTERIZED_BITS = (8, 4)
_SOLARIZE_THRESHOLD = 256
_LEVELS = 9  # AutoAugment's magnitudes are 0, 1, ... 9
_GREATEST_MAGNITUDE = 10.0  # RandAugment's

OPERATIONS: dict[str, Callable[[Image, float], Image]] = {
    "identity": lambda image, strength: image,
    "shear_x": lambda image, strength: operations.shear_x(image, _MOST_SHEAR * strength),
    "shear_y": lambda image, strength: operations.shear_y(image, _MOST_SHEAR * strength),
    "translate_x": lambda image, strength: operations.translate_x(image, _MOST_TRANSLATION * strength * image.shape[1]),
    "translate_y": lambda image, strength: operations.translate_y(image, _MOST_TRANSLATION * strength * image.shape[0]),
    "rotate": lambda image, strength: operations.rotate(image, _MOST_DEGREES * strength),
    "color": lambda image, strength: operations.color(image, 1 + _MOST_ENHANCEMENT * strength),
    "contrast": lambda image, strength: operations.contrast(image, 1 + _MOST_ENHANCEMENT * strength),
    "brightness": lambda image, strength: operations.brightness(image, 1 + _MOST_ENHANCEMENT * strength),
    "sharpness": lambda image, strength: operations.sharpness(image, 1 + _MOST_ENHANCEMENT * strength),
    "posterize": lambda image, strength: operations.posterize(image, posterized_bits(abs(strength))),
    "solarize": lambda image, strength: operations.solarize(image, _SOLARIZE_THRESHOLD * (1 - abs(strength))),
    "autocontrast": lambda image, strength: operations.autocontrast(image),
    "equalize": lambda image, strength: operations.equalize(image),
    "invert": lambda image, strength: operations.invert(image),
}


class Step(NamedTuple):
    """An operation of a sub-policy: its name, how often it is done, and its level, 0-9."""

    operation: str
    probability: float
    level: int


# Cubuk et al. 2018, table 9, in its order. Five of them occur twice there.
AUTOAUGMENT: tuple[tuple[Step, Step], ...] = (
    (Step("posterize", 0.4, 8), Step("rotate", 0.6, 9)),
    (Step("solarize", 0.6, 5), Step("autocontrast", 0.6, 5)),
    (Step("equalize", 0.8, 8), Step("equalize", 0.6, 3)),
    (Step("posterize", 0.6, 7), Step("posterize", 0.6, 6)),
    (Step("equalize", 0.4, 7), Step("solarize", 0.2, 4)),
    (Step("equalize", 0.4, 4), Step("rotate", 0.8, 8)),
    (Step("solarize", 0.6, 3), Step("equalize", 0.6, 7)),
    (Step("posterize", 0.8, 5), Step("equalize", 1.0, 2)),
    (Step("rotate", 0.2, 3), Step("solarize", 0.6, 8)),
    (Step("equalize", 0.6, 8), Step("posterize", 0.4, 6)),
    (Step("rotate", 0.8, 8), Step("color", 0.4, 0)),
    (Step("rotate", 0.4, 9), Step("equalize", 0.6, 2)),
    (Step("equalize", 0.0, 7), Step("equalize", 0.8, 8)),
    (Step("invert", 0.6, 4), Step("equalize", 1.0, 8)),
    (Step("color", 0.6, 4), Step("contrast", 1.0, 8)),
    (Step("rotate", 0.8, 8), Step("color", 1.0, 2)),
    (Step("color", 0.8, 8), Step("solarize", 0.8, 7)),
    (Step("sharpness", 0.4, 7), Step("invert", 0.6, 8)),
    (Step("shear_x", 0.6, 5), Step("equalize", 1.0, 9)),
    (Step("color", 0.4, 0), Step("equalize", 0.6, 3)),
    (Step("equalize", 0.4, 7), Step("solarize", 0.2, 4)),
    (Step("solarize", 0.6, 5), Step("autocontrast", 0.6, 5)),
    (Step("invert", 0.6, 4), Step("equalize", 1.0, 8)),
    (Step("color", 0.6, 4), Step("contrast", 1.0, 8)),
    (Step("equalize", 0.8, 8), Step("equalize", 0.6, 3)),
)

# Cubuk et al. 2020, section 3: those of AutoAugment, with identity and without invert
RANDAUGMENT = tuple(name for name in OPERATIONS if name != "invert")


def apply_policy(image: Image, policy: AutoAugmentPolicy | RandAugmentPolicy, random: np.random.Generator) -> Image:
    """What a policy makes of an image; the image itself where nothing is drawn.

    AutoAugment draws one of its sub-policies, and does each of its two steps with the step's probability.
    RandAugment draws `operations` of fourteen, each as likely and possibly one twice, and does them with strength
    magnitude / 10 (Cubuk et al. 2020, arXiv 1909.13719: 0-10, 10 being the greatest of AutoAugment's ranges; its
    magnitudes beyond 10, for the largest networks, leave these ranges and are refused).

    Args:
        image: uint8 [H, W, 3], RGB.
        policy: Which of the two, and its settings.
        random: The sample's own generator.

    Returns:
        uint8 [H, W, 3].
    """
    for operation, strength in drawn_operations(policy, random):
        image = OPERATIONS[operation](image, strength)
    return image


def drawn_operations(
    policy: AutoAugmentPolicy | RandAugmentPolicy, random: np.random.Generator
) -> list[tuple[str, float]]:
    """What `apply_policy` does to an image: names in OPERATIONS and strengths in [-1, 1], in order."""
    match policy:
        case AutoAugmentPolicy():
            steps = AUTOAUGMENT[int(random.integers(len(AUTOAUGMENT)))]
            chances, signs = random.random(2).tolist(), _signs(random, 2)
            return [
                (step.operation, sign * step.level / _LEVELS)
                for step, chance, sign in zip(steps, chances, signs, strict=True)
                if chance < step.probability
            ]
        case RandAugmentPolicy():
            drawn = random.integers(len(RANDAUGMENT), size=policy.operations).tolist()
            strength = policy.magnitude / _GREATEST_MAGNITUDE
            return [
                (RANDAUGMENT[number], sign * strength)
                for number, sign in zip(drawn, _signs(random, policy.operations), strict=True)
            ]


def posterized_bits(strength: float) -> int:
    """How many bits remain of a byte: 8 at strength 0 down to 4 at 1."""
    most, fewest = _POSTERIZED_BITS
    return round(most - (most - fewest) * strength)


def _signs(random: np.random.Generator, count: int) -> list[int]:
    return [1 if number < 0.5 else -1 for number in random.random(count).tolist()]
