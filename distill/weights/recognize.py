"""Which network a state dict belongs to, from its names and shapes alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from distill.models.plan import NetworkPlan, plan_network, state_shapes
from distill.models.specs import SPECS
from distill.weights.foreign import dialect_of, foreign_names, from_foreign, has_dialect
from distill.weights.names import is_classifier, naming_style, rename

WIDTHS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0625)
"""Multipliers of the channels that are tried; 1 are the published networks."""
_STEM_STRIDES = (4, 1)  # 2 has the shapes of 4


@dataclass(frozen=True)
class Match:
    """A network that the arrays fit.

    Attributes:
        model: Its name in the series.
        width: Its multiplier of the channels.
        stem_stride: 4 also stands for 2, and for 1 where the stem is deep: the shapes are the same.
        num_classes: The classifier's outputs.
        dialect: Of `distill.weights.foreign`; None: the arrays have names of this series.
    """

    model: str
    width: float
    stem_stride: int
    num_classes: int
    dialect: str | None

    @property
    def plan(self) -> NetworkPlan:
        """The network's layers."""
        return plan_network(SPECS[self.model], self.num_classes, width=self.width, stem_stride=self.stem_stride)

    def __str__(self) -> str:
        width = f" x {self.width:g}" if self.width != 1 else ""
        stem = f", stem_stride {self.stem_stride}" if self.stem_stride != 4 else ""
        return f"{self.model}{width}{stem}"


def recognize(arrays: Mapping[str, np.ndarray]) -> list[Match]:
    """Finds the networks whose keys and shapes a state dict has, whatever its number of classes.

    More than one where shapes do not tell them apart: ResNet50_vc and ResNet50_vd differ in a pooling only.

    Args:
        arrays: By key, in a naming style of this series, of torchvision or timm, or of transformers.
    """
    dialect = dialect_of(arrays)
    classes = _num_classes(arrays, dialect)
    if classes is None:
        return []
    return [match for match in _candidates(dialect, classes) if _fits(arrays, match)]


def family_of(arrays: Mapping[str, np.ndarray]) -> str:
    """Says in words whose names the arrays have."""
    dialect = dialect_of(arrays)
    if dialect is not None:
        return {"timm": "torchvision or timm", "transformers": "transformers"}[dialect]
    style = naming_style(arrays)
    return f"this series, {style} style" if style else "unknown"


def _num_classes(arrays: Mapping[str, np.ndarray], dialect: str | None) -> int | None:
    biases = {"timm": "fc.bias", "transformers": "classifier.1.bias"}
    for key, array in arrays.items():
        own = dialect is None and is_classifier(key) and key.endswith("bias")
        if (own or key == biases.get(dialect or "")) and array.ndim == 1 and len(array):
            return len(array)
    return None


def _candidates(dialect: str | None, classes: int) -> Iterator[Match]:
    for name, spec in SPECS.items():
        if dialect is None or has_dialect(spec, dialect):
            for width in WIDTHS:
                yield from (Match(name, width, stride, classes, dialect) for stride in _STEM_STRIDES)


def _fits(arrays: Mapping[str, np.ndarray], match: Match) -> bool:
    plan = match.plan
    shapes = state_shapes(plan)
    if match.stem_stride == 1 and (match.dialect is not None or len(plan.stem) > 1):
        return False  # PyTorch's libraries have no such stem; a deep one has the shapes of stem_stride 4
    if match.dialect is None:
        found = rename(arrays, shapes)
    else:
        if len(foreign_names(SPECS[match.model], plan, match.dialect)) > len(arrays):
            return False
        found = from_foreign(arrays, match.model, plan, match.dialect).arrays
    return {key: array.shape for key, array in found.items()} == shapes
