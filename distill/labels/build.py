"""Computing answers ahead of training: any number of builders, on any devices and hosts with one file system.

A builder takes blocks of some thousand positions in the order in which training needs them. It claims a block by
locking one byte of the file `claims`, so that nobody else computes it, and a builder that dies holds nothing.
"""

import contextlib
import fcntl
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Full, Queue
from typing import Self

import numpy as np

from distill.data.failures import check_undecodable
from distill.data.loader import TrainLoader
from distill.data.sampler import MicroBatch
from distill.data.sources import open_sources
from distill.data.types import Batch
from distill.display import Display
from distill.errors import UserError
from distill.files import cannot_write
from distill.labels.inventory import describe_labels
from distill.labels.manifest import open_labels
from distill.labels.store import LabelStore
from distill.labels.teacher import StoredTeacher
from distill.normalization import seen_images
from distill.parallel import Device
from distill.recipe import Recipe, Stage
from distill.teachers.teacher import open_teacher

_ELEMENTS_AHEAD = 2  # beyond what the loader itself reads ahead


@dataclass(frozen=True)
class Share:
    """Which part of the work a builder takes: of `count` parts the one with this number.

    Shards are dealt out in turn, so that the parts of several machines without a common file system can be
    copied together.
    """

    number: int = 0
    count: int = 1


def parse_share(text: str) -> Share:
    """Reads "2/4", the second of four parts.

    Raises:
        UserError: It is none.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--part must be i/N with 1 <= i <= N such as 2/4, received {text!r}")
    return Share(int(match[1]) - 1, int(match[2]))


def parse_epochs(text: str, stage: Stage) -> range:
    """Reads "0:10", the first ten epochs of a stage.

    Raises:
        UserError: It is none, or the stage is shorter.
    """
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    if match is None or not int(match[1]) < int(match[2]) <= stage.epochs:
        raise UserError(
            f"--epochs must be first:end with first < end <= {stage.epochs}, the epochs of stage {stage.name}; "
            f"received {text!r}"
        )
    return range(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Block:
    """The positions [first, end) of a view epoch, and its place among all blocks of the stage."""

    view_epoch: int
    first: int
    end: int
    number: int


@dataclass
class Built:
    """What a builder did.

    Attributes:
        images: Answers that it computed.
        undecodable: Images that it could not decode.
        with_others: Answers that other builders were still computing at the end.
    """

    images: int = 0
    undecodable: int = 0
    with_others: int = 0

    def __str__(self) -> str:
        text = f"computed and stored {self.images:,} answers"
        if self.undecodable:
            text += f"; {self.undecodable:,} images cannot be decoded and have none"
        if self.with_others:
            text += f"; {self.with_others:,} are being computed by others"
        return text


def build_labels(
    recipe: Recipe, number: int, device: Device, *, epochs: range | None = None, share: Share | None = None
) -> Built:
    """Computes and stores the answers of stage `number` that are missing.

    Args:
        recipe: Its stage has `teacher.labels`.
        number: Of the stage.
        device: What `setup_process` returned.
        epochs: Those of the training that the answers are for; None: all.
        share: Of the work; None: all that no other builder is working on.

    Raises:
        RunError: An answer is not finite, or cannot be stored, or too many images of an epoch cannot be decoded.
    """
    stage = recipe.stages[number]
    source = open_sources(stage.data.sources, recipe.num_classes)
    store = open_labels(recipe, number, source)
    if store is None:
        raise ValueError(f"stage {stage.name} has no teacher.labels")
    view_epochs = dict.fromkeys(stage.view_epoch(epoch) for epoch in epochs or range(stage.epochs))
    todo = _missing_blocks(store, blocks_of(store, view_epochs, share or Share()))
    loader = TrainLoader.of_stage(recipe, number, source, labels=store)
    teacher = StoredTeacher(store, partial(open_teacher, recipe, number, device))
    with Display(f"labels {stage.name}", sum(todo.values()), unit="image") as display:
        for line in describe_labels(store, stage):
            display.say(line)
        progress = _Progress(display)
        with Claims(store.folder) as claims:
            work = _claimed_work(store, loader, claims, todo, stage.device_batch_size, progress)
            for element in _read_ahead(work):
                if isinstance(element, Block):
                    claims.release(element)
                    continue
                progress.note_failures(element, stage, store.positions)
                _store_answers(element, teacher)
                progress.computed(element)
    return progress.built


def _store_answers(batch: Batch, teacher: StoredTeacher) -> None:
    if batch.slot is None:
        raise ValueError("the batch has no slot: its loader knows no soft-label store")
    if len(batch.labels):
        teacher.fill(seen_images(batch), batch.slot)
    else:
        teacher.note_undecodable(batch.slot)


def blocks_of(store: LabelStore, view_epochs: Iterable[int], share: Share) -> Iterator[Block]:
    """The blocks of a share, in the order in which training needs them."""
    per_epoch = -(-store.positions // store.block_positions)
    shards_per_epoch = -(-per_epoch // store.shard_blocks)
    for view_epoch in view_epochs:
        for place in range(per_epoch):
            shard = view_epoch * shards_per_epoch + place // store.shard_blocks
            if shard % share.count == share.number:
                first = place * store.block_positions
                end = min(first + store.block_positions, store.positions)
                yield Block(view_epoch, first, end, view_epoch * per_epoch + place)


def _missing_blocks(store: LabelStore, blocks: Iterable[Block]) -> dict[Block, int]:
    """How many positions each block lacks that lacks any; quick where nothing is stored, or everything."""
    begun = set(store.view_epochs())
    found = {}
    for block in blocks:
        missing = block.end - block.first
        if block.view_epoch in begun:
            missing = int(np.sum(store.empty(block.view_epoch, block.first, block.end)))
        if missing:
            found[block] = missing
    return found


class Claims:
    """The blocks that builders are working on.

    POSIX record locks: they belong to the process, which must open the file once only, and end with it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "claims"

    def __enter__(self) -> Self:
        """Raises RunError where their file cannot be made."""
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def take(self, block: Block) -> bool:
        """Claims a block, unless another process has it."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, block.number)
        except BlockingIOError:
            return False
        return True

    def release(self, block: Block) -> None:
        """Gives a block free."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, block.number)


