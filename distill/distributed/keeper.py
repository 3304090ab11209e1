"""The process around one rank: starts it, passes signals on, says how it ended, and lets nothing outlive the launch.

Paddle's launcher starts a keeper for each rank, and the keeper the rank. The launcher alone would send a rank SIGTERM
three times in half a second, kill it 3 s after another one ended (while it saves, perhaps), and tell the exit status of
the rank with the lowest number instead of that which failed first; and its ranks outlive it. So the keepers stay until
the supervisor ends the launcher, which ends them, which ends the ranks.

    python -m distill.distributed.keeper SOCKET LOG_FOLDER COMMAND...

SOCKET is where the supervisor listens. Messages to it: {"rank": 3} at the start, {"status": 0} at its end (-9 for
SIGKILL, as `subprocess` has it). From it: {"signal": 15}. The rank holds the connection open as well, so that its end
means that both are gone.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from distill.distributed.channel import Channel, ChannelClosed
from distill.distributed.tether import die_with_parent, start_tethered

ATTEMPT_MARK = "--- "
"""Begins the line of a rank's log that begins an attempt."""

_POLL_SECONDS = 0.1


def main(arguments: list[str]) -> None:
    """Keeps one rank until the supervisor ends this process."""
    die_with_parent()
    address, folder, *command = arguments
    rank = int(os.environ["PADDLE_TRAINER_ID"])
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)  # fails where the supervisor ended the launcher before it could end this process
    with log_path(Path(folder), rank).open("ab") as log:
        began = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        size = os.environ["PADDLE_TRAINERS_NUM"]
        log.write(f"{ATTEMPT_MARK}{began}: rank {rank} of {size} on {socket.gethostname()}\n".encode())
        log.flush()
        process = start_tethered(command, output=log, block_signals=False, keep_open=[connection.fileno()])
    channel = Channel(connection)
    try:
        channel.send({"rank": rank})
        _keep(channel, process)
    except ChannelClosed:  # the supervisor is gone
        process.kill()


def log_path(folder: Path, rank: int) -> Path:
    """Where everything lies that a rank wrote, over all attempts."""
    return folder / f"rank-{rank}.log"


def _keep(channel: Channel, process: subprocess.Popen[bytes]) -> None:
    told = False
    while True:
        for message in channel.receive():
            process.send_signal(message["signal"])  # nothing happens where it has ended
        if not told and process.poll() is not None:
            channel.send({"status": process.returncode})
            told = True
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
