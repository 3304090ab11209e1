"""Other programs, run to their end, with their output in a log."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from distill.errors import RunError


def call(module: str, arguments: Sequence[str], log: Path, *, keep_output: bool = False) -> str:
    """Runs `python -m module`; after Ctrl-C or SIGTERM it lets the program save and leave.

    Args:
        module: "distill" or "data_mining".
        arguments: Of its command line.
        log: What it prints is appended there.
        keep_output: Return its standard output instead; "" otherwise.

    Raises:
        RunError: It failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", module, *arguments]
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE if keep_output else file,
            stderr=file,
            text=True,
            start_new_session=True,  # Ctrl-C reaches it through us alone: asked twice, `distill` leaves without saving
        )
        try:
            said, _ = process.communicate()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        raise RunError(f"{module} {arguments[0]} failed with exit status {process.returncode}, see {log}")
    return said or ""
