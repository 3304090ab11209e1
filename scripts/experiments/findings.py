"""What mining found of what was planted: the truth of `pollute` beside the results of `data-mining`."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pollute import CLEAN, DUPLICATE, EDITS, KINDS, LEAK, OFF_TOPIC, Truth

from data_mining import duplicates, leaks
from data_mining.index import read_index
from data_mining.recipe import MiningRecipe
from data_mining.shards import POOL, protected
from data_mining.workspace import Workspace, read_table


@dataclass(frozen=True)
class Fate:
    """What became of an image of the pool.

    Attributes:
        leak: "drop", "review" (a person shall look), or "keep".
        shows: What it shows according to mining, a protected image's path; "" where it is kept.
        inliers: SIFT's, of the best pair; -1 where SIFT was not asked.
        duplicate: Left out as a duplicate.
        chosen: In the list.
    """

    leak: str = "keep"
    shows: str = ""
    inliers: int = 0
    duplicate: bool = False
    chosen: bool = False


def read_fates(output: Path, recipe: MiningRecipe, images: Path) -> dict[str, Fate]:
    """The fate of each image that could be decoded, by its path relative to `images`.

    Args:
        output: Of `data-mining run`.
        recipe: The same that ran.
        images: The folder of the pool.
    """
    with Workspace(output) as workspace:
        paths = read_index(workspace, recipe, POOL, ["path"])["path"].to_pylist()
        best = _best_leaks(workspace, recipe)
        doubles = set() if recipe.duplicates is None else set(duplicates.removed_images(workspace, recipe).tolist())
    chosen = set(pq.read_table(output / "selected.parquet", columns=["image"])["image"].to_pylist())
    return {
        str(Path(path).relative_to(images.absolute())): Fate(
            *best.get(number, ("keep", "", 0)), duplicate=number in doubles, chosen=number in chosen
        )
        for number, path in enumerate(paths)
    }


def _best_leaks(workspace: Workspace, recipe: MiningRecipe) -> dict[int, tuple[str, str, int]]:
    """Of each image that is not kept: decision, protected image, inliers."""
    if recipe.leaks is None:
        return {}
    names = {
        each.name: read_index(workspace, recipe, protected(each.name), ["path"])["path"].to_pylist()
        for each in recipe.protected
    }
    rank = {leaks.DROP: 0, leaks.REVIEW: 1}
    rows = [row for row in read_table(leaks.leaks_path(workspace, recipe)).to_pylist() if row["decision"] in rank]
    best: dict[int, tuple[str, str, int]] = {}
    for row in sorted(rows, key=lambda row: (rank[row["decision"]], -_strength(row["inliers"]))):
        shows = names[row["protected_set"]][row["protected"]]
        best.setdefault(row["image"], (row["decision"], shows, row["inliers"]))
    return best


def _strength(inliers: int) -> float:
    return float("inf") if inliers == leaks.NOT_ASKED else inliers


# --- the findings -----------------------------------------------------------------------------


def leaks_by_edit(truth: Iterable[Truth], fates: Mapping[str, Fate]) -> list[dict[str, Any]]:
    """A row for each source of leaks and edit: how many were planted and what became of them.

    `recall`: the part that is left out or put before a person. `right`: of those, the part whose original was named.
    """
    groups: dict[tuple[str, str], list[tuple[Truth, Fate]]] = defaultdict(list)
    for line in truth:
        if line.kind == LEAK:
            groups[source_of(line), line.edit].append((line, fates.get(line.path, Fate())))
    order = {edit: place for place, edit in enumerate(EDITS)}
    rows = []
    for (source, edit), members in sorted(groups.items(), key=lambda item: (item[0][0], order[item[0][1]])):
        found = [(line, fate) for line, fate in members if fate.leak != "keep"]
        rows.append(
            {
                "source": source,
                "edit": edit,
                "planted": len(members),
                "dropped": sum(fate.leak == "drop" for _, fate in members),
                "review": sum(fate.leak == "review" for _, fate in members),
                "recall": len(found) / len(members),
                "right": sum(_is_original(line, fate) for line, fate in found) / len(found) if found else None,
                "in_the_list": sum(fate.chosen for _, fate in members),
            }
        )
    return rows


def removal_precision(truth: Iterable[Truth], fates: Mapping[str, Fate]) -> dict[str, Any]:
    """Of what `leaks` dropped, and of what it put into the review band: how many of each kind, and the precision."""
    result: dict[str, Any] = {}
    lines = list(truth)
    for decision in ("drop", "review"):
        kinds = Counter(line.kind for line in lines if fates.get(line.path, Fate()).leak == decision)
        total = sum(kinds.values())
        result[decision] = {kind: kinds[kind] for kind in KINDS} | {"precision": kinds[LEAK] / total if total else None}
    return result


def false_removals(truth: Iterable[Truth], fates: Mapping[str, Fate]) -> list[dict[str, Any]]:
    """What was dropped as a leak and is none that was planted; the most certain first.

    Pools are not as clean as their names: among these are images that show a protected picture since ever.
    """
    rows = [
        {"path": line.path, "kind": line.kind, "original": line.original, "shows": fate.shows, "inliers": fate.inliers}
        for line in truth
        if line.kind != LEAK and (fate := fates.get(line.path, Fate())).leak == "drop"
    ]
    return sorted(rows, key=lambda row: (-_strength(row["inliers"]), row["path"]))


def duplicates_found(truth: Sequence[Truth], fates: Mapping[str, Fate]) -> dict[str, Any]:
    """Of the planted pairs of equal files: how many lost exactly one to `duplicates`, or more, or none.

    Pairs of which one left as a leak do not count. `others_removed`: images without a planted twin that left.
    """
    twins: dict[str, list[Fate]] = defaultdict(list)
    for line in truth:
        if line.kind in (CLEAN, DUPLICATE):
            twins[line.original].append(fates.get(line.path, Fate()))
    pairs = [pair for pair in twins.values() if len(pair) == 2 and all(fate.leak == "keep" for fate in pair)]
    left = Counter(sum(not fate.duplicate for fate in pair) for pair in pairs)
    alone = {line.path for line in truth if line.kind == OFF_TOPIC or (len(twins[line.original]) == 1)}
    return {
        "pairs": len(pairs),
        "one_left": left[1],
        "both_left": left[2],
        "none_left": left[0],
        "recall": (left[1] + left[0]) / len(pairs) if pairs else None,
        "others_removed": sum(fates.get(path, Fate()).duplicate for path in alone),
    }


def composition(truth: Iterable[Truth], fates: Mapping[str, Fate]) -> dict[str, dict[str, int]]:
    """How many of each kind the pool had, and the list has."""
    lines = list(truth)
    pool = Counter(line.kind for line in lines)
    chosen = Counter(line.kind for line in lines if fates.get(line.path, Fate()).chosen)
    return {kind: {"pool": pool[kind], "list": chosen[kind]} for kind in KINDS}


def findings(truth: Sequence[Truth], fates: Mapping[str, Fate]) -> dict[str, Any]:
    """Everything above, JSON values only."""
    return {
        "leaks_by_edit": leaks_by_edit(truth, fates),
        "leak_removal": removal_precision(truth, fates),
        "false_removals": false_removals(truth, fates),
        "duplicates": duplicates_found(truth, fates),
        "composition": composition(truth, fates),
        "not_decoded": len(truth) - len(fates),
    }


def source_of(line: Truth) -> str:
    """The first part of the original's name."""
    return line.original.split("/")[0]


