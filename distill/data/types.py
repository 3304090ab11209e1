"""The types that the data modules share."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # [H, W, 3], RGB
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

UNLABELLED = -1


class UndecodableImage(Exception):
    """A file that is missing, unreadable or no image: the sample is left out, and named."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class ImageRows(Protocol):
    """An image whose size is known and whose pixels are decoded from the top, as far as they are needed."""

    shape: tuple[int, int, int]

    def rows(self, end: int) -> Image:
        """At least the upper `end` rows: uint8 [>= end, W, 3].

        Raises:
            UndecodableImage: These rows are damaged.
        """


class ImageSource(Protocol):
    """Images by number. Implementations are read by several threads at once and travel to processes by pickle."""

    @property
    def labels(self) -> IntArray:
        """int64 [N]; -1 is an unlabelled image."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image:
        """Decodes one image: uint8 [H, W, 3], RGB.

        Raises:
            UndecodableImage: The file is missing, not readable or no image.
        """

    def open(self, index: int) -> Image | ImageRows:
        """`read`, where perhaps only some rows are needed; raises likewise."""

    def name(self, index: int) -> str:
        """What a message calls the image: its path, or file#index."""


@dataclass(frozen=True)
class Failure:
    """An image that could not be decoded."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class LabelSlot:
    """The place of a micro-batch in a soft-label store, and what lay there when it was looked up.

    Attributes:
        view_epoch: Of the random choices.
        first: The first position in the epoch's order.
        end: Behind the last one, images that could not be decoded included.
        places: int64 [N] in 0..end - first - 1, ascending: the batch's samples.
        rows: uint16 [N, words], their records.
        usable: bool [N]: whether the record is there, and of this very view.
        complete: Whether all positions are stored, so that waiting makes no more of them usable.
    """

    view_epoch: int
    first: int
    end: int
    places: IntArray
    rows: NDArray[np.uint16]
    usable: NDArray[np.bool_]
    complete: bool


class LabelSource(Protocol):
    """A soft-label store, as the loader sees it. It is read by several threads and travels to processes by pickle."""

    def slot(self, view_epoch: int, first: int, end: int, places: IntArray) -> LabelSlot:
        """What is stored for the samples at `places` of the positions [first, end)."""


class FeatureSource(Protocol):
    """A store of features by sample, as the loader sees it; like `LabelSource` in use."""

    def read(self, indices: IntArray) -> "KnownFeatures":
        """What is stored for these samples."""

    def add(self, indices: IntArray, values: FloatArray) -> None:
        """Stores the features, float32 [N, D], of samples."""


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class KnownFeatures:
    """What a feature store has for a batch.

    Attributes:
        source: The store, which wants what is missing.
        values: float32 [N, D].
        usable: bool [N]: whether a sample's features are there.
    """

    source: FeatureSource
    values: FloatArray
    usable: NDArray[np.bool_]

    def select(self, places: IntArray) -> "KnownFeatures":
        """Of the samples at these places."""
        return KnownFeatures(self.source, self.values[places], self.usable[places])


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Batch:
    """The views of one micro-batch of one rank. N may be 0: where a short last step has no work left for this rank.

    Attributes:
        images: uint8 [N, 3, S, S] or [N, S, S, 3], RGB, not mixed up, not normalised; none, [0, ...], where stored
            features and labels serve for all of them.
        labels: int64 [N]; -1 is unlabelled.
        indices: int64 [N], the samples' indices in the sources (repeats counted).
        partner: int64 [N] in 0..N-1: whom to mix with; None without mixup and CutMix.
        lam: float32 [N]: the weight of the sample itself, 1 - lam is the partner's.
        epoch: Counted from 0.
        step: Counted from 0 through the whole stage; in an evaluation the batch's number over all ranks.
        ends_step: Whether the rank's share of the step is complete with this batch: time to update.
        global_count: Samples of the step over all ranks, those that failed included.
        failures: What was left out of this batch.
        slot: What a soft-label store has for the batch; None without one.
        cut: bool [N]: whose image is not to be summed with its partner's, for CutMix has put a part of that into it;
            lam then weighs the targets alone. None without CutMix.
        features: What a feature store has for the batch; None without one.
    """

    images: NDArray[np.uint8]
    labels: IntArray
    indices: IntArray
    partner: IntArray | None
    lam: FloatArray | None
    epoch: int
    step: int
    ends_step: bool
    global_count: int
    failures: tuple[Failure, ...]
    slot: LabelSlot | None = None
    cut: NDArray[np.bool_] | None = None
    features: KnownFeatures | None = None