def _read_ahead(work: Iterator[Batch | Block]) -> Iterator[Batch | Block]:
    """Passes the work on, fetched by a thread: the next block is claimed and read while this one is computed."""
    ready: Queue[Batch | Block | BaseException | None] = Queue(maxsize=_ELEMENTS_AHEAD)
    given_up = threading.Event()

    def put(element: Batch | Block | BaseException | None) -> None:
        while not given_up.is_set():
            with contextlib.suppress(Full):
                return ready.put(element, timeout=0.5)

    def fetch() -> None:
        try:
            for element in work:
                put(element)
                if given_up.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    # A daemon: a reading that hangs must not keep the process alive.
    threading.Thread(target=fetch, name="labels-read-ahead", daemon=True).start()
    try:
        while (element := ready.get()) is not None:
            if isinstance(element, BaseException):
                raise element
            yield element
    finally:
        given_up.set()


class _Progress:
    """Counts for the display and the result; both threads report to it."""

    def __init__(self, display: Display) -> None:
        self.built = Built()
        self._display = display
        self._done = 0
        self._failures: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._first: tuple[float, int] | None = None  # when the first batch was done, which waited for the engine

    def note_failures(self, batch: Batch, stage: Stage, images: int) -> None:
        """Names what could not be decoded, and stops when that is too much, before it is stored as the truth.

        Raises:
            RunError: More than `data.max_undecodable_fraction` of an epoch's images.
        """
        for failure in batch.failures:
            self._display.say(f"cannot decode {failure.name}: {failure.reason} (no soft label)")
        self.built.undecodable += len(batch.failures)
        self._failures[batch.epoch] += len(batch.failures)
        check_undecodable(stage, batch.epoch, self._failures[batch.epoch], images, batch.failures)

    def computed(self, batch: Batch) -> None:
        """Notes the answers of a batch."""
        self.built.images += len(batch.labels)
        if self._first is None:
            self._first = time.monotonic(), self.built.images
        self.found_done(len(batch.labels) + len(batch.failures))

    def found_done(self, count: int) -> None:
        """Notes answers that somebody else computed meanwhile."""
        with self._lock:
            self._done += count
            self._display.advance(self._done, {"images/s": f"{self._speed():.0f}"})

    def _speed(self) -> float:
        since, images = self._first or (0.0, 0)
        return (self.built.images - images) / max(time.monotonic() - since, 1e-9)


def _claimed_work(
    store: LabelStore,
    loader: TrainLoader,
    claims: Claims,
    todo: Mapping[Block, int],
    batch_size: int,
    progress: _Progress,
) -> Iterator[Batch | Block]:
    """The batches of each block that could be claimed, and behind them the block itself, to be released.

    Blocks that others are working on are looked at again at the end: they may have died.
    """
    waiting = dict(todo)
    while waiting:
        busy = dict[Block, int]()
        for block, missing in waiting.items():
            if not claims.take(block):
                busy[block] = missing
                continue
            parts = _missing_parts(store, block, batch_size)
            progress.found_done(missing - sum(part.end - part.first for part in parts))
            yield from loader.views(parts)
            yield block
        if busy.keys() == waiting.keys():
            progress.built.with_others = sum(busy.values())
            return
        waiting = busy


def _missing_parts(store: LabelStore, block: Block, batch_size: int) -> list[MicroBatch]:
    """What a block lacks, in micro-batches: whole mixup groups, for they divide batch_size."""
    empty = store.empty(block.view_epoch, block.first, block.end)
    return [
        MicroBatch(block.view_epoch, 0, first, end, ends_step=True, global_count=end - first)
        for first in range(block.first, block.end, batch_size)
        for end in [min(first + batch_size, block.end)]
        if empty[first - block.first : end - block.first].any()
    ]
