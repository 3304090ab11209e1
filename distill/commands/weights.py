"""`distill weights`: parse, call, print."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from distill.commands.options import DebugOption, JsonOption

weights_app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="List, fetch, convert and check weights. Nothing in a file is executed.",
)


class Target(StrEnum):
    """Whose names to write."""

    OURS = "ours"
    TIMM = "timm"
    TORCHVISION = "torchvision"
    TRANSFORMERS = "transformers"


FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A .safetensors, .pdparams, .pth, .pt or .bin file.")
]
ShaOption = Annotated[
    str | None, typer.Option("--sha256", metavar="HEX", help="What the file must have. Default: what is remembered.")
]


@weights_app.command("list")
def list_weights(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Print every published file of the series, with its address and licence.

    Releases are PaddleClas': 2.1 stands for all since then, 2.0 has the older key names (both load), 1.x are tars of
    static graphs, which nothing here reads. top-1 is published, in %.
    """
    from distill.weights.published import published_files

    files = published_files()
    if as_json:
        typer.echo(json.dumps([asdict(file) for file in files], indent=1))
        return
    typer.echo(f"{'model':<22} {'variant':<12} {'release':<8} {'top-1':<6} {'licence':<13} address")
    for file in files:
        remark = f"  ({file.remark})" if file.remark else ""
        licence = file.licence.partition(" ")[0]
        row = f"{file.model:<22} {file.variant:<12} {file.release:<8} {file.top1:<6} {licence:<13} {file.url}{remark}"
        typer.echo(row)


@weights_app.command("fetch")
def fetch_weights(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A network of `distill weights list`.")],
    variant: Annotated[str, typer.Option("--variant", help="plain, v2, ssld, ssld_v2, fix_ssld_v2 or fix.")] = "plain",
    release: Annotated[
        str | None, typer.Option("--release", help="2.1, 2.0 or 1.x. Default: the newest that has it.")
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Where to put it.")] = Path("weights"),
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="The licence of the WSL weights (CC-BY-NC 4.0) is accepted.")
    ] = False,
    sha256: ShaOption = None,
    debug: DebugOption = False,
) -> None:
    """Fetch published weights; after an interruption the same command goes on.

    Over https only. The SHA-256 is shown and remembered beside the file, and compared the next time. Without a network,
    put the file where the message says and run the command once more.

    \b
    Examples:
      distill weights fetch ResNet50_vd --variant ssld_v2
      distill weights fetch ResNeXt101_32x16d_wsl --accept-license
    """
    from distill.download import progress_bar
    from distill.weights.fetch import fetch
    from distill.weights.published import find_file

    file = find_file(model, variant, release)
    typer.echo(f"{file.name} ({file.top1} % published), release {file.release}, licence {file.licence}", err=True)
    typer.echo(f"from {file.url}{f' ({file.remark})' if file.remark else ''}", err=True)
    with progress_bar(file.file_name) as progress:
        path, found = fetch(file, folder, accept_license=accept_license, sha256=sha256, progress=progress)
    typer.echo(f"{path}: SHA-256 {found}")


@weights_app.command("convert")
def convert_weights(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .safetensors, .pdparams, .pth, .pt or .bin file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Our name of the network. Default: by the shapes.")
    ] = None,
    to: Annotated[Target, typer.Option("--to", help="Whose names to write.")] = Target.OURS,
    debug: DebugOption = False,
) -> None:
    """Convert weights of torchvision, timm and transformers to ours, and back.

    Plain ResNets, timm's resnet*d (vd) and resnet50c (vc), resnext101_32x8d to 48d (WSL, SWSL, SSL). The shortcut that
    ResNet18, ResNet34 and their vd have in the first block becomes an identity; a trained one does not convert back.

    \b
    Examples:
      distill weights convert resnet50d.safetensors ResNet50_vd.safetensors
      distill weights convert ig_resnext101_32x16.pth weights/ResNeXt101_32x16d_wsl.safetensors
      distill weights convert runs/distilled/student.safetensors resnet50d.safetensors --model ResNet50_vd --to timm
    """
    from distill.weights.convert import convert_file

    match, converted = convert_file(source, target, model=model, to=to.value)
    typer.echo(f"{target}: {match}, {match.num_classes} classes, {len(converted.arrays)} arrays, names: {to.value}")
    for remark in converted.remarks:
        typer.echo(f"note: {remark}", err=True)


@weights_app.command("inspect")
def inspect_weights(path: FileArgument, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Say what a file of weights is: format, arrays, network, number of classes, SHA-256."""
    from distill.weights.describe import describe

    found = describe(path)
    if as_json:
        networks = [{**asdict(match), "shown": str(match)} for match in found.matches]
        typer.echo(json.dumps({**asdict(found), "matches": networks}))
        return
    for key, (shape, dtype) in found.arrays.items():
        typer.echo(f"{key:<60} {dtype:<9} {'x'.join(map(str, shape)) or 'scalar'}")
    networks_text = " or ".join(dict.fromkeys(map(str, found.matches))) or "none of this series"
    typer.echo(f"\n{path}: {found.format}, {len(found.arrays)} arrays, names: {found.names}")
    typer.echo(f"network: {networks_text}")
    if found.matches:
        typer.echo(f"classes: {found.matches[0].num_classes}")
    typer.echo(f"SHA-256: {found.sha256}")
    for remark in found.remarks:
        typer.echo(remark)


@weights_app.command("verify")
def verify_weights(
    path: FileArgument,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="A network of `distill zoo`.")],
    width: Annotated[float, typer.Option("--width", help="Its model.width.")] = 1.0,
    stem_stride: Annotated[int, typer.Option("--stem-stride", help="Its model.stem_stride.")] = 4,
    sha256: ShaOption = None,
    debug: DebugOption = False,
) -> None:
    """Check that a file holds a network's weights; list what differs.

    \b
    Example:
      distill weights verify weights/ResNet50_vd_ssld_v2_pretrained.pdparams --model ResNet50_vd
    """
    from distill.weights.describe import verify
    from distill.weights.files import sha256_of

    match = verify(path, model, width=width, stem_stride=stem_stride, sha256=sha256)
    typer.echo(f"{path} fits {match}, {match.num_classes} classes; SHA-256 {sha256_of(path)}")
