#!/usr/bin/env python3
"""Compares ways from JPEG files to a training batch: random crop of 224 px, flip, one core.

    python scripts/benchmarks/decode.py [--photographs FOLDER] [--repeat 7] [--json FILE]

The anchor is libjpeg-turbo alone: `simplejpeg.decode_jpeg` to RGB, no crop, no batch. Every row runs once in each
repeat, in turn, so that what else the machine does strikes all of them; a row states the median over the repeats of its
rate and of its ratio to the anchor's rate in the same repeat. Rates count CPU time, of all threads: images a second
of one core. "wall" is by the clock, of all cores that the row uses.

Functions start from bytes in memory; the loader reads files (from the page cache, after the first pass). The views are
uint8 [N, 3, 224, 224]; PaddleClas' and OpenCV's are float32 and normalised, as a network needs them in the end.
"packed" is what `data-mining pack` makes of the same photographs. Without --photographs the few that scikit-image and
scikit-learn carry are used; these are larger than ImageNet's.
"""

import argparse
import io
import json
import os
import platform
import random
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image as PillowImage
from rich.console import Console
from rich.table import Table

from data_mining.pack import repacked
from data_mining.recipe import PackSection
from distill.data.augment import train_view
from distill.data.boxes import Box, random_area_box
from distill.data.decode import decode_image, open_image
from distill.data.image_list import ImageFiles, open_image_list
from distill.data.loader import TrainLoader, store_view
from distill.data.random import Stream, generator
from distill.data.tar_member import member_path
from distill.data.types import UndecodableImage
from distill.files import write_atomically
from distill.recipe import RuntimeSection, Stage

SIZE_PX, BATCH = 224, 64
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
FEWEST_IMAGES = 100  # a pass over fewer is too short to time
ANCHOR = "simplejpeg, full decode"

