"""Records on the disk, by the positions of an epoch's order, so that a batch reads contiguous slices.

    stage-0/labels.json                          the key, see `distill.labels.manifest`
    stage-0/view-00003/shard-00012.labels        sealed: complete, never written again
    stage-0/view-00003/shard-00012.json          its SHA-256
    stage-0/view-00003/shard-00013.partial       being filled, by any number of processes
    stage-0/view-00003/lock                      held for the moment of a write
    stage-0/claims                               which blocks builders are working on, see `distill.labels.build`

A shard file is a header of 64 bytes (16 of them a magic text, then the number of positions filled, uint64) and one
record a position. Sealed shards are mapped into memory; partial ones are read and written by pread and pwrite, which
stay coherent between hosts where the file system's locks do. A writer that is killed leaves whole records or torn
ones, and a torn one fails its own check and counts as empty.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.types import IntArray, LabelSlot
from distill.errors import RunError
from distill.files import cannot_write, locked, sync_folder, write_all, write_atomically
from distill.labels.records import FORMAT, Layout, Rows, Status, status_of, with_checks

BLOCK_POSITIONS = 4096
SHARD_BLOCKS = 16

_MAGIC = f"distill labels {FORMAT}".encode()
_HEADER_BYTES = 64
_COUNT_AT = 16


class DamagedShard(RunError):
    """A sealed shard is not what was sealed."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # so that it can come from a loader's process
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"the soft labels in {self.path} are damaged: {self.reason}. `distill labels verify RECIPE --repair` "
            "removes damaged shards; the next run computes them again"
        )


@dataclass(frozen=True)
class Shard:
    """The positions [first, end) of a view epoch."""

    view_epoch: int
    number: int
    first: int
    end: int

    def __len__(self) -> int:
        return self.end - self.first


