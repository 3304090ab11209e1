from dataclasses import replace
from importlib import resources

import pytest

from distill.models.plan import plan_network, state_shapes
from distill.models.specs import NAMINGS, SPECS
from distill.weights.names import is_classifier, naming_style, rename

STYLES = list(NAMINGS)


def published(name):
    text = resources.files("distill.models").joinpath(f"manifests/{name}.tsv").read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines()[1:])


def keys_of(spec, style):
    return list(state_shapes(plan_network(replace(spec, naming=style))))


@pytest.mark.parametrize(
    ("name", "style"), [("ResNet50_vc", "old"), ("ResNet50_vd", "current"), ("ResNeXt101_32x8d_wsl", "wsl")]
)
def test_styles_are_recognised(name, style):
    assert naming_style(published(name)) == style
    assert naming_style([*published(name), "epoch"]) == style


def test_foreign_names_have_no_style():
    torchvision = {"conv1.weight": 1, "bn1.running_mean": 2, "layer1.0.conv1.weight": 3, "fcs.weight": 4}
    assert naming_style(torchvision) is None
    assert rename(torchvision, published("ResNet50")) == torchvision


@pytest.mark.parametrize(("old", "current"), [("ResNet50_vc", "ResNet50_vd")])
def test_published_files_of_the_old_style_fit_the_current_one(old, current):
    """The same architecture in two manifests: every array must land on one of its shape, in the same order."""
    renamed = rename(published(old), published(current))
    assert list(renamed.items()) == list(published(current).items())
    assert list(rename(published(current), published(old)).items()) == list(published(old).items())


@pytest.mark.parametrize("wsl", [name for name in SPECS if name.endswith("_wsl")])
def test_wsl_names_are_those_of_a_resnet101(wsl):
    keys = keys_of(SPECS[wsl], "wsl")
    assert list(rename(dict.fromkeys(keys), published("ResNet101"))) == list(published("ResNet101"))


# no WSL network has a deep stem, so that style has no names for one
JOURNEYS = [
    pytest.param(spec, there, back, id=f"{spec.name}-{there}-{back}")
    for spec in SPECS.values()
    for there in STYLES
    for back in STYLES
    if spec.stem == "plain" or "wsl" not in (there, back)
]


@pytest.mark.parametrize(("spec", "there", "back"), JOURNEYS)
def test_every_network_goes_to_each_style_and_back(spec, there, back):
    """All styles list a network's arrays in one order, which the renaming does not know."""
    left, right = keys_of(spec, there), keys_of(spec, back)
    numbers = {key: number for number, key in enumerate(left)}
    shuffled = dict(sorted(numbers.items(), key=lambda item: item[0][::-1]))
    renamed = rename(shuffled, right)
    assert {key: renamed[key] for key in right} == dict(zip(right, range(len(right)), strict=True))
    assert len(renamed) == len(right)
    assert rename(renamed, left) == numbers


def test_a_stray_key_does_not_take_the_place_of_an_array():
    file = {"out.weight": "right", "fc.weight": "stray", "out.bias": 0, "epoch": 1}
    renamed = rename(file, ["fc.weight", "fc.bias"])
    assert renamed == {"fc.weight": "right", "fc.bias": 0, "epoch": 1, "fc.weight (of another naming style)": "stray"}


def test_classifiers():
    assert all(is_classifier(key) for key in ("fc.weight", "out.bias", "_out.weight"))
    assert not any(is_classifier(key) for key in ("stem.0.conv.weight", "fc.weights", "blocks.0.conv0.conv.weight"))
