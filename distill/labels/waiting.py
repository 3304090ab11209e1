"""Training that waits for answers which other processes compute."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from distill.data.types import Batch, LabelSlot
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
    """Passes the batches of stage `number` on: with `missing: wait` each when its answers are stored.

    Args:
        batches: With slots.
        store: Of these slots; None without `teacher.labels`.
        recipe: Its `runtime.read_timeout_seconds` is the longest time in which nothing at all is added to the store.
        number: Of the stage.
        builders: Processes of ours that must not have failed.
        stop: Ends the waiting.
        say: Told now and then what is waited for.

    Raises:
        RunError: Nothing was added for too long, what was added is of other views, or a builder failed.
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
            yield replace(batch, slot=slot)


def _waited_for(
    slot: LabelSlot,
    store: LabelStore,
    builders: Sequence[Builder],
    timeout_seconds: float,
    stop: StopRequest,
    say: Callable[[str], None],
) -> LabelSlot:
    stored, changed, said = -1, 0.0, -SAY_SECONDS
    while not (slot := store.slot(slot.view_epoch, slot.first, slot.end, slot.places)).usable.all():
        now = time.monotonic()
        if stop.signal is not None:
            raise Interrupted(
                "stopped while waiting for the teacher; --resume goes on from the last checkpoint", stop.signal
            )
        if slot.complete:
            raise RunError(describe_missing(store, slot))
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
