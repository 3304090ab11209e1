import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from visualdl import LogWriter


@pytest.fixture
def curves(tmp_path):
    with LogWriter(logdir=str(tmp_path / "run" / "visualdl")) as writer:
        writer.add_scalar(tag="train/loss", value=1.0, step=1)
    return tmp_path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answer(address):
    """The answer's text; waits until somebody listens."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(address, timeout=5) as reply:
                return reply.read().decode()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError(f"nobody answers at {address}")


def listening(port):
    """Addresses, as in /proc/net/tcp and tcp6, on which somebody listens at this port."""
    lines = Path("/proc/net/tcp").read_text().splitlines() + Path("/proc/net/tcp6").read_text().splitlines()
    sockets = [line.split() for line in lines if ":" in line]
    return [s[1] for s in sockets if s[3] == "0A" and s[1].endswith(f":{port:04X}")]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_real_server_listens_on_loopback_only_and_ends_with_the_command(curves, stop):
    port = free_port()
    command = [sys.executable, "-m", "distill", "board", str(curves), "--port", str(port)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    # A shell lets what it runs in the background ignore Ctrl-C, and so would the board there.
    with subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options) as board:
        try:
            assert f"http://127.0.0.1:{port}" in board.stdout.readline()
            answer(f"http://127.0.0.1:{port}/alive")
            assert re.search("run", answer(f"http://127.0.0.1:{port}/app/api/runs"))
            assert listening(port) == [f"0100007F:{port:04X}"]
        finally:
            os.kill(board.pid, stop)
        board.wait(60)
    if stop == signal.SIGINT:
        assert board.returncode == 130
    for _ in range(100):
        if not listening(port):
            break
        time.sleep(0.1)
    assert listening(port) == []


def test_a_port_in_use_is_named(run_cli, curves):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, errors = run_cli("board", curves, "--port", port)
    assert status == 2
    assert f"--port {port} cannot be used: Address already in use" in errors


def test_a_folder_without_curves_is_refused(run_cli, tmp_path):
    status, _, errors = run_cli("board", tmp_path)
    assert status == 2
    assert "holds no curves" in errors
