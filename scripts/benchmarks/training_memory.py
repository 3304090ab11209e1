#!/usr/bin/env python3
"""Whether a training process grows: its resident memory, and /dev/shm, at the end of each epoch of a small run.

    python scripts/benchmarks/training_memory.py [--epochs 20] [--json FILE] [--picture FILE.png]

Runs `distill train` on images of noise, with a live teacher and an evaluation every epoch, and reads the memory of
the process and of those that it started ten times a second. What an epoch needs is its largest reading; the growth
counts from the second epoch, when kernels are built and every buffer has been taken once.
"""

import argparse
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from side_by_side import ROOT, show, write_results
from training import IMAGENET

SECONDS_BETWEEN_READINGS = 0.1
PX = 28
TEACHER = {"name": "ResNet18_vd", "width": 0.25, "stem_stride": 2}
STUDENT = {"name": "ResNet18_vd", "width": 0.0625, "stem_stride": 2}


@dataclass
class Epoch:
    """The largest readings of an epoch, in MB, and its last one."""

    rss_mb: float = 0.0
    last_rss_mb: float = 0.0
    shm_mb: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    parser.add_argument("--images", type=int, default=4000, help="an epoch (default: 4000)")
    parser.add_argument("--loader-processes", type=int, default=0, help="as runtime.loader_processes (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the epochs")
    options = parser.parse_args()
    if options.epochs < 3 or options.images < 200:
        parser.error("--epochs must be at least 3 and --images at least 200")
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_recipe(Path(folder), options)
        epochs, shm_before, shm_after = watch(recipe, Path(folder) / "run")
    print(f"{'epoch':>5} {'largest RSS MB':>15} {'last RSS MB':>12} {'/dev/shm MB':>12}")
    for number, epoch in enumerate(epochs, 1):
        print(f"{number:5} {epoch.rss_mb:15.1f} {epoch.last_rss_mb:12.1f} {epoch.shm_mb:12.1f}")
    growth = epochs[-1].rss_mb - epochs[1].rss_mb
    print(f"growth of the largest RSS after the 2nd epoch: {growth:+.1f} MB in {len(epochs) - 2} epochs")
    print(f"/dev/shm: {shm_before:.1f} MB before, {shm_after:.1f} MB after")
    rows = [{"epoch": number, **vars(epoch)} for number, epoch in enumerate(epochs, 1)]
    facts = {"growth_mb": growth, "shm_before_mb": shm_before, "shm_after_mb": shm_after}
    write_results(options.json, rows, {"epochs": options.epochs, "images": options.images, **facts})
    if options.picture is not None:
        draw(options.picture, epochs, growth)
    return 0


