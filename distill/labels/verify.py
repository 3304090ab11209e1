"""Whether a store holds what was stored, and whether that is what the teacher answers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.loader import TrainLoader
from distill.data.sampler import MicroBatch
from distill.data.sources import open_sources
from distill.data.types import Batch
from distill.display import Display
from distill.engines.engine import TOLERANCE
from distill.labels.manifest import label_store
from distill.labels.records import Layout, Rows, encode, expand, log_softmax
from distill.labels.store import DamagedShard, LabelStore
from distill.labels.teacher import StoredTeacher
from distill.normalization import seen_images
from distill.parallel import Device
from distill.recipe import Recipe
from distill.teachers.teacher import open_teacher, uses_predictor

_SPAN = 16  # consecutive positions that are compared in one forward pass
_MOST_EPOCHS = 4  # of which an order of all images is drawn


@dataclass
class Verified:
    """What was found.

    Attributes:
        shards: Sealed shards that were checked.
        damaged: What is wrong with those that are not what was sealed.
        compared: Answers that the teacher computed once more.
        differing: Those that are not what is stored, by view epoch and position.
        exactly: Whether they had to be the same bits; otherwise see `agreeing`.
    """

    shards: int = 0
    damaged: dict[Path, str] = field(default_factory=dict)
    compared: int = 0
    differing: list[tuple[int, int]] = field(default_factory=list)
    exactly: bool = True

    def __str__(self) -> str:
        how = "bit for bit" if self.exactly else "within the engine's tolerance"
        same = self.compared - len(self.differing)
        return (
            f"{self.shards - len(self.damaged)} of {self.shards} sealed shards match their checksums; "
            f"{same} of {self.compared} sampled answers are the teacher's, {how}"
        )

    def problems(self, repaired: bool) -> list[str]:
        """What is wrong and what to do, a line each."""
        then = "removed: the next run computes it again" if repaired else "--repair removes it, to be computed again"
        lines = [f"{path} is damaged: {reason} ({then})" for path, reason in self.damaged.items()]
        if self.differing:
            named = ", ".join(f"{epoch}:{position}" for epoch, position in self.differing[:5])
            lines.append(
                f"{len(self.differing)} of {self.compared} answers are not the teacher's (view epoch:position {named}"
                f"{', ...' if len(self.differing) > 5 else ''}): delete the store and build it again"
            )
        return lines


def verify_labels(recipe: Recipe, number: int, device: Device, *, samples: int, repair: bool) -> Verified:
    """Checks every sealed shard of stage `number`, and a random sample of answers against the live teacher.

    Args:
        recipe: Its stage has `teacher.labels`.
        number: Of the stage.
        device: What `setup_process` returned.
        samples: About how many answers are compared; 0: none, and the teacher is not built.
        repair: Remove damaged shards, so that they are computed again.

    Raises:
        UserError: The store was made for something else.
    """
    stage = recipe.stages[number]
    source = open_sources(stage.data.sources, recipe.num_classes)
    store = label_store(recipe, number, source, create=False)
    result = Verified()
    _check_shards(store, result, repair)
    if samples and stage.teacher is not None and (parts := list(_sampled(store, samples, set(result.damaged)))):
        precision = stage.teacher.precision
        result.exactly = precision == "float32" and uses_predictor(stage.teacher, device)
        loader = TrainLoader.of_stage(recipe, number, source, labels=store)
        teacher = StoredTeacher(store, partial(open_teacher, recipe, number, device))
        with Display(f"compare {stage.name}", len(parts), unit="batch") as display:
            for done, batch in enumerate(loader.views(parts), 1):
                _compare(batch, teacher, TOLERANCE[precision], result)
                display.advance(done, {"answers": str(result.compared)})
    return result


def agreeing(rows: Rows, logits: NDArray[np.float32], layout: Layout, tolerance: float) -> NDArray[np.bool_]:
    """Which records are answers that differ from these logits by computation alone.

    Where no logit differs by more than d = tolerance * max |logits|, log softmax differs by at most 2 d, and a class
    among the K most probable ones lies at most 2 d below the K-th largest. float16 adds 2^-11 of the value.

    Args:
        rows: uint16 [N, words].
        logits: float32 [N, C].
        layout: Of the records.
        tolerance: As `distill.engines.engine.TOLERANCE`.

    Returns:
        bool [N].
    """
    live = log_softmax(logits.astype(np.float64))
    slack = 2 * tolerance * np.abs(logits).max(axis=1, keepdims=True)
    stored = expand(rows, layout).astype(np.float64)
    near = np.abs(stored - live) <= slack + 2.0**-10 * np.abs(live) + 2.0**-24
    if layout.keeps_all:
        return np.asarray(near.all(axis=1))
    classes = rows[:, 3 : 3 + layout.kept].astype(np.int64)
    bound = np.partition(live, -layout.kept, axis=1)[:, -layout.kept][:, None] - slack
    own = np.take_along_axis(live, classes, axis=1)
    return np.asarray((np.take_along_axis(near, classes, axis=1) & (own >= bound)).all(axis=1))


def _check_shards(store: LabelStore, result: Verified, repair: bool) -> None:
    shards = [shard for epoch in store.view_epochs() for shard in store.shards(epoch) if store.is_sealed(shard)]
    with Display("checksums", len(shards), unit="shard") as display:
        for shard in shards:
            result.shards += 1
            try:
                store.check_shard(shard)
            except DamagedShard as error:
                result.damaged[error.path] = error.reason
                if repair:
                    store.remove_shard(shard)
            display.advance(result.shards, {"damaged": str(len(result.damaged))})


def _sampled(store: LabelStore, samples: int, damaged: set[Path]) -> Iterator[MicroBatch]:
    """Random spans of stored positions: whole mixup groups, since a mixed view needs its partner."""
    random = np.random.default_rng()
    span = -(-_SPAN // store.group_size) * store.group_size
    epochs = [epoch for epoch in store.view_epochs() if not _touches(store, epoch, damaged)]
    chosen = random.choice(epochs, min(_MOST_EPOCHS, len(epochs)), replace=False).tolist() if epochs else []
    for place, epoch in enumerate(sorted(chosen)):
        empty = store.empty(epoch, 0, store.positions)
        starts = np.arange(0, store.positions, span)
        starts = starts[~np.logical_or.reduceat(empty, starts)]
        if not len(starts):
            continue
        count = min(len(starts), -(-samples // (span * len(chosen))))
        for first in np.sort(random.choice(starts, count, replace=False)).tolist():
            end = min(first + span, store.positions)
            yield MicroBatch(epoch, place, first, end, ends_step=True, global_count=end - first)


def _touches(store: LabelStore, epoch: int, damaged: set[Path]) -> bool:
    return any(store.path(shard, ".labels") in damaged for shard in store.shards(epoch))


def _compare(batch: Batch, teacher: StoredTeacher, tolerance: float, result: Verified) -> None:
    slot, layout = batch.slot, teacher.store.layout
    if slot is None or not len(batch.labels):
        return
    logits = teacher.logits(seen_images(batch))
    if result.exactly:
        same = (encode(logits, layout)[:, 2:] == slot.rows[:, 2:]).all(axis=1)
    else:
        same = agreeing(slot.rows, logits, layout, tolerance)
    result.compared += len(batch.labels)
    wrong = slot.places[~(same & slot.usable)] + slot.first
    result.differing += [(slot.view_epoch, position) for position in wrong.tolist()]
