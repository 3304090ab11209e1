"""What a stage says while it trains: each event goes to the log on disk and to the person who watches."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from distill.data.types import Batch, Failure
from distill.display import Display
from distill.evaluation import Evaluation
from distill.metrics import MetricsLog
from distill.recipe import Recipe
from distill.report import first_views_picture, write_picture


@dataclass
class Throughput:
    """Speed since the last line of the log.

    Attributes:
        images: Training images of all ranks since then; whoever counts them adds them here.
        waiting: Seconds spent waiting for data.
        started: time.monotonic() of then.
    """

    images: int = 0
    waiting: float = 0.0
    started: float = 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Passes batches on and adds up the time spent waiting for them."""
        self.restart()
        while True:
            before = time.monotonic()
            batch = next(batches, None)
            self.waiting += time.monotonic() - before
            if batch is None:
                return
            yield batch

    def restart(self) -> tuple[float, float]:
        """Starts anew; returns images a second and the share of the time spent waiting for data."""
        now = time.monotonic()
        elapsed = max(now - self.started, 1e-9)
        speed, share = self.images / elapsed, self.waiting / elapsed
        self.images, self.waiting, self.started = 0, 0.0, now
        return speed, share


class Journal:
    """The log and the display of one stage; rank 0 alone has them, on the others all is silent."""

    def __init__(
        self, folder: Path, recipe: Recipe, number: int, *, step: int, last_step: int, silent: bool = False
    ) -> None:
        """Opens both for stage `number`, to go on behind update `step` of `last_step`."""
        self._folder, self._recipe = folder, recipe
        self._stage = recipe.stages[number]
        self._common = {"stage": number, "stage_name": self._stage.name}
        self._log = None if silent else MetricsLog(folder, stage=number, after_step=step)
        self.display = Display(self._stage.name, last_step, done=step, quiet=silent)
        self.throughput = Throughput()

    def __enter__(self) -> Self:
        self.display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.display.__exit__(kind, error, trace)
        if self._log is not None:
            self._log.close()

    def training(self, *, step: int, images: int, rate: float, terms: dict[str, float]) -> None:
        """Notes the mean losses since the last such line."""
        speed, waiting = self.throughput.restart()
        facts: dict[str, Any] = {"images": images, "learning_rate": rate, **terms}
        self._write("train", step=step, **facts, images_per_second=speed, data_wait_share=waiting)
        shown = {name: f"{value:.4f}" for name, value in terms.items()}
        if len(terms) == 2:  # one term and the sum of it
            del shown["loss"]
        shown |= {"lr": f"{rate:.2g}", "images/s": f"{speed:.0f}", "data wait": f"{waiting:.0%}"}
        self.display.advance(step, shown)

    def evaluation(self, step: int, evaluation: Evaluation, without_ema: Evaluation | None) -> None:
        """Notes an accuracy, and that of the plain student beside its moving average's."""
        facts: dict[str, Any] = evaluation.as_dict()
        if without_ema is not None:
            facts["top1_without_ema"] = without_ema.top1
        self._write("evaluation", step=step, **facts)
        self.display.say(
            f"{self._stage.name}: step {step}  top-1 {evaluation.top1:.4f}  top-5 {evaluation.top5:.4f}"
            + (f"  (without EMA {without_ema.top1:.4f})" if without_ema is not None else "")
        )

    def undecodable(self, step: int, failure: Failure) -> None:
        """Names a file that was left out."""
        self._write("undecodable", step=step, file=failure.name, reason=failure.reason)
        self.display.say(f"left out {failure.name}: {failure.reason}")

    def first_views(self, images: np.ndarray) -> None:
        """Keeps a picture of the first views of the stage."""
        if len(images) and self._log is not None:
            picture = first_views_picture(images, data_format=self._recipe.model.data_format)
            write_picture(self._folder / f"first_views_{self._stage.name}.png", picture)
            self._log.add_picture(f"{self._stage.name}/first views", picture)

    def _write(self, kind: str, *, step: int, **facts: Any) -> None:
        if self._log is not None:
            self._log.write({"kind": kind, **self._common, "step": step, **facts})
