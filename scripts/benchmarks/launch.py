#!/usr/bin/env python3
"""Two ranks against one process, and how fast a launch notices a dead rank, stops on SIGTERM, and saves.

    python scripts/fashion_mnist.py; python scripts/benchmarks/launch.py [--repeats 3] [--json FILE]

Real `distill launch --ranks 2` and `distill train` on recipes/fashion_mnist/baseline.yaml with micro-batches of 64, on
this machine's CPU: one process with all cores against two ranks that share them. Then a rank is killed by SIGKILL, and
a launch is sent SIGTERM, a few seconds into training. What a checkpoint costs is measured on a ResNet50_vd: how long
training stands still while its tensors are copied, and how long a thread then writes them.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
RECIPE = CHECKOUT / "recipes" / "fashion_mnist" / "baseline.yaml"
LONGEST_SECONDS = 300.0
SETTLED_SECONDS = 3.0
"""Into training before something happens to it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="of everything (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, received {options.repeats}")
    found: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        for name, value in one_round():
            found.setdefault(name, []).append(value)
            print(f"{name}: {value:.4g}", flush=True)
    print("\nmedian, least and largest:")
    for name, values in found.items():
        print(f"  {name}: {statistics.median(values):.4g} ({min(values):.4g}-{max(values):.4g})")
    ratios = [two / one for one, two in zip(found[ONE], found[TWO], strict=True)]
    print(f"two ranks / one process: {statistics.median(ratios):.2f}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


ONE, TWO = "one process, images/s", "two ranks, images/s"


def one_round() -> Iterator[tuple[str, float]]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train = started(["train"], folder / "one", epochs=10)
        finished(train)
        yield ONE, images_per_second(folder / "one")
        finished(started(["launch", "--ranks", "2"], folder / "two", epochs=10))
        yield TWO, images_per_second(folder / "two")
        with training(folder / "killed") as launch:
            rank = rank_processes(launch.pid)[-1]
            began = time.monotonic()
            os.kill(rank, signal.SIGKILL)
            launch.wait(LONGEST_SECONDS)
            yield "a rank killed, seconds until all have ended", time.monotonic() - began
        with training(folder / "stopped") as launch:
            began = time.monotonic()
            launch.send_signal(signal.SIGTERM)
            launch.wait(LONGEST_SECONDS)
            yield "SIGTERM, seconds until all have saved and ended", time.monotonic() - began
        yield from checkpoint_seconds(folder / "checkpoints")


def started(command: list[str], output: Path, *, epochs: int) -> "subprocess.Popen[bytes]":
    settings = ["device_batch_size=64", f"epochs={epochs}", "runtime.log_every_steps=4"]
    options = [part for setting in settings for part in ("--set", setting)]
    arguments = [sys.executable, "-m", "distill", *command, str(RECIPE), "--output", str(output), "--device", "cpu"]
    return subprocess.Popen(
        [*arguments, *options], cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=(output.parent / "said").open("ab")
    )


def finished(process: "subprocess.Popen[bytes]") -> None:
    if process.wait(LONGEST_SECONDS):
        sys.exit(f"{process.args} ended with status {process.returncode}")


@contextlib.contextmanager
def training(output: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A launch on two ranks that has trained for a while."""
    process = started(["launch", "--ranks", "2"], output, epochs=1000)
    try:
        end = time.monotonic() + LONGEST_SECONDS
        while not any(each["kind"] == "train" for each in metrics(output)):
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"the launch did not begin to train: {(output.parent / 'said').read_text()}")
            time.sleep(0.1)
        time.sleep(SETTLED_SECONDS)
        yield process
    finally:
        process.kill()
        process.wait()


def metrics(output: Path) -> list[dict[str, Any]]:
    path = output / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def images_per_second(output: Path) -> float:
    """Of a finished run, without its first epoch."""
    rates = [each["images_per_second"] for each in metrics(output) if each["kind"] == "train"]
    return statistics.median(rates[len(rates) // 10 :])


def rank_processes(launch: int) -> list[int]:
    """The processes of `distill train` below a launch, by their command lines and parents."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                commands[int(entry.name)] = (entry / "cmdline").read_bytes().split(b"\0")
    below, grown = {launch}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in below} - below
        below, grown = below | more, bool(more)
    leaves = below - {parents[pid] for pid in below if pid in parents}
    return sorted(pid for pid in leaves if b"train" in commands.get(pid, ()))


def checkpoint_seconds(folder: Path) -> Iterator[tuple[str, float]]:
    from training import CROSS_ENTROPY, noise_batch, training_recipe, training_step

    from distill import checkpoint
    from distill.learner import Learner
    from distill.parallel import setup_process

    recipe = training_recipe("ResNet50_vd", 224, 8, loss=CROSS_ENTROPY)
    learner = Learner(recipe, 0, setup_process("cpu"), None)
    batch = noise_batch(224, 8)
    step = training_step(learner, lambda: batch)
    for _ in range(3):
        began = time.monotonic()
        step()
        took = time.monotonic() - began
    yield "ResNet50_vd, seconds a step of 8 images", took
    began = time.monotonic()
    tensors = learner.tensors()
    copied = time.monotonic()
    checkpoint.save(folder, 1, tensors, {})
    yield "its checkpoint, seconds that training stands still", copied - began
    yield "its checkpoint, seconds that a thread writes", time.monotonic() - copied


if __name__ == "__main__":
    main()
