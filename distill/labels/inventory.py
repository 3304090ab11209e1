"""What a store holds of what a stage needs, and how much disk that takes."""

from dataclasses import dataclass

from distill.errors import UserError, did_you_mean
from distill.labels.manifest import missing_weights
from distill.labels.store import LabelStore
from distill.recipe import Recipe, Stage


@dataclass(frozen=True)
class Inventory:
    """Answers of a stage.

    Attributes:
        needed: All of them: samples in an epoch times view epochs.
        stored: Those that are there.
        record_bytes: What one takes.
    """

    needed: int
    stored: int
    record_bytes: int

    @property
    def missing(self) -> int:
        """Answers that are not there."""
        return self.needed - self.stored

    @property
    def needed_bytes(self) -> int:
        """The disk for all of them."""
        return self.needed * self.record_bytes


def take_inventory(store: LabelStore, stage: Stage) -> Inventory:
    """Counts shards, not records: quick for thousands of epochs."""
    there = set(store.view_epochs()) & set(stage.view_epochs)
    stored = sum(store.stored(view_epoch) for view_epoch in there)
    return Inventory(store.positions * len(stage.view_epochs), stored, store.layout.record_bytes)


def stages_with_labels(recipe: Recipe, name: str | None = None) -> list[int]:
    """The numbers of the stages that have `teacher.labels`, or of the one with this name.

    Raises:
        UserError: There is none.
    """
    names = {stage.name: number for number, stage in enumerate(recipe.stages)}
    if name is not None and name not in names:
        raise UserError(f"there is no stage {name!r}, expected one of {', '.join(names)}.{did_you_mean(name, names)}")
    chosen = [names[name]] if name is not None else [*names.values()]
    found = [number for number in chosen if recipe.stages[number].labels is not None]
    if not found:
        where = f"stage {name}" if name is not None else f"the recipe {recipe.name}"
        raise UserError(f"{where} has no teacher.labels: add `labels: {{folder: labels/{recipe.name}}}` to its teacher")
    return found


def describe_labels(store: LabelStore, stage: Stage) -> list[str]:
    """What a run says about its soft labels at the start."""
    found = take_inventory(store, stage)
    if not found.missing:
        then = "the teacher is not needed"
    elif stage.waits_for_labels:
        then = "training waits for the others"
    else:
        then = "the others are computed, once"
    lines = [
        f"soft labels: {found.stored:,} of {found.needed:,} answers are in {store.folder} "
        f"({describe_layout(store)}); {then}"
    ]
    if absent := missing_weights(stage):
        lines.append(f"{', '.join(absent)} is not there: nothing says that the stored answers are this teacher's")
    return lines


def describe_layout(store: LabelStore) -> str:
    """What is kept of an answer: `top 10 of 1,000 classes, 46 B each`."""
    layout = store.layout
    classes = (
        f"all {layout.num_classes:,} classes"
        if layout.keeps_all
        else f"top {layout.kept:,} of {layout.num_classes:,} classes"
    )
    return f"{classes}, {layout.record_bytes:,} B each"
