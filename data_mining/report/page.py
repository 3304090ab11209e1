"""The report as one HTML page that needs nothing else: no script, no outside file."""

from collections.abc import Callable
from typing import Any

import jinja2
import yaml

from data_mining.report.charts import classes_chart, histogram
from data_mining.report.summary import ImageRef, Summary


def render(summary: Summary, picture: Callable[[ImageRef], str]) -> str:
    """The page.

    Args:
        summary: What it says. Paths and names are data: they are escaped.
        picture: The data URL of an image.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("data_mining.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": _number, "percent": _percent, "duration": _duration, "yaml": _yaml}
    return environment.get_template("page.html.j2").render(
        summary=summary,
        picture=picture,
        classes_chart=classes_chart(
            summary.classes_in_pool, summary.classes_on_list, summary.quota, title="Images of each class"
        ),
        confidence_chart=histogram(
            summary.confidence_in_pool,
            summary.confidence_on_list,
            title="The teacher's confidence",
            x_label="probability of the best class",
        ),
        seconds=sum(stage["seconds"] for stage in summary.stages.values()),
    )


def _number(value: int) -> str:
    return f"{value:,}"


def _percent(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 0.0
    return "<0.1 %" if 0 < share < 0.1 else f"{share:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).rstrip()
