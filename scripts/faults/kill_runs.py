#!/usr/bin/env python3
"""Kills real runs of `distill train` again and again, resumes them, and compares what they leave, bit for bit.

    python scripts/faults/kill_runs.py --times 50               # every fault 50 times; --fault NAME: one of them
    python scripts/faults/kill_runs.py --times 50 --output table.md

A small recipe (1,024 images, a stored teacher, two epochs) is trained once without a fault. Then, for each fault, it
is trained anew: at a moment drawn at random (--seed) something is killed with SIGKILL, the run is resumed, and its
final weights' SHA-256 is compared with that of the whole run. Prints a table in Markdown; exit status 1 where a run
did not survive or lost anything. Fashion-MNIST is used where scripts/fashion_mnist.py has put it, otherwise digits.
"""

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from distill.files import write_atomically

CHECKOUT = Path(__file__).resolve().parents[2]
FASHION_MNIST = CHECKOUT / "data" / "fashion-mnist"
LONGEST_SECONDS = 900.0
"""Of one sitting of a run."""
MOST_SITTINGS = 20
"""Of one run: more would mean that it does not come to its end."""


@dataclass(frozen=True)
class Fault:
    """Something that happens to a run.

    Attributes:
        title: A line of the table.
        strike: Is given the process of `distill train`; returns whether there was something to strike.
        settings: `--set` options of the run that it happens to; of no influence on the weights.
        store: Whether the teacher's answers are read from and written to a store.
        often: Whether the resumed run is struck too, several times.
        ranks: More than one are started by `distill launch`, which restarts them by itself.
    """

    title: str
    strike: Callable[["subprocess.Popen[bytes]", random.Random], bool]
    settings: tuple[str, ...] = ()
    store: bool = True
    often: bool = False
    ranks: int = 1


@dataclass
class Tally:
    """What became of the runs that a fault struck."""

    tried: int = 0
    survived: int = 0
    nothing_lost: int = 0
    problems: list[str] = field(default_factory=list)


# --- faults -----------------------------------------------------------------------------------


def kill_run(process: "subprocess.Popen[bytes]", _: random.Random) -> bool:
    """The process of the run alone; its children find out."""
    process.kill()
    return process.wait() == -signal.SIGKILL  # not where it had ended a moment before


def kill_worker(process: "subprocess.Popen[bytes]", draw: random.Random) -> bool:
    """One of the loader's processes, if there is one yet."""
    workers = [pid for pid in children_of(process.pid) if b"spawn_main" in command_of(pid)]
    if workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(workers), signal.SIGKILL)
            return True
    return False


def kill_rank(process: "subprocess.Popen[bytes]", draw: random.Random) -> bool:
    """One of the ranks below a launch, if there is one yet."""
    below, ranks = [process.pid], []
    while below:
        pid = below.pop()
        own = children_of(pid)
        below += own
        if not own and b"train" in command_of(pid).split(b"\0"):
            ranks.append(pid)
    if ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(ranks), signal.SIGKILL)
            return True
    return False


