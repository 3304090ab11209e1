"""The tables behind `distill zoo`."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from distill.benchmark.measurements import Measurement
from distill.benchmark.tables import (
    Counted,
    PublishedModel,
    count,
    count_network,
    flops_doubt,
    params_doubt,
    published_models,
)


def zoo_table(console: Console, measured: Sequence[Measurement] = ()) -> None:
    """Prints what is published about the series beside what we count, what cannot be right, and what was measured.

    Args:
        console: Where to print; rich leaves out colours where it is not a terminal.
        measured: The user's own measurements: a table of their own.
    """
    table = _table("model", "px", "top-1", "top-5", "GFLOPs", "our GMACs", "params M", "our M")
    doubts = []
    for row in published_models():
        counted = count(row)
        table.add_row(*_cells(row, counted))
        found = [doubt for doubt in (flops_doubt(row, counted), params_doubt(row, counted)) if doubt]
        doubts += [f"{row.model}: {doubt}" for doubt in found]
    console.print(table)
    console.print(
        "\ntop-1, top-5 (%), GFLOPs and params M as published; ours counted from shapes: multiply-accumulates of "
        "convolutions and classifier at the row's image size (px), and trainable values.",
        "! cannot be right: FLOPs below twice our multiply-accumulates or more than 1 % above, or parameters that "
        "differ from ours in the last published digit (0.01 M):",
        highlight=False,
        sep="\n",
    )
    for doubt in doubts:
        console.print(f"- {doubt}", highlight=False)
    _measured_table(console, measured)


def _measured_table(console: Console, measured: Sequence[Measurement]) -> None:
    if not measured:
        console.print("\nNothing measured here yet: `distill evaluate ... --record`.", highlight=False)
        return
    table = _table("measured here", "px", "top-1", "top-5", "our GMACs", "our M", "images")
    for found in measured:
        counted = counted_measurement(found)
        table.add_row(
            found.name,
            str(found.crop_px),
            f"{100 * found.top1:.2f}",
            f"{100 * found.top5:.2f}",
            _digits(counted.macs_g),
            _digits(counted.params_m),
            f"{found.images:,}",
        )
    console.print()
    console.print(table)
    console.print("\nmeasured top-1, top-5 (%), by `distill evaluate --record`:", highlight=False)
    for found in measured:
        width = "" if found.width == 1 else f" x {found.width:g}"
        console.print(
            f"- {found.name}: {found.model}{width}, {found.num_classes:,} classes, {found.weights} "
            f"(SHA-256 {found.weights_sha256[:12]}), images of {', '.join(found.sources)}, resized to "
            f"{found.resize_short_px} px, {found.date}, {found.hardware}",
            highlight=False,
        )


def counted_measurement(found: Measurement) -> Counted:
    """Counts the network of a measured checkpoint as it was measured."""
    return count_network(
        found.model, found.crop_px, found.num_classes, width=found.width, stem_stride=found.stem_stride
    )


def _table(*headers: str) -> Table:
    # No frame: the rows then fit 80 columns, which is also what rich assumes where it is not a terminal.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(headers[0], no_wrap=True)
    for header in headers[1:]:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _digits(number: float) -> str:
    """Three digits for what is small: a narrow network has 0.00111 G multiply-accumulates."""
    return f"{number:.2f}" if number >= 1 else f"{number:.3g}"


def _cells(row: PublishedModel, counted: Counted) -> tuple[str, ...]:
    flops_mark = "!" if flops_doubt(row, counted) else ""
    params_mark = "!" if params_doubt(row, counted) else ""
    return (
        row.model,
        str(row.crop_px),
        f"{100 * row.top1:.1f}",
        f"{100 * row.top5:.1f}",
        f"{flops_mark}{row.flops_g:.2f}",
        f"{counted.macs_g:.2f}",
        f"{params_mark}{row.params_m:.2f}",
        f"{counted.params_m:.2f}",
    )
