"""Processes that end with the one that started them, whatever ends that; SIGKILL, too.

    python -m distill.distributed.tether PARENT block|deliver COMMAND...

becomes COMMAND, which the kernel then kills when the process PARENT ends. `block` keeps SIGTERM and SIGINT from it and
from all that it starts, `deliver` lets them arrive.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, prctl(2); it outlives exec
_STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def start_tethered(
    command: Sequence[str],
    *,
    output: IO[bytes],
    environment: Mapping[str, str] | None = None,
    block_signals: bool,
    keep_open: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, which the kernel kills when this process ends.

    To be called by the main thread: it is the end of the thread that starts a process which the kernel looks at.

    Args:
        command: Program and arguments.
        output: Takes its standard output and error.
        environment: Its whole environment; None: that of this process.
        block_signals: Whether SIGTERM and SIGINT wait for ever, for it and for what it starts, or arrive as usual.
        keep_open: File descriptors that it inherits.
    """
    signals = "block" if block_signals else "deliver"
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(os.getpid()), signals, *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        pass_fds=keep_open,
    )


def die_with_parent(parent: int | None = None, by: signal.Signals = signal.SIGKILL) -> None:
    """Lets the kernel send this process a signal when the one that started it ends, however it does.

    Args:
        parent: The process that started this one; where it ended before we asked, this one ends at once. None: not
            looked at.
        by: The signal.
    """
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, by)
    if parent is not None and os.getppid() != parent:
        sys.exit(1)


def main(arguments: Sequence[str]) -> None:
    """Becomes the command; see the module."""
    parent, signals, *command = arguments
    die_with_parent(int(parent))
    signal.pthread_sigmask(signal.SIG_BLOCK if signals == "block" else signal.SIG_UNBLOCK, _STOPPING_SIGNALS)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
