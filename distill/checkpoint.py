"""Checkpoints: whole or absent, verified when loaded, and unable to run code.

A checkpoint is a folder `step-00000123` with

    tensors.safetensors   every array, bit for bit
    state.json            everything else
    SHA256SUMS            of both files; `sha256sum -c SHA256SUMS` checks them by hand

It is written under a temporary name, synced to the disk and renamed, so that a folder with the right
name is a complete one whatever killed the run. No Paddle here: bfloat16 arrays come and go as the
uint16 that Paddle's own `numpy()` and `to_tensor` exchange.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from distill.errors import RunError
from distill.files import TEMPORARY_PREFIX, cannot_write, sync_folder, temporary_name, write_synced
from distill.weights.files import to_safetensors

LOG = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8,})")
_TENSORS, _STATE, _SUMS = "tensors.safetensors", "state.json", "SHA256SUMS"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on as if it had never stopped.

    Attributes:
        step: Finished steps.
        tensors: Arrays by key, with the dtypes and shapes that they were saved with; read-only.
        state: The JSON values that were saved.
        path: The folder.
    """

    step: int
    tensors: dict[str, np.ndarray]
    state: dict[str, Any]
    path: Path


class DamagedCheckpoint(ValueError):
    """A checkpoint's files are not those that were written."""


def save(
    directory: Path, step: int, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Writes a checkpoint, then removes what is no longer needed. One process at a time may save.

    Args:
        directory: Where the checkpoints of a run lie; made where it is missing.
        step: Finished steps, >= 0. A checkpoint of the same step is replaced.
        tensors: Arrays of any numeric dtype.
        state: What JSON can hold, with text as keys and without NaN; tuples come back as lists.
        keep: How many checkpoints remain, >= 1; with 2 a damaged one can fall back to the one before.

    Returns:
        The new checkpoint's folder.

    Raises:
        RunError: It could not be written (disk full, ...); the checkpoints that were there are intact.
        ValueError, TypeError: `state` is not JSON, `step` or `keep` out of range.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step must be >= 0 and keep >= 1, received step {step} and keep {keep}")
    contents = _contents(step, tensors, state)
    final = directory / f"step-{step:08d}"
    temporary = temporary_name(final)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(directory)
        temporary.mkdir()
        for name, data in contents.items():
            write_synced(temporary / name, data)
        sync_folder(temporary)
        _move_into_place(temporary, final)
        sync_folder(directory)
    except OSError as error:
        raise cannot_write(final, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after the rename there is nothing to remove
    _prune(directory, step, keep)
    return final


def latest(directory: Path) -> Checkpoint | None:
    """Returns the newest checkpoint that is undamaged, or None where there is none at all.

    A damaged one is passed over with a warning that says what is wrong with it.

    Raises:
        RunError: There are checkpoints, and every one is damaged: going on from nothing would not be
            what a user who resumes wants.
    """
    damages = []
    for step, path in reversed(_checkpoints(directory)):
        try:
            checkpoint = load(path)
        except DamagedCheckpoint as error:
            LOG.warning("Checkpoint %s is damaged: %s. Falling back to the one before.", path, error)
            damages.append(f"{path.name}: {error}")
            continue
        if damages:
            LOG.warning("Going on from step %d (%s).", step, path)
        return checkpoint
    if damages:
        raise RunError(
            f"Every checkpoint in {directory} is damaged ({'; '.join(damages)}). "
            "Check the disk; to begin again, choose another output folder."
        )
    return None


def load(path: Path) -> Checkpoint:
    """Reads one checkpoint and verifies it.

    Raises:
        DamagedCheckpoint: A file is missing or unreadable, or differs from what was written.
    """
    try:
        data = {name: (path / name).read_bytes() for name in (_TENSORS, _STATE)}
        sums = (path / _SUMS).read_bytes()
    except OSError as error:
        raise DamagedCheckpoint(f"{error.filename or path} cannot be read ({error.strerror})") from error
    if sums != _sums(data):
        raise DamagedCheckpoint(f"{_TENSORS} or {_STATE} does not match {_SUMS}")
    try:
        content = json.loads(data[_STATE])
        step, state = content["step"], content["state"]
        tensors = safetensors.numpy.load(data[_TENSORS])
    except (ValueError, LookupError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        # the sums fit, so another program wrote it
        raise DamagedCheckpoint(f"{type(error).__name__}: {error}") from error
    if type(step) is not int or type(state) is not dict:
        raise DamagedCheckpoint(f"{_STATE} is not a step and a state")
    for array in tensors.values():
        array.flags.writeable = False
    return Checkpoint(step=step, tensors=tensors, state=state, path=path)


def _contents(step: int, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> dict[str, bytes]:
    text = json.dumps({"step": step, "state": state}, indent=1, allow_nan=False)
    data = {_TENSORS: to_safetensors(tensors), _STATE: text.encode()}
    return data | {_SUMS: _sums(data)}


def _sums(data: Mapping[str, bytes]) -> bytes:
    """Returns the lines that the command `sha256sum` would write."""
    lines = (f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in data.items())
    return "".join(lines).encode()


def _checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """Returns the steps and folders of all checkpoints, in order."""
    if not directory.is_dir():
        return []
    named = ((_NAME.fullmatch(path.name), path) for path in directory.iterdir())
    return sorted((int(match[1]), path) for match, path in named if match)


def _move_into_place(temporary: Path, final: Path) -> None:
    """Renames, or replaces a checkpoint of the same step (one that was damaged, and is reached again)."""
    aside = None
    if final.exists():
        # A folder cannot be renamed over another. Killed between the two renames, a run falls back to
        # the checkpoint before this one and reaches this step once more.
        aside = temporary.with_name(f"{temporary.name}-replaced")
        os.rename(final, aside)
    try:
        os.rename(temporary, final)
    except OSError:
        if aside is not None:
            with contextlib.suppress(OSError):
                os.rename(aside, final)
        raise
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_unfinished(directory: Path) -> None:
    """Removes what a killed run left half-written."""
    for path in directory.glob(f"{TEMPORARY_PREFIX}step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _prune(directory: Path, step: int, keep: int) -> None:
    """Keeps the newest `keep` checkpoints up to `step`, and of later ones those that are whole.

    A later one is usually a damaged one that `latest` passed over; it would be met at every start.
    """
    checkpoints = _checkpoints(directory)
    up_to_now = [path for number, path in checkpoints if number <= step]
    later = [path for number, path in checkpoints if number > step]
    for path in [*up_to_now[:-keep], *(path for path in later if not _is_whole(path))]:
        shutil.rmtree(path, ignore_errors=True)


def _is_whole(path: Path) -> bool:
    try:
        load(path)
    except DamagedCheckpoint:
        return False
    return True
