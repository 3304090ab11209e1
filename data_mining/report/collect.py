"""Reads what the stages have left, and puts the report's facts together."""

import heapq
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_mining import removal
from data_mining.index import location, offsets, read_failures
from data_mining.recipe import ByClass, MiningRecipe
from data_mining.report.summary import ClassSample, FunnelStep, Group, ImageRef, Pair, Sample, Summary
from data_mining.report.thumbnails import Thumbnails
from data_mining.select import pool_parts, selected_path
from data_mining.shards import LABELLED, POOL, protected
from data_mining.workspace import Workspace, read_table
from distill.report import git_commit, processor

PAIRS_SHOWN = 18
GROUPS_SHOWN = 10
GROUP_IMAGES_SHOWN = 7
CLASSES_SHOWN = 6
SAMPLES_SHOWN = 8
FAILURES_SHOWN = 20
CONFIDENCE_BINS = 40

_PACKAGES = (
    "paddle-distill",
    "paddlepaddle",
    "paddlepaddle-gpu",
    "onnxruntime",
    "numpy",
    "opencv-python-headless",
    "pyarrow",
    "faiss-cpu",
    "simplejpeg",
)
_LEAK_COLUMNS = (
    "image",
    "protected_set",
    "protected",
    "mirrored",
    "cosine",
    "hash_bits",
    "inliers",
    "decision",
    "reason",
)


def collect(workspace: Workspace, recipe: MiningRecipe, stages: list[str], thumbnails: Thumbnails) -> Summary:
    """Puts the report together.

    Args:
        workspace: Where the stages have run.
        recipe: What was asked for.
        stages: Those of the recipe, in their order, without the report.
        thumbnails: Knows where the images lie.

    Raises:
        RunError: A stage has not run.
    """
    selected = read_table(selected_path(workspace, recipe), ["image", "label", "score", "source", "confidence"])
    once = selected.filter(pc.not_equal(selected["source"], "repeat"))
    removed = {stage: removal.removed_by(workspace, recipe, stage) for stage in removal.stages_of(recipe)}
    labels = once["label"].to_numpy()
    classes = recipe.teacher.num_classes
    shown = _classes_to_show(np.bincount(labels, minlength=classes))
    pool = _scan_pool(workspace, recipe, removed, once, shown)
    confident = np.histogram(once["confidence"].to_numpy(), CONFIDENCE_BINS, (0, 1))[0]
    weak, review = _pairs(workspace, recipe, thumbnails)
    section = recipe.select
    return Summary(
        name=recipe.name,
        description=recipe.description,
        funnel=tuple(_funnel(workspace, recipe, removed, once, len(selected))),
        leaks=weak,
        review=review,
        groups=tuple(_groups(workspace, recipe, thumbnails)),
        classes_in_pool=tuple(pool.classes.tolist()),
        classes_on_list=tuple(np.bincount(labels, minlength=classes).tolist()),
        quota=section.images_per_class if isinstance(section, ByClass) else None,
        confidence_in_pool=tuple(pool.confidence.tolist()),
        confidence_on_list=tuple(confident.tolist()),
        samples=tuple(_samples(label, pool, once, thumbnails) for label in shown),
        undecodable=tuple(_failures(workspace, recipe)),
        stages=_stage_reports(workspace, stages),
        settings=recipe.model_dump(mode="json"),
        versions=_versions(),
    )


# --- the funnel ---------------------------------------------------------------------------------


def _funnel(
    workspace: Workspace,
    recipe: MiningRecipe,
    removed: dict[str, NDArray[np.int64]],
    once: pa.Table,
    lines: int,
) -> Iterator[FunnelStep]:
    decoded = int(offsets(workspace, recipe, POOL)[-1])
    failures = len(read_failures(workspace, recipe, POOL))
    yield FunnelStep("found in the pool", decoded + failures, 0, "")
    yield FunnelStep("decoded", decoded, failures, "not readable as an image")
    kept = np.ones(decoded, np.bool_)
    names = {
        "leaks": ("do not show a protected image", "verified leaks"),
        "duplicates": ("show something of their own", "duplicates of a kept or a labelled image"),
    }
    left = decoded
    for stage, numbers in removed.items():
        kept[numbers] = False
        now = int(kept.sum())
        name, why = names[stage]
        if stage == "leaks" and recipe.leaks is not None and recipe.leaks.drop_review_band:
            why = "verified leaks and the review band"
        yield FunnelStep(name, now, left - now, why)
        left = now
    yield FunnelStep("chosen", len(once), left - len(once), "not confident enough, or no room in the class")
    if lines != len(once):
        yield FunnelStep("lines of the list", lines, 0, f"{lines - len(once):,} repeats fill short classes")


