"""The table behind `distill zoo`."""

from rich.console import Console
from rich.table import Table

from distill.benchmark.tables import Counted, PublishedModel, count, flops_doubt, params_doubt, published_models


def zoo_table(console: Console) -> None:
    """Prints what is published about the series beside what we count, and what cannot be right.

    Args:
        console: Where to print; rich leaves out colours where it is not a terminal.
    """
    # No frame: the rows then fit 80 columns, which is also what rich assumes where it is not a terminal.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("model", no_wrap=True)
    for header in ("px", "top-1", "top-5", "GFLOPs", "our GMACs", "params M", "our M"):
        table.add_column(header, justify="right", no_wrap=True)
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
