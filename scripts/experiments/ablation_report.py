"""The ablation's table, from the accuracies that are there: Markdown, JSON and a picture."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from ablation_rows import ROWS, Comparison, shares_weights
from ablation_statistics import CONFIRMED, NOT_CONFIRMED, UNDECIDED, Difference, compare, verdict

from distill.files import temporary_name, write_atomically

Values = dict[str, dict[int, float]]
"""Accuracies in [0, 1] by row and seed."""

RULE = (
    "A published direction is confirmed where the 95 % confidence interval of the difference (after +-) lies wholly on "
    "its side of 0, not confirmed where it lies wholly on the other, and undecided otherwise. The interval is Welch's, "
    "of two means; marked *, both rows' students of a seed come from one training, it is Student's, of the differences "
    "seed by seed. Of intervals of 95 % one in twenty misses by chance; nothing is corrected for their number."
)
QUICK_WARNING = "**A quick run: it shows that everything works, and its figures mean nothing.**"
COLOURS = {CONFIRMED: "#4c9f70", NOT_CONFIRMED: "#c44e52", UNDECIDED: "#8a8f98", None: "#4c8dbf"}


@dataclass(frozen=True)
class Found:
    """A comparison with what was measured, in points of a per cent.

    Attributes:
        row: What is compared.
        comparison: With what, and what is published.
        difference: None where one of the two rows has no value yet.
        paired: Whether it was made seed by seed.
    """

    row: str
    comparison: Comparison
    difference: Difference | None
    paired: bool

    @property
    def published(self) -> float | None:
        """The published gain in points."""
        before, after = self.comparison.before, self.comparison.after
        return None if before is None or after is None else after - before

    @property
    def verdict(self) -> str | None:
        """None where nothing is published or measured."""
        if self.difference is None or self.published is None:
            return None
        return verdict(self.difference, self.published)


def find(values: Values) -> list[Found]:
    """All comparisons of the rows in `values`, in the table's order."""
    return [
        Found(row, comparison, *_difference(values, row, comparison.other))
        for row in values
        for comparison in ROWS[row].comparisons
    ]


def _difference(values: Values, row: str, other: str) -> tuple[Difference | None, bool]:
    after, before = values[row], values.get(other, {})
    paired = shares_weights(row, other)
    if paired:
        both = sorted(set(after) & set(before))
        after, before = ({seed: side[seed] for seed in both} for side in (after, before))
    if not after or not before:
        return None, paired
    return compare(_percent(after), _percent(before), paired=paired), paired


def _percent(values: dict[int, float]) -> list[float]:
    return [100 * value for _, value in sorted(values.items())]


def write_report(output: Path, rows: Sequence[str], values: Values, *, quick: bool) -> str:
    """Writes ablation.md, .json and .png into `output`.

    Args:
        output: A folder.
        rows: In the order of the table.
        values: Of each row; a row may have none yet.
        quick: Say that the figures mean nothing.

    Returns:
        The Markdown.
    """
    found = find({row: values[row] for row in rows})
    text = markdown(values, found, quick=quick)
    write_atomically(output / "ablation.md", text)
    write_atomically(output / "ablation.json", json.dumps(as_json(values, found, quick=quick), indent=2) + "\n")
    picture = output / "ablation.png"
    temporary = temporary_name(picture)
    draw(temporary, values, found)
    temporary.replace(picture)
    return text


# --- words --------------------------------------------------------------------------------------


def markdown(values: Values, found: Sequence[Found], *, quick: bool) -> str:
    """A line for each comparison; a row without one has a line too."""
    headings = ("row", "what it changes", "seeds", "top-1 %", "against", "difference", "published", "verdict")
    lines = [_line(headings), _line(["---"] * len(headings))]
    for row in values:
        own = [entry for entry in found if entry.row == row]
        first = (f"`{row}`", ROWS[row].changes, str(len(values[row])), mean_and_deviation(_percent(values[row])))
        lines += [
            _line((*(first if number == 0 else ("", "", "", "")), *(_compared(entry) if entry else ("",) * 4)))
            for number, entry in enumerate(own or [None])
        ]
    warning = f"{QUICK_WARNING}\n\n" if quick else ""
    return f"# The steps of SSLD at a small scale, on CIFAR-10\n\n{warning}" + "\n".join(lines) + f"\n\n{RULE}\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def mean_and_deviation(percent: Sequence[float]) -> str:
    """As "61.50 +- 0.42", the standard deviation of a sample."""
    if not percent:
        return "not yet run"
    spread = f" +- {statistics.stdev(percent):.2f}" if len(percent) > 1 else ""
    return f"{statistics.mean(percent):.2f}{spread}"