def kill_all(process: "subprocess.Popen[bytes]", _: random.Random) -> bool:
    """The run and everything that it started, at once, as a lack of memory or a power cut does."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


IN_PROCESSES = ("runtime.loader_processes=1",)
FAULTS = {
    "run": Fault("the run is killed", kill_run),
    "live-teacher": Fault("the run is killed, its teacher not stored", kill_run, store=False),
    "often": Fault("the run is killed several times", kill_run, often=True),
    "worker": Fault("a process of the loader is killed", kill_worker, IN_PROCESSES),
    "all": Fault("the run and its loader's process are killed at once", kill_all, IN_PROCESSES),
    "rank": Fault("one of two ranks is killed, and the launch restarts both", kill_rank, ranks=2),
    "launch": Fault("the launch of two ranks is killed", kill_run, ranks=2),
}
"""By name, for --fault."""


def children_of(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sorted({int(child) for task in tasks for child in (task / "children").read_text().split()})
    except OSError:  # it has ended
        return []


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


# --- runs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runs:
    """Runs of one recipe below a folder."""

    recipe: Path
    folder: Path

    @contextlib.contextmanager
    def started(self, name: str, fault: Fault, *, resume: bool) -> Iterator["subprocess.Popen[bytes]"]:
        """Starts or resumes a run, in a process group of its own, of which nothing is left behind the block."""
        settings = list(fault.settings)
        if fault.store:
            settings.append(f"teacher.labels={{folder: {self.folder / name}-labels, top_classes: 5}}")
        command = [sys.executable, "-m", "distill", "train" if fault.ranks == 1 else "launch", str(self.recipe)]
        command += ["--device", "cpu"] if fault.ranks == 1 else ["--ranks", str(fault.ranks), "--max-restarts", "5"]
        command += ["--output", str(self.folder / name), *(["--resume"] if resume else [])]
        command += [part for setting in settings for part in ("--set", setting)]
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=CHECKOUT, start_new_session=True)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def weights(self, name: str) -> str:
        """The SHA-256 of what a finished run leaves."""
        return hashlib.sha256((self.folder / name / "student.safetensors").read_bytes()).hexdigest()

    def said(self, name: str) -> str:
        """The last line of a run's output."""
        lines = (self.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"

    def remove(self, name: str) -> None:
        """Removes all that a run left."""
        for suffix in ("", "-labels"):
            shutil.rmtree(self.folder / f"{name}{suffix}", ignore_errors=True)
        (self.folder / f"{name}.log").unlink(missing_ok=True)


def whole_run(runs: Runs, fault: Fault, name: str) -> tuple[str, float]:
    """Trains without a fault; returns the weights' SHA-256 and the seconds that it took."""
    started = time.monotonic()
    with runs.started(name, fault, resume=False) as process:
        status = process.wait(LONGEST_SECONDS)
    if status:
        raise SystemExit(f"the run without a fault ended with status {status}: {runs.said(name)}")
    return runs.weights(name), time.monotonic() - started


def strike(runs: Runs, fault: Fault, name: str, seconds: float, draw: random.Random) -> bool:
    """Trains, strikes, and resumes until the run ends well; returns whether anything was struck.

    Raises:
        RuntimeError: A sitting that was not struck ended badly, or there were too many.
    """
    strikes_left = draw.randint(2, 4) if fault.often else 1
    any_struck = False
    for sitting in range(MOST_SITTINGS):
        with runs.started(name, fault, resume=sitting > 0) as process:
            struck = False
            if strikes_left:
                try:
                    process.wait(draw.uniform(0.0, seconds))
                except subprocess.TimeoutExpired:
                    struck = fault.strike(process, draw)
            strikes_left -= struck
            any_struck |= struck
            status = process.wait(LONGEST_SECONDS)
        if status == 0:
            return any_struck
        if not struck:
            raise RuntimeError(f"a run that nothing struck ended with status {status}: {runs.said(name)}")
    raise RuntimeError(f"not finished after {MOST_SITTINGS} sittings")


def try_fault(runs: Runs, fault: Fault, times: int, draw: random.Random, advance: Callable[[], None]) -> Tally:
    """Strikes `times` runs and compares each with a whole one."""
    tally = Tally()
    expected, seconds = whole_run(runs, fault, "whole")
    runs.remove("whole")
    for number in range(times):
        name = f"run-{number}"
        tally.tried += 1
        try:
            while not strike(runs, fault, name, seconds, draw):
                runs.remove(name)  # it had ended before
            tally.survived += 1
            if runs.weights(name) == expected:
                tally.nothing_lost += 1
                runs.remove(name)
            else:
                tally.problems.append(f"{fault.title}, {name}: other weights than those of the whole run")
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            tally.problems.append(f"{fault.title}, {name}: {error}")
        advance()
    return tally


# --- the recipe -------------------------------------------------------------------------------


def write_recipe(folder: Path) -> Path:
    """The quick start's student in small: Fashion-MNIST with its teacher, or digits with a teacher of their own."""
    images, labels, test_images, test_labels, teacher = inputs(folder)
    content = f"""\
name: killed
description: A run that is killed
seed: 1
num_classes: 10
model: {{name: ResNet18_vd, width: 0.0625, stem_stride: 1}}
epochs: 2
global_batch_size: 64
device_batch_size: 32
data: {{sources: [{{kind: idx, images: {images}, labels: {labels}, range: [0, 1024]}}]}}
view: {{size_px: 28, crop: {{kind: padded, padding_px: 2}}, horizontal_flip: 0.5}}
mixup: {{alpha: 0.2, group_size: 4, probability: 1.0}}
normalization: {{mean: [0.286, 0.286, 0.286], std: [0.353, 0.353, 0.353]}}
teacher: {{batch_norm: stored, models: [{teacher}]}}
loss: {{kl: {{weight: 1.0, temperature: 2.0}}}}
optimizer: {{kind: momentum, learning_rate: 0.05, momentum: 0.9, nesterov: true, weight_decay: 0.0001,
            decay_bias_and_norm: false}}
schedule: {{kind: cosine, warmup_epochs: 0.5, end_learning_rate: 0.0}}
evaluation: {{sources: [{{kind: idx, images: {test_images}, labels: {test_labels}, range: [0, 256]}}],
             resize_short_px: 28, crop_px: 28, every_epochs: 1}}
runtime: {{log_every_steps: 1, checkpoint_every_steps: 5}}
"""
    path = folder / "killed.yaml"
    write_atomically(path, content)
    return path


def inputs(folder: Path) -> Sequence[str]:
    """Training images and labels, test images and labels, and the teacher's line of the recipe."""
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    files = [FASHION_MNIST / f"{name}.gz" for name in names]
    if all(map(Path.is_file, files)):
        weights = CHECKOUT / "recipes" / "fashion_mnist" / "teacher.safetensors"
        return [*map(str, files), f"{{name: ResNet18_vd, width: 0.25, stem_stride: 1, weights: {weights}}}"]
    return [*digits(folder), f"{{name: ResNet18_vd, width: 0.125, stem_stride: 1, weights: {random_teacher(folder)}}}"]


def digits(folder: Path) -> list[str]:
    """scikit-learn's digits as IDX files of 28 px."""
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    enlarged = np.kron(bunch.images, np.ones((3, 3))) * (255 / 16)
    images = np.pad(enlarged.astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    paths = []
    for part, rows in {"train": slice(0, 1500), "test": slice(1500, None)}.items():
        for what, array in {"images": images[rows], "labels": bunch.target[rows].astype(np.uint8)}.items():
            header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            paths.append(folder / f"{part}-{what}")
            write_atomically(paths[-1], header + array.tobytes())
    return list(map(str, paths))


def random_teacher(folder: Path) -> Path:
    """A network that nobody trained: what it answers does not matter here."""
    from distill.parallel import import_paddle

    import_paddle()
    from distill.models import create_model
    from distill.weights import write_weights

    path = folder / "teacher.safetensors"
    model = create_model("ResNet18_vd", 10, width=0.125, stem_stride=1)
    write_weights(path, {name: value.numpy() for name, value in model.state_dict().items()})
    return path


# --- the table --------------------------------------------------------------------------------


def table(tallies: dict[str, Tally]) -> str:
    lines = ["| fault | tried | survived | nothing lost |", "|---|---|---|---|"]
    lines += [
        f"| {FAULTS[name].title} | {tally.tried} | {tally.survived} | {tally.nothing_lost} |"
        for name, tally in tallies.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="runs of each fault; default: 50")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="may be given several times; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: 0")
    parser.add_argument("--output", type=Path, help="a file for the table")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the run at work too
    names = options.fault or list(FAULTS)
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(prefix="killed-") as folder, Progress() as progress:
        recipe = write_recipe(Path(folder))
        task = progress.add_task("runs", total=len(names) * options.times)
        for name in names:
            draw = random.Random(f"{options.seed} {name}")
            own = Path(folder) / name
            own.mkdir()
            advance = lambda: progress.advance(task)  # noqa: E731
            tallies[name] = try_fault(Runs(recipe, own), FAULTS[name], options.times, draw, advance)
            progress.console.print(f"{FAULTS[name].title}: {tallies[name].nothing_lost} of {tallies[name].tried}")
    text = table(tallies)
    print(text)
    problems = [problem for tally in tallies.values() for problem in tally.problems]
    print(*problems, sep="\n", file=sys.stderr)
    if options.output is not None:
        write_atomically(options.output, text)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
