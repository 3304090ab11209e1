"""The output folder of a mining run: keys, files that exist only when they are whole, and the lock.

Every artefact is a file `<output>/<stage>/<what>-<key>.<suffix>`. Its key is a hash of the stage's name,
of the settings that change the result, and of the keys of its inputs. A file appears under its name only
when it is complete, so "it exists" means "it is done": a run that was killed goes on where it was, and
a changed threshold computes again what depends on it and nothing else.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel

from distill.errors import RunError, UserError
from distill.files import TEMPORARY_PREFIX, cannot_write, locked, sync_folder, write_atomically

FORMAT = 1
"""Part of every key: raise it when the code changes what an artefact holds."""

ROWS_PER_GROUP = 2**16  # of a Parquet file; fixed, so that equal tables are equal files


@dataclass(frozen=True)
class Part:
    """The share of one of `count` jobs that a scheduler starts: the shards whose number is `index` modulo `count`."""

    index: int
    count: int


@dataclass(frozen=True)
class StageReport:
    """What a stage did.

    Attributes:
        stage: Its name.
        key: The key of its result; its numbers belong to that.
        counts: What the funnel shows, in the order of the stage's own steps, such as {"images": 5000}.
        facts: Anything else that the report shows, JSON values only (a measured recall and its interval).
        seconds: Wall time; of a stage that was interrupted, all attempts together.
    """

    stage: str
    key: str
    counts: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def make_key(stage: str, settings: BaseModel | Mapping[str, Any], inputs: Sequence[str] = ()) -> str:
    """The key of an artefact: 16 hexadecimal digits.

    Args:
        stage: Its name.
        settings: Everything that changes the result and is in no input's key; never an operational setting.
        inputs: The keys of what it is computed from, in an order that means something.
    """
    values = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else dict(settings)
    text = json.dumps([FORMAT, stage, values, list(inputs)], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Workspace:
    """The output folder. Use it in a `with` block, which holds its lock.

    Args:
        root: The folder; made if it is not there.
        part: The share of this job. Jobs of different parts may work in one folder at the same time; everything
            else has it to itself.

    Raises:
        UserError: Another run works in the folder.
        RunError: The folder cannot be made or written.
    """

    def __init__(self, root: Path | str, part: Part | None = None) -> None:
        self.root = Path(root).absolute()
        self.part = part
        self._locks: list[IO[bytes]] = []
        self.cache: dict[str, Any] = {}  # what stages of one process need twice, such as the lists of shards

    def __enter__(self) -> Self:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.root, error) from error
        if self.part is None:
            self._lock("lock", fcntl.LOCK_EX)
            self._remove_leftovers()
        else:
            self._lock("lock", fcntl.LOCK_SH)
            self._lock(f"lock-{self.part.index}-of-{self.part.count}", fcntl.LOCK_EX)
        return self

    def __exit__(self, *error: object) -> None:
        while self._locks:
            self._locks.pop().close()  # the lock goes with its file

    def path(self, stage: str, what: str, key: str, suffix: str) -> Path:
        """Where an artefact is or will be; makes its folder."""
        folder = self.root / stage
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        return folder / f"{what}-{key}{suffix}"

    def save_report(self, report: StageReport) -> None:
        """Keeps a stage's report, `<stage>/report.json`; the seconds add up where the key is the same."""
        before = self.load_report(report.stage)
        spent = before.seconds if before is not None and before.key == report.key else 0.0
        values = asdict(report) | {"seconds": round(report.seconds + spent, 3)}
        path = self.path(report.stage, "report", "", ".json").with_name("report.json")
        write_atomically(path, json.dumps(values, indent=2) + "\n")

    def load_report(self, stage: str) -> StageReport | None:
        """The last report of a stage, None where it has not run.

        Raises:
            RunError: It is damaged.
        """
        path = self.root / stage / "report.json"
        try:
            return StageReport(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise _unreadable(path, error) from error

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Makes jobs of different parts take turns; for the few files that they share."""
        with locked(self.root / f".{name}"):
            yield

    def _lock(self, name: str, mode: int) -> None:
        try:
            file = open(self.root / f".{name}", "ab")  # noqa: SIM115, held until the workspace is left
        except OSError as error:
            raise cannot_write(self.root, error) from error
        try:
            fcntl.flock(file, mode | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            self.__exit__()
            raise UserError(
                f"another run works in {self.root}. Wait for its end, or choose another folder with --output"
            ) from error
        self._locks.append(file)

    def _remove_leftovers(self) -> None:
        """Unfinished files of a run that was killed; nobody else writes while we hold the lock."""
        for path in self.root.rglob(f"{TEMPORARY_PREFIX}*"):
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to; what was written becomes `path` when the block ends well.

    Several processes may write the same artefact, on several hosts: they write the same, and the last rename wins.

    Raises:
        RunError: The disk is full, or the folder is not writable; nothing is left behind.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # after the rename there is nothing to remove
            temporary.unlink()


@contextlib.contextmanager
def new_table(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A writer of a Parquet artefact that is written piece by piece, for tables larger than the memory."""
    with new_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        yield writer


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a Parquet artefact; equal tables give equal bytes."""
    with new_table(path, table.schema) as writer:
        writer.write_table(table.combine_chunks(), row_group_size=ROWS_PER_GROUP)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a Parquet artefact, or some columns of it.

    Raises:
        RunError: It is not there, or damaged.
    """
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns), memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Writes a .npy artefact."""
    with new_file(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def read_array(path: Path) -> NDArray[Any]:
    """Maps a .npy artefact into memory, read-only: only the pages that are used are read.

    Raises:
        RunError: It is not there, or damaged.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")  # type: ignore[no-untyped-call, no-any-return]
    except Exception as error:  # NumPy lets Python parse the header, which may then raise anything
        raise _unreadable(path, error) from error


@contextlib.contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Measures a block's wall time: the list holds the seconds when the block is over."""
    seconds: list[float] = []
    started = time.monotonic()
    yield seconds
    seconds.append(time.monotonic() - started)


def _unreadable(path: Path, error: Exception) -> RunError:
    if isinstance(error, FileNotFoundError):
        return RunError(f"{path} is missing: run the stage {path.parent.name!r} first, or all with `data-mining run`")
    reason = " ".join(str(error).split())
    return RunError(f"{path} cannot be read: {reason}. Delete it and run again: it is computed anew")
