"""Batches for training and evaluation, prepared ahead by threads or processes, in order.

Grain's elements are whole micro-batches: `element k` is a pure function of k, so that threads, processes and
a resume at any step give the same batches.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Literal, Protocol, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from distill.data.augment import evaluation_view, train_view
from distill.data.mix import keep_samples, mix_plan, paste_boxes
from distill.data.random import Stream, generator
from distill.data.sampler import MicroBatch, MicroBatchPlan, epoch_order
from distill.data.types import (
    UNLABELLED,
    Batch,
    Failure,
    FeatureSource,
    Image,
    ImageSource,
    IntArray,
    LabelSource,
    UndecodableImage,
)
from distill.data.watch import ChildProcesses, StuckReading, Timed, reading, watched
from distill.errors import RunError, UserError
from distill.recipe import EvaluationSection, Recipe, RuntimeSection, Stage

DataFormat = Literal["NCHW", "NHWC"]


class TrainLoader:
    """The batches of a stage on one rank.

    Args:
        source: The stage's images.
        stage: Batch sizes, view and mixing.
        runtime: Threads, processes and how far they run ahead. They change speed, never the batches.
        seed: The recipe's.
        stage_index: The stage's place in the recipe.
        data_format: Layout of the images.
        rank: This process.
        world_size: Number of processes that train together.
        labels: The soft-label store to look every batch up in.
        features: The feature store to look every batch up in.

    Raises:
        UserError: More processes than a step has micro-batches.
    """

    def __init__(
        self,
        source: ImageSource,
        stage: Stage,
        runtime: RuntimeSection,
        *,
        seed: int,
        stage_index: int,
        data_format: DataFormat = "NCHW",
        rank: int = 0,
        world_size: int = 1,
        labels: LabelSource | None = None,
        features: FeatureSource | None = None,
    ) -> None:
        self.plan = MicroBatchPlan(
            len(source), stage.global_batch_size, stage.device_batch_size, rank, world_size, stage.mix_group_size
        )
        self._batches = _TrainBatches(source, stage, self.plan, seed, stage_index, data_format, labels, features)
        self._runtime = runtime

    @classmethod
    def of_stage(
        cls,
        recipe: Recipe,
        number: int,
        source: ImageSource,
        *,
        rank: int = 0,
        world_size: int = 1,
        labels: LabelSource | None = None,
        features: FeatureSource | None = None,
    ) -> Self:
        """The loader of stage `number` of a recipe, on one rank of `world_size`."""
        return cls(
            source,
            recipe.stages[number],
            recipe.runtime,
            seed=recipe.seed,
            stage_index=number,
            data_format=recipe.model.data_format,
            rank=rank,
            world_size=world_size,
            labels=labels,
            features=features,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Updates an epoch."""
        return self.plan.steps_per_epoch

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The micro-batches of the steps [first_step, last_step), counted from 0 through the whole stage.

        Every rank gets the same number of batches a step; the last of each has `ends_step`.

        Raises:
            RunError: A file whose reading failed for a reason other than its content, named.
            UserError: An image that the view cannot be made of, named.
        """
        if not 0 <= first_step <= last_step:
            raise ValueError(f"need 0 <= first_step <= last_step, received {first_step}, {last_step}")
        per_step = self.plan.micro_batches_per_step
        numbers = range(first_step * per_step, last_step * per_step)
        return _run_ahead(_Numbered(self._batches, numbers), self._runtime)

    def views(self, parts: Sequence[MicroBatch]) -> Iterator[Batch]:
        """The views at any places of the stage, in the order asked for; raises as `batches`.

        Args:
            parts: Each begins with a group that is mixed, and ends with one or with the epoch.
        """
        return _run_ahead(_Parts(self._batches, parts), self._runtime)


class EvaluationLoader:
    """The batches of an evaluation on one rank: every image once over all ranks, in the source's order.

    Args:
        source: Labelled images.
        evaluation: Resize, crop and batch size.
        runtime: Threads, processes and how far they run ahead.
        data_format: Layout of the images.
        rank: This process; it gets the batches rank, rank + world_size, ...
        world_size: Number of processes that evaluate together.

    Raises:
        UserError: An image has no label.
    """

    def __init__(
        self,
        source: ImageSource,
        evaluation: EvaluationSection,
        runtime: RuntimeSection,
        *,
        data_format: DataFormat = "NCHW",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        unlabelled = np.flatnonzero(source.labels == UNLABELLED)
        if len(unlabelled):
            raise UserError(
                f"evaluation needs a label for every image: {len(unlabelled)} of {len(source)} have none, "
                f"the first is {source.name(int(unlabelled[0]))}"
            )
        self._batches = _EvaluationBatches(source, evaluation, data_format, None)
        self._numbers = range(rank, -(-len(source) // evaluation.batch_size), world_size)
        self._runtime = runtime

    @classmethod
    def of_stage(cls, recipe: Recipe, number: int, source: ImageSource, *, rank: int = 0, world_size: int = 1) -> Self:
        """The loader of what stage `number` of a recipe is measured on, on one rank of `world_size`."""
        return cls(
            source,
            recipe.stages[number].evaluation,
            recipe.runtime,
            data_format=recipe.model.data_format,
            rank=rank,
            world_size=world_size,
        )

    def with_features(self, features: FeatureSource) -> Self:
        """The same batches, each looked up in a feature store."""
        loader = copy.copy(self)
        loader._batches = replace(self._batches, features=features)
        return loader

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._numbers)

    def __iter__(self) -> Iterator[Batch]:
        return _run_ahead(_Numbered(self._batches, self._numbers), self._runtime)


class _Batches(Protocol):
    """What can make any of its batches at any time, on any thread."""

    def batch(self, number: int) -> Batch: ...


@dataclass(frozen=True)
class _TrainBatches:
    source: ImageSource
    stage: Stage
    plan: MicroBatchPlan
    seed: int
    stage_index: int
    data_format: DataFormat
    labels: LabelSource | None
    features: FeatureSource | None

    def batch(self, number: int) -> Batch:
        return self.views(self.plan.micro_batch(number))

    def views(self, micro: MicroBatch) -> Batch:
        epoch = self.stage.view_epoch(micro.epoch)
        order = epoch_order(self.seed, self.stage_index, epoch, self.plan.n)

        def view(index: int) -> Image:
            random = generator(self.seed, self.stage_index, epoch, index, Stream.VIEW)
            return train_view(self.source.open(index), self.stage.view, random)

        indices = order[micro.first : micro.end]
        known = self.features.read(indices) if self.features is not None else None
        if known is not None and known.usable.all() and not self._teacher_looks(micro):
            batch, kept = _without_views(self.source, indices, self.stage.view.size_px, self.data_format)
        else:
            batch, kept = _read_views(self.source, indices, view, self.stage.view.size_px, self.data_format)
        batch = replace(
            batch,
            epoch=micro.epoch,
            step=micro.step,
            ends_step=micro.ends_step,
            global_count=micro.global_count,
            slot=self.labels.slot(epoch, micro.first, micro.end, kept) if self.labels is not None else None,
            features=known.select(kept) if known is not None else None,
        )
        if self.stage.mixup is None and self.stage.cutmix is None:
            return batch
        plan = mix_plan(self.stage, self.seed, self.stage_index, epoch, micro.first, micro.end)
        plan = keep_samples(plan, kept)
        batch = replace(batch, partner=plan.partner, lam=plan.lam, cut=plan.cut)
        return replace(batch, images=paste_boxes(batch.images, plan, self.data_format))

    def _teacher_looks(self, micro: MicroBatch) -> bool:
        """Whether a teacher has yet to answer to a micro-batch, as far as is known now."""
        if self.labels is None:
            return self.stage.teacher is not None
        places = np.arange(micro.end - micro.first, dtype=np.int64)
        slot = self.labels.slot(self.stage.view_epoch(micro.epoch), micro.first, micro.end, places)
        return not slot.usable.all()


@dataclass(frozen=True)
class _EvaluationBatches:
    source: ImageSource
    evaluation: EvaluationSection
    data_format: DataFormat
    features: FeatureSource | None

    def batch(self, number: int) -> Batch:
        size = self.evaluation.batch_size
        indices = np.arange(number * size, min((number + 1) * size, len(self.source)), dtype=np.int64)

        def view(index: int) -> Image:
            return evaluation_view(self.source.read(index), self.evaluation.resize_short_px, self.evaluation.crop_px)

        known = self.features.read(indices) if self.features is not None else None
        if known is not None and known.usable.all():
            batch, kept = _without_views(self.source, indices, self.evaluation.crop_px, self.data_format)
        else:
            batch, kept = _read_views(self.source, indices, view, self.evaluation.crop_px, self.data_format)
        return replace(batch, step=number, features=known.select(kept) if known is not None else None)


@dataclass(frozen=True)
class _Parts:
    """The views at any places, as the random-access source that Grain asks for."""

    batches: _TrainBatches
    parts: Sequence[MicroBatch]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, place: int) -> Batch:
        return self.batches.views(self.parts[place])


@dataclass(frozen=True)
class _Numbered:
    """Some of the batches, as the random-access source that Grain asks for."""

    batches: _Batches
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Batch:
        return self.batches.batch(self.numbers[place])


def _read_views(
    source: ImageSource,
    indices: IntArray,
    make_view: Callable[[int], Image],
    size_px: int,
    data_format: DataFormat,
) -> tuple[Batch, IntArray]:
    """Reads images and makes their views; what cannot be decoded is left out and listed.

    Returns:
        (a batch of epoch 0, step 0, not mixed; the places int64 [N] of its samples in `indices`).
    """
    images = _empty_images(len(indices), size_px, data_format)
    kept: list[int] = []
    failures: list[Failure] = []
    for place, index in enumerate(indices.tolist()):
        try:
            with reading(source, index):
                view = make_view(index)
        except UndecodableImage as error:
            failures.append(Failure(error.name, error.reason))
            continue
        except UserError as error:
            raise UserError(f"{source.name(index)}: {error}") from None
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            raise RunError(f"{source.name(index)}: this image could not be prepared: {problem}") from error
        store_view(view, images[len(kept)], data_format)
        kept.append(place)
    places = np.array(kept, dtype=np.int64)
    return _plain_batch(source, images[: len(kept)], indices[places], len(indices), failures), places


def _without_views(
    source: ImageSource, indices: IntArray, size_px: int, data_format: DataFormat
) -> tuple[Batch, IntArray]:
    """As `_read_views`, for samples that could all be decoded before and need not be seen again."""
    images = _empty_images(0, size_px, data_format)
    return _plain_batch(source, images, indices, len(indices), ()), np.arange(len(indices), dtype=np.int64)


def _empty_images(count: int, size_px: int, data_format: DataFormat) -> NDArray[np.uint8]:
    shape = (count, 3, size_px, size_px) if data_format == "NCHW" else (count, size_px, size_px, 3)
    return np.empty(shape, dtype=np.uint8)


def _plain_batch(
    source: ImageSource, images: NDArray[np.uint8], indices: IntArray, count: int, failures: Sequence[Failure]
) -> Batch:
    return Batch(
        images=images,
        labels=source.labels[indices],
        indices=indices,
        partner=None,
        lam=None,
        epoch=0,
        step=0,
        ends_step=True,
        global_count=count,
        failures=tuple(failures),
    )


def store_view(view: Image, target: NDArray[np.uint8], data_format: DataFormat) -> None:
    """Copies a view [S, S, 3] into its place of a batch, [3, S, S] or [S, S, 3]."""
    if data_format == "NCHW":
        cv2.split(view, list(target))  # a third of the time of NumPy's transposed copy
    else:
        target[:] = view


def _run_ahead(elements: _Numbered | _Parts, runtime: RuntimeSection) -> Iterator[Batch]:
    """Yields the elements in order, made ahead by runtime.loader_threads in each of runtime.loader_processes."""
    if not len(elements):
        return
    grain = _import_grain()
    _prepare_process()
    ahead = max(runtime.prefetch_batches, runtime.loader_threads)  # fewer would leave threads idle
    timeout_seconds = runtime.read_timeout_seconds
    source = Timed(elements, timeout_seconds) if runtime.loader_processes else elements
    batches = grain.MapDataset.source(source).to_iter_dataset(
        grain.ReadOptions(num_threads=runtime.loader_threads, prefetch_buffer_size=ahead)
    )
    if runtime.loader_processes:
        options = grain.MultiprocessingOptions(
            num_workers=runtime.loader_processes, per_worker_buffer_size=runtime.prefetch_batches
        )
        batches = batches.mp_prefetch(options, worker_init_fn=_prepare_process)
    processes = ChildProcesses()
    iterator = iter(batches)
    try:
        if runtime.loader_processes:
            # A process of the loader names the file itself, in time; twice the time is for one that answers no more.
            yield from watched(iterator, 2 * timeout_seconds, lambda: _why_in_vain(processes))
        else:
            yield from watched(iterator, timeout_seconds)
    except StuckReading:
        raise  # closing would wait for the thread that hangs
    except OSError as error:  # about an image it would be a RunError
        raise RunError(
            f"the loader's {runtime.loader_processes} processes cannot start: {error.strerror or error}. They need "
            "some kB in /dev/shm for their semaphores: free or enlarge it (in a container: --shm-size=64m), or do "
            "without them: runtime.loader_processes=0"
        ) from error
    except RuntimeError as error:  # Grain's, about its processes
        raise RunError(_death(str(error))) from error
    except BaseException:
        iterator.close()
        raise
    iterator.close()


def _why_in_vain(processes: ChildProcesses) -> str | None:
    """Grain notices a dead process itself, unless it died while it started or sent a batch: then Grain waits for it."""
    signal = processes.killed_by()
    return None if signal is None else _death(f"it was ended by signal {signal} while it started or sent a batch.")


def _death(reason: str) -> str:
    return (
        f"a process of the loader has died: {reason} Signal 9 (exit code -9) is usually a lack of memory. The last "
        "checkpoint is intact; fewer runtime.loader_processes or prefetch_batches need less"
    )


def _prepare_process(*_: int) -> None:
    """OpenCV: no threads of its own beside ours, and no log lines beside our own report of what failed."""
    cv2.setNumThreads(0)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _import_grain() -> ModuleType:
    """Grain, without its warning that JAX's profiler, which nothing here needs, is not installed."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        import grain
    finally:
        logging.set_verbosity(verbosity)
    return grain  # type: ignore[no-any-return]
