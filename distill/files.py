"""Writing that survives a crash, a file being the old one or the whole new one; and one writer at a time."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from distill.errors import RunError, UserError

LOG = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".tmp-"
"""Begins the name of everything that is not finished; a reader ignores it."""


def write_atomically(path: Path | str, data: bytes | str) -> None:
    """Writes `data` under a temporary name beside `path`, syncs it to the disk, and renames it.

    Whatever interrupts it, `path` holds its old content or all of the new one. Text is written as UTF-8.

    Raises:
        RunError: the disk is full, or the folder missing or read-only; `path` is as it was before.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        write_synced(temporary, data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # after the rename there is nothing to remove
            temporary.unlink()


def temporary_name(path: Path) -> Path:
    """Returns a name in the same folder, hence the same file system, of this process alone, on whatever host."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{socket.gethostname()}-{os.getpid()}")


def write_synced(path: Path, data: bytes) -> None:
    """Writes a file and waits until its content is on the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Writes at a place of an open file; the system may take less at once, as where the disk is about to be full."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def sync_folder(folder: Path) -> None:
    """Waits until the folder's entries are on the disk: a rename is durable only after that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_regular(path: Path | str | bytes) -> None:
    """Checks that a file can be read to its end: opening a pipe without a writer, for one, waits for ever.

    Raises:
        OSError: It is missing, a folder, a pipe, a socket or a device.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.ENXIO, "not a regular file")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock, which ends with the process at the latest; waits for whoever has it.

    Args:
        path: A folder, or a file, which is made.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def owned(path: Path, otherwise: str) -> Iterator[None]:
    """Holds an exclusive lock, which ends with the process at the latest; whoever killed it leaves nothing to remove.

    Args:
        path: A file, which is made and stays.
        otherwise: What to tell a user where another process has it.

    Raises:
        UserError: Another process has it, or the file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. Choose another folder") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(otherwise) from error
    except OSError as error:  # a file system without locks
        LOG.warning("%s cannot be locked (%s): see to it that no second run writes here.", path, error.strerror)
    try:
        yield
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> RunError:
    """Returns the error that tells a user why `path` was not written."""
    reason = error.strerror or str(error)
    return RunError(f"Cannot write {path}: {reason}. Free some space or choose another folder; nothing was replaced.")
