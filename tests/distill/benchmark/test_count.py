from math import prod

import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn

from distill.benchmark.count import multiply_accumulates, parameters
from distill.models import create_model
from distill.models.plan import plan_network
from distill.models.specs import SPECS


@pytest.mark.parametrize(
    ("name", "size_px", "giga"),
    [
        ("ResNet50_vd", 224, 4.33),
        ("ResNet101_vd", 224, 8.04),
        ("ResNet152_vd", 224, 11.75),
        ("ResNet50_vd", 320, 8.83),
        ("ResNeXt101_32x16d_wsl", 224, 36.16),
    ],
)
def test_multiply_accumulates_are_the_known_ones(name: str, size_px: int, giga: float) -> None:
    assert round(multiply_accumulates(plan_network(SPECS[name]), size_px) / 1e9, 2) == giga


def test_parameters_are_the_known_ones() -> None:
    assert round(parameters(plan_network(SPECS["ResNeXt101_32x16d_wsl"])) / 1e6, 2) == 194.03
    # by hand: stem, three deep 3x3 convolutions with their scale and shift
    deep = 3 * 32 * 9 + 32 * 32 * 9 + 32 * 64 * 9 + 2 * (32 + 32 + 64)
    plain = 3 * 64 * 49 + 2 * 64
    assert parameters(plan_network(SPECS["ResNet50_vd"])) - parameters(plan_network(SPECS["ResNet50"])) == deep - plain


@pytest.mark.parametrize(
    ("name", "size", "stem_stride"),
    [
        ("ResNet18", (28, 28), 4),
        ("ResNet34_vd", (45, 31), 2),
        ("ResNet50_vd", (33, 64), 4),
        ("ResNet18", (28, 30), 1),
        ("ResNeXt101_32x8d_wsl", (37, 37), 4),
    ],
)
def test_counts_equal_those_of_the_layers_that_ran(name: str, size: tuple[int, int], stem_stride: int) -> None:
    counted = []

    def count_output(layer: nn.Layer, _: object, output: paddle.Tensor) -> None:
        out_first = layer.weight.shape if isinstance(layer, nn.Conv2D) else layer.weight.shape[::-1]
        counted.append(prod(output.shape) * prod(out_first[1:]))

    model = create_model(name, 9, width=0.25, stem_stride=stem_stride)
    for layer in model.sublayers():
        if isinstance(layer, nn.Conv2D | nn.Linear):
            layer.register_forward_post_hook(count_output)
    model(paddle.zeros([1, 3, *size]))
    plan = plan_network(SPECS[name], 9, width=0.25, stem_stride=stem_stride)
    assert multiply_accumulates(plan, *size) == sum(counted)
    assert parameters(plan) == sum(prod(value.shape) for value in model.parameters() if value.trainable)


@given(name=st.sampled_from(list(SPECS)), size_px=st.integers(28, 512))
def test_a_larger_image_never_takes_less(name: str, size_px: int) -> None:
    plan = plan_network(SPECS[name])
    assert 0 < multiply_accumulates(plan, size_px) <= multiply_accumulates(plan, size_px + 1)
    assert multiply_accumulates(plan, size_px) == multiply_accumulates(plan, size_px, size_px)
