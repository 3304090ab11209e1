"""Measures the memory of a mining run, stage by stage, against the `--memory` that it was given.

    python scripts/benchmarks/mining_memory.py RECIPE [--memory 2GiB] [--set KEY=VALUE ...]

Each stage is a command of its own (`data-mining index RECIPE`, ...) in a fresh output folder, which is removed. Twenty
times a second the memory of the command and all its workers is read from /proc: the proportional set size, in which a
page that several processes share counts once. "own" leaves out the pages of files, which the system takes back when it
needs them (embeddings and indices are mapped, not read).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from data_mining.recipe import parse_bytes

STAGES = ("index", "score", "leaks", "duplicates", "select", "pack", "report")
SECTIONS = {"leaks": "leaks", "duplicates": "duplicates", "pack": "pack"}
"""Stages that a recipe may leave out, by the section that asks for them."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--json", type=Path, help="write the figures to a file too")
    options = parser.parse_args()
    allowed = parse_bytes(options.memory)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages_of(options.recipe):
            command = [sys.executable, "-m", "data_mining", stage, str(options.recipe)]
            command += ["--output", folder, "--memory", options.memory]
            command += [word for setting in options.settings for word in ("--set", setting)]
            figures[stage] = peak_memory(command)
    print(f"{'stage':12} {'seconds':>8} {'processes':>9} {'peak MiB':>9} {'own MiB':>8}   of {options.memory}")
    for stage, (seconds, processes, total, own) in figures.items():
        share = f"{own / allowed:6.0%}" + ("" if own <= allowed else "  MORE THAN ALLOWED")
        print(f"{stage:12} {seconds:8.1f} {processes:9d} {total / 2**20:9.0f} {own / 2**20:8.0f} {share}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return int(any(own > allowed for *_, own in figures.values()))


def stages_of(recipe: Path) -> list[str]:
    """The stages that a recipe asks for, in their order."""
    from data_mining.recipe_file import load_mining_recipe

    content = load_mining_recipe(recipe)
    return [stage for stage in STAGES if stage not in SECTIONS or getattr(content, SECTIONS[stage]) is not None]


def peak_memory(command: list[str]) -> tuple[float, int, int, int]:
    """Runs a command.

    Returns:
        Seconds, and the largest number of processes, bytes in all, and bytes of its own at any time.
    """
    started = time.monotonic()
    most = (0, 0, 0)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            readings = [memory(number) for number in family(process.pid)]
            now = len(readings), sum(total for total, _ in readings), sum(own for _, own in readings)
            most = max(most[0], now[0]), max(most[1], now[1]), max(most[2], now[2])
            time.sleep(0.05)
    if process.returncode:
        sys.exit(process.returncode)
    return time.monotonic() - started, *most


def family(number: int) -> Iterator[int]:
    """A process and all below it, by their numbers."""
    yield number
    for tasks in Path(f"/proc/{number}/task").glob("*/children"):
        try:
            children = tasks.read_text().split()
        except OSError:  # it has ended
            continue
        for child in children:
            yield from family(int(child))


def memory(number: int) -> tuple[int, int]:
    """Bytes of a process: its proportional set size, and without the pages of files; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    return sizes.get("Pss", 0), sizes.get("Pss_Anon", 0) + sizes.get("Pss_Shmem", 0)


if __name__ == "__main__":
    sys.exit(main())
