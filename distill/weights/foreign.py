"""Weights of PyTorch's libraries to ours and back: other names, a transposed classifier, one missing shortcut.

| ours                  | torchvision, timm       | timm's deep stem, pooled shortcut (vd) |
|-----------------------|-------------------------|----------------------------------------|
| `stem.0.conv`         | `conv1`                 | `conv1.0`                              |
| `stem.2.bn`           |                         | `bn1`                                  |
| `blocks.3.conv0.conv` | `layer2.0.conv1`        | `layer2.0.conv1`                       |
| `blocks.3.short.conv` | `layer2.0.downsample.0` | `layer2.0.downsample.1`                |
| `fc.weight` [in, out] | `fc.weight` [out, in]   | `fc.weight` [out, in]                  |

transformers' ResNets are named differently once more: `resnet.encoder.stages.1.layers.0.layer.0.convolution`.

The networks compute the same from the same weights: the stride is on the 3x3 convolution, timm's `resnet*d` pool the
shortcut with ceil_mode and without counting the border, as ours do. One thing differs: the shortcut of the first block
of a basic network (ResNet18, ResNet34 and their vd) is a convolution with batch normalisation in this series, and
nothing at all in torchvision and timm.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from distill.errors import UserError
from distill.models.plan import NetworkPlan, conv_layers, state_shapes
from distill.models.specs import SPECS, NetworkSpec
from distill.weights.names import rename

DIALECTS = ("torchvision", "timm", "transformers")
_ARRAYS = {"weight": "weight", "bias": "bias", "_mean": "running_mean", "_variance": "running_var"}
_COUNTER = "num_batches_tracked"  # of PyTorch's batch normalisation; ours has a fixed momentum and needs none
_EPSILON = 1e-5  # of batch normalisation, here and there
_DEEP_STEM = (("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1"))

TIMM_NAMES = {
    **{f"ResNet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    **{f"ResNet{depth}_vd": f"resnet{depth}d" for depth in (18, 34, 50, 101, 152, 200)},
    "ResNet50_vc": "resnet50c",
    **{f"ResNeXt101_32x{width}d_wsl": f"resnext101_32x{width}d" for width in (8, 16, 32, 48)},
}
"""timm's name of each network; torchvision has those of plain ResNets and resnext101_32x8d, under the same names."""


@dataclass(frozen=True)
class Converted:
    """Weights under new names.

    Attributes:
        arrays: By key.
        remarks: What a user should know about them.
    """

    arrays: dict[str, np.ndarray]
    remarks: tuple[str, ...] = ()


def dialect_of(keys: Collection[str]) -> str | None:
    """Returns whose names they are: "timm" (which names as torchvision does), "transformers", or None."""
    keys = set(keys)
    if {"layer1.0.conv1.weight", "layer4.0.bn2.running_mean"} <= keys:
        return "timm"
    if "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight" in keys:
        return "transformers"
    return None


def has_dialect(spec: NetworkSpec, dialect: str) -> bool:
    """Whether a library of PyTorch's has such a network."""
    return dialect == "timm" or (spec.stem == "plain" and spec.shortcut == "strided")


def foreign_names(spec: NetworkSpec, plan: NetworkPlan, dialect: str) -> dict[str, str]:
    """Returns the library's key for each of ours, in our order, without the shortcut that it lacks."""
    pairs = _transformers_layers(plan) if dialect == "transformers" else _torch_layers(spec, plan)
    layers = dict(zip((path for path, _ in conv_layers(plan)), pairs, strict=True))
    names = {}
    for path, (convolution, norm) in layers.items():
        if path == missing_shortcut(spec, plan):
            continue
        names[f"{path}.{plan.naming.convolution}.weight"] = f"{convolution}.weight"
        for ours, theirs in _ARRAYS.items():
            names[f"{path}.{plan.naming.batch_norm}.{ours}"] = f"{norm}.{theirs}"
    classifier = "classifier.1" if dialect == "transformers" else "fc"
    for array in ("weight", "bias"):
        names[f"{plan.naming.classifier}.{array}"] = f"{classifier}.{array}"
    return names


def missing_shortcut(spec: NetworkSpec, plan: NetworkPlan) -> str | None:
    """Returns the path of our shortcut that PyTorch's libraries leave out, None where they have it too."""
    first = plan.stages[0][0]
    return f"{first.name}.{plan.naming.shortcut}" if spec.block == "basic" else None


