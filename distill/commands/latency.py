"""`distill benchmark latency`: parse, call, print."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar, get_args

import typer

from distill.commands.options import DebugOption, DeviceName, DeviceOption
from distill.errors import UserError, did_you_mean

Name = TypeVar("Name", bound=str)
USUAL = {"cpu": ("eager,predictor,onnxruntime", "float32,bfloat16"), "gpu": ("eager", "float32,float16")}
"""Engines and precisions by device, where the command line names none."""


def latency(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Networks, or rows of the published table. Default: its 13 networks."),
    ] = None,
    batches: Annotated[str, typer.Option("--batch", metavar="N,...", help="Images in a call.")] = "1,4,8",
    precisions: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="NAME,...",
            help="Default: float32 and bfloat16 (on a CPU it needs AVX-512), on a GPU float32 and float16.",
        ),
    ] = None,
    engines: Annotated[
        str | None,
        typer.Option(
            "--engines",
            metavar="NAME,...",
            help="eager: Paddle as it trains, the one on a GPU. predictor: Paddle Inference with oneDNN. onnxruntime: "
            "needs pip install 'paddle-distill[export]'. Default: all that the device has.",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="That each is timed for, at least; > 0.")] = 3.0,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="latency.csv, latency.md and the figures.")
    ] = Path("runs/latency"),
    device: DeviceOption = DeviceName.AUTO,
    again: Annotated[bool, typer.Option("--again", help="Measure what the folder's table has, too.")] = False,
    debug: DebugOption = False,
) -> None:
    """Measure how long the networks of the series take on this machine.

    The published document's tables for this processor or GPU, engines side by side and taking turns: median, quickest
    call and 90th percentile of a batch, from normalised images to logits, with random weights. Published V100 and T4
    figures stand beside them, and are labelled so. It begins with an estimate of its time; rows are written as they
    finish, and a second call measures only what is missing. Leave the machine alone meanwhile. Untested on GPUs so far.

    \b
    Examples:
      distill benchmark latency ResNet50_vd ResNet50_vd_ssld
      distill benchmark latency ResNet18 --batch 1 --engines predictor --precision float32
      distill benchmark latency                     # goes on where it was
    """
    from distill.benchmark.latency_rows import EngineName, LatencyPrecision, choose_targets

    targets = choose_targets(models or [])
    sizes = _batches(batches)
    if not seconds > 0:
        raise UserError(f"--seconds must be > 0, received {seconds}")
    from distill.parallel import setup_process

    chosen = setup_process(device.value)
    usual_engines, usual_precisions = USUAL[chosen.kind]
    wanted = _names("--engines", engines or usual_engines, get_args(EngineName))
    kinds = _names("--precision", precisions or usual_precisions, get_args(LatencyPrecision))
    from distill.benchmark import latency as benchmark
    from distill.benchmark.latency_report import write_report

    contenders, left_out = benchmark.choose_contenders(wanted, kinds, chosen)
    for line in left_out:
        typer.echo(line, err=True)
    rows = benchmark.measure(benchmark.Plan(targets, contenders, sizes, seconds, chosen, output), again=again)
    for path in [output / "latency.csv", *write_report(output, rows)]:
        typer.echo(f"wrote {path}", err=True)


def _batches(text: str) -> list[int]:
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or max(sizes) > 1024:
        raise UserError(f"--batch must be numbers of 1 to 1024 such as 1,4,8, received {text!r}")
    return list(dict.fromkeys(sizes))


def _names(option: str, text: str, valid: Sequence[Name]) -> list[Name]:
    found = []
    for given in dict.fromkeys(text.split(",")):
        match = next((name for name in valid if name == given), None)
        if match is None:
            raise UserError(f"{option}: unknown {given!r}.{did_you_mean(given, valid)} Valid: {', '.join(valid)}")
        found.append(match)
    return found