# --- the pool, once ------------------------------------------------------------------------------


@dataclass
class _Pool:
    """What one pass over the scores of the pool gives.

    Attributes:
        classes: int64 [C], images by best class.
        confidence: int64 [CONFIDENCE_BINS].
        refused: By class that is shown, the best images that are not on the list: (score, -number, reason).
    """

    classes: NDArray[np.int64]
    confidence: NDArray[np.int64]
    refused: dict[int, list[tuple[float, int, str]]] = field(default_factory=dict)


def _scan_pool(
    workspace: Workspace,
    recipe: MiningRecipe,
    removed: dict[str, NDArray[np.int64]],
    once: pa.Table,
    shown: list[int],
) -> _Pool:
    images = int(offsets(workspace, recipe, POOL)[-1])
    # the first reason counts: a leak that is a duplicate too is a leak
    reasons = ["", *removed, "on the list"]
    state = np.zeros(images, np.int8)
    state[once["image"].to_numpy()] = reasons.index("on the list")
    for stage in reversed(list(removed)):
        state[removed[stage]] = reasons.index(stage)
    pool = _Pool(np.zeros(recipe.teacher.num_classes, np.int64), np.zeros(CONFIDENCE_BINS, np.int64))
    for part in pool_parts(workspace, recipe):
        best, confidence = part.ranking.classes[:, 0], part.ranking.probabilities[:, 0]
        pool.classes += np.bincount(best, minlength=len(pool.classes))
        pool.confidence += np.histogram(confidence, CONFIDENCE_BINS, (0, 1))[0]
        here = state[part.first : part.first + len(best)]
        for label in shown:
            for name, rows in _refused_rows(here, best == label, reasons):
                found = [(float(confidence[row]), -(part.first + int(row)), name) for row in _top(confidence, rows)]
                known = pool.refused.setdefault(label, [])
                same = heapq.nlargest(SAMPLES_SHOWN, [*(each for each in known if each[2] == name), *found])
                pool.refused[label] = [each for each in known if each[2] != name] + same
    section = recipe.select
    least = section.min_confidence if isinstance(section, ByClass) else 0.0
    for label, refused in pool.refused.items():
        pool.refused[label] = [(score, -number, _reason(name, score, least)) for score, number, name in refused]
    return pool