def _is_original(line: Truth, fate: Fate) -> bool:
    return fate.shows.endswith(line.original.split("/", 1)[1])


# --- in words ---------------------------------------------------------------------------------


def as_markdown(values: Mapping[str, Any]) -> str:
    """The findings as Markdown tables."""
    leak_rows = [
        (
            row["source"],
            row["edit"],
            row["planted"],
            row["dropped"],
            row["review"],
            _percent(row["recall"]),
            _percent(row["right"]),
            row["in_the_list"],
        )
        for row in values["leaks_by_edit"]
    ]
    headings = ("protected", "edit", "planted", "dropped", "to review", "recall", "original named", "in the list")
    parts = ["### Leaks by edit", _table(headings, leak_rows)]
    removal = values["leak_removal"]
    rows = [
        (name, *(removal[key][kind] for kind in KINDS), _percent(removal[key]["precision"]))
        for key, name in (("drop", "dropped"), ("review", "to review"))
    ]
    parts += ["### What left as a leak, by what it was", _table(("", *_words(KINDS), "precision"), rows)]
    double = values["duplicates"]
    parts += [
        "### Duplicates",
        f"{double['pairs']:,} planted pairs: {double['one_left']:,} lost one image, {double['none_left']:,} both (to a "
        f"third that is like them), {double['both_left']:,} none: recall {_percent(double['recall'])}. Without a "
        f"planted twin {double['others_removed']:,} left.",
    ]
    kinds = values["composition"]
    total = {place: sum(counts[place] for counts in kinds.values()) for place in ("pool", "list")}
    rows = [
        (name, f"{kinds[kind]['pool']:,}", f"{kinds[kind]['list']:,}", _percent(kinds[kind]["list"] / total["list"]))
        for kind, name in zip(KINDS, _words(KINDS), strict=True)
    ]
    parts += ["### Pool and list", _table(("", "in the pool", "in the list", "of the list"), rows)]
    return "\n\n".join(parts) + "\n"


def _words(kinds: Collection[str]) -> list[str]:
    return [kind.replace("_", " ") for kind in kinds]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _table(headings: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
