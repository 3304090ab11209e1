"""Supervisors as real processes around fake ranks: how a job ends, and what is left of it.

Where Paddle's launcher itself matters it is the real one; elsewhere something that starts processes as it does, without
the seconds that importing Paddle takes.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SUPERVISE = Path(__file__).parent / "supervise.py"
PATIENCE_SECONDS = 120
BEGIN = """
import os, signal, sys, time
from pathlib import Path
folder, resume = Path(sys.argv[1]), sys.argv[2] == "True"
rank = int(os.environ["PADDLE_TRAINER_ID"])
print(f"rank {rank} of {os.environ['PADDLE_TRAINERS_NUM']} resume {resume}")
"""
WAIT_FOR_SIGTERM = """
stopped = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: stopped.append(time.monotonic()))
(folder / f"ready-{rank}").write_text(str(os.getpid()))
while not stopped:
    time.sleep(0.02)
"""

QUICK_LAUNCHER = """
import argparse, os, subprocess
parser = argparse.ArgumentParser()
for name in ("log_dir", "nnodes", "nproc_per_node", "host", "master", "rank"):
    parser.add_argument("--" + name, default="0")
parser.add_argument("program")
parser.add_argument("arguments", nargs=argparse.REMAINDER)
asked = parser.parse_args()
size = int(asked.nproc_per_node)
os.makedirs(asked.log_dir)
ranks = [
    subprocess.Popen(
        [asked.program, *asked.arguments],
        env=os.environ | {"PADDLE_TRAINER_ID": str(n), "PADDLE_TRAINERS_NUM": str(size * int(asked.nnodes))},
        preexec_fn=os.setsid,
    )
    for n in range(int(asked.rank) * size, int(asked.rank) * size + size)
]
if any([rank.wait() for rank in ranks[::-1]]):
    raise SystemExit(1)
"""


@pytest.fixture
def job(tmp_path):
    """Starts supervisors of one job around the quick launcher; whatever a test leaves is killed."""
    package = tmp_path / "quick" / "paddle" / "distributed" / "launch"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(QUICK_LAUNCHER)
    with contextlib.ExitStack() as processes:
        yield JobUnderTest(tmp_path, processes, {"PYTHONPATH": str(tmp_path / "quick")})


@pytest.fixture
def real_job(tmp_path):
    """The same around Paddle's launcher."""
    with contextlib.ExitStack() as processes:
        yield JobUnderTest(tmp_path, processes, {})


class JobUnderTest:
    def __init__(self, folder, processes, environment):
        self.folder, self._processes, self._environment = folder, processes, environment
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    def start(self, rank_code, *, host=0, hosts=1, facts=None, **job):
        (self.folder / "rank.py").write_text(BEGIN + rank_code)
        wanted = {"folder": str(self.folder), "host": host, "hosts": hosts, "port": self._port, "job": job}
        process = subprocess.Popen(
            [sys.executable, str(SUPERVISE), json.dumps(wanted | {"facts": facts or {}})],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | self._environment,
        )
        self._processes.callback(process.stdout.close)
        self._processes.callback(process.wait)
        self._processes.callback(process.kill)
        return process

    def ready(self, *ranks):
        """Waits until these ranks are at work, and returns their process ids."""
        files = [self.folder / f"ready-{rank}" for rank in ranks]
        eventually(lambda: all(file.exists() and file.read_text() for file in files))
        return [int(file.read_text()) for file in files]

    def descendants(self, process):
        """Process ids of the launcher, the keepers and the ranks of a supervisor."""
        found, new = [], [process.pid]
        while new:
            new = [child for parent in new for child in children(parent)]
            found += new
        return found


def eventually(condition):
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not come to this"
        time.sleep(0.02)


