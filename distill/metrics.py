"""What a run measures: running sums, the JSONL log, and the VisualDL curves drawn from it."""

import errno
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from distill.distributed.world import ALONE, World
from distill.errors import RunError
from distill.files import cannot_write, write_atomically


def topk_hits(logits: np.ndarray, labels: np.ndarray, k: int) -> int:
    """How many rows have their label among the k largest logits.

    Args:
        logits: float [N, C]; a row that holds NaN never hits.
        labels: int64 [N], each in [0, C).
        k: At least 1; larger than C counts as C.
    """
    own = logits[np.arange(len(labels)), labels][:, None]
    # The rank counts equal logits before the label's too, so that a constant network scores no free hits.
    rank = (logits > own).sum(1) + ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None])).sum(1)
    return int(((rank < k) & np.isfinite(logits).all(1)).sum())


@dataclass
class StepRecords:
    """The losses of a stage's last updates, still on the device, so that reading them does not stop every step."""

    stage_name: str
    steps: list[int] = field(default_factory=list)
    terms: list[Mapping[str, Any]] = field(default_factory=list)
    unsound: list[Mapping[str, Any]] = field(default_factory=list)
    indices: list[Sequence[np.ndarray]] = field(default_factory=list)

    def append(
        self,
        step: int,
        terms: Mapping[str, Any],
        indices: Sequence[np.ndarray],
        unsound: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Keeps an update's terms, the samples it saw, and by teacher how many of its answers were not finite.

        Terms ("loss" among them) and numbers are scalar tensors. The numbers are looked at only where a term is not
        finite.
        """
        if not terms:  # every file of the update was undecodable
            return
        self.steps.append(step)
        self.terms.append(terms)
        self.unsound.append(unsound)
        self.indices.append(indices)

    def drain(self, world: World = ALONE) -> dict[str, float]:
        """The mean of each term over the updates since the last call, which are then forgotten.

        Args:
            world: The ranks, each with its share of the terms of the same updates.

        Raises:
            RunError: A term was not finite; names the first such update, its terms, its samples, and the teachers whose
                answers were the reason.
        """
        own = [
            (step, _floats(terms), _floats(unsound), np.concatenate(indices).tolist())
            for step, terms, unsound, indices in zip(self.steps, self.terms, self.unsound, self.indices, strict=True)
        ]
        self.steps, self.terms, self.unsound, self.indices = [], [], [], []
        values: dict[int, dict[str, float]] = {}
        unsound: dict[int, dict[str, float]] = {}
        samples: dict[int, list[int]] = {}
        for step, terms, faults, indices in (record for records in world.gather(own) for record in records):
            values[step] = _sums(values.get(step, {}), terms)
            unsound[step] = _sums(unsound.get(step, {}), faults)
            samples.setdefault(step, []).extend(indices)
        for step in sorted(values):
            if not all(math.isfinite(value) for value in values[step].values()):
                raise self._not_finite(step, values[step], unsound[step], samples[step])
        names = next(iter(values.values())) if values else {}
        return {name: sum(terms[name] for terms in values.values()) / len(values) for name in names}

    def _not_finite(
        self, step: int, terms: Mapping[str, float], unsound: Mapping[str, float], samples: Sequence[int]
    ) -> RunError:
        shown = ", ".join(f"{name} = {value:g}" for name, value in terms.items())
        listed = ", ".join(map(str, samples[:16])) + (", ..." if len(samples) > 16 else "")
        faults = [f"{name} to {count:g} of {len(samples)} images" for name, count in unsound.items() if count]
        reason, advice = "", "try a lower learning rate, clip_norm, or look at these samples"
        if faults:
            reason = f", because the teacher gave answers that are not finite: {', '.join(faults)}"
            advice = "check the teacher's weights, its normalization and teacher.precision, or look at these samples"
        return RunError(
            f"stage {self.stage_name}: the loss is not finite at step {step}{reason}: {shown}. "
            f"Sample indices: {listed}. The last checkpoint is intact; {advice}."
        )


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _sums(some: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    return {name: some.get(name, 0.0) + value for name, value in more.items()}


class MetricsLog:
    """`metrics.jsonl`, one object a line; and VisualDL scalars, which are a copy of it.

    A run that is resumed forgets what was logged after the checkpoint it resumes from, so the file ends
    up as if the run had never been interrupted.
    """

    def __init__(self, folder: Path, *, stage: int, after_step: int) -> None:
        """Opens the log of a run to go on behind update `after_step` of stage number `stage`."""
        self._path = folder / "metrics.jsonl"
        kept = [entry for entry in read_metrics(self._path) if (entry["stage"], entry["step"]) <= (stage, after_step)]
        write_atomically(self._path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
        shutil.rmtree(folder / "visualdl", ignore_errors=True)
        from visualdl import LogWriter

        try:
            self._file = self._path.open("ab", buffering=0)  # a line that was not taken is not tried again
            self._curves = LogWriter(logdir=str(folder / "visualdl"), display_name=folder.name)
        except OSError as error:
            raise cannot_write(folder, error) from error
        for entry in kept:
            self._draw(entry)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Appends an entry with the keys kind ("train" or "evaluation"), stage, stage_name, step and more.

        VisualDL's curves are a copy: what it cannot write it reports and leaves out, and a resume draws it again.

        Raises:
            RunError: The disk is full; a line that was written in part is left out when the log is read.
        """
        line = (json.dumps(entry) + "\n").encode()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._draw(entry)

    def add_picture(self, tag: str, image: np.ndarray) -> None:
        """Shows a picture (uint8 [H, W, 3], RGB) in VisualDL."""
        self._curves.add_image(tag=tag, img=image, step=0)

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._curves.close()

    def _draw(self, entry: Mapping[str, Any]) -> None:
        for name, value in entry.items():
            if isinstance(value, float) and math.isfinite(value):
                tag = f"{entry['stage_name']}/{entry['kind']}/{name}"
                self._curves.add_scalar(tag=tag, value=value, step=entry["step"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a `metrics.jsonl` up to a line that is damaged, such as a last one cut short by a crash."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_bytes().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries
