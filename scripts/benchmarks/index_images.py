"""Times the stage `index` and the packing of images, by CPU time: images a second of one core.

    python scripts/benchmarks/index_images.py FOLDER [--images 1000]

FOLDER holds photographs, as large as those of the pool in mind. Indexing is decoding, the hash of the pixels and the
perceptual hash; its parts are timed alone as well. CPU time hides waiting for a disk: read the folder once before.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2

from data_mining.index import Reader, index_path, index_shard
from data_mining.pack import repacked
from data_mining.pixels import perceptual_hash, pixels_sha256
from data_mining.recipe import MiningRecipe, PackSection
from data_mining.shards import POOL, shards_of
from data_mining.workspace import Workspace, read_table

PLACE = ("path", "tar", "offset", "bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1000, help="at most")
    options = parser.parse_args()
    cv2.setNumThreads(1)  # as in a worker
    with tempfile.TemporaryDirectory() as output, Workspace(output) as workspace:
        shard = shards_of(workspace, recipe_for(options.folder, options.images), POOL)[0]
        seconds = cpu_seconds(lambda one: index_shard(workspace.root, one), [shard])
        rows = read_table(index_path(workspace, shard)).to_pylist()
    pixels = sum(row["width"] * row["height"] for row in rows) / len(rows)
    size = sum(row["bytes"] for row in rows) / len(rows)
    print(f"{len(rows)} images of {pixels / 1e6:.2f} megapixels and {size / 1000:.0f} kB on average")
    tell("index, all of it", len(rows), seconds)
    with Reader() as reader:
        data = [reader.encoded(*(row[name] for name in PLACE)) for row in rows]
        images: list[Any] = []
        tell(
            "  decoding",
            len(rows),
            cpu_seconds(lambda row: images.append(reader.image(*(row[n] for n in PLACE))), rows),
        )
        tell("  hash of the pixels", len(rows), cpu_seconds(pixels_sha256, images))
        tell("  perceptual hash", len(rows), cpu_seconds(perceptual_hash, images))
    section = PackSection()
    tell("pack, short side 256", len(rows), cpu_seconds(lambda one: repacked(one, "x.jpg", section), data))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB, decoded images included")


def recipe_for(folder: Path, images: int) -> MiningRecipe:
    return MiningRecipe.model_validate(
        {
            "name": "benchmark",
            "description": "",
            "pool": {"sources": [{"kind": "folder", "root": str(folder)}], "images_per_shard": images},
            "teacher": {
                "kind": "onnx",
                "path": "none.onnx",
                "num_classes": 2,
                "resize_short_px": 1,
                "crop_px": 1,
                "normalization": {"mean": [0, 0, 0], "std": [1, 1, 1]},
            },
            "select": {"kind": "by_class", "images_per_class": 1},
        }
    )


def cpu_seconds(function: Callable[[Any], object], items: Iterable[Any]) -> float:
    started = time.process_time()
    for item in items:
        function(item)
    return time.process_time() - started


def tell(what: str, images: int, seconds: float) -> None:
    print(f"{what:22} {images / seconds:7.0f} images/s/core {1000 * seconds / images:7.2f} ms an image")


if __name__ == "__main__":
    main()
