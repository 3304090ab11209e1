"""Training that waits for answers which other processes compute."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from distill.data.mix import MixPlan, keep_samples
from distill.data.types import Batch, Failure, LabelSlot
from distill.errors import RunError
from distill.labels.builders import Builder
from distill.labels.store import LabelStore
from distill.labels.teacher import describe_missing
from distill.recipe import Recipe
from distill.signals import Interrupted, StopRequest

POLL_SECONDS = 0.5
SAY_SECONDS = 30.0


def arrived(
    batches: Iterator[Batch],
    store: LabelStore | None,
    recipe: Recipe,
    number: int,
    builders: Sequence[Builder],
    stop: StopRequest,
    say: Callable[[str], None],
) -> Iterator[Batch]:
    """Passes the batches of stage `number` on; where others compute the teacher, each when its answers are stored.

    Args:
        batches: With slots.
        store: Of these slots; None without `teacher.labels`.
        recipe: Its `runtime.read_timeout_seconds` is the longest time in which nothing at all is added to the store.
        number: Of the stage.
        builders: Processes of ours that must not have failed.
        stop: Ends the waiting.
        say: Told now and then what is waited for.

    Raises:
        RunError: Nothing was added for too long, or a builder failed.
        Interrupted: A signal asked to stop.
    """
    if store is None or not recipe.stages[number].waits_for_labels:
        yield from batches
        return
    for batch in batches:
        if batch.slot is None or batch.slot.usable.all():
            yield batch
        else:
            slot = _waited_for(batch.slot, store, builders, recipe.runtime.read_timeout_seconds, stop, say)
            yield with_usable(batch, slot)


def with_usable(batch: Batch, slot: LabelSlot) -> Batch:
    """The batch without the samples whose stored answers belong to other views; these are failures.

    That is so where a file could be decoded when the answers were computed and cannot now, or the other way round:
    with the file all that are mixed with it are concerned, so that all partners of the samples that stay stay too.
    """
    if slot.usable.all():
        return replace(batch, slot=slot)
    kept = np.flatnonzero(slot.usable)
    lost = slot.places[~slot.usable] + slot.first
    reason = (
        "its stored soft label is of another view: an image near it could be decoded then and cannot now, or now only"
    )
    failures = [Failure(f"position {place} of view epoch {slot.view_epoch}", reason) for place in lost.tolist()]
    partner, lam = batch.partner, batch.lam
    if partner is not None and lam is not None:
        plan = keep_samples(MixPlan(partner, lam, None), kept)
        partner, lam = plan.partner, plan.lam
    return replace(
        batch,
        images=batch.images[kept],
        labels=batch.labels[kept],
        indices=batch.indices[kept],
        partner=partner,
        lam=lam,
        cut=batch.cut[kept] if batch.cut is not None else None,
        failures=(*batch.failures, *failures),
        slot=replace(slot, places=slot.places[kept], rows=slot.rows[kept], usable=slot.usable[kept]),
    )


def _waited_for(
    slot: LabelSlot,
    store: LabelStore,
    builders: Sequence[Builder],
    timeout_seconds: float,
    stop: StopRequest,
    say: Callable[[str], None],
) -> LabelSlot:
    """The slot once all its positions are stored."""
    stored, changed, said = -1, 0.0, -SAY_SECONDS
    while not (slot := store.slot(slot.view_epoch, slot.first, slot.end, slot.places)).complete:
        now = time.monotonic()
        if stop.signal is not None:
            raise Interrupted(
                "stopped while waiting for the teacher; --resume goes on from the last checkpoint", stop.signal
            )
        if (found := store.stored_in_all()) != stored:
            stored, changed = found, now
        if now - changed > timeout_seconds:
            raise RunError(
                f"nothing was added to {store.folder} for {timeout_seconds:g} s (runtime.read_timeout_seconds) while "
                f"training waits: {describe_missing(store, slot)}, and teacher.labels.missing 'compute' does it here. "
                "The last checkpoint is intact"
            )
        for builder in builders:
            builder.check()
        if now - said >= SAY_SECONDS:
            said = now
            say(
                f"waiting for the teacher: view epoch {slot.view_epoch}, positions {slot.first}-{slot.end - 1}; "
                f"{stored:,} answers are stored in {store.folder}"
            )
        time.sleep(POLL_SECONDS)
    return slot
