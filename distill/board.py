"""VisualDL's server for the curves of runs, for this machine alone."""

import socket
import sys
from pathlib import Path

from distill.distributed.tether import start_tethered
from distill.errors import RunError, UserError

HOST = "127.0.0.1"
_START = "from visualdl.server.app import main; main()"


def serve(folder: Path, port: int) -> None:
    """Shows the curves below a folder in a browser until Ctrl-C, then ends the server.

    Args:
        folder: Of a run, or of several.
        port: Of the loopback interface, on which alone the server listens.

    Raises:
        UserError: There are no curves below the folder, or the port is in use.
        RunError: The server has ended by itself.
        KeyboardInterrupt: After Ctrl-C, when the server has ended.
    """
    if not any(folder.rglob("vdlrecords.*.log")):
        raise UserError(
            f"{folder} holds no curves: expected a run's folder, or one with runs in it, that `distill train` wrote"
        )
    check_port(port)
    options = ["--logdir", str(folder), "--host", HOST, "--port", str(port), "--disable-telemetry", "--language", "en"]
    server = start_tethered([sys.executable, "-c", _START, *options], output=sys.stderr.buffer, block_signals=False)
    try:
        status = server.wait()
    finally:
        server.kill()
        server.wait()
    raise RunError(f"VisualDL's server has ended with status {status}; its last lines above say why")


def check_port(port: int) -> None:
    """Raises UserError where a port of the loopback interface cannot be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"--port {port} cannot be used: {error.strerror}. Choose another one, such as {port + 1}"
            ) from error
