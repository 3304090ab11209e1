"""Which recipes a store fits: everything that the teacher's answers depend on, and nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.data.sources import Images
from distill.errors import RunError, UserError
from distill.files import locked, write_atomically
from distill.labels import store as sizes
from distill.labels.records import FORMAT, Layout
from distill.labels.store import LabelStore
from distill.recipe import AnyTeacher, Recipe, Stage, TeacherModel
from distill.teachers.classes import read_class_map
from distill.teachers.files import digest_of, identity_of

MANIFEST = "labels.json"
WITHOUT_PART = (
    "name",
    "epochs",
    "global_batch_size",
    "device_batch_size",
    "data",
    "normalization",
    "evaluation",
    "teacher",
    "loss",
    "optimizer",
    "schedule",
    "freeze",
    "stage_lr_multipliers",
    "ema_decay",
    "amp",
    "sync_batch_norm",
)
"""Keys of a stage that change no answer, or stand in a store's key in another form. All others are part of it, those
too that do not exist yet: forgetting one refuses a store that would fit, and never takes one that does not."""

UNKNOWN = "unknown: the file is not there"


def label_store(recipe: Recipe, number: int, images: Images, *, create: bool) -> LabelStore:
    """The store of a stage's soft labels, which fits the recipe.

    What changes no answer is no part of its key: student, loss, optimiser, epochs, batch sizes, `views` (view epoch 3
    is the same one whether four or forty follow), memory layouts, ground-truth labels, the images' folder.

    Args:
        recipe: Its stage has `teacher.labels`.
        number: Of the stage.
        images: The stage's.
        create: Make the store where there is none yet; otherwise nothing is written.

    Raises:
        UserError: The store that is there was made for something else, or the weights can nowhere be found.
        RunError: It cannot be read, or not be written.
    """
    stage = recipe.stages[number]
    if stage.labels is None:
        raise ValueError(f"stage {stage.name} has no teacher.labels")
    folder = Path(stage.labels.folder) / f"stage-{number}"
    key = store_key(recipe, number, images)
    path = folder / MANIFEST
    if create and not path.exists():
        _require_weights(stage)
        _create(path, {"key": key, "sizes": _new_sizes(stage)})
    kept = _read(path) if path.exists() else {"key": key, "sizes": _new_sizes(stage)}
    _check_fits(folder, kept["key"], key)
    return LabelStore(
        folder=folder,
        layout=Layout(recipe.num_classes, stage.labels.top_classes),
        positions=len(images),
        group_size=stage.mix_group_size,
        teachers=_identities(stage, kept["key"]),
        **kept["sizes"],
    )


def open_labels(recipe: Recipe, number: int, images: Images) -> LabelStore | None:
    """`label_store` for a run that reads and fills it, every partial shard counted; None without `teacher.labels`."""
    if recipe.stages[number].labels is None:
        return None
    store = label_store(recipe, number, images, create=True)
    for view_epoch in recipe.stages[number].view_epochs:
        store.recount(view_epoch)
    return store


def store_key(recipe: Recipe, number: int, images: Images) -> dict[str, Any]:
    """What the answers depend on, as JSON holds it. A teacher whose file is not there has the SHA-256 `UNKNOWN`."""
    stage = recipe.stages[number]
    if stage.teacher is None or stage.labels is None:
        raise ValueError(f"stage {stage.name} has no teacher.labels")
    layout = Layout(recipe.num_classes, stage.labels.top_classes)
    key = {
        "format": FORMAT,
        "seed": recipe.seed,
        "stage": number,
        "num_classes": recipe.num_classes,
        "top_classes": layout.kept,
        "images": {"count": len(images), **images.identity()},
        **stage.model_dump(mode="json", exclude=set(WITHOUT_PART), exclude_none=True),
        "teachers": [_teacher_key(model, stage, recipe.num_classes) for model in stage.teacher.models],
        "precision": stage.teacher.precision,
    }
    stored: dict[str, Any] = json.loads(json.dumps(key))  # tuples become lists
    return stored


def missing_weights(stage: Stage) -> list[str]:
    """The teachers' files that are not there, so that nothing says whether the store is theirs."""
    models = stage.teacher.models if stage.teacher is not None else ()
    files = [path for model in models for path in (model.file, model.classes) if path is not None]
    return [path for path in files if not Path(path).exists()]


def _teacher_key(model: AnyTeacher, stage: Stage, num_classes: int) -> dict[str, Any]:
    """What a teacher's answers depend on; a key that says nothing new of a network of the series is left out."""
    key: dict[str, Any] = {"weights_sha256": digest_of(model) if Path(model.file).exists() else UNKNOWN}
    normalization = model.normalization
    if isinstance(model, TeacherModel):
        key |= {"name": model.name, "width": model.width, "stem_stride": model.stem_stride}
        key["arguments"] = model.arguments
        normalization = normalization or stage.normalization
    else:
        key |= model.model_dump(mode="json", exclude={"path", "normalization", "resize_px", "classes"})
    if normalization is not None:
        key["normalization"] = normalization.model_dump(mode="json")
    if model.resize_px is not None:
        key["resize_px"] = model.resize_px
    if model.classes is not None:
        there = Path(model.classes).exists()
        key["classes_sha256"] = read_class_map(model.classes, num_classes).sha256 if there else UNKNOWN
    return key


def _identities(stage: Stage, key: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Of the teachers of a store that fits: the recipe knows their names, the store its files' hashes."""
    models = stage.teacher.models if stage.teacher is not None else ()
    return tuple(
        entry
        for model, found in zip(models, key["teachers"], strict=True)
        for entry in identity_of(model.name, found["weights_sha256"], found.get("classes_sha256"))
    )


def _new_sizes(stage: Stage) -> dict[str, int]:
    group = stage.mix_group_size
    return {"block_positions": -(-sizes.BLOCK_POSITIONS // group) * group, "shard_blocks": sizes.SHARD_BLOCKS}


def _require_weights(stage: Stage) -> None:
    if absent := missing_weights(stage):
        folder = stage.labels.folder if stage.labels is not None else ""
        raise UserError(
            f"Cannot read the weights {', '.join(absent)}: {folder} holds no soft labels yet, so the teacher is needed"
        )


def _create(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent / "lock"):
            if not path.exists():
                write_atomically(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise RunError(
            f"cannot make {path.parent}: {error.strerror}. Choose another folder with teacher.labels.folder"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        return {"key": dict(content["key"]), "sizes": {name: int(n) for name, n in content["sizes"].items()}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} cannot be read ({error}): without it nobody knows what these soft labels belong to. Delete "
            f"{path.parent}, or name another folder with teacher.labels.folder"
        ) from error


def _check_fits(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    old, new = dict(_flat(stored)), dict(_flat(wanted))
    differing = [
        f"  {name}: {old.get(name, 'absent')} in the store, {new.get(name, 'absent')} in the recipe"
        for name in {**old, **new}
        if old.get(name) != new.get(name) and new.get(name) != UNKNOWN
    ]
    if differing:
        raise UserError(
            f"the soft labels in {folder} were computed for something else:\n"
            + "\n".join(differing)
            + "\nName another folder with teacher.labels.folder, take the values of the store, or delete it"
        )


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts and lists of dicts by dotted key; null is absent."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        for index, entry in enumerate(value):
            yield from _flat(entry, f"{key}.{index}")
    elif value is not None:
        yield key, value