def _compared(entry: Found) -> tuple[str, str, str, str]:
    comparison, published = entry.comparison, entry.published
    stated = "-"
    if published is not None:
        stated = f"{published:+.2f} ({comparison.network}, {comparison.before} -> {comparison.after})"
    return f"`{comparison.other}`", _difference_text(entry), stated, entry.verdict or "-"


def _difference_text(entry: Found) -> str:
    if entry.difference is None:
        return "-"
    margin = "" if entry.difference.margin is None else f" +- {entry.difference.margin:.2f}"
    return f"{entry.difference.mean:+.2f}{margin}{' *' if entry.paired else ''}"


def as_json(values: Values, found: Sequence[Found], *, quick: bool) -> dict[str, Any]:
    """Accuracies in [0, 1], differences in points of a per cent."""
    return {
        "quick": quick,
        "rule": RULE,
        "rows": {row: {"changes": ROWS[row].changes, "top1_by_seed": values[row]} for row in values},
        "comparisons": [
            {
                "row": entry.row,
                "against": entry.comparison.other,
                "difference": None if entry.difference is None else entry.difference.mean,
                "margin": None if entry.difference is None else entry.difference.margin,
                "paired": entry.paired,
                "published_before": entry.comparison.before,
                "published_after": entry.comparison.after,
                "published_network": entry.comparison.network or None,
                "verdict": entry.verdict,
            }
            for entry in found
        ],
    }


# --- the picture --------------------------------------------------------------------------------


def draw(path: Path, values: Values, found: Sequence[Found]) -> None:
    """Left the accuracies, right the differences with their intervals beside the published ones; a PNG."""
    height = 1.5 + 0.34 * max(len(values), len(found))
    figure, (reached, gained) = plt.subplots(1, 2, figsize=(14, height), width_ratios=[1, 1.4], layout="constrained")
    _draw_accuracies(reached, values)
    _draw_differences(gained, found)
    for axis in (reached, gained):
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def _draw_accuracies(axis: Any, values: Values) -> None:
    for place, row in enumerate(values):
        percent = _percent(values[row])
        if percent:
            axis.plot(percent, [place] * len(percent), "o", color="#8a8f98", markersize=4)
            axis.plot(statistics.mean(percent), place, "|", color="#1f5f8b", markersize=16, markeredgewidth=2)
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(-0.6, len(values) - 0.4)
    axis.set(xlabel="top-1 on the test images, %", title="Each seed, and the mean")


def _draw_differences(axis: Any, found: Sequence[Found]) -> None:
    axis.axvline(0, color="black", linewidth=0.8)
    for place, entry in enumerate(found):
        if entry.difference is not None:
            margin = entry.difference.margin or 0.0
            axis.errorbar(
                entry.difference.mean,
                place,
                xerr=margin,
                fmt="o",
                color=COLOURS[entry.verdict],
                capsize=3,
                markersize=5,
            )
        if entry.published is not None:
            axis.plot(entry.published, place, "D", mfc="none", mec="black", markersize=6)
    for name, colour in COLOURS.items():
        axis.plot([], [], "o", color=colour, label=name or "nothing published")
    axis.plot([], [], "D", mfc="none", mec="black", label="published, ImageNet-1k")
    axis.set_yticks(range(len(found)), [f"{entry.row} - {entry.comparison.other}" for entry in found])
    axis.set_ylim(-0.6, max(len(found), 1) - 0.4)
    axis.set(xlabel="difference, points, with its 95 % interval", title="What each step adds")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=5, fontsize=8, frameon=False)
