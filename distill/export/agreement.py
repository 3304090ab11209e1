"""Whether an exported network answers as the student that was trained: both see the same real images."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.augment import evaluation_view
from distill.data.sources import Images
from distill.data.types import UndecodableImage
from distill.display import Display
from distill.errors import RunError
from distill.export.description import Description, StoredPrecision
from distill.export.files import ExportedNetwork, Logits
from distill.prediction import softmax

COMPARED_IMAGES = 256
BATCH_SIZE = 32

TOLERANCE: dict[StoredPrecision, float] = {"float32": 1e-4, "float16": 0.01, "int8": 0.1}
"""Largest difference of a logit from the student's, relative to the student's largest absolute logit."""

LEAST_SAME_TOP1: dict[StoredPrecision, float] = {"float32": 0.99, "float16": 0.98, "int8": 0.95}
"""Share of the images that must keep their first class; those between two equal classes may lose it in float32."""


@dataclass(frozen=True)
class Agreement:
    """What the comparison found.

    Attributes:
        images: How many were compared.
        same_top1: Share in [0, 1] with the same first class.
        largest_difference: As in `TOLERANCE`.
        mean_difference: Mean absolute difference of a logit, relative likewise.
        largest_probability_difference: Of a softmax, in [0, 1].
        student_top1: Accuracy of the student on those with a label; None where none has one.
        exported_top1: Likewise of the exported network.
        tolerance: That `largest_difference` was compared with.
        least_same_top1: That `same_top1` was compared with.
    """

    images: int
    same_top1: float
    largest_difference: float
    mean_difference: float
    largest_probability_difference: float
    student_top1: float | None
    exported_top1: float | None
    tolerance: float
    least_same_top1: float

    @property
    def holds(self) -> bool:
        """Whether both limits are kept; NaN keeps none."""
        return self.largest_difference <= self.tolerance and self.same_top1 >= self.least_same_top1

    def __str__(self) -> str:
        return (
            f"{self.images} images: {self.same_top1:.2%} keep their first class (at least {self.least_same_top1:.0%}), "
            f"largest difference of a logit {self.largest_difference:.2g} of the largest (at most {self.tolerance:g}), "
            f"of a probability {self.largest_probability_difference:.2g}"
            + (
                ""
                if self.student_top1 is None
                else f"; top-1 {self.student_top1:.2%}, exported {self.exported_top1:.2%}"
            )
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(
    student: Logits, exported: ExportedNetwork, source: Images, *, images: int, tolerance: float | None
) -> Agreement:
    """Compares two networks on images spread evenly over a source.

    Args:
        student: Maps views uint8 [N, crop_px, crop_px, 3] to float32 [N, num_classes].
        exported: Says how views are made, and answers likewise.
        source: Of the evaluation.
        images: At most so many.
        tolerance: Default: `TOLERANCE` of the precision.

    Raises:
        RunError: None of the images can be decoded.
    """
    description = exported.description
    expected, received, labels = [], [], []
    with Display("compare", min(images, len(source)), unit="image") as display:
        for views, own_labels in _batches(source, images, description):
            expected.append(student(views))
            received.append(exported.logits(views))
            labels.append(own_labels)
            display.advance(sum(map(len, labels)), {})
    if not expected:
        raise RunError("none of the evaluation's images can be decoded: nothing to compare the export with")
    return _agreement(
        np.concatenate(expected).astype(np.float64),
        np.concatenate(received).astype(np.float64),
        np.concatenate(labels),
        TOLERANCE[description.precision] if tolerance is None else tolerance,
        LEAST_SAME_TOP1[description.precision],
    )


def evenly_spread(count: int, wanted: int) -> NDArray[np.int64]:
    """At most `wanted` different numbers of [0, count), evenly spread."""
    return np.arange(min(count, wanted), dtype=np.int64) * count // min(count, wanted)


def evaluation_views(source: Images, wanted: int, resize_short_px: int, crop_px: int) -> Iterator[tuple[Any, int]]:
    """Views uint8 [crop_px, crop_px, 3] and labels of images spread evenly; leaves out what cannot be decoded."""
    for index in evenly_spread(len(source), wanted):
        try:
            image = source.read(int(index))
        except UndecodableImage:
            continue
        yield evaluation_view(image, resize_short_px, crop_px), int(source.labels[index])


def _batches(
    source: Images, wanted: int, description: Description
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    views: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for view, label in evaluation_views(source, wanted, description.resize_short_px, description.crop_px):
        views.append(view)
        labels.append(label)
        if len(views) == BATCH_SIZE:
            yield np.stack(views), np.array(labels)
            views, labels = [], []
    if views:
        yield np.stack(views), np.array(labels)


def _agreement(
    expected: NDArray[np.float64],
    received: NDArray[np.float64],
    labels: NDArray[np.int64],
    tolerance: float,
    least_same_top1: float,
) -> Agreement:
    difference = np.abs(received - expected) / max(np.abs(expected).max(), 1e-12)
    first, exported_first = expected.argmax(1), received.argmax(1)
    labelled = labels >= 0
    return Agreement(
        images=len(labels),
        same_top1=float((first == exported_first).mean()),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        largest_probability_difference=float(np.abs(softmax(received) - softmax(expected)).max()),
        student_top1=float((first == labels)[labelled].mean()) if labelled.any() else None,
        exported_top1=float((exported_first == labels)[labelled].mean()) if labelled.any() else None,
        tolerance=tolerance,
        least_same_top1=least_same_top1,
    )