def write_recipe(folder: Path, options: argparse.Namespace) -> Path:
    """A recipe with its data and a teacher's weights, drawn at random."""
    random = np.random.default_rng(0)
    for part, count in (("train", options.images), ("test", 1000)):
        write_idx(folder / f"{part}-images", random.integers(0, 256, (count, PX, PX), dtype=np.uint8))
        write_idx(folder / f"{part}-labels", random.integers(0, 10, count, dtype=np.uint8))
    write_teacher(folder / "teacher.safetensors")
    sources = {
        part: [{"kind": "idx", "images": str(folder / f"{part}-images"), "labels": str(folder / f"{part}-labels")}]
        for part in ("train", "test")
    }
    content: dict[str, Any] = {
        "name": "memory",
        "description": "",
        "seed": 0,
        "num_classes": 10,
        "model": STUDENT,
        "epochs": options.epochs,
        "global_batch_size": 128,
        "device_batch_size": 128,
        "data": {"sources": sources["train"]},
        "view": {"size_px": PX, "crop": {"kind": "padded", "padding_px": 2}, "horizontal_flip": 0.5},
        "mixup": {"alpha": 0.2, "group_size": 8},
        "normalization": {name: list(value) for name, value in IMAGENET.model_dump().items()},
        "evaluation": {"sources": sources["test"], "resize_short_px": PX, "crop_px": PX},
        "teacher": {
            "batch_norm": "stored",
            "models": [TEACHER | {"weights": str(folder / "teacher.safetensors")}],
        },
        "loss": {"kl": {"weight": 1.0, "temperature": 1.0}},
        "optimizer": {
            "kind": "momentum",
            "learning_rate": 0.05,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-4,
            "decay_bias_and_norm": False,
        },
        "schedule": {"kind": "constant", "warmup_epochs": 0},
        "ema_decay": 0.99,
        "runtime": {"loader_processes": options.loader_processes},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def write_idx(path: Path, array: np.ndarray) -> None:
    """Writes uint8 as the MNIST files are written."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


def write_teacher(path: Path) -> None:
    """Weights drawn at random."""
    from distill.parallel import setup_process

    setup_process("cpu")
    from distill.models import create_model
    from distill.weights import write_weights

    model = create_model(TEACHER["name"], 10, width=TEACHER["width"], stem_stride=TEACHER["stem_stride"])
    write_weights(path, {name: value.numpy() for name, value in model.state_dict().items()})


def watch(recipe: Path, run: Path) -> tuple[list[Epoch], float, float]:
    """Trains, and reads the memory meanwhile.

    Returns:
        The epochs, and /dev/shm in MB before and after.
    """
    before = shm_mb()
    epochs = [Epoch()]
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, "-m", "distill", "train", str(recipe), "--output", str(run), "--device", "cpu"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
        try:
            while process.poll() is None:
                time.sleep(SECONDS_BETWEEN_READINGS)
                finished = evaluations(run / "metrics.jsonl")
                while len(epochs) <= finished:
                    epochs.append(Epoch())
                    show(f"epoch {finished + 1}", stays=False)
                note(epochs[-1], rss_mb(process.pid), shm_mb())
        finally:
            process.kill()
        if process.wait() != 0:
            said.seek(0)
            raise SystemExit(f"the run failed:\n{said.read().decode(errors='replace')[-4000:]}")
    show("the run is done", stays=True)
    return [epoch for epoch in epochs if epoch.rss_mb][: evaluations(run / "metrics.jsonl")], before, shm_mb()


def note(epoch: Epoch, rss: float, shm: float) -> None:
    """Counts a reading; none came from a process that had just ended."""
    if rss:
        epoch.rss_mb, epoch.last_rss_mb = max(epoch.rss_mb, rss), rss
    epoch.shm_mb = max(epoch.shm_mb, shm)


def evaluations(metrics: Path) -> int:
    """Epochs behind us: each ends with an evaluation."""
    if not metrics.exists():
        return 0
    return sum('"kind": "evaluation"' in line for line in metrics.read_text().splitlines())


def rss_mb(pid: int) -> float:
    """Resident memory of a process and all that it started; 0 where it has ended."""
    total = 0.0
    for number in (pid, *descendants(pid)):
        try:
            status = Path(f"/proc/{number}/status").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("VmRSS"))
    return total


def descendants(pid: int) -> Iterator[int]:
    """The processes that a process started, and theirs."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return
    for child in children:
        yield child
        yield from descendants(child)


def shm_mb() -> float:
    """What lies in shared memory, of all processes of the machine."""
    usage = os.statvfs("/dev/shm")
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize / 1e6


def draw(path: Path, epochs: list[Epoch], growth: float) -> None:
    """The memory by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    numbers = range(1, len(epochs) + 1)
    axes.plot(numbers, [epoch.rss_mb for epoch in epochs], marker="o", label="RSS, largest of the epoch")
    axes.plot(numbers, [epoch.shm_mb for epoch in epochs], marker=".", label="/dev/shm")
    axes.set(xlabel="epoch", ylabel="MB", ylim=(0, None), title=f"after the 2nd epoch: {growth:+.1f} MB")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
