"""Times the stage `select` on a made-up pool of ImageNet-22k's size: 14.2 M images, 4,000 for each of 1,000 classes.

    python scripts/benchmarks/select_images.py [--images 14200000] [--classes-per-image 1] [--folder DIR]

Everything that the stage does is timed: reading the scores and hashes of all images from Parquet, choosing, reading
the paths of the chosen, and writing the list as Parquet and as text. It runs in a process of its own, whose peak
memory is the one reported. The made-up parts take about 2.5 GB in DIR, and minutes to write; they are removed.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_mining import index, score, select
from data_mining.ranking import Ranking
from data_mining.recipe import MiningRecipe
from data_mining.shards import Shard
from data_mining.workspace import Workspace, write_array, write_table

CLASSES, TOP_CLASSES, SHARD_ROWS = 1000, 10, 100_000


def recipe_for(folder: Path, classes_per_image: int) -> MiningRecipe:
    return MiningRecipe.model_validate(
        {
            "name": "benchmark",
            "description": "",
            "pool": {"sources": [{"kind": "tar", "path": "none.tar"}]},
            "teacher": {
                "kind": "onnx",
                "path": str(folder / "teacher.onnx"),
                "num_classes": CLASSES,
                "resize_short_px": 256,
                "crop_px": 224,
                "normalization": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
            },
            "select": {"kind": "by_class", "images_per_class": 4000, "classes_per_image": classes_per_image},
            "runtime": {"memory": "1GiB" if classes_per_image == 1 else "3GiB"},
        }
    )


def open_workspace(folder: Path, images: int) -> Workspace:
    """A workspace whose shards are made up: nothing is listed."""
    workspace = Workspace(folder / "out")
    count = -(-images // SHARD_ROWS)
    workspace.cache["shards/pool"] = tuple(Shard(f"{number:016x}", "tar", f"shard {number}") for number in range(count))
    return workspace


def make_up(folder: Path, images: int, recipe: MiningRecipe) -> None:
    (folder / "teacher.onnx").write_bytes(b"not looked at")
    random = np.random.default_rng(0)
    # classes as uneven as a real pool's: the largest has hundreds of times the images of the smallest
    weights = 1.0 / np.arange(1, CLASSES + 1) ** 0.7
    cumulated = np.cumsum(weights / weights.sum())
    with open_workspace(folder, images) as workspace:
        write_array(score._projection_path(workspace, recipe), np.zeros((3, 2), np.float32))
        for number, shard in enumerate(workspace.cache["shards/pool"]):
            rows = min(SHARD_ROWS, images - number * SHARD_ROWS)
            write_table(index.index_path(workspace, shard), _index_part(random, number, rows))
            write_table(score.scores_path(workspace, recipe, shard), _score_part(random, cumulated, rows))


def _index_part(random: np.random.Generator, number: int, rows: int) -> pa.Table:
    hashes = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), rows, [None, pa.py_buffer(random.bytes(32 * rows))])
    zeros = np.zeros(rows, np.int32)
    columns = [
        [f"n{number:08d}/n{number:08d}_{row}.JPEG" for row in range(rows)],
        [f"/data/imagenet22k/shard-{number:05d}.tar"] * rows,
        np.arange(rows, dtype=np.int64) * 110_000,
        np.full(rows, 110_000),
        zeros - 1,
        zeros + 500,
        zeros + 375,
        hashes,
        np.zeros(rows, np.uint64),
    ]
    return pa.table(columns, schema=index.SCHEMA)


def _score_part(random: np.random.Generator, cumulated: np.ndarray, rows: int) -> pa.Table:
    best = np.searchsorted(cumulated, random.random(rows))
    steps = random.integers(1, CLASSES // TOP_CLASSES, (rows, TOP_CLASSES - 1)).cumsum(axis=1)
    classes = np.hstack([best[:, None], (best[:, None] + steps) % CLASSES]).astype(np.uint16)
    confidence = random.beta(2, 1.5, (rows, 1))
    shares = -np.sort(-random.dirichlet(np.full(TOP_CLASSES, 0.5), rows), axis=1)
    probabilities = np.hstack([confidence, (1 - confidence) * shares[:, 1:]])
    ranking = Ranking(classes, -np.sort(-probabilities.astype(np.float32), axis=1), np.zeros(rows, np.float32))
    return score._table([ranking], TOP_CLASSES)


def measure(folder: Path, images: int, recipe: MiningRecipe) -> None:
    """Runs the stage and prints what it took."""
    with open_workspace(folder, images) as workspace:
        started = time.perf_counter()
        report = select.run(workspace, recipe)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": round(seconds, 1), "peak_rss_mb": peak // 10**6, **report.counts, **report.facts}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=14_200_000)
    parser.add_argument("--classes-per-image", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="where the made-up parts go, and stay")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        recipe = recipe_for(folder, options.classes_per_image)
        if options.measure:
            measure(folder, options.images, recipe)
            return
        if not (folder / "teacher.onnx").exists():
            make_up(folder, options.images, recipe)
        command = [sys.executable, __file__, "--measure", "--folder", str(folder), "--images", str(options.images)]
        subprocess.run([*command, "--classes-per-image", str(options.classes_per_image)], check=True)


if __name__ == "__main__":
    main()
