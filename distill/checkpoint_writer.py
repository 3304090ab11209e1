"""Checkpoints that are written while training goes on, in a thread of its own."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from distill import checkpoint


class CheckpointWriter:
    """Writes one checkpoint at a time, in the order in which they are given.

    Hashing, writing and syncing release Python's lock. A process that ends orderly ends behind the last write;
    one that is killed leaves the checkpoint whole or absent, as `distill.checkpoint` says.

    Args:
        directory: Where the checkpoints of a stage lie.
        keep: How many remain, >= 1.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory, self._keep = directory, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def write(self, step: int, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Begins to write a checkpoint, once the one before is written.

        Args:
            step: Finished steps.
            tensors: Arrays that nobody changes any more: copies.
            state: Likewise; what JSON can hold.

        Raises:
            RunError: The one before could not be written.
        """
        self.finish()
        self._pending = self._thread.submit(checkpoint.save, self._directory, step, tensors, state, self._keep)

    def check(self) -> None:
        """Does not wait.

        Raises:
            RunError: The last checkpoint could not be written.
        """
        if self._pending is not None and self._pending.done():
            self.finish()

    def finish(self) -> None:
        """Waits until the last checkpoint is written; raises as `check`."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