def children(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def is_alive(pid):
    try:
        return not re.search(r"^State:\s+Z", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return False


def result(process):
    said = process.communicate(timeout=PATIENCE_SECONDS)[0]
    return process.returncode, said


def test_ranks_run_to_their_end_and_rank_0_is_shown(real_job):
    process = real_job.start("(folder / f'ready-{rank}').touch()")
    status, said = result(process)
    assert status == 0, said
    assert "rank 0 of 2 resume False" in said and "rank 1 of 2" not in said
    assert "rank 1 of 2 resume False" in (real_job.folder / "logs" / "rank-1.log").read_text()
    assert "2 ranks on 1 host" in (real_job.folder / "logs" / "supervisor-0.log").read_text()


def test_a_killed_rank_restarts_all_from_the_checkpoint(job):
    process = job.start(
        "print('the last words')\n"
        "if rank == 1 and not resume:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if not resume:\n"
        "    time.sleep(1)\n"
        "    sys.exit('error: rank 1 ended without a word')\n",
        max_restarts=1,
    )
    status, said = result(process)
    assert status == 0, said
    assert re.search(r"launch: rank 1 on \S+ was killed by SIGKILL \(the system does that when memory runs out", said)
    assert "the last words" in said and "restart 1 of 1 from the last checkpoint" in said
    assert said.count("rank 0 of 2 resume False") == said.count("rank 0 of 2 resume True") == 1


def test_a_wrong_input_is_not_tried_again(job):
    status, said = result(job.start("sys.exit(print('error: no such image') or 2)", max_restarts=5))
    assert status == 2 and "ended with status 2" in said and "error: no such image" in said
    assert "restart" not in said


def test_a_crash_loop_ends(job):
    status, said = result(
        job.start(
            "made = len(list(folder.glob('checkpoint-*')))\n"
            "if made < 1:\n"
            "    (folder / 'checkpoint-0').touch()\n"
            "time.sleep(0.5)\n"
            "sys.exit(1)\n",
            max_restarts=9,
        )
    )
    assert status == 1
    assert "restart 2 of 9" in said and "restart 3 of 9" not in said
    assert "not started again: 2 attempts in a row ended without a new checkpoint" in said


def test_without_restarts_a_failure_says_how_to_go_on(job):
    status, said = result(job.start("sys.exit(1 if rank else 0)"))
    assert status == 1 and "--max-restarts is 0" in said and "--resume" in said


@pytest.mark.parametrize("victim", ["supervisor", "launcher", "keeper"])
def test_nothing_outlives_a_kill(real_job, victim):
    process = real_job.start(WAIT_FOR_SIGTERM)
    ranks = real_job.ready(0, 1)
    pids = real_job.descendants(process)
    launcher = next(pid for pid in pids if "paddle.distributed.launch" in command_of(pid))
    keeper = next(pid for pid in pids if "distill.distributed.keeper" in command_of(pid) and pid != launcher)
    assert {*ranks, launcher, keeper} <= set(pids) and len(pids) == 5
    os.kill({"supervisor": process.pid, "launcher": launcher, "keeper": keeper}[victim], signal.SIGKILL)
    status, said = result(process)
    eventually(lambda: not any(map(is_alive, pids)))
    if victim == "supervisor":
        assert status == -signal.SIGKILL
    elif victim == "launcher":
        assert status == 1 and "Paddle's launcher on" in said and "was killed by SIGKILL" in said
    else:
        assert status == 1 and "ended without a word" in said


def test_sigterm_reaches_each_rank_once_and_waits_for_the_slowest(real_job):
    process = real_job.start(
        WAIT_FOR_SIGTERM + "time.sleep(6 if rank == 0 else 0)\n"
        "print('signals', len(stopped))\n"
        "(folder / f'saved-{rank}').touch()\n"
        "sys.exit(143)\n",
        max_restarts=3,
    )
    real_job.ready(0, 1)
    process.send_signal(signal.SIGTERM)
    status, said = result(process)
    assert status == 143 and "stopped by SIGTERM; the state is saved" in said
    assert (real_job.folder / "saved-0").exists() and (real_job.folder / "saved-1").exists()
    assert "signals 1" in said and "restart" not in said


def test_a_rank_that_was_asked_to_end_by_others_restarts_nothing(job):
    process = job.start(WAIT_FOR_SIGTERM + "sys.exit(143)\n", max_restarts=3)
    for pid in job.ready(0, 1):
        os.kill(pid, signal.SIGTERM)
    status, said = result(process)
    assert status == 143 and "restart" not in said


def test_ranks_that_do_not_end_are_killed_after_the_grace(job):
    process = job.start(WAIT_FOR_SIGTERM + "time.sleep(1000)\n", grace_seconds=1.0)
    ranks = job.ready(0, 1)
    process.send_signal(signal.SIGINT)
    status, said = result(process)
    assert status == 130 and "the last checkpoint is intact" in said
    assert not any(map(is_alive, ranks))


def test_a_second_signal_ends_at_once(job):
    process = job.start(WAIT_FOR_SIGTERM + "(folder / f'told-{rank}').touch()\ntime.sleep(1000)\n")
    ranks = job.ready(0, 1)
    process.send_signal(signal.SIGTERM)
    eventually(lambda: (job.folder / "told-0").exists())
    time.sleep(1.1)  # sooner it would be the same request
    process.send_signal(signal.SIGTERM)
    assert result(process)[0] == 130
    assert not any(map(is_alive, ranks))


def test_two_hosts_restart_together(real_job):
    code = (
        "if rank == 3 and not resume:\n    os.kill(os.getpid(), signal.SIGKILL)\nif not resume:\n    time.sleep(1000)\n"
    )
    others = real_job.start(code, host=1, hosts=2, max_restarts=1)
    first = real_job.start(code, hosts=2, max_restarts=1)
    status, said = result(first)
    assert status == 0, said
    assert re.search(r"rank 3 on \S+ was killed by SIGKILL", said) and "rank 0 of 4 resume True" in said
    status, said = result(others)
    assert status == 0, said
    assert "restart 1 of 1" in said


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_host_ends_the_job_on_the_other(job, victim):
    supervisors = [job.start(WAIT_FOR_SIGTERM, host=number, hosts=2) for number in (0, 1)]
    ranks = job.ready(0, 1, 2, 3)
    supervisors[victim].kill()
    status, said = result(supervisors[1 - victim])
    assert status == 1
    assert ("host 1 (machine-1) ended without a word" if victim else "host 0 is gone or cannot be reached") in said
    eventually(lambda: not any(map(is_alive, ranks)))


def test_sigterm_on_one_host_lets_the_ranks_of_all_save(job):
    code = WAIT_FOR_SIGTERM + "(folder / f'saved-{rank}').touch()\nsys.exit(143)\n"
    supervisors = [job.start(code, host=number, hosts=2) for number in (0, 1)]
    job.ready(0, 1, 2, 3)
    supervisors[1].send_signal(signal.SIGTERM)
    assert [result(each)[0] for each in supervisors] == [143, 143]
    assert len(list(job.folder.glob("saved-*"))) == 4


def test_a_missing_host_is_named(job):
    status, said = result(job.start("", hosts=3, wait_seconds=1.0))
    assert status == 1
    assert "1 of 3 hosts came within 1 s: host 0 (machine-0). Missing: --node-rank 1, 2" in said


def test_a_signal_while_hosts_are_awaited_ends_the_wait(job):
    process = job.start("", hosts=2, wait_seconds=1000.0)
    eventually(lambda: (job.folder / "logs" / "supervisor-0.log").exists())
    process.send_signal(signal.SIGTERM)
    status, said = result(process)
    assert status == 143 and "while no rank was running" in said
