"""What a run's folder holds, read for its report; nothing is computed here."""

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.metrics import read_metrics
from distill.recipe import Recipe
from distill.recipe.file import load_recipe

CARD = "MODEL_CARD.md"

Points = list[tuple[float, float]]

_NO_CURVE = {"kind", "stage", "stage_name", "step", "images", "undecodable"}


@dataclass(frozen=True)
class RunFacts:
    """A run as its files tell it.

    Attributes:
        folder: The run's folder.
        recipe: Its recipe, resolved.
        recipe_text: The same as it stands in `recipe.yaml`.
        curves: (update, value) by quantity; the updates of all stages are counted on.
        sittings: Of `environment.json`, oldest first; more than one where the run was resumed or restarted.
        result: Of `result.json` by stage; None while the run has not finished.
        undecodable: File and reason of each training image that was left out.
        first_views: A data URL of a picture, by stage.
    """

    folder: Path
    recipe: Recipe
    recipe_text: str
    curves: Mapping[str, Points]
    sittings: list[dict[str, Any]]
    result: dict[str, Any] | None
    undecodable: list[tuple[str, str]]
    first_views: dict[str, str]

    @property
    def name(self) -> str:
        """What the report calls it."""
        return self.folder.resolve().name

    @property
    def card(self) -> Path | None:
        """The model card, if it has been written."""
        path = self.folder / CARD
        return path if path.is_file() else None


def collect(folder: Path) -> RunFacts:
    """Reads a run's folder.

    Raises:
        UserError: It is not the folder of a run, or one of its files is damaged.
    """
    recipe_path = folder / "recipe.yaml"
    if not recipe_path.is_file():
        raise UserError(f"{folder} is no run: expected a folder that `distill train` wrote, with a recipe.yaml in it")
    recipe = load_recipe(recipe_path)
    entries = read_metrics(folder / "metrics.jsonl")
    environment = _read_json(folder / "environment.json") or {}
    pictures = {stage.name: folder / f"first_views_{stage.name}.png" for stage in recipe.stages}
    return RunFacts(
        folder=folder,
        recipe=recipe,
        recipe_text=recipe_path.read_text(encoding="utf-8"),
        curves=curves(entries),
        sittings=environment.get("sittings", []),
        result=_read_json(folder / "result.json"),
        undecodable=[(entry["file"], entry["reason"]) for entry in entries if entry["kind"] == "undecodable"],
        first_views={name: _png_url(path.read_bytes()) for name, path in pictures.items() if path.is_file()},
    )


def curves(entries: list[dict[str, Any]]) -> dict[str, Points]:
    """The finite numbers of a `metrics.jsonl` by quantity, against updates counted on from stage to stage."""
    lengths: dict[int, int] = {}
    for entry in entries:
        lengths[entry["stage"]] = max(lengths.get(entry["stage"], 0), entry["step"])
    found: dict[str, Points] = {}
    for entry in entries:
        if entry["kind"] == "undecodable":
            continue
        update = entry["step"] + sum(length for stage, length in lengths.items() if stage < entry["stage"])
        for name, value in entry.items():
            if name not in _NO_CURVE and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append((update, float(value)))
    return found


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Restore it, or remove it to report the rest") from error
    return content


def _png_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