def from_foreign(arrays: Mapping[str, np.ndarray], model: str, plan: NetworkPlan, dialect: str) -> Converted:
    """Converts a library's weights into ours.

    Args:
        arrays: By the library's keys.
        model: Our name of the network.
        plan: Its layers, of the weights' width and classes.
        dialect: One of `DIALECTS`.

    Returns:
        Our keys; those of the library that have no place keep their name, for the caller to report. Where the library
        has no first shortcut, it is made an identity: the answers are the same while batch normalisation uses stored
        statistics, as in evaluation and in a frozen teacher with `batch_norm: stored`.
    """
    spec = SPECS[model]
    ours = {theirs: own for own, theirs in foreign_names(spec, plan, dialect).items()}
    found = {ours.get(key, key): array for key, array in arrays.items() if not key.endswith(_COUNTER)}
    classifier = f"{plan.naming.classifier}.weight"
    if classifier in found:
        found[classifier] = np.ascontiguousarray(found[classifier].T)
    shortcut = missing_shortcut(spec, plan)
    if shortcut is None:
        return Converted(found)
    found |= _identity(plan, shortcut)
    order = [*state_shapes(plan), *found]
    return Converted(
        {key: found[key] for key in dict.fromkeys(order) if key in found},
        (
            f"{shortcut}, which {model} has and the file has not, was made an identity: answers are the same while "
            "batch normalisation uses its stored statistics (evaluation, a teacher with batch_norm: stored), not with "
            "those of the batch",
        ),
    )


def to_foreign(arrays: Mapping[str, np.ndarray], model: str, plan: NetworkPlan, dialect: str) -> Converted:
    """Converts our weights, in any of the series' naming styles, into a library's.

    Args:
        arrays: By our keys; all of them.
        model: Our name of the network.
        plan: Its layers, of the weights' width and classes.
        dialect: One of `DIALECTS`.

    Raises:
        UserError: The library has no such network.
    """
    spec = SPECS[model]
    if not has_dialect(spec, dialect):
        raise UserError(f"{dialect} has no network like {model} (deep stem, pooled shortcut): convert it --to timm")
    if spec.stem == "plain" and plan.stem[0].kernel_px != 7:
        raise UserError(f"{dialect} has no {model} with a 3x3 stem, which model.stem_stride 1 gives")
    found = rename(arrays, state_shapes(plan))
    shortcut = missing_shortcut(spec, plan)
    if shortcut is not None:
        _check_identity(found, plan, shortcut, model, dialect)
    converted = {theirs: found[own] for own, theirs in foreign_names(spec, plan, dialect).items()}
    name = "classifier.1.weight" if dialect == "transformers" else "fc.weight"
    converted[name] = np.ascontiguousarray(converted[name].T)
    return Converted(converted)


def _identity(plan: NetworkPlan, shortcut: str) -> dict[str, np.ndarray]:
    """A 1x1 convolution and a batch normalisation that change nothing, with stored statistics."""
    channels = plan.stem[-1].out_channels
    zeros, ones = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    norm = {"weight": ones * np.float32((1 + _EPSILON) ** 0.5), "bias": zeros, "_mean": zeros, "_variance": ones}
    return {
        f"{shortcut}.{plan.naming.convolution}.weight": np.eye(channels, dtype=np.float32)[:, :, None, None],
        **{f"{shortcut}.{plan.naming.batch_norm}.{name}": array for name, array in norm.items()},
    }


def _check_identity(
    arrays: Mapping[str, np.ndarray], plan: NetworkPlan, shortcut: str, model: str, dialect: str
) -> None:
    expected = _identity(plan, shortcut)
    differing = [key for key, array in expected.items() if not np.allclose(arrays[key], array, rtol=0, atol=1e-6)]
    if differing:
        lines = "\n  ".join(f"{key} {list(arrays[key].shape)}" for key in expected)
        raise UserError(
            f"{dialect}'s {TIMM_NAMES[model]} has no shortcut in its first block, and the one of this {model} is not "
            f"an identity. What has no place there:\n  {lines}\nNetworks with bottlenecks (ResNet50, ...) convert."
        )


def _torch_layers(spec: NetworkSpec, plan: NetworkPlan) -> Iterator[tuple[str, str]]:
    """The names of each convolution and its normalisation, in the order of `conv_layers`."""
    yield from _DEEP_STEM if spec.stem == "deep" else [("conv1", "bn1")]
    # number 0 of a pooled shortcut is the pooling, or nothing at all where the stride is 1
    first = 1 if spec.shortcut == "average_pooled" else 0
    for stage, blocks in enumerate(plan.stages, 1):
        for position, block in enumerate(blocks):
            name = f"layer{stage}.{position}"
            for number in range(1, len(block.convs) + 1):
                yield f"{name}.conv{number}", f"{name}.bn{number}"
            if block.shortcut is not None:
                yield f"{name}.downsample.{first}", f"{name}.downsample.{first + 1}"


def _transformers_layers(plan: NetworkPlan) -> Iterator[tuple[str, str]]:
    def layer(name: str) -> tuple[str, str]:
        return f"{name}.convolution", f"{name}.normalization"

    yield layer("resnet.embedder.embedder")
    for stage, blocks in enumerate(plan.stages):
        for position, block in enumerate(blocks):
            name = f"resnet.encoder.stages.{stage}.layers.{position}"
            for number in range(len(block.convs)):
                yield layer(f"{name}.layer.{number}")
            if block.shortcut is not None:
                yield layer(f"{name}.shortcut")
