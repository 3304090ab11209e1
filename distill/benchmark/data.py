"""How fast a recipe's images reach the student, part by part, and what limits it: `distill benchmark data`."""

import itertools
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from distill.data.augment import train_view
from distill.data.decode import open_image
from distill.data.loader import DataFormat, TrainLoader, store_view
from distill.data.random import Stream, generator
from distill.data.sampler import epoch_order
from distill.data.sources import Images, open_sources
from distill.data.types import Image, ImageRows, UndecodableImage
from distill.display import Display
from distill.errors import RunError, UserError, did_you_mean
from distill.recipe import Recipe, Stage

FloatPairs = NDArray[np.float64]

PARTS = ("read", "decode", "view", "batch")


@dataclass(frozen=True)
class Part:
    """One part of what an image costs, on one thread.

    Attributes:
        cpu_us: Microseconds of computing an image.
        waiting_us: Microseconds an image in which the thread did not compute: the disk's, or other programs'.
    """

    cpu_us: float
    waiting_us: float


@dataclass(frozen=True)
class Parts:
    """What an image costs, on one thread, without the loader.

    Attributes:
        parts: By the names in PARTS.
        images: Images measured.
        undecodable: Images that could not be decoded, beside these.
        encoded_bytes: Mean size of a file; 0 where images have no files of their own.
        pixels: Mean height x width of a decoded image.
    """

    parts: dict[str, Part]
    images: int
    undecodable: int
    encoded_bytes: float
    pixels: float

    @property
    def cpu_us(self) -> float:
        """Microseconds of computing an image, all parts."""
        return sum(part.cpu_us for part in self.parts.values())

    @property
    def disk_share(self) -> float:
        """The share of the time in [0, 1] in which the disk is waited for.

        Other programs make a thread wait too, but in all its parts: what the others wait is taken off.
        """
        spent = sum(part.cpu_us + part.waiting_us for part in self.parts.values())
        others = sum(part.waiting_us for name, part in self.parts.items() if name != "read")
        return max(0.0, self.parts["read"].waiting_us - others) / spent if self.encoded_bytes else 0.0

    @property
    def dearest(self) -> str:
        """The part that computes for longest."""
        return max(self.parts, key=lambda name: self.parts[name].cpu_us)


@dataclass(frozen=True)
class LoaderRun:
    """The loader with some workers, while nothing else is computed.

    Attributes:
        threads: In each process.
        processes: 0: the threads are of this process.
        images_per_second: In all.
        cores_used: How many cores this process kept busy; None with `processes`, whose use is not seen here.
        idle_cores: How many cores of the machine had nothing to do.
    """

    threads: int
    processes: int
    images_per_second: float
    cores_used: float | None
    idle_cores: float

    @property
    def workers(self) -> int:
        """Threads in all."""
        return self.threads * max(1, self.processes)


@dataclass(frozen=True)
class DataReport:
    """What `distill benchmark data` found.

    Attributes:
        recipe: Its name.
        stage: The stage's name.
        size_px: Of the view.
        sources_images: Samples of an epoch.
        cores: Cores that this process may use.
        parts: One image's costs.
        runs: The loader, by number of workers, ascending.
    """

    recipe: str
    stage: str
    size_px: int
    sources_images: int
    cores: int
    parts: Parts
    runs: tuple[LoaderRun, ...]

    @property
    def images_per_second_per_core(self) -> float:
        """What one core that does nothing else can prepare."""
        return 1e6 / self.parts.cpu_us

    def cores_for(self, images_per_second: float) -> float:
        """How many cores have to prepare images so that a student of this speed never waits."""
        return images_per_second / self.images_per_second_per_core


def benchmark_data(
    recipe: Recipe, *, stage: str | None = None, seconds: float = 10.0, threads: Sequence[int] = (1, 2)
) -> DataReport:
    """Measures the images of a recipe's stage: its sources and its views, no teacher and no student.

    Samples come in the order of an epoch of training. The first `seconds` go to one thread that reads, decodes,
    makes the view and copies it, each timed; then the loader runs with each number of threads on samples of later
    epochs. A large source is so read from the disk, one that fits into memory is not.

    Args:
        recipe: A valid one; `runtime.loader_processes` holds for the loader.
        stage: Its name; None: the first.
        seconds: For each of the 1 + len(threads) measurements, > 0.
        threads: Numbers of loader threads, each >= 1.

    Raises:
        UserError: No such stage, a source that cannot be opened, an argument out of range, or a view that cannot
            be made of an image.
        RunError: No image can be decoded, or a reading hangs.
    """
    number, section = _find_stage(recipe, stage)
    if not 0 < seconds < math.inf:
        raise UserError(f"--seconds must be a number > 0, received {seconds:g}")
    if not threads or min(threads) < 1:
        raise UserError(f"--threads must be numbers >= 1 such as 1,2, received {','.join(map(str, threads)) or 'none'}")
    source = open_sources(section.data.sources, recipe.num_classes)
    cv2.setNumThreads(0)  # as in the loader
    counts = sorted(set(threads))
    runs = []
    with Display("measuring", 1 + len(counts), unit="measurement") as display:
        parts = measure_parts(source, recipe, number, seconds)
        for done, count in enumerate(counts, start=1):
            display.advance(done, {"next": f"loader, {count} thread(s)"})
            runs.append(_measure_loader(source, recipe, number, count, seconds))
        display.advance(1 + len(counts), {})
    cores = len(os.sched_getaffinity(0))
    return DataReport(recipe.name, section.name, section.view.size_px, len(source), cores, parts, tuple(runs))


