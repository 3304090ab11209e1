#!/usr/bin/env python3
"""Measures how long an image list takes to open, and how much memory the process then has used at most.

Run it in the project's environment: `python scripts/benchmarks/image_list.py [--lines 1000 100000 5000000]`.
Each list is generated, opened in a process of its own and removed; the peak includes the interpreter, NumPy and OpenCV.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

OPEN_LIST = """
import json, sys, time
from pathlib import Path
from distill.data.image_list import open_image_list
start = time.perf_counter()
images = open_image_list(Path(sys.argv[1]), Path(sys.argv[2]), 1000)
seconds = time.perf_counter() - start
# not getrusage: its maximum includes the parent's memory at the moment of the fork
peak_kb = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "peak_mb": peak_kb / 1000}))
"""


def write_list(path: Path, lines: int) -> None:
    """Writes lines like those of ImageNet: 43 bytes each."""
    with path.open("w") as file:
        for first in range(0, lines, 100_000):
            numbers = range(first, min(first + 100_000, lines))
            file.writelines(f"train/n{i % 1000:08d}/n{i % 1000:08d}_{i:07d}.JPEG {i % 1000}\n" for i in numbers)


def write_parquet(path: Path, text_list: Path) -> None:
    """Writes the same list as Parquet."""
    import pyarrow.csv
    import pyarrow.parquet

    names = pyarrow.csv.ReadOptions(column_names=["path", "label"])
    table = pyarrow.csv.read_csv(text_list, names, pyarrow.csv.ParseOptions(delimiter=" "))
    pyarrow.parquet.write_table(table, path)


def measure(path: Path) -> dict[str, float]:
    """Opens the list in a fresh process."""
    command = [sys.executable, "-c", OPEN_LIST, str(path), str(path.parent)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    facts: dict[str, float] = json.loads(result.stdout)
    return facts


def main() -> None:
    """Prints one row a list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000, 5_000_000])
    lines = parser.parse_args().lines
    print(f"{'kind':8}{'lines':>10}{'file MB':>10}{'seconds':>10}{'peak MB':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for count in lines:
            text, parquet = Path(folder, "list.txt"), Path(folder, "list.parquet")
            write_list(text, count)
            write_parquet(parquet, text)
            for path in (text, parquet):
                facts = measure(path)
                size = path.stat().st_size / 1e6
                print(f"{path.suffix[1:]:8}{count:>10}{size:>10.1f}{facts['seconds']:>10.2f}{facts['peak_mb']:>10.0f}")


if __name__ == "__main__":
    main()
