"""Charts as SVG text that stands in a page: no script, no outside resource, colours from the page's style."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 480, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 10, 44
_BARS_UP_TO = 48  # classes; more become a line by rank


def histogram(before: Sequence[int], after: Sequence[int], *, title: str, x_label: str) -> str:
    """Two histograms over [0, 1] in one picture, the second in front of the first, on a logarithmic scale.

    A teacher is sure of most images: on a linear scale the last bin would be all there is to see.

    Args:
        before: Counts in equal bins; each at least that of `after`.
        after: Counts in the same bins.
        title: For those who cannot see it.
        x_label: Below the axis.
    """
    top = max([1, *before, *after])
    bars = [*_bars(before, top, "before", log=True), *_bars(after, top, "after", log=True)]
    ticks = [_text(_x(share), HEIGHT - 26, f"{share:g}") for share in (0, 0.25, 0.5, 0.75, 1)]
    return _svg(title, [*_y_axis(top, log=True), *bars, *ticks, _x_title(x_label)])


def classes_chart(before: Sequence[int], after: Sequence[int], quota: int | None, *, title: str) -> str:
    """Images a class before and after: bars by class, or with many classes lines by rank on a logarithmic scale.

    Args:
        before: Counts by class.
        after: Counts by class.
        quota: Drawn as a line.
        title: For those who cannot see it.
    """
    top = max([1, *before, *after, *([quota] if quota is not None else [])])
    if len(before) <= _BARS_UP_TO:
        every = max(1, len(before) // 10)
        labels = [_text(_x((at + 0.5) / len(before)), HEIGHT - 26, str(at)) for at in range(0, len(before), every)]
        bars = [*_bars(before, top, "before", log=False), *_bars(after, top, "after", log=False)]
        marks = [*bars, *labels, _x_title("class")]
        log = False
    else:
        order = np.argsort(-np.asarray(before), kind="stable")
        marks = [_area(np.asarray(before)[order], top, "before"), _area(np.asarray(after)[order], top, "after")]
        marks += [_text(_x(share), HEIGHT - 26, f"{share * len(before):,.0f}") for share in (0, 0.5, 1)]
        marks.append(_x_title("classes, the largest in the pool first"))
        log = True
    if quota is not None:
        y = _y(quota, top, log=log)
        marks.append(f'<line class="quota" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(_text(WIDTH - _RIGHT, y - 4, f"quota {quota:,}", anchor="end"))
    return _svg(title, [*_y_axis(top, log=log), *marks])


def _bars(counts: Sequence[int], top: int, kind: str, *, log: bool) -> list[str]:
    width = (WIDTH - _LEFT - _RIGHT) / max(1, len(counts))
    marks = []
    for at, count in enumerate(counts):
        y = _y(count, top, log=log)
        if count:
            marks.append(
                f'<rect class="{kind}" x="{_LEFT + at * width + width * 0.05:.1f}" y="{y:.1f}" '
                f'width="{width * 0.9:.1f}" height="{HEIGHT - _BOTTOM - y:.1f}"/>'
            )
    return marks


def _area(counts: np.ndarray, top: int, kind: str) -> str:
    """At most as many points as pixels: each stands for the classes of a pixel by their mean."""
    groups = np.array_split(counts, min(len(counts), WIDTH - _LEFT - _RIGHT))
    values = [float(group.mean()) for group in groups]
    points = [f"{_x((at + 0.5) / len(values)):.1f},{_y(value, top, log=True):.1f}" for at, value in enumerate(values)]
    floor = HEIGHT - _BOTTOM
    outline = [f"{_x(0):.1f},{floor}", *points, f"{_x(1):.1f},{floor}"]
    return f'<polygon class="{kind}" points="{" ".join(outline)}"/>'


def _y_axis(top: int, *, log: bool) -> list[str]:
    marks = []
    for value in _log_ticks(top) if log else _ticks(top):
        y = _y(value, top, log=log)
        marks.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(_text(_LEFT - 5, y + 4, _short(value), anchor="end"))
    return marks


def _ticks(top: int) -> list[int]:
    """0 and three to five round numbers up to `top`."""
    step = 10 ** math.floor(math.log10(max(1, top / 3)))
    step = next((step * factor for factor in (1, 2, 5) if top / (step * factor) <= 5), step * 10)
    return list(range(0, top + 1, max(1, step)))


def _log_ticks(top: int) -> list[int]:
    return [0, *(10**power for power in range(math.floor(math.log10(top)) + 1))]


def _short(value: int) -> str:
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return str(value)


def _x(share: float) -> float:
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(value: float, top: int, *, log: bool) -> float:
    share = math.log1p(value) / math.log1p(top) if log else value / top
    return HEIGHT - _BOTTOM - share * (HEIGHT - _BOTTOM - _TOP)


def _x_title(text: str) -> str:
    return _text(_x(0.5), HEIGHT - 6, text)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, marks: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(marks)}</svg>"
    )