def _find_stage(recipe: Recipe, name: str | None) -> tuple[int, Stage]:
    if name is None:
        return 0, recipe.stages[0]
    names = [stage.name for stage in recipe.stages]
    if name not in names:
        raise UserError(
            f"{recipe.name} has no stage {name!r}.{did_you_mean(name, names)} Its stages: {', '.join(names)}"
        )
    return names.index(name), recipe.stages[names.index(name)]


def measure_parts(source: Images, recipe: Recipe, stage_index: int, seconds: float) -> Parts:
    """Times the parts of one image after the other, on this thread, for about `seconds`.

    Raises:
        UserError: An image that the view cannot be made of, named.
        RunError: None of the images can be decoded.
    """
    stage = recipe.stages[stage_index]
    batch = _Batch(stage, recipe.model.data_format)
    sums = np.zeros((len(PARTS), 2))
    sizes = np.zeros(2)
    images = 0
    failures: list[UndecodableImage] = []
    end = time.perf_counter() + seconds
    for epoch, index in _samples(recipe.seed, stage, stage_index, len(source)):
        if time.perf_counter() > end and (images or failures):
            break
        random = generator(recipe.seed, stage_index, epoch, index, Stream.VIEW)
        try:
            spent, bytes_and_pixels = _time_image(source, index, stage, random, batch)
        except UndecodableImage as error:
            failures.append(error)
            continue
        except UserError as error:
            raise UserError(f"{source.name(index)}: {error}") from None
        sums += spent
        sizes += bytes_and_pixels
        images += 1
    if not images:
        raise RunError(f"none of {len(failures)} images could be decoded; the first: {failures[0]}")
    means_us = (1e6 / images * sums).tolist()
    parts = {name: Part(cpu, max(0.0, wall - cpu)) for name, (wall, cpu) in zip(PARTS, means_us, strict=True)}
    encoded_bytes, pixels = (sizes / images).tolist()
    return Parts(parts, images, len(failures), encoded_bytes, pixels)


def _time_image(
    source: Images, index: int, stage: Stage, random: np.random.Generator, batch: "_Batch"
) -> tuple[FloatPairs, tuple[int, int]]:
    """Seconds of the clock and of computing in each of PARTS, float64 [4, 2], and (bytes, pixels) of the image."""
    clocks = [_now()]
    encoded = source.encoded(index)
    clocks.append(_now())
    image = _TimedRows(source.open(index) if encoded is None else open_image(encoded, source.name(index)))
    clocks.append(_now())
    view = train_view(image, stage.view, random)
    clocks.append(_now())
    batch.add(view)
    clocks.append(_now())
    spent = np.diff(clocks, axis=0)
    spent[1] += image.decoding  # the view asks for it, when it has drawn its box
    spent[2] -= image.decoding
    return spent, (len(encoded or b""), image.shape[0] * image.shape[1])


class _TimedRows:
    """An image that notes how long its rows took to decode."""

    def __init__(self, image: Image | ImageRows) -> None:
        self.shape: tuple[int, int, int] = image.shape
        self._image = image
        self.decoding = (0.0, 0.0)

    def rows(self, end: int) -> Image:
        if isinstance(self._image, np.ndarray):
            return self._image
        begun = _now()
        image = self._image.rows(end)
        ended = _now()
        self.decoding = ended[0] - begun[0], ended[1] - begun[1]
        return image


def _samples(seed: int, stage: Stage, stage_index: int, count: int) -> Iterator[tuple[int, int]]:
    """The epoch that views are drawn for, and the index, of the samples in the order of training, without end."""
    for number in itertools.count():
        epoch = stage.view_epoch(number)
        for index in epoch_order(seed, stage_index, epoch, count).tolist():
            yield epoch, index


def _now() -> tuple[float, float]:
    """Seconds of the clock, and of computing of this thread."""
    return time.perf_counter(), time.thread_time()


class _Batch:
    """A batch that is filled over and over, as the loader fills each of its own."""

    def __init__(self, stage: Stage, data_format: DataFormat) -> None:
        size, count = stage.view.size_px, stage.device_batch_size
        self._format: DataFormat = data_format
        self._shape = (count, 3, size, size) if data_format == "NCHW" else (count, size, size, 3)
        self._place = count

    def add(self, view: Image) -> None:
        if self._place == self._shape[0]:
            self._images = np.empty(self._shape, np.uint8)
            self._place = 0
        store_view(view, self._images[self._place], self._format)
        self._place += 1


def _measure_loader(source: Images, recipe: Recipe, stage_index: int, threads: int, seconds: float) -> LoaderRun:
    """Takes batches from the loader as fast as they come, for about `seconds`."""
    runtime = recipe.runtime.model_copy(update={"loader_threads": threads})
    loader = TrainLoader.of_stage(recipe.model_copy(update={"runtime": runtime}), stage_index, source)
    run = LoaderRun(threads, runtime.loader_processes, 0.0, None, 0.0)
    first = threads * loader.steps_per_epoch  # epochs of its own: not what the measurement before has just read
    batches = loader.batches(first, first + 10**9)
    try:
        for _ in range(run.workers):  # until every worker is at work
            next(batches)
        images, started = 0, _usage()
        while time.perf_counter() - started[0] < seconds:
            images += len(next(batches).indices)
        wall, cpu, idle = (after - before for before, after in zip(started, _usage(), strict=True))
    finally:
        batches.close()  # type: ignore[attr-defined]
    return replace(
        run,
        images_per_second=images / wall,
        cores_used=None if runtime.loader_processes else cpu / wall,
        idle_cores=idle / wall,
    )


def _usage() -> tuple[float, float, float]:
    """Seconds: of the clock, of computing of this process, and of idling of all cores."""
    with open("/proc/stat") as file:
        idle_ticks = int(file.readline().split()[4])
    return time.perf_counter(), time.process_time(), idle_ticks / os.sysconf("SC_CLK_TCK")
