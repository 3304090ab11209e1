"""A teacher that looks its answers up, and computes and stores those that are not there."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from distill.data.types import LabelSlot
from distill.errors import RunError
from distill.labels.records import NotFiniteAnswers, Rows, encode, expand, undecodable
from distill.labels.store import LabelStore
from distill.teachers.teacher import Teacher


class StoredTeacher:
    """Answers in the form of the store's records, whether they were read or have just been computed.

    So a first run, which computes them, and a second one, which reads them, see the same bits; on a CPU also where
    several processes shared the work.

    Args:
        store: Where they are kept.
        build: Builds the live teacher; called when an answer is missing, not before.
        compute: Whether it may be built at all; otherwise a missing answer is an error (see `distill.labels.waiting`).
    """

    def __init__(self, store: LabelStore, build: Callable[[], Teacher], *, compute: bool = True) -> None:
        self.store = store
        self._build = build
        self._compute = compute

    @cached_property
    def live(self) -> Teacher:
        """The teacher itself, built at the first use."""
        return self._build()

    def __call__(self, images: Tensor, slot: LabelSlot) -> dict[str, Tensor]:
        """The answers to a micro-batch; what was missing is stored.

        Args:
            images: float32 [N, 3, H, W] or [N, H, W, 3] in [0, 1], mixed, not normalised.
            slot: Of this micro-batch, as the loader looked it up.

        Returns:
            "logits" float32 [N, C]: log-probabilities, the mass of what is not stored spread evenly (see `expand`).

        Raises:
            RunError: An answer is missing and may not be computed, is not finite, or cannot be stored.
        """
        return {"logits": paddle.to_tensor(expand(self._rows(images, slot), self.store.layout))}

    def fill(self, images: Tensor, slot: LabelSlot) -> None:
        """Computes and stores what the store lacks of a micro-batch; arguments as of `__call__`."""
        self._rows(images, slot)

    def note_undecodable(self, slot: LabelSlot) -> None:
        """Stores that no image of a micro-batch can be decoded."""
        if self._compute:
            self._add(slot, undecodable(0, self.store.layout))

    def _rows(self, images: Tensor, slot: LabelSlot) -> Rows:
        if not slot.usable.all():  # somebody may have stored it since the loader looked
            slot = self.store.slot(slot.view_epoch, slot.first, slot.end, slot.places)
        missing = np.flatnonzero(~slot.usable)
        if not len(missing):
            return slot.rows
        if not self._compute:
            raise RunError(describe_missing(self.store, slot))
        wanted = images if len(missing) == len(slot.usable) else images.index_select(paddle.to_tensor(missing))
        rows = slot.rows.copy()
        try:
            rows[missing] = encode(self.logits(wanted), self.store.layout)
        except NotFiniteAnswers as error:
            names = " + ".join(name for name, _ in self.store.teachers)
            raise NotFiniteAnswers(
                f"teacher {names}, {_describe(slot)}: {error}. Nothing of them went into {self.store.folder}"
            ) from None
        self._add(slot, rows)
        return rows

    def logits(self, images: Tensor) -> NDArray[np.float32]:
        """The live teacher's own answer, float32 [N, C]; mixed precision of the student has no part in it."""
        with paddle.amp.auto_cast(enable=False):
            answer: NDArray[np.float32] = self.live(images)["logits"].numpy()
        return answer

    def _add(self, slot: LabelSlot, rows: Rows) -> None:
        """Stores a whole micro-batch: the records of its samples, a mark for what was undecodable."""
        every = undecodable(slot.end - slot.first, self.store.layout)
        every[slot.places] = rows
        self.store.add(slot.view_epoch, slot.first, every)


def describe_missing(store: LabelStore, slot: LabelSlot) -> str:
    """Which answers a micro-batch waits for, for an error."""
    return (
        f"there are no soft labels for {_describe(slot)} in {store.folder}: `distill labels build RECIPE` computes them"
    )


def _describe(slot: LabelSlot) -> str:
    return f"positions {slot.first}-{slot.end - 1} of view epoch {slot.view_epoch}"
