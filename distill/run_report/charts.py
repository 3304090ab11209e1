"""Curves as SVG text that stands in a page: no script, no outside resource, colours from the page's style."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from distill.run_report.collect import Points

WIDTH, HEIGHT = 480, 230
COLOURS = 6
"""How many runs the page's style tells apart (.line0 to .line5); more share colours."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 10, 44
_POINTS_SHOWN = 400


def line_chart(lines: Mapping[int, Points], *, title: str) -> Markup:
    """Curves of several runs in one picture.

    Args:
        lines: Points (update, value), values finite, by the number of the run; at least one point in all.
        title: For those who cannot see it; escaped.
    """
    points = [point for line in lines.values() for point in line]
    x_ticks = ticks(min(0.0, *(x for x, _ in points)), max(x for x, _ in points))
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points))
    marks = [_y_tick(value, y_ticks) for value in y_ticks] + [_x_tick(value, x_ticks) for value in x_ticks]
    marks.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 4, "updates", "middle"))
    for run, line in lines.items():
        shown = [(_x(x, x_ticks), _y(y, y_ticks)) for x, y in thinned(line)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in shown)
        marks.append(f'<polyline class="line{run % COLOURS}" points="{path}"/>')
        if len(shown) <= 30:
            marks += [f'<circle class="line{run % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in shown]
    # Numbers, and texts that _text has escaped.
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(marks)}</svg>"
    )


def ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers at equal distances; the first is at most `low`, the last at least `high`."""
    span = (high - low) or abs(high) or 1.0
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def thinned(line: Points) -> Points:
    """At most some 400 points: each the mean of its neighbours, so that no peak is invented."""
    size = math.ceil(len(line) / _POINTS_SHOWN)
    groups = [line[start : start + size] for start in range(0, len(line), size)] if size else []
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _x(value: float, scale: Sequence[float]) -> float:
    return _LEFT + (value - scale[0]) / (scale[-1] - scale[0]) * (WIDTH - _LEFT - _RIGHT)


def _y(value: float, scale: Sequence[float]) -> float:
    return HEIGHT - _BOTTOM - (value - scale[0]) / (scale[-1] - scale[0]) * (HEIGHT - _BOTTOM - _TOP)


def _y_tick(value: float, scale: Sequence[float]) -> str:
    y = _y(value, scale)
    line = f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(_LEFT - 6, y + 4, f"{value:.4g}", "end")


def _x_tick(value: float, scale: Sequence[float]) -> str:
    return _text(_x(value, scale), HEIGHT - _BOTTOM + 17, f"{value:,.6g}", "middle")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
