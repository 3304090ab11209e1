#!/usr/bin/env python3
"""What each step of SSLD is worth at a small scale: the published ablation once more, on CIFAR-10.

    python scripts/cifar10.py; python scripts/fashion_mnist.py
    nohup python scripts/experiments/ablation.py --cifar10 data/cifar10 > ablation.txt &

Trains one teacher, mines a polluted pool, and trains every row of ablation_rows.py with every seed, one after the
other. Interrupted and called again, it goes on; what is finished is kept. After each run it writes ablation.md, .json
and .png anew. The teacher's answers are stored by seed and view, and shared by the rows that see the same.
"""

import argparse
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from ablation_images import FULL, QUICK, mine, write_lists
from ablation_report import Values, write_report
from ablation_rows import ROWS, RUNS, START, Run, runs_of
from ablation_runs import RunFolder, full_recipe, with_shared_labels, work

from distill.errors import DistillError, RunError, did_you_mean
from distill.recipe import Recipe

TEACHER = Run("twin_teacher")


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the run at work saves and leaves
    try:
        ablation = Ablation(options.output, options.rows, options.seeds, quick=options.quick)
        ablation.prepare(options.cifar10, options.fashion_mnist)
        return ablation.run()
    except DistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, help="the folder with train_list.txt")
    parser.add_argument("--fashion-mnist", type=Path, default=Path("data/fashion-mnist"), help="IDX files: off-topic")
    parser.add_argument("--seeds", type=_count, default=3, help="how often to train each row (default 3)")
    parser.add_argument("--rows", type=_rows, default=list(ROWS), help=f"some of: {','.join(ROWS)} (default: all)")
    parser.add_argument("--output", type=Path, help="default: runs/ablation, with --quick runs/ablation_quick")
    parser.add_argument("--quick", action="store_true", help="few images, one epoch: shows that all of it works")
    options = parser.parse_args()
    if options.output is None:
        options.output = Path("runs/ablation_quick" if options.quick else "runs/ablation")
    return options


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, received {text!r}")
    return int(text)


def _rows(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in ROWS:
            raise argparse.ArgumentTypeError(
                f"there is no row {name!r}.{did_you_mean(name, ROWS)} Valid: {', '.join(ROWS)}"
            )
    return [name for name in ROWS if name in names]


@dataclass
class Ablation:
    """Rows and seeds in an output folder.

    Attributes:
        output: Holds lists/, pool/, mining/, labels/, recipes/, runs/, logs/ and the table.
        rows: Names in ROWS.
        seeds: Their number; seeds are 0, 1, ...
        quick: Few images and one epoch.
    """

    output: Path
    rows: list[str]
    seeds: int
    quick: bool = False
    failures: list[str] = field(default_factory=list)

    def prepare(self, cifar10: Path, fashion_mnist: Path) -> None:
        """Lists, teacher, and where a row needs it the mined pool."""
        sizes = QUICK if self.quick else FULL
        write_lists(cifar10, self.output, sizes)
        runs = self._runs()
        if any(RUNS[run].recipe != "twin_vd" for run in runs):
            teacher = RunFolder(self.output, "teacher")
            if not teacher.is_finished():
                say("the teacher")
                teacher.train(full_recipe(TEACHER, 0, self.output, quick=self.quick))
        if any(RUNS[run].needs_pool for run in runs):
            say("the pool and its mining")
            mine(self.output, fashion_mnist, sizes)

    def run(self) -> int:
        """Every run with every seed that is not finished; 1 where one failed."""
        todo = [(run, seed) for seed in range(self.seeds) for run in self._runs()]
        waiting = [(run, seed) for run, seed in todo if not self._is_finished(run, seed)]
        for number, (run, seed) in enumerate(waiting):
            name = self._folder(run, seed).name
            say(f"run {len(todo) - len(waiting) + number + 1} of {len(todo)}, {name}; {self._left(todo)}")
            try:
                self._train(run, seed)
            except RunError as error:
                self.failures.append(str(error))
                say(f"{name}: {error}")
                continue
            write_report(self.output, self.rows, self._values(), quick=self.quick)
        print(write_report(self.output, self.rows, self._values(), quick=self.quick))
        say(f"the table is in {self.output / 'ablation.md'}, .json and .png")
        if self.failures:
            print("failed; the same command tries again:", *self.failures, sep="\n  ", file=sys.stderr)
        return 1 if self.failures else 0

    def _runs(self) -> list[str]:
        return runs_of(self.rows)

    def _folder(self, run: str, seed: int) -> RunFolder:
        return RunFolder(self.output, f"{run}-seed{seed}")

    def _recipe(self, run: str, seed: int) -> Recipe:
        return full_recipe(RUNS[run], seed, self.output, quick=self.quick)

    def _stages(self, run: str) -> list[str]:
        """The stages of a run that the chosen rows show."""
        return [ROWS[row].stage for row in self.rows if ROWS[row].run == run]

    def _is_finished(self, run: str, seed: int) -> bool:
        folder = self._folder(run, seed)
        evaluated = START not in self._stages(run) or folder.top1(START) is not None
        return evaluated and folder.is_finished()

    def _train(self, run: str, seed: int) -> None:
        folder, recipe = self._folder(run, seed), with_shared_labels(self._recipe(run, seed), self.output)
        if START in self._stages(run) and folder.top1(START) is None:
            folder.evaluate_start(recipe)
        if not folder.is_finished():
            folder.train(recipe)

    def _values(self) -> Values:
        """The accuracies that are there, by row and seed."""
        return {
            row: {
                seed: top1
                for seed in range(self.seeds)
                if (top1 := self._folder(ROWS[row].run, seed).top1(ROWS[row].stage)) is not None
            }
            for row in self.rows
        }

    def _left(self, runs: list[tuple[str, int]]) -> str:
        """How long the unfinished ones will take, by what the finished ones took."""
        done, left, seconds = 0, 0, 0.0
        for run, seed in runs:
            folder, amount = self._folder(run, seed), work(self._recipe(run, seed))
            if folder.is_finished():
                done, seconds = done + amount, seconds + folder.seconds()
            else:
                left += amount
        if not done:
            return "the first one, so nothing says yet how long the others will take"
        return f"about {duration(left * seconds / done)} left"


def duration(seconds: float) -> str:
    """As "1 h 05 min" or "12 min"."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
