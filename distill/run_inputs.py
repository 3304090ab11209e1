"""`inputs.json`: which images and which files of weights a run was made from, noted while they are there."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.sources import Images
from distill.data.types import UNLABELLED
from distill.distributed.world import ALONE, World
from distill.errors import UserError
from distill.recipe import Recipe
from distill.report import write_json
from distill.weights import sha256_of
from distill.weights.licences import licence_of

FILE = "inputs.json"


def note_inputs(
    run: Path,
    recipe: Recipe,
    number: int,
    *,
    images: Images,
    evaluation_images: Images,
    teachers: Sequence[tuple[str, str]],
    fresh: bool,
    world: World = ALONE,
) -> None:
    """Notes the inputs of stage `number` at each start of it.

    Args:
        run: The run's folder; the file lies there and not in the stage's, so that a stage that is refused before its
            first step leaves nothing in its own.
        recipe: The whole recipe.
        number: Of the stage, from 0.
        images: What it trains on.
        evaluation_images: What it is measured on.
        teachers: Name and SHA-256 of each file that the answers which are learnt come from, as `Teacher.identity`.
        fresh: Whether the stage begins here. What it starts from was noted then, and may be gone when it is resumed.
        world: Rank 0 of it writes.

    Raises:
        RunError: It cannot be written.
    """
    if not world.is_first:
        return
    stages = read_inputs(run)
    name = recipe.stages[number].name
    start = recipe.model.weights if number == 0 else None
    if fresh or name not in stages:
        started_from = _weights(recipe.model.name, start) if start is not None else None
    else:
        started_from = stages[name]["started_from"]
    section = recipe.stages[number].teacher
    models = section.models if section is not None else ()
    files = [file for model in models for file in (model.file, model.classes) if file is not None]
    stages[name] = {
        "images": _facts(images),
        "evaluation_images": _facts(evaluation_images),
        "started_from": started_from,
        "teachers": [
            _weights(name, file, sha256) for (name, sha256), file in zip(teachers, files, strict=len(teachers) > 0)
        ],
    }
    write_json(run / FILE, {"stages": stages})


def read_inputs(run: Path) -> dict[str, Any]:
    """What was noted, by stage; nothing of a run of an older version.

    Raises:
        UserError: The file is damaged.
    """
    path = run / FILE
    try:
        stages: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["stages"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}. Restore it, or remove it to go on without") from error
    return stages


def _facts(images: Images) -> dict[str, Any]:
    """Samples of an epoch and how many of them have a label: of each source, and hashes over all."""
    ends = np.cumsum(images.part_sizes)
    labelled = [int((part != UNLABELLED).sum()) for part in np.split(images.labels, ends[:-1])]
    return {"samples": images.part_sizes, "labelled": labelled, **images.identity()}


def _weights(name: str, file: str | None, sha256: str | None = None) -> dict[str, Any]:
    path = Path(file) if file is not None else None
    if sha256 is None and path is not None and path.is_file():
        sha256 = sha256_of(path)
    licence = licence_of(path, sha256) if path is not None else None
    return {"network": name, "file": file, "sha256": sha256, "licence": licence}
