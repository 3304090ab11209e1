"""Any recipe in small: all its stages and techniques, narrow networks on a few hundred small images, in seconds.

It shows that every stage of a recipe runs before the recipe's data, its teachers' weights or a GPU are there. Teachers
get random weights, so that accuracy means nothing.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from distill.models.factory_names import is_factory
from distill.recipe import (
    AnyCrop,
    AnySchedule,
    AnySource,
    AnyTeacher,
    CenterCrop,
    CosineSchedule,
    EvaluationSection,
    LabelsSection,
    ModelSection,
    PaddedCrop,
    PolynomialSchedule,
    Recipe,
    RuntimeSection,
    Section,
    Stage,
    StepSchedule,
    TeacherModel,
    TeacherSection,
)

WIDTH = 0.0625
EPOCHS = 2
BATCH = 16
GROUP = 8
VIEW_PX = 28
"""Of the stage with the smallest views; those of the others keep their proportion to it."""

STAND_IN = "ResNet18_vd"
WARNING = "accuracy means nothing here: this shows that every stage runs"
LIST, LABELS = "images.txt", "labels"


@dataclass(frozen=True)
class SmallData:
    """Small real images to train and evaluate on.

    Attributes:
        training: Labelled; its `range` is set.
        evaluation: Labelled.
        num_classes: Labels lie below it, >= 2.
    """

    training: AnySource
    evaluation: AnySource
    num_classes: int


def scale_down(recipe: Recipe, data: SmallData, inputs: Path) -> Recipe:
    """The recipe in small, a pure function: same stages, networks by name, losses, augmentation and schedules.

    Smaller are width (`WIDTH`; not of a factory's network), epochs, batches, views and evaluation; each source becomes
    a part of `data`. The learning rate shrinks with the global batch (Goyal et al. 2017, arXiv 1706.02677), so that
    training stays as stable.
    What is not at hand is left out: weights to start from, the teachers' weights, classes and devices, their half
    precision. `STAND_IN` stands for a teacher that is a file.

    Args:
        recipe: Any valid one.
        data: What stands for its images.
        inputs: Folder that the small recipe expects its teachers' weights and its soft labels in;
            `distill.rehearsal.small_inputs.write_inputs` makes the former.
    """
    teachers = [m.file for stage in recipe.stages if stage.teacher is not None for m in stage.teacher.models]
    weights = {path: str(inputs / f"teacher-{n}.safetensors") for n, path in enumerate(dict.fromkeys(teachers))}
    pixels = min(1.0, VIEW_PX / min(size for stage in recipe.stages for size in _sides_px(stage)))
    small = recipe.model_copy(
        update={
            "name": scaled_down_name(recipe),
            "description": f"In small, {WARNING}. {recipe.description}",
            "num_classes": data.num_classes,
            "model": recipe.model.model_copy(update={"width": _narrow_width(recipe.model), "weights": None}),
            "expected": None,
            "measured": None,
            "runtime": _small_runtime(recipe.runtime),
            "stages": tuple(_small_stage(stage, data, pixels, weights, inputs) for stage in recipe.stages),
        }
    )
    return Recipe.model_validate(small.model_dump())


def scaled_down_name(recipe: Recipe) -> str:
    """The name of the recipe in small, and so of its run."""
    return f"{recipe.name}_scaled_down"


def _sides_px(stage: Stage) -> tuple[int, int]:
    return stage.view.size_px, stage.evaluation.crop_px


def _small_stage(stage: Stage, data: SmallData, pixels: float, weights: dict[str, str], inputs: Path) -> Stage:
    epochs = min(stage.epochs, EPOCHS)
    grouped = {
        name: section.model_copy(update={"group_size": min(section.group_size, GROUP)})
        for name in type(stage).model_fields
        if isinstance(section := getattr(stage, name), Section) and hasattr(section, "group_size")
    }
    group = math.lcm(*(section.group_size for section in grouped.values()))
    batch = min(stage.device_batch_size, group * max(1, BATCH // group))
    global_batch = batch * min(2, stage.global_batch_size // stage.device_batch_size)
    recalibrated = stage.recalibrate_bn
    if recalibrated is not None:
        recalibrated = recalibrated.model_copy(update={"images": min(recalibrated.images, 4 * batch)})
    slower = min(1.0, global_batch / stage.global_batch_size)
    size = _pixels(stage.view.size_px, pixels)
    return stage.model_copy(
        update={
            "epochs": epochs,
            "global_batch_size": global_batch,
            "device_batch_size": batch,
            "data": stage.data.model_copy(update={"sources": _small_sources(stage.data.sources, data.training)}),
            "view": stage.view.model_copy(update={"size_px": size, "crop": _small_crop(stage.view.crop, size, pixels)}),
            "evaluation": _small_evaluation(stage.evaluation, data.evaluation, pixels),
            "teacher": _small_teacher(stage.teacher, weights, inputs, epochs, pixels) if stage.teacher else None,
            "optimizer": stage.optimizer.model_copy(update={"learning_rate": slower * stage.optimizer.learning_rate}),
            "recalibrate_bn": recalibrated,
            "schedule": _small_schedule(stage.schedule, epochs / stage.epochs, slower),
            **grouped,
        }
    )


def _narrow_width(model: ModelSection) -> float:
    """Of a factory's network nobody knows how to make it narrow."""
    return model.width if is_factory(model.name) else min(model.width, WIDTH)


def _pixels(side_px: int, scale: float) -> int:
    return max(VIEW_PX, round(side_px * scale))


def _small_sources(sources: tuple[AnySource, ...], images: AnySource) -> tuple[AnySource, ...]:
    """A part of the images for each source, labelled or not, and repeated, as that is."""
    if images.range is None:
        raise ValueError("the small training images must have a range")
    first, end = images.range
    part = max(1, (end - first) // len(sources))
    starts = [first + part * (place % (end - first)) for place in range(len(sources))]
    return tuple(
        images.model_copy(
            update={
                "range": (start, start + part),
                "use_labels": source.use_labels,
                "repeat": min(source.repeat, 2),
            }
        )
        for start, source in zip(starts, sources, strict=True)
    )


def _small_crop(crop: AnyCrop, size_px: int, pixels: float) -> AnyCrop:
    if isinstance(crop, CenterCrop):
        return crop.model_copy(update={"resize_short_px": max(size_px, round(crop.resize_short_px * pixels))})
    if isinstance(crop, PaddedCrop):
        needed = -(-(size_px - VIEW_PX) // 2)  # for the smallest images that the view can be made of
        return crop.model_copy(update={"padding_px": max(1, needed, round(crop.padding_px * pixels))})
    return crop


def _small_evaluation(section: EvaluationSection, images: AnySource, pixels: float) -> EvaluationSection:
    crop_px = _pixels(section.crop_px, pixels)
    return section.model_copy(
        update={
            "sources": (images,),
            "resize_short_px": max(crop_px, round(section.resize_short_px * pixels)),
            "crop_px": crop_px,
            "batch_size": min(section.batch_size, 64),
            "every_epochs": min(section.every_epochs, EPOCHS),
        }
    )


def _small_teacher(
    section: TeacherSection, weights: dict[str, str], inputs: Path, epochs: int, pixels: float
) -> TeacherSection:
    models = tuple(_small_model(model, weights[model.file], pixels) for model in section.models)
    labels = section.labels
    if labels is not None:
        labels = _small_labels(labels, inputs, epochs)
    return section.model_copy(update={"models": models, "labels": labels, "devices": (), "precision": "float32"})


def stand_in(model: AnyTeacher, weights: str) -> TeacherModel:
    """A network of the series for a teacher whose files are not there: of the student's classes, for the same images.

    Args:
        model: The teacher; a network stays the one it is.
        weights: The file that is to hold its weights.
    """
    if isinstance(model, TeacherModel):
        return model.model_copy(update={"weights": weights, "classes": None, "num_classes": None})
    return TeacherModel(
        name=STAND_IN,
        width=WIDTH,
        weights=weights,
        normalization=model.normalization,
        resize_px=model.resize_px,
    )


def _small_model(model: AnyTeacher, weights: str, pixels: float) -> TeacherModel:
    network = stand_in(model, weights)
    side = network.resize_px
    small_side = _pixels(side, pixels) if side is not None else None
    return network.model_copy(update={"width": _narrow_width(network), "resize_px": small_side})


def _small_labels(labels: LabelsSection, inputs: Path, epochs: int) -> LabelsSection:
    """With `views` the second of two epochs repeats the first one's, as later ones do in the recipe."""
    views = labels.views if labels.views is None else max(1, min(labels.views, epochs - 1))
    return labels.model_copy(update={"folder": str(inputs / LABELS), "views": views, "missing": "compute"})


def _small_schedule(schedule: AnySchedule, shorter: float, slower: float) -> AnySchedule:
    changes: dict[str, object] = {"warmup_epochs": schedule.warmup_epochs * shorter}
    if isinstance(schedule, StepSchedule):
        changes["boundaries_epochs"] = tuple(boundary * shorter for boundary in schedule.boundaries_epochs)
    if isinstance(schedule, CosineSchedule | PolynomialSchedule):
        changes["end_learning_rate"] = schedule.end_learning_rate * slower
    return schedule.model_copy(update=changes)


def _small_runtime(runtime: RuntimeSection) -> RuntimeSection:
    own = {"loader_threads": min(runtime.loader_threads, 2), "loader_processes": 0, "features_folder": None}
    return runtime.model_copy(update=own)
