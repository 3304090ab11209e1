from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from skimage import data

from distill.data.policies import AUTOAUGMENT, OPERATIONS, RANDAUGMENT, apply_policy, drawn_operations, posterized_bits
from distill.data.random import Stream, generator
from distill.recipe import AutoAugmentPolicy, RandAugmentPolicy

AUTO = AutoAugmentPolicy(kind="autoaugment")

# Table 9 of the paper, in its own notation: operation, probability in tenths, magnitude; twice in a line.
TABLE = """
Posterize    4 8  Rotate        6 9
Solarize     6 5  AutoContrast  6 5
Equalize     8 8  Equalize      6 3
Posterize    6 7  Posterize     6 6
Equalize     4 7  Solarize      2 4
Equalize     4 4  Rotate        8 8
Solarize     6 3  Equalize      6 7
Posterize    8 5  Equalize     10 2
Rotate       2 3  Solarize      6 8
Equalize     6 8  Posterize     4 6
Rotate       8 8  Color         4 0
Rotate       4 9  Equalize      6 2
Equalize     0 7  Equalize      8 8
Invert       6 4  Equalize     10 8
Color        6 4  Contrast     10 8
Rotate       8 8  Color        10 2
Color        8 8  Solarize      8 7
Sharpness    4 7  Invert        6 8
ShearX       6 5  Equalize     10 9
Color        4 0  Equalize      6 3
Equalize     4 7  Solarize      2 4
Solarize     6 5  AutoContrast  6 5
Invert       6 4  Equalize     10 8
Color        6 4  Contrast     10 8
Equalize     8 8  Equalize      6 3
"""


def rand(operations=2, magnitude=9):
    return RandAugmentPolicy(kind="randaugment", operations=operations, magnitude=magnitude)


def photograph():
    return np.ascontiguousarray(data.chelsea()[:120, 100:220])


def randoms(count):
    return (generator(5, 1, 2, index, Stream.VIEW) for index in range(count))


def test_the_table_of_the_paper():
    names = {"ShearX": "shear_x"}
    expected = []
    for line in TABLE.split("\n")[1:-1]:
        first, p1, m1, second, p2, m2 = line.split()
        steps = ((first, int(p1) / 10, int(m1)), (second, int(p2) / 10, int(m2)))
        expected.append(tuple((names.get(name, name.lower()), p, m) for name, p, m in steps))
    assert len(expected) == 25
    assert tuple(expected) == AUTOAUGMENT


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("level", range(10))
def test_strengths_are_those_of_the_published_code(level, sign):
    """Its ranges: NumPy's linspace with ten values, as PaddleClas writes them down."""
    image, strength = photograph(), sign * level / 9
    pillow = Image.fromarray(image)

    def affine(*matrix):
        return pillow.transform(pillow.size, Image.Transform.AFFINE, matrix, fillcolor=(128, 128, 128))

    shear, shift = sign * np.linspace(0, 0.3, 10)[level], sign * np.linspace(0, 150 / 331, 10)[level] * 120
    factor = 1 + sign * np.linspace(0.0, 0.9, 10)[level]
    expected = {
        "identity": pillow,
        "shear_x": affine(1, shear, 0, 0, 1, 0),
        "shear_y": affine(1, 0, 0, shear, 1, 0),
        "translate_x": affine(1, 0, shift, 0, 1, 0),
        "translate_y": affine(1, 0, 0, 0, 1, shift),
        "rotate": pillow.rotate(sign * np.linspace(0, 30, 10)[level], fillcolor=(128, 128, 128)),
        "color": ImageEnhance.Color(pillow).enhance(factor),
        "contrast": ImageEnhance.Contrast(pillow).enhance(factor),
        "brightness": ImageEnhance.Brightness(pillow).enhance(factor),
        "sharpness": ImageEnhance.Sharpness(pillow).enhance(factor),
        "posterize": ImageOps.posterize(pillow, int(np.round(np.linspace(8, 4, 10), 0)[level])),
        "solarize": ImageOps.solarize(pillow, np.linspace(256, 0, 10)[level]),
        "autocontrast": ImageOps.autocontrast(pillow),
        "equalize": ImageOps.equalize(pillow),
        "invert": ImageOps.invert(pillow),
    }
    assert expected.keys() == OPERATIONS.keys()
    for name, operation in OPERATIONS.items():
        np.testing.assert_array_equal(operation(image, strength), np.asarray(expected[name]), err_msg=name)


def test_strength_0_changes_nothing_but_what_has_no_strength():
    image = photograph()
    for name, operation in OPERATIONS.items():
        if name not in ("autocontrast", "equalize", "invert"):
            np.testing.assert_array_equal(operation(image, 0.0), image, err_msg=name)


def test_posterized_bits():
    assert [posterized_bits(level / 9) for level in range(10)] == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]


def test_autoaugment_draws_each_step_as_often_as_the_table_says():
    drawn = [drawn_operations(AUTO, random) for random in randoms(20_000)]
    counts = Counter(name for steps in drawn for name, _ in steps)
    expected = Counter()
    for steps in AUTOAUGMENT:
        for name, probability, _ in steps:
            expected[name] += 20_000 / 25 * probability
    assert counts.keys() == expected.keys()
    assert sum(counts.values()) < 40_000
    for name, count in counts.items():
        assert abs(count - expected[name]) < 5 * expected[name] ** 0.5, name
    strengths = {strength for steps in drawn for name, strength in steps if name == "rotate"}
    assert strengths == {sign * level / 9 for sign in (-1, 1) for level in (3, 8, 9)}


def test_autoaugment_keeps_the_steps_in_order():
    orders = {
        tuple(name for name, _ in steps) for steps in (drawn_operations(AUTO, random) for random in randoms(3000))
    }
    allowed = {tuple(step.operation for step in steps) for steps in AUTOAUGMENT}
    allowed |= {names[:1] for names in allowed} | {names[1:] for names in allowed} | {()}
    assert orders <= allowed and len(orders) > 20


def test_randaugment_is_uniform_over_fourteen_operations():
    assert len(RANDAUGMENT) == len(set(RANDAUGMENT)) == 14
    drawn = [step for random in randoms(4000) for step in drawn_operations(rand(3, 7.5), random)]
    assert len(drawn) == 12_000
    counts = Counter(name for name, _ in drawn)
    assert set(counts) == set(RANDAUGMENT)
    assert stats.chisquare(list(counts.values())).pvalue > 0.001
    signs = Counter(strength for _, strength in drawn)
    assert signs.keys() == {-0.75, 0.75}
    assert stats.chisquare(list(signs.values())).pvalue > 0.001


def test_randaugment_of_magnitude_0_and_10():
    assert {abs(s) for random in randoms(50) for _, s in drawn_operations(rand(2, 0), random)} == {0}
    assert {abs(s) for random in randoms(50) for _, s in drawn_operations(rand(2, 10), random)} == {1}


@pytest.mark.parametrize("policy", [AUTO, rand(), rand(5, 10)], ids=["autoaugment", "randaugment", "strong"])
def test_a_view_keeps_shape_and_type_and_follows_from_its_key(policy):
    image = photograph()
    before, changed = image.copy(), 0
    for first, second in zip(randoms(60), randoms(60), strict=True):
        received = apply_policy(image, policy, first)
        assert received.shape == image.shape and received.dtype == np.uint8 and received.flags.c_contiguous
        np.testing.assert_array_equal(apply_policy(image, policy, second), received)
        np.testing.assert_array_equal(image, before)
        changed += not np.array_equal(received, image)
    assert changed > 40
