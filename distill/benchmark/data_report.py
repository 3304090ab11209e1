"""What `distill benchmark data` says: the bottleneck in words, tables, JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from distill.benchmark.data import DataReport, LoaderRun, Parts

# From these on a cause is named; below they are within what a shared machine does to a measurement.
_MUCH_WAITING = 0.25
_GOOD_SCALING = 0.8


def report_dict(report: DataReport) -> dict[str, Any]:
    """All of a report, for JSON."""
    return asdict(report) | {
        "images_per_second_per_core": report.images_per_second_per_core,
        "bottleneck": bottleneck(report),
    }


def bottleneck(report: DataReport) -> str:
    """What to change first, in words."""
    parts, most = report.parts, report.runs[-1]
    if parts.disk_share > _MUCH_WAITING:
        return (
            f"the disk: {parts.disk_share:.0%} of the time reading waits, with one thread. More loader_threads wait "
            "at once; fewer bytes (data-mining pack) and a faster disk wait less."
        )
    least = report.runs[0]
    scaling = most.images_per_second / most.workers / (least.images_per_second / least.workers)
    if scaling < _GOOD_SCALING:
        return _why_no_scaling(report, scaling)
    share = parts.parts[parts.dearest].cpu_us / parts.cpu_us
    return {
        "read": f"reading: {share:.0%} of the computing. Put small files into tars (data-mining pack).",
        "decode": f"the decoder: {share:.0%} of the computing. Only smaller files help much: data-mining pack makes "
        "them, and more cores share the work.",
        "view": f"the view (crop, resize, flip): {share:.0%} of the computing. More cores share the work.",
        "batch": f"copying into the batch: {share:.0%} of the computing, which the images' small size explains.",
    }[parts.dearest]


def _why_no_scaling(report: DataReport, scaling: float) -> str:
    most = report.runs[-1]
    what = f"each of {most.workers} workers does {scaling:.0%} of what one does alone"
    if most.workers > report.cores:
        return f"the cores: {what}, and there are {report.cores} cores."
    if most.idle_cores < 0.5:
        return f"the cores: {what}, and no core is idle. Other programs run, or this machine's cores share hardware."
    if most.processes:
        return (
            f"what processes share: {what}, though {most.idle_cores:.1f} cores idle. Batches are copied to one reader."
        )
    return (
        f"Python's global lock: {what}, though {most.idle_cores:.1f} cores idle. Small images need more Python than "
        f"decoding; try --set runtime.loader_processes={most.workers} and --threads 1."
    )


def print_report(report: DataReport, console: Console, student: float) -> None:
    """Prints the tables, the bottleneck and the cores that a student needs.

    Args:
        report: What was measured.
        console: Where to print.
        student: Images a second that the student takes, > 0.
    """
    parts = report.parts
    files = f", {parts.encoded_bytes / 1000:.0f} kB a file" if parts.encoded_bytes else ""
    console.print(
        f"{report.recipe}, stage {report.stage}: {report.sources_images} images an epoch, "
        f"{parts.pixels:,.0f} pixels{files}, views of {report.size_px} px; {report.cores} cores",
        markup=False,
    )
    if parts.undecodable:
        console.print(f"{parts.undecodable} of {parts.images + parts.undecodable} images could not be decoded")
    console.print()
    console.print(_parts_table(parts))
    console.print()
    console.print(_runs_table(report.runs))
    console.print(f"\nBottleneck: {bottleneck(report)}", markup=False)
    console.print(
        f"One core prepares {report.images_per_second_per_core:.0f} images/s: "
        f"a student that takes {student:g} images/s needs {report.cores_for(student):.1f} cores for its images."
    )


def _parts_table(parts: Parts) -> Table:
    table = _table("one thread", "us an image", "share", "us waiting")
    for name, part in parts.parts.items():
        table.add_row(name, f"{part.cpu_us:.1f}", f"{part.cpu_us / parts.cpu_us:.0%}", f"{part.waiting_us:.1f}")
    waiting = sum(part.waiting_us for part in parts.parts.values())
    table.add_row("all", f"{parts.cpu_us:.1f}", "100%", f"{waiting:.1f}")
    return table


def _runs_table(runs: Sequence[LoaderRun]) -> Table:
    table = _table("loader", "images/s", "per worker", "cores used", "cores idle")
    for run in runs:
        name = f"{run.threads} thread" + "s" * (run.threads > 1)
        name += f" in each of {run.processes} processes" if run.processes else ""
        used = "" if run.cores_used is None else f"{run.cores_used:.1f}"
        speed = run.images_per_second
        table.add_row(name, f"{speed:.0f}", f"{speed / run.workers:.0f}", used, f"{run.idle_cores:.1f}")
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    for header in others:
        table.add_column(header, justify="right", no_wrap=True)
    return table