@dataclass(frozen=True)
class LabelStore:
    """The records of one stage.

    Attributes:
        folder: Its own folder; made where something is added.
        layout: Of a record.
        positions: Samples in an epoch.
        group_size: Consecutive positions whose images are mixed with each other; 1 where none are.
        block_positions: What one builder works on at a time: a multiple of group_size.
        shard_blocks: Blocks in a shard.
        teachers: Name and weights' SHA-256 of each network whose answers these are.
    """

    folder: Path
    layout: Layout
    positions: int
    group_size: int
    block_positions: int
    shard_blocks: int
    teachers: tuple[tuple[str, str], ...] = ()

    def shards(self, view_epoch: int) -> list[Shard]:
        """All shards of a view epoch, stored or not."""
        size = self.block_positions * self.shard_blocks
        starts = range(0, self.positions, size)
        return [
            Shard(view_epoch, number, first, min(first + size, self.positions)) for number, first in enumerate(starts)
        ]

    def is_sealed(self, shard: Shard) -> bool:
        """Whether the shard is complete and has its checksum."""
        return self.path(shard, ".labels").exists()

    def path(self, shard: Shard, suffix: str) -> Path:
        """The shard's file: ".labels" sealed, ".json" its checksum, ".partial" not yet full."""
        return self._view_folder(shard.view_epoch) / f"shard-{shard.number:05d}{suffix}"

    def slot(self, view_epoch: int, first: int, end: int, places: IntArray) -> LabelSlot:
        """What is stored for a micro-batch.

        Where the set of decodable images of a mixup group is not the one whose answers were stored, the views
        differ too, so that none of the group's records is usable.

        Args:
            view_epoch: Of its random choices.
            first: Its first position, a multiple of group_size.
            end: Behind its last one: a multiple of group_size, or the end of the epoch.
            places: int64 [N] in 0..end - first - 1, ascending: which of its images could be decoded.
        """
        rows, status = self.read(view_epoch, first, end)
        expected = np.full(end - first, Status.UNDECODABLE, dtype=np.uint8)
        expected[places] = Status.RECORD
        usable = self._groupwise_all(status == expected)[places]
        return LabelSlot(view_epoch, first, end, places, rows[places], usable, bool((status > 0).all()))

    def read(self, view_epoch: int, first: int, end: int) -> tuple[Rows, NDArray[np.uint8]]:
        """Records uint16 [end - first, words] and their `Status`, uint8 [end - first].

        Raises:
            DamagedShard: A sealed shard is not what was sealed.
        """
        rows = np.zeros((end - first, self.layout.words), dtype=np.uint16)
        status = np.full(end - first, Status.EMPTY, dtype=np.uint8)
        for shard, begin, stop in self._pieces(view_epoch, first, end):
            piece, found = self._read_piece(shard, begin, stop)
            if not found.all() and self.is_sealed(shard):  # since we read it, unless what was sealed is wrong
                self.check_shard(shard)
                piece, found = self._read_piece(shard, begin, stop)
            rows[begin - first : stop - first] = piece
            status[begin - first : stop - first] = found
        return rows, status

    def empty(self, view_epoch: int, first: int, end: int) -> NDArray[np.bool_]:
        """Which of the positions [first, end) are not stored; sealed shards are not read for it."""
        empty = np.zeros(end - first, dtype=np.bool_)
        for shard, begin, stop in self._pieces(view_epoch, first, end):
            if not self.is_sealed(shard):
                _, status = self.read(view_epoch, begin, stop)
                empty[begin - first : stop - first] = status == Status.EMPTY
        return empty

    def add(self, view_epoch: int, first: int, rows: Rows) -> None:
        """Stores the records of consecutive positions, whole mixup groups of them, and seals what becomes full.

        What is there already stays.

        Args:
            view_epoch: Of their random choices.
            first: Position of the first, a multiple of group_size.
            rows: uint16 [M, words] from `encode` and `undecodable`.

        Raises:
            RunError: They could not be written, or the file system knows no locks.
        """
        if not len(rows):
            return
        checked = with_checks(rows, view_epoch, first)
        folder = self._view_folder(view_epoch)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / "lock"):
                for shard, begin, stop in self._pieces(view_epoch, first, first + len(rows)):
                    self._add_to_shard(shard, begin, checked[begin - first : stop - first])
        except OSError as error:
            raise cannot_write(folder, error) from error

    def stored(self, view_epoch: int) -> int:
        """Positions of a view epoch that are stored, undecodable ones included, by the shards' own count.

        Quick: no record is read. `recount` corrects what a killed writer left uncounted.
        """
        try:
            names = {entry.name for entry in os.scandir(self._view_folder(view_epoch))}
        except FileNotFoundError:
            return 0
        total = 0
        for shard in self.shards(view_epoch):
            if self.path(shard, ".labels").name in names:
                total += len(shard)
            elif self.path(shard, ".partial").name in names:
                total += self._partial_count(shard)
        return total

    def view_epochs(self) -> list[int]:
        """The view epochs of which something is stored, ascending."""
        return sorted(int(path.name.removeprefix("view-")) for path in self.folder.glob("view-*"))

    def stored_in_all(self) -> int:
        """The sum of `stored` over all view epochs."""
        return sum(self.stored(view_epoch) for view_epoch in self.view_epochs())

    def recount(self, view_epoch: int) -> None:
        """Counts anew what partial shards hold, and seals those that are full."""
        if not any(self._view_folder(view_epoch).glob("*.partial")):
            return
        try:
            with locked(self._view_folder(view_epoch) / "lock"):
                for shard in self.shards(view_epoch):
                    with contextlib.suppress(FileNotFoundError), self._opened(shard, os.O_RDWR) as descriptor:
                        self._settle(shard, descriptor, self._count_records(shard, descriptor))
        except OSError as error:
            raise cannot_write(self._view_folder(view_epoch), error) from error

    def bytes_on_disk(self) -> int:
        """What the store's files occupy; holes in partial shards do not count."""
        return sum(path.stat().st_blocks * 512 for path in self.folder.glob("view-*/shard-*"))

    def check_shard(self, shard: Shard) -> None:
        """Compares a sealed shard with its checksum, and every record with its own.

        Raises:
            DamagedShard: They differ.
        """
        path = self.path(shard, ".labels")
        rows = _map_sealed(path, path.stat().st_mtime_ns, self._file_bytes(shard), self.layout.words)
        if not status_of(rows, self.layout, shard.view_epoch, shard.first).all():
            raise DamagedShard(path, "a record is no teacher's answer though the file matches its checksum")

    def remove_shard(self, shard: Shard) -> None:
        """Removes a sealed shard, so that it is computed again."""
        for suffix in (".labels", ".json"):
            self.path(shard, suffix).unlink(missing_ok=True)

    # --- one shard ----------------------------------------------------------------------------

    def _read_piece(self, shard: Shard, begin: int, stop: int) -> tuple[Rows, NDArray[np.uint8]]:
        rows = self._rows_of_piece(shard, begin, stop)
        return rows, status_of(rows, self.layout, shard.view_epoch, begin)

    def _rows_of_piece(self, shard: Shard, begin: int, stop: int) -> Rows:
        sealed = self.path(shard, ".labels")
        for _ in range(2):  # twice: it may be sealed, and so renamed, between the two looks
            with contextlib.suppress(FileNotFoundError):
                rows = _map_sealed(sealed, sealed.stat().st_mtime_ns, self._file_bytes(shard), self.layout.words)
                return rows[begin - shard.first : stop - shard.first]
            with contextlib.suppress(FileNotFoundError), self._opened(shard, os.O_RDONLY) as descriptor:
                return self._read_partial(shard, descriptor, begin, stop)
        return np.zeros((stop - begin, self.layout.words), dtype=np.uint16)

    def _read_partial(self, shard: Shard, descriptor: int, begin: int, stop: int) -> Rows:
        size = (stop - begin) * self.layout.record_bytes
        data = os.pread(descriptor, size, _HEADER_BYTES + (begin - shard.first) * self.layout.record_bytes)
        data = data.ljust(size, b"\0")  # a file that is being made is shorter
        return np.frombuffer(data, "<u2").reshape(stop - begin, self.layout.words)

    def _add_to_shard(self, shard: Shard, begin: int, rows: Rows) -> None:
        if self.is_sealed(shard):
            return
        with self._opened(shard, os.O_RDWR | os.O_CREAT) as descriptor:
            if os.fstat(descriptor).st_size < self._file_bytes(shard):
                os.pwrite(descriptor, _MAGIC, 0)
                os.ftruncate(descriptor, self._file_bytes(shard))
            there = self._read_partial(shard, descriptor, begin, begin + len(rows))
            present = status_of(there, self.layout, shard.view_epoch, begin) > 0
            whole = self._groupwise_all(present)
            if whole.all():
                return
            merged = np.where(whole[:, None], there, rows)
            at = _HEADER_BYTES + (begin - shard.first) * self.layout.record_bytes
            write_all(descriptor, merged.astype("<u2").tobytes(), at)
            count = int.from_bytes(os.pread(descriptor, 8, _COUNT_AT), "little") + int(np.sum(~present))
            self._settle(shard, descriptor, count)

    def _settle(self, shard: Shard, descriptor: int, count: int) -> None:
        """Notes how many positions are filled; seals the shard where that is all of them."""
        os.pwrite(descriptor, count.to_bytes(8, "little"), _COUNT_AT)
        if count < len(shard):
            return
        count = self._count_records(shard, descriptor)
        if count < len(shard):  # the disk lost what had been counted
            os.pwrite(descriptor, count.to_bytes(8, "little"), _COUNT_AT)
            return
        os.fsync(descriptor)
        digest = _digest(self.path(shard, ".partial"))
        write_atomically(self.path(shard, ".json"), json.dumps({"sha256": digest}) + "\n")
        os.rename(self.path(shard, ".partial"), self.path(shard, ".labels"))
        sync_folder(self._view_folder(shard.view_epoch))

    def _count_records(self, shard: Shard, descriptor: int) -> int:
        """Positions whose records pass their checks, block by block: a shard of all classes may be large."""
        total = 0
        for begin in range(shard.first, shard.end, self.block_positions):
            rows = self._read_partial(shard, descriptor, begin, min(begin + self.block_positions, shard.end))
            total += int(np.sum(status_of(rows, self.layout, shard.view_epoch, begin) > 0))
        return total

    def _partial_count(self, shard: Shard) -> int:
        try:
            with self._opened(shard, os.O_RDONLY) as descriptor:
                return min(int.from_bytes(os.pread(descriptor, 8, _COUNT_AT), "little"), len(shard))
        except FileNotFoundError:  # sealed just now
            return len(shard)

    @contextlib.contextmanager
    def _opened(self, shard: Shard, flags: int) -> Iterator[int]:
        descriptor = os.open(self.path(shard, ".partial"), flags, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _pieces(self, view_epoch: int, first: int, end: int) -> Iterator[tuple[Shard, int, int]]:
        """The shards that the positions [first, end) touch, and the positions in each."""
        size = self.block_positions * self.shard_blocks
        for number in range(first // size, -(-end // size)):
            shard = Shard(view_epoch, number, number * size, min((number + 1) * size, self.positions))
            yield shard, max(first, shard.first), min(end, shard.end)

    def _groupwise_all(self, true: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether all of a position's group are true; the positions begin with a group."""
        if not len(true) or self.group_size == 1:
            return true
        groups = np.logical_and.reduceat(true, np.arange(0, len(true), self.group_size))
        every: NDArray[np.bool_] = np.repeat(groups, self.group_size)[: len(true)]
        return every

    def _view_folder(self, view_epoch: int) -> Path:
        return self.folder / f"view-{view_epoch:05d}"

    def _file_bytes(self, shard: Shard) -> int:
        return _HEADER_BYTES + len(shard) * self.layout.record_bytes


@lru_cache(maxsize=16)
def _map_sealed(path: Path, _modified_ns: int, size: int, words: int) -> Rows:
    """A sealed shard's records, mapped into memory, once it is known to be what was sealed.

    Raises:
        DamagedShard: It is not.
    """
    checksum = path.with_suffix(".json")
    try:
        content: Any = json.loads(checksum.read_text())
        expected = content["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedShard(path, f"its checksum {checksum.name} cannot be read ({error})") from None
    if path.stat().st_size != size:
        raise DamagedShard(path, f"it has {path.stat().st_size} bytes, expected {size}")
    if _digest(path) != expected:
        raise DamagedShard(path, f"its SHA-256 is not the one in {checksum.name}")
    return np.memmap(path, dtype="<u2", mode="r", offset=_HEADER_BYTES).reshape(-1, words)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
