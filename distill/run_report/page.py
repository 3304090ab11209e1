"""The report as one HTML page that needs nothing else: no script, no outside file."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from markupsafe import Markup, escape

from distill.run_report.answers import Answers
from distill.run_report.charts import COLOURS, line_chart
from distill.run_report.collect import Points, RunFacts
from distill.run_report.templates import environment

_TITLES = {
    "loss": "Loss (sum of its terms)",
    "learning_rate": "Learning rate",
    "images_per_second": "Training images a second",
    "data_wait_share": "Share of time spent waiting for data",
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "top1_without_ema": "Top-1 accuracy without the moving average",
}
_LAST = ("learning_rate", "images_per_second", "data_wait_share")


def render(runs: Sequence[RunFacts], answers: Sequence[Answers | str]) -> str:
    """The page.

    Args:
        runs: At least one. Names, paths and recipes are data: they are escaped.
        answers: Of each run, or why there are none.
    """
    templates = environment(autoescape=True)
    templates.filters |= {"yaml": _yaml, "breakable": _breakable}
    charts = [
        (_TITLES.get(name, f"Loss term {name}"), line_chart(lines, title=_TITLES.get(name, name)))
        for name, lines in _by_quantity(runs).items()
    ]
    return templates.get_template("page.html.j2").render(
        runs=list(zip(runs, answers, strict=True)), charts=charts, colours=COLOURS
    )


def _by_quantity(runs: Sequence[RunFacts]) -> dict[str, Mapping[int, Points]]:
    """Each quantity's curves by the number of the run: accuracy first, then the loss, then speed."""
    found = {name for run in runs for name in run.curves}
    first = [name for name in _TITLES if name not in _LAST and name in found]
    first.sort(key=lambda name: name == "loss")
    terms = sorted(found - set(_TITLES))
    last = [name for name in _LAST if name in found]
    return {
        name: {number: run.curves[name] for number, run in enumerate(runs) if name in run.curves}
        for name in [*first, *terms, *last]
    }


def _breakable(name: str) -> Markup:
    """A long name, which a narrow page may break behind its separators instead of anywhere."""
    return Markup(re.sub(r"([_/.-]+)", r"\1<wbr>", str(escape(name))))


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).rstrip()
