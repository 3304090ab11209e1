"""What a store will cost, before anything is computed: disk, and the teacher's time."""

import time

import numpy as np
import paddle

from distill.data.sources import open_sources
from distill.display import readable_bytes, readable_time
from distill.labels.inventory import describe_layout, take_inventory
from distill.labels.manifest import label_store, missing_weights
from distill.labels.store import LabelStore
from distill.parallel import Device
from distill.recipe import Recipe, Stage
from distill.teachers.teacher import open_teacher

_MEASURE_SECONDS = 3.0
_VIEWS = (1, 4, 16, 64)


def describe_store(recipe: Recipe, number: int, *, device: Device | None) -> list[str]:
    """What a stage's soft labels hold and need, in a few lines; writes nothing.

    Args:
        recipe: Its stage has `teacher.labels`.
        number: Of the stage.
        device: Where the teacher's speed is measured for some seconds; None: it is not.

    Raises:
        UserError: The store that is there was made for something else.
    """
    stage = recipe.stages[number]
    source = open_sources(stage.data.sources, recipe.num_classes)
    store = label_store(recipe, number, source, create=False)
    found = take_inventory(store, stage)
    there = readable_bytes(store.bytes_on_disk())
    lines = [
        f"stage {stage.name}: soft labels in {store.folder}",
        f"  an answer  {describe_layout(store)}",
        f"  stored     {found.stored:,} of {found.needed:,} answers ({found.stored / found.needed:.1%}), {there}",
        f"  needed     {len(source):,} images x {len(stage.view_epochs):,} {_unit(stage)}: "
        f"{readable_bytes(found.needed_bytes)}",
        f"  instead    {_alternatives(store, stage)}",
    ]
    if device is not None and not missing_weights(stage):
        speed, engine = measure_teacher(recipe, number, device)
        seconds = found.missing / speed
        lines.append(
            f"  time       {readable_time(seconds)} for the {found.missing:,} that are missing, at {speed:,.0f} "
            f"images/s ({engine}; measured here, without reading images)"
        )
    return lines


def measure_teacher(recipe: Recipe, number: int, device: Device) -> tuple[float, str]:
    """Images a second of the teacher alone, on noise in batches of device_batch_size, and what computes."""
    stage = recipe.stages[number]
    teacher = open_teacher(recipe, number, device)
    side = stage.view.size_px
    shape = (stage.device_batch_size, *((3, side, side) if recipe.model.data_format == "NCHW" else (side, side, 3)))
    images = paddle.to_tensor(np.random.default_rng(0).random(shape, dtype=np.float32))
    teacher(images)["logits"].numpy()  # what the first call sets up is no part of the speed
    started, done = time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < _MEASURE_SECONDS or not done:
        teacher(images)["logits"].numpy()
        done += len(images)
    return done / elapsed, " and ".join(dict.fromkeys(teacher.engines))


def _unit(stage: Stage) -> str:
    return "epochs" if stage.labels is None or stage.labels.views is None else f"views, for {stage.epochs:,} epochs"


def _alternatives(store: LabelStore, stage: Stage) -> str:
    """What other settings of `views` would need."""
    own = len(stage.view_epochs)
    counts = [views for views in _VIEWS if views < stage.epochs and views != own]
    one = store.positions * store.layout.record_bytes
    named = [f"views: {views} {readable_bytes(views * one)}" for views in counts]
    if own < stage.epochs:
        named.append(f"a view an epoch {readable_bytes(stage.epochs * one)}")
    return ", ".join(named) or "nothing: the stage has one epoch"
