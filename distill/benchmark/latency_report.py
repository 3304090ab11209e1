"""What was measured, as Markdown and figures, beside what is published."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from distill.benchmark.figures import Axis, points, write_figure
from distill.benchmark.latency_rows import LatencyRow, Target, all_targets
from distill.benchmark.tables import PublishedModel, latency_ms
from distill.files import write_atomically

FIGURE_BATCH = 4
_PRECISIONS = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}
_ENGINES = {
    "eager": "Paddle, eager",
    "predictor": "Paddle Inference, oneDNN",
    "onnxruntime": "ONNX Runtime",
}


def write_report(folder: Path, rows: Sequence[LatencyRow]) -> list[Path]:
    """Writes `latency.md`, and for each engine and precision the figure of accuracy against latency.

    A figure has the series without its WSL teachers; there is none where only those were measured.

    Args:
        folder: Exists.
        rows: At least one, of one machine.

    Returns:
        The files.

    Raises:
        RunError: One cannot be written.
    """
    report = folder / "latency.md"
    write_atomically(report, markdown(rows))
    axes = [figure_axis(rows, *kind) for kind in _kinds(rows)]
    return [report, *(path for axis in axes if points(axis, ()) for path in write_figure(folder, axis))]


def markdown(rows: Sequence[LatencyRow]) -> str:
    """The report: engines side by side with what is published, then a table of each engine in the published form."""
    kinds = _kinds(rows)
    parts = [_head(rows), _side_by_side(rows, kinds)]
    parts += [_published_form(rows, engine) for engine in dict.fromkeys(engine for engine, _ in kinds)]
    return "\n".join(parts)


def figure_axis(rows: Sequence[LatencyRow], engine: str, precision: str) -> Axis:
    """Accuracy, as published, against latency, as measured here: with batches of 4, else the largest measured."""
    own = [row for row in rows if (row.engine, row.precision) == (engine, precision)]
    batches = {row.batch for row in own}
    batch = FIGURE_BATCH if FIGURE_BATCH in batches else max(batches)
    places = {(target.model, target.crop_px): (target.network, target.crop_px) for target in all_targets()}
    found = {places[row.model, row.crop_px]: row.median_ms for row in own if row.batch == batch}
    published: Callable[[PublishedModel], float | None] = lambda row: found.get((row.network, row.crop_px))  # noqa: E731
    return Axis(
        f"accuracy_latency_{engine}_{precision}",
        f"ms for {batch} image{'s' if batch > 1 else ''}, measured here",
        f"published accuracy, latency measured here: {_ENGINES[engine]}, {precision}",
        published,
        lambda _: None,
        note=f"Latency: {own[0].machine}, {_dates(own)}.",
        families="published accuracy",
    )


def _kinds(rows: Sequence[LatencyRow]) -> list[tuple[str, str]]:
    """Engine and precision of what was measured, in the order of the tables."""
    measured = {(row.engine, row.precision) for row in rows}
    return [(engine, precision) for engine in _ENGINES for precision in _PRECISIONS if (engine, precision) in measured]


def _head(rows: Sequence[LatencyRow]) -> str:
    return f"""# Latency of the series

Measured here: {rows[0].machine}; {_dates(rows)}. By `distill benchmark latency`.

Milliseconds of a whole batch: the median, and in parentheses the quickest call and the 90th percentile, of
{_range([row.runs for row in rows])} calls in turns with the other engines, after a warm-up. From normalised images to
logits; decoding, resizing and cropping are not in it. Published figures, from PaddleClas's document of the series
(sections 3 and 4), were measured by others on GPUs, and stand here for comparison alone.
"""


def _side_by_side(rows: Sequence[LatencyRow], kinds: Sequence[tuple[str, str]]) -> str:
    """A line for each network and batch size."""
    by_key = {row.key: row for row in rows}
    gpus = [("V100", "fp32"), ("T4", "fp32"), ("T4", "fp16")]
    columns = [
        *("Model", "Crop size", "Resize short size", "Batch size"),
        *(f"measured here: {_ENGINES[engine]}, {_PRECISIONS[precision]} (ms)" for engine, precision in kinds),
        *(f"published: {gpu}, {precision.upper()} (ms)" for gpu, precision in gpus),
    ]
    lines = []
    for target in _targets(rows):
        for batch in sorted({row.batch for row in rows if (row.model, row.crop_px) == (target.model, target.crop_px)}):
            own = [by_key.get((target.model, target.crop_px, *kind, batch)) for kind in kinds]
            theirs = [
                latency_ms(target.network, target.crop_px, precision, batch, "v100" if gpu == "V100" else "t4")
                for gpu, precision in gpus
            ]
            cells = [*map(_cell, own), *("" if value is None else f"{value:.3f}" for value in theirs)]
            lines.append([target.model, str(target.crop_px), str(target.resize_short_px), str(batch), *cells])
    return _table("Engines side by side", columns, lines)


def _published_form(rows: Sequence[LatencyRow], engine: str) -> str:
    """The columns of the document's sections 3 and 4."""
    own = [row for row in rows if row.engine == engine]
    by_key = {row.key: row for row in own}
    kinds = [
        (precision, batch)
        for precision in _PRECISIONS
        for batch in sorted({row.batch for row in own})
        if any((row.precision, row.batch) == (precision, batch) for row in own)
    ]
    columns = [
        *("Model", "Crop size", "Resize short size"),
        *(f"{_PRECISIONS[precision]}, batch size {batch} (ms)" for precision, batch in kinds),
    ]
    lines = []
    for target in _targets(own):
        found = [by_key.get((target.model, target.crop_px, engine, *kind)) for kind in kinds]
        medians = ["" if row is None else _ms(row.median_ms) for row in found]
        lines.append([target.model, str(target.crop_px), str(target.resize_short_px), *medians])
    return _table(f"Measured here: {_ENGINES[engine]}", columns, lines)


def _targets(rows: Sequence[LatencyRow]) -> list[Target]:
    measured = {(row.model, row.crop_px) for row in rows}
    return [target for target in all_targets() if (target.model, target.crop_px) in measured]


def _table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    aligned = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join([f"## {title}\n", *(f"| {' | '.join(line)} |" for line in (columns, aligned, *lines)), ""])


def _cell(row: LatencyRow | None) -> str:
    return "" if row is None else f"{_ms(row.median_ms)} ({_ms(row.min_ms)}-{_ms(row.p90_ms)})"


def _ms(value: float) -> str:
    """With the three digits that repeat, or all that stand before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _dates(rows: Sequence[LatencyRow]) -> str:
    first, last = min(row.date for row in rows), max(row.date for row in rows)
    return first if first == last else f"{first} to {last}"


def _range(numbers: Sequence[int]) -> str:
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)}-{max(numbers)}"