def _refused_rows(
    state: NDArray[np.int8], of_class: NDArray[np.bool_], reasons: list[str]
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """The rows of a class by the reason why they are not on the list."""
    for number, name in enumerate(reasons[:-1]):
        yield name, np.flatnonzero(of_class & (state == number))


def _top(confidence: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows[np.argsort(-confidence[rows], kind="stable")[:SAMPLES_SHOWN]]


def _reason(stage: str, score: float, least: float) -> str:
    if stage:
        return {"leaks": "leak", "duplicates": "duplicate"}[stage]
    return "not confident enough" if score < least else "no room left"


def _classes_to_show(on_list: NDArray[np.int64]) -> list[int]:
    """Classes from the fullest to the emptiest that has any, evenly spread."""
    order = np.argsort(-on_list, kind="stable")[: int((on_list > 0).sum())]
    count = min(CLASSES_SHOWN, len(order))
    return sorted(order[np.linspace(0, len(order) - 1, count).round().astype(int)].tolist()) if count else []


def _samples(label: int, pool: _Pool, once: pa.Table, thumbnails: Thumbnails) -> ClassSample:
    rows = np.flatnonzero(once["label"].to_numpy() == label)
    half = SAMPLES_SHOWN // 2
    ends = rows if len(rows) <= SAMPLES_SHOWN else np.concatenate([rows[:half], rows[-half:]])
    chosen = [
        Sample(_ref(thumbnails, POOL, row["image"]), round(row["score"], 4), row["source"])
        for row in once.take(pa.array(ends)).to_pylist()
    ]
    refused = [
        Sample(_ref(thumbnails, POOL, number), round(score, 4), why)
        for score, number, why in _varied(pool.refused.get(label, []))
    ]
    return ClassSample(label, int(pool.classes[label]), len(rows), tuple(chosen), tuple(refused))


def _varied(refused: list[tuple[float, int, str]]) -> list[tuple[float, int, str]]:
    """Some of each reason, as evenly as there are."""
    by_reason: dict[str, list[tuple[float, int, str]]] = {}
    for each in sorted(refused, key=lambda each: (-each[0], each[1])):
        by_reason.setdefault(each[2], []).append(each)
    turns = sorted((turn, reason, each) for reason, some in by_reason.items() for turn, each in enumerate(some))
    return [each for _, _, each in sorted(turns[:SAMPLES_SHOWN], key=lambda turn: (turn[1], turn[0]))]


# --- leaks and duplicates -----------------------------------------------------------------------


def _pairs(
    workspace: Workspace, recipe: MiningRecipe, thumbnails: Thumbnails
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Dropped pairs with the weakest evidence first; those to review with the strongest first. One an image."""
    if recipe.leaks is None:
        return (), ()
    from data_mining import leaks

    table = read_table(leaks.leaks_path(workspace, recipe), _LEAK_COLUMNS)
    inliers = table["inliers"].to_numpy()
    evidence = np.where(inliers == leaks.NOT_ASKED, np.iinfo(np.int64).max, inliers)
    decisions = {leaks.DROP: 1, leaks.REVIEW: -1}
    shown = []
    for decision, direction in decisions.items():
        rows = np.flatnonzero(pc.equal(table["decision"], decision).to_numpy())
        best = rows[np.argsort(-evidence[rows], kind="stable")]  # of each image the strongest pair
        image = table["image"].to_numpy()
        best = best[np.unique(image[best], return_index=True)[1]]
        if decision == leaks.REVIEW:
            dropped = image[pc.equal(table["decision"], leaks.DROP).to_numpy()]
            best = best[~np.isin(image[best], dropped)]
        order = best[np.argsort(direction * evidence[best], kind="stable")]
        # half of them where the decision was closest, half evenly over the rest
        rest = order[PAIRS_SHOWN // 2 :]
        step = np.linspace(0, len(rest) - 1, min(len(rest), PAIRS_SHOWN - PAIRS_SHOWN // 2)).round().astype(int)
        picked = np.concatenate([order[: PAIRS_SHOWN // 2], rest[step]])
        shown.append(tuple(_pair(row, thumbnails, leaks.NOT_ASKED) for row in table.take(pa.array(picked)).to_pylist()))
    return shown[0], shown[1]


def _pair(row: dict[str, Any], thumbnails: Thumbnails, not_asked: int) -> Pair:
    return Pair(
        _ref(thumbnails, POOL, row["image"]),
        _ref(thumbnails, protected(row["protected_set"]), row["protected"]),
        row["mirrored"],
        round(row["cosine"], 4),
        row["hash_bits"],
        None if row["inliers"] == not_asked else row["inliers"],
        row["decision"],
        row["reason"],
    )


def _groups(workspace: Workspace, recipe: MiningRecipe, thumbnails: Thumbnails) -> Iterator[Group]:
    """The largest groups of duplicates."""
    if recipe.duplicates is None:
        return
    from data_mining import duplicates

    table = read_table(duplicates.groups_path(workspace, recipe), ["image", "representative", "representative_set"])
    image, kept = table["image"].to_numpy(), table["representative"].to_numpy()
    labelled = pc.equal(table["representative_set"], LABELLED).to_numpy()
    away = labelled | (image != kept)
    kept = 2 * kept + labelled  # the two sets have numbers of their own
    names, counts = np.unique(kept[away], return_counts=True)
    for at in np.argsort(-counts, kind="stable")[:GROUPS_SHOWN]:
        others = image[away & (kept == names[at])][:GROUP_IMAGES_SHOWN]
        left_out = tuple(_ref(thumbnails, POOL, int(number)) for number in others)
        number, of_labelled = divmod(int(names[at]), 2)
        yield Group(int(counts[at]) + 1, _ref(thumbnails, LABELLED if of_labelled else POOL, number), left_out)


# --- the rest -----------------------------------------------------------------------------------


def _ref(thumbnails: Thumbnails, set_name: str, number: int) -> ImageRef:
    place = thumbnails.place(set_name, number)
    return ImageRef(set_name, number, location(place["path"], place["tar"], place["offset"], place["bytes"]))


def _failures(workspace: Workspace, recipe: MiningRecipe) -> Iterator[tuple[str, str]]:
    for row in read_failures(workspace, recipe, POOL).slice(0, FAILURES_SHOWN).to_pylist():
        yield (f"{row['tar']}: {row['path']}" if row["tar"] else row["path"]), row["reason"]


def _stage_reports(workspace: Workspace, stages: list[str]) -> dict[str, dict[str, Any]]:
    reports = {stage: workspace.load_report(stage) for stage in stages}
    return {stage: asdict(report) for stage, report in reports.items() if report is not None}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = git_commit()
    if commit is not None:
        found["commit"] = commit
    return found | {"python": platform.python_version(), "processor": processor()}