STAGE = Stage.model_validate(
    {
        "name": "benchmark",
        "epochs": 1,
        "global_batch_size": BATCH,
        "device_batch_size": BATCH,
        "data": {"sources": [{"kind": "class_folders", "root": "unused"}]},
        "view": {
            "size_px": SIZE_PX,
            "crop": {"kind": "random_area", "scale": SCALE, "ratio": RATIO, "sampling": "published"},
            "horizontal_flip": 0.5,
        },
        "normalization": {"mean": MEAN.tolist(), "std": STD.tolist()},
        "evaluation": {
            "sources": [{"kind": "class_folders", "root": "unused"}],
            "resize_short_px": 256,
            "crop_px": SIZE_PX,
        },
        "loss": {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.0}},
        "optimizer": {
            "kind": "momentum",
            "learning_rate": 0.1,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 0.0,
            "decay_bias_and_norm": False,
        },
        "schedule": {"kind": "constant", "warmup_epochs": 0},
    }
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="JPEG files, at any depth")
    parser.add_argument("--images", type=int, default=500, help="at most (default 500)")
    parser.add_argument("--repeat", type=int, default=7, metavar="N", help="passes over every row (default 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    if min(options.images, options.repeat) < 1:
        parser.error("--images and --repeat must be at least 1")
    paths = jpeg_files(options.photographs) if options.photographs else installed_photographs()
    photographs = readable(paths[: options.images])
    if not photographs:
        parser.error(f"no JPEG file that can be decoded in {options.photographs or 'the installed packages'}")
    cv2.setNumThreads(0)  # as in the loader: one core a row
    with tempfile.TemporaryDirectory() as folder:
        small = packed(photographs)
        facts = describe(photographs, small)
        rows = all_rows(photographs, small, Path(folder))
        facts["rows"] = measure(rows, len(photographs), options.repeat)
    print_table(facts)
    if options.json:
        write_atomically(options.json, json.dumps(facts, indent=1) + "\n")


def jpeg_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


def installed_photographs() -> list[Path]:
    """The JPEG photographs of two packages that the extra `dev` installs."""
    import skimage
    import sklearn.datasets

    folders = Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images"
    return [path for folder in folders for path in jpeg_files(folder)]


def readable(paths: Sequence[Path]) -> list[tuple[Path, bytes]]:
    """Path and content of the files that can be decoded, over and over until they are FEWEST_IMAGES."""
    found = []
    for path in paths:
        data = path.read_bytes()
        try:
            decode_image(data, str(path))
        except UndecodableImage as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        found.append((path.resolve(), data))
    return found * (-(-FEWEST_IMAGES // len(found))) if found else []


def packed(photographs: Sequence[tuple[Path, bytes]]) -> list[bytes]:
    return [repacked(data, str(path), PackSection())[0] for path, data in photographs]


# --- the rows ---------------------------------------------------------------------------------


def all_rows(photographs: Sequence[tuple[Path, bytes]], small: Sequence[bytes], folder: Path) -> dict[str, Any]:
    """Name to a function that passes over all photographs once."""
    large = [data for _, data in photographs]
    files = list_of_files([path for path, _ in photographs], folder)
    tar = list_in_tar(small, folder)
    return {
        ANCHOR: lambda: full_decode(large),
        "ours, function": lambda: fill_batches(large, our_view),
        "ours, loader, 1 thread": lambda: run_loader(files, 1),
        "ours, loader, 2 threads": lambda: run_loader(files, 2),
        "as PaddleClas, function": lambda: fill_float_batches(large, paddleclas_view),
        "OpenCV to float32, function": lambda: fill_float_batches(large, float_view),
        "PIL, function": lambda: fill_batches(large, pillow_view),
        "packed: simplejpeg, full decode": lambda: full_decode(small),
        "packed: ours, function": lambda: fill_batches(small, our_view),
        "packed: ours, loader, 1 thread": lambda: run_loader(tar, 1),
        "packed: ours, loader, 2 threads": lambda: run_loader(tar, 2),
        "packed: as PaddleClas, function": lambda: fill_float_batches(small, paddleclas_view),
    }


def full_decode(images: Sequence[bytes]) -> None:
    for data in images:
        simplejpeg.decode_jpeg(data, "RGB")


def fill_batches(images: Sequence[bytes], make_view: Callable[[bytes, int], Any]) -> None:
    """uint8 batches of what `make_view` returns: [S, S, 3]."""
    for first in range(0, len(images), BATCH):
        chosen = images[first : first + BATCH]
        batch = np.empty((len(chosen), 3, SIZE_PX, SIZE_PX), np.uint8)
        for place, data in enumerate(chosen):
            store_view(make_view(data, first + place), batch[place], "NCHW")


def our_view(data: bytes, index: int) -> Any:
    return train_view(open_image(data, "image"), STAGE.view, generator(0, 0, 0, index, Stream.VIEW))


def run_loader(source: ImageFiles, threads: int) -> None:
    """One epoch through the loader that training uses."""
    loader = TrainLoader(source, STAGE, RuntimeSection(loader_threads=threads), seed=0, stage_index=0)
    for _ in loader.batches(0, loader.steps_per_epoch):
        pass


def pillow_view(data: bytes, index: int) -> Any:
    """What a loader of PIL images does."""
    draws = generator(0, 0, 0, index, Stream.VIEW)
    image = PillowImage.open(io.BytesIO(data)).convert("RGB")
    box = random_area_box(draws, image.height, image.width, SCALE, RATIO, "usual")
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    view = image.crop(corners).resize((SIZE_PX, SIZE_PX), PillowImage.Resampling.BILINEAR)
    if draws.random() < 0.5:
        view = view.transpose(PillowImage.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(view)


def fill_float_batches(images: Sequence[bytes], make_view: Callable[[bytes], Any]) -> None:
    """Batches float32 [N, 3, S, S], stacked as a collate function does."""
    for first in range(0, len(images), BATCH):
        np.stack([make_view(data) for data in images[first : first + BATCH]])


def paddleclas_view(data: bytes) -> Any:
    """PaddleClas' training transforms, written anew after what they do: float32 [3, S, S].

    DecodeImage (OpenCV, the channels turned by slicing), RandCropImage, RandFlipImage, NormalizeImage in the order
    HWC, which ends with a conversion that copies, ToCHWImage; random choices by Python's `random`.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    return normalised(opencv_view(image)).astype("float32").transpose(2, 0, 1)


def float_view(data: bytes) -> Any:
    """The same without what need not be: float32 [3, S, S]."""
    image = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return normalised(opencv_view(image)).transpose(2, 0, 1)


def opencv_view(image: Any) -> Any:
    """RandCropImage and RandFlipImage: uint8 [S, S, 3]."""
    box = paddleclas_box(image.shape[0], image.shape[1])
    part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    view = cv2.resize(part, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_LINEAR)
    return cv2.flip(view, 1) if random.randint(0, 1) else view


def paddleclas_box(height: int, width: int) -> Box:
    """RandCropImage's box, whose distribution is the loader's 'published' one."""
    aspect = random.uniform(*RATIO)
    bound = min(width / height / aspect, height / width * aspect)
    area = width * height * random.uniform(min(SCALE[0], bound), min(SCALE[1], bound))
    box_width = min(max(int((area * aspect) ** 0.5), 1), width)
    box_height = min(max(int((area / aspect) ** 0.5), 1), height)
    left, top = random.randint(0, width - box_width), random.randint(0, height - box_height)
    return Box(left, top, box_width, box_height)


def normalised(view: Any) -> Any:
    """NormalizeImage: float32 [S, S, 3]."""
    return (view.astype(np.float32) * np.float32(1 / 255) - MEAN) / STD


def list_of_files(paths: Sequence[Path], folder: Path) -> ImageFiles:
    (folder / "files.txt").write_text("".join(f"{path} 0\n" for path in paths))
    return open_image_list(folder / "files.txt", folder, 1)


def list_in_tar(images: Sequence[bytes], folder: Path) -> ImageFiles:
    """The images in one tar, listed by their places."""
    places = []
    with tarfile.open(folder / "packed.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, data in enumerate(images):
            member = tarfile.TarInfo(f"{number:09d}.jpg")
            member.size = len(data)
            places.append((tar.offset + tarfile.BLOCKSIZE, len(data)))
            tar.addfile(member, io.BytesIO(data))
    lines = [f"{member_path('packed.tar', *place)} 0\n" for place in places]
    (folder / "packed.txt").write_text("".join(lines))
    return open_image_list(folder / "packed.txt", folder, 1)


# --- measuring --------------------------------------------------------------------------------


def measure(rows: dict[str, Callable[[], None]], images: int, repeat: int) -> list[dict[str, Any]]:
    """Medians of each row over the repeats, after one pass that is not counted."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for number in range(repeat + 1):
        for name, run in rows.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if number:
                rates[name].append((images / cpu, images / wall))
        print(f"pass {number} of {repeat}" + " (not counted)" * (not number), file=sys.stderr)
    anchors = [core for core, _ in rates[ANCHOR]]
    found = []
    for name, pairs in rates.items():
        per_core, wall_rate = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = [core / anchor for (core, _), anchor in zip(pairs, anchors, strict=True)]
        row = {"name": name, "images_per_second_per_core": per_core, "images_per_second": wall_rate}
        row |= {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
        found.append(row)
    return found


def describe(photographs: Sequence[tuple[Path, bytes]], small: Sequence[bytes]) -> dict[str, Any]:
    shapes = [simplejpeg.decode_jpeg_header(data)[:2] for _, data in photographs]
    return {
        "photographs": len({path for path, _ in photographs}),
        "images_a_pass": len(photographs),
        "mean_pixels": statistics.mean(height * width for height, width in shapes),
        "mean_bytes": statistics.mean(len(data) for _, data in photographs),
        "mean_bytes_packed": statistics.mean(map(len, small)),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": {
            name: version(name) for name in ("simplejpeg", "opencv-python-headless", "numpy", "grain", "pillow")
        },
    }


def print_table(facts: dict[str, Any]) -> None:
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=120)
    console.print(
        f"{facts['photographs']} photographs of {facts['mean_pixels'] / 1e6:.2f} megapixels and "
        f"{facts['mean_bytes'] / 1000:.0f} kB on average ({facts['mean_bytes_packed'] / 1000:.0f} kB packed), "
        f"{facts['images_a_pass']} images a pass"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for header in ("images/s/core", "ratio", "least", "most", "images/s (wall)"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in facts["rows"]:
        ratios = [f"{row[key]:.3f}" for key in ("ratio", "ratio_min", "ratio_max")]
        speeds = [f"{row[key]:.0f}" for key in ("images_per_second_per_core", "images_per_second")]
        table.add_row(row["name"], speeds[0], *ratios, speeds[1])
    console.print(table)
    by_name = {row["name"]: row["images_per_second_per_core"] for row in facts["rows"]}
    ours, theirs = by_name["ours, function"], by_name["as PaddleClas, function"]
    console.print(f"ours, function: {ours / theirs:.2f} times as fast as PaddleClas' way")


if __name__ == "__main__":
    main()
