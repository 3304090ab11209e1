#!/usr/bin/env python3
"""Whether a long image list costs more than a short one: opening it, the first batch, a step, and memory.

    python scripts/benchmarks/image_list.py [--lines 1000 100000 5000000] [--json FILE]

Each list is generated, read in a process of its own and removed. Its lines are as long as ImageNet's and name the same
1,000 small photographs over and over, so that a step decodes as much whatever the list. A step is a batch of the loader
without a network: what a list could slow down. The peaks include the interpreter, NumPy, OpenCV and Grain.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from side_by_side import write_results

FILES = 1000
FILE_PX = 64
BATCH = 128
STEPS = 40

COLUMNS = {
    "open_s": "open s",
    "open_peak_mb": "peak MB",
    "first_batch_s": "1st batch s",
    "step_ms": "ms/step",
    "peak_mb": "peak MB",
}


def write_images(folder: Path) -> None:
    """The photographs that the lists name: noise that is smooth, as JPEG."""
    random = np.random.default_rng(0)
    for number in range(FILES):
        path = folder / relative_path(number)
        path.parent.mkdir(parents=True)
        small = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(path.with_suffix(".jpg")), cv2.resize(small, (FILE_PX, FILE_PX)))
        path.with_suffix(".jpg").rename(path)


def relative_path(number: int) -> str:
    """As long as those of ImageNet."""
    return f"train/n{number:08d}/n{number:08d}_{number:07d}.JPEG"


def write_list(path: Path, lines: int) -> None:
    """Writes lines like those of ImageNet: 43 bytes each."""
    block = "".join(f"{relative_path(number)} {number}\n" for number in range(FILES))
    with path.open("w") as file:
        for _ in range(lines // FILES):
            file.write(block)
        file.writelines(line + "\n" for line in block.splitlines()[: lines % FILES])


def write_parquet(path: Path, text_list: Path) -> None:
    """Writes the same list as Parquet."""
    import pyarrow.csv
    import pyarrow.parquet

    names = pyarrow.csv.ReadOptions(column_names=["path", "label"])
    table = pyarrow.csv.read_csv(text_list, names, pyarrow.csv.ParseOptions(delimiter=" "))
    pyarrow.parquet.write_table(table, path)


def measure(path: Path) -> dict[str, float]:
    """Reads the list in a fresh process: `read_list`."""
    command = [sys.executable, __file__, "--worker", str(path)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise SystemExit(f"{path.name} could not be read")
    facts: dict[str, float] = json.loads(result.stdout)
    return facts


def read_list(path: Path) -> dict[str, float]:
    """Opens a list and takes `STEPS` batches; beyond the end of a short list the next epochs follow."""
    from training import CROSS_ENTROPY, training_recipe

    from distill.data.image_list import open_image_list
    from distill.data.loader import TrainLoader

    recipe = training_recipe("ResNet50_vd", FILE_PX, BATCH, loss=CROSS_ENTROPY)
    started = time.perf_counter()
    images = open_image_list(path, path.parent, recipe.num_classes)
    opened, opened_mb = time.perf_counter(), peak_mb()
    loader = TrainLoader(images, recipe.stages[0], recipe.runtime, seed=0, stage_index=0)
    batches = loader.batches(0, STEPS)
    next(batches)
    first = time.perf_counter()
    for _ in batches:
        pass
    return {
        "open_s": opened - started,
        "open_peak_mb": opened_mb,
        "first_batch_s": first - opened,
        "step_ms": 1e3 * (time.perf_counter() - first) / (STEPS - 1),
        "peak_mb": peak_mb(),
    }


def peak_mb() -> float:
    """Of this process; getrusage would count the parent's memory at the moment of the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000, 5_000_000])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(read_list(options.worker)))
        return
    if min(options.lines) < BATCH:
        parser.error(f"--lines must be at least {BATCH}, a batch")
    print(f"{'kind':8}{'lines':>10}{'file MB':>9}" + "".join(f"{title:>12}" for title in COLUMNS.values()))
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        rows = [row for count in options.lines for row in measure_both(Path(folder), count)]
    write_results(options.json, rows, {"batch": BATCH, "steps": STEPS, "px": FILE_PX})


def measure_both(folder: Path, lines: int) -> Iterator[dict[str, Any]]:
    """Measures a list as text and as Parquet, and prints both rows."""
    text, parquet = folder / "list.txt", folder / "list.parquet"
    write_list(text, lines)
    write_parquet(parquet, text)
    for path in (text, parquet):
        row = {"kind": path.suffix[1:], "lines": lines, "file_mb": path.stat().st_size / 1e6, **measure(path)}
        values = "".join(f"{row[name]:12.{0 if name.endswith('mb') else 2}f}" for name in COLUMNS)
        print(f"{row['kind']:8}{lines:>10}{row['file_mb']:>9.1f}{values}", flush=True)
        yield row


if __name__ == "__main__":
    main()
