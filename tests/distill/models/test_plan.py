from importlib import resources
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.models.plan import conv_layers, plan_network, state_shapes
from distill.models.specs import SPECS

WITHOUT_MANIFEST = "ResNeXt101_32x48d_wsl"


def published_manifest(name: str) -> dict[str, tuple[int, ...]]:
    text = resources.files("distill.models").joinpath(f"manifests/{name}.tsv").read_text(encoding="utf-8")
    header, *lines = text.splitlines()
    assert header == "key\tshape"
    pairs = [line.split("\t") for line in lines]
    return {key: tuple(int(size) for size in shape.split("x")) for key, shape in pairs}


@pytest.mark.parametrize("name", [name for name in SPECS if name != WITHOUT_MANIFEST])
def test_keys_shapes_and_order_are_the_published_ones(name: str) -> None:
    published = published_manifest(name)
    assert len(published) > 100
    assert list(state_shapes(plan_network(SPECS[name])).items()) == list(published.items())


def test_every_manifest_belongs_to_a_model() -> None:
    files = {path.name for path in resources.files("distill.models").joinpath("manifests").iterdir()}
    assert files == {f"{name}.tsv" for name in SPECS if name != WITHOUT_MANIFEST}


def test_the_widest_network_follows_its_sibling() -> None:
    """No manifest of the 32x48d weights is published: only the blocks' inner channels may differ, by 48/32."""
    sibling = published_manifest("ResNeXt101_32x32d_wsl")
    widest = state_shapes(plan_network(SPECS[WITHOUT_MANIFEST]))
    assert list(widest) == list(sibling)
    changed = {key for key in widest if widest[key] != sibling[key]}
    assert changed == {key for key in sibling if any(f"._conv{i}." in key for i in (0, 1, 2))} - {
        key for key in sibling if "._conv2._bn." in key
    }
    # 829 M parameters as its authors state
    total = sum(prod(shape) for key, shape in widest.items() if not key.endswith(("_mean", "_variance")))
    assert round(total / 1e6) == 828


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50_vd", "ResNet50_vc"])
def test_width_multiplies_every_channel_count(name: str) -> None:
    full = dict(conv_layers(plan_network(SPECS[name])))
    half = dict(conv_layers(plan_network(SPECS[name], 10, width=0.5)))
    assert list(full) == list(half)
    for path, conv in full.items():
        assert half[path].out_channels * 2 == conv.out_channels
        assert half[path].in_channels * 2 == conv.in_channels or (conv.in_channels, half[path].in_channels) == (3, 3)


@given(name=st.sampled_from(list(SPECS)), width=st.floats(0.01, 3.0), stem_stride=st.sampled_from([1, 2, 4]))
def test_every_width_gives_layers_that_fit_together(name: str, width: float, stem_stride: int) -> None:
    plan = plan_network(SPECS[name], 7, width=width, stem_stride=stem_stride)
    channels = 3
    for conv in plan.stem:
        assert conv.in_channels == channels
        channels = conv.out_channels
    for block in (block for blocks in plan.stages for block in blocks):
        before = channels
        for conv in block.convs:
            assert conv.in_channels == channels
            assert conv.in_channels % conv.groups == conv.out_channels % conv.groups == 0
            channels = conv.out_channels
        arriving = before if block.shortcut is None else block.shortcut.out_channels
        assert arriving == channels
    assert plan.tap_channels["embedding"] == channels
    assert plan.tap_channels["logits"] == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be >= 1, received 0"),
        ({"width": 0.0}, "width must be > 0, received 0.0"),
        ({"width": float("nan")}, "width must be > 0, received nan"),
        ({"stem_stride": 3}, r"stem_stride must be one of \(1, 2, 4\), received 3"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_network(SPECS["ResNet18"], **arguments)
