"""Ranks as Paddle's launcher starts them, by its environment variables, without its seconds."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Ended:
    """How a rank ended, and what it wrote to standard error and output."""

    status: int
    said: str
    printed: str


@dataclass
class Ranks:
    """Processes that train together."""

    processes: list[subprocess.Popen]

    def ended(self, seconds: float = 280) -> list[Ended]:
        """How each rank ended."""
        said = [process.communicate(timeout=seconds) for process in self.processes]
        return [Ended(p.returncode, error, out) for p, (out, error) in zip(self.processes, said, strict=True)]


@pytest.fixture(scope="module")
def start_ranks() -> Callable[..., Ranks]:
    """Starts `distill ARGUMENTS...` on ranks, each given its own list of arguments and its own folder; 1 is alone.

    Or another Python program with the arguments.

    One thread each, so that sums are rounded alike on any number of them.
    """
    started: list[subprocess.Popen] = []

    def start(
        *arguments: Sequence[str], folders: Sequence[Path] | None = None, program: Sequence[str] = ("-m", "distill")
    ) -> Ranks:
        environments = _environments(len(arguments))
        ranks = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", *program, *own],
                cwd=folders[number] if folders is not None else None,
                env=os.environ | environments[number] | {"DISTILL_CPU_THREADS": "1", "NO_COLOR": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number, own in enumerate(arguments)
        ]
        started.extend(ranks)
        return Ranks(ranks)

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        for stream in (process.stdout, process.stderr):
            stream.close()


def _environments(size: int) -> list[dict[str, str]]:
    """Of each of some ranks on this host."""
    if size == 1:
        return [{}]
    master, *ports = _free_ports(size + 1)
    endpoints = [f"127.0.0.1:{port}" for port in ports]
    return [
        {
            "PADDLE_MASTER": f"127.0.0.1:{master}",
            "PADDLE_TRAINERS_NUM": str(size),
            "PADDLE_TRAINER_ID": str(number),
            "PADDLE_CURRENT_ENDPOINT": endpoints[number],
            "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
        }
        for number in range(size)
    ]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
