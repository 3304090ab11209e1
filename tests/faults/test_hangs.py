"""Reading that hangs, processes of the loader that die, a small /dev/shm, and clocks that jump."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from distill.data.loader import EvaluationLoader
from distill.errors import RunError
from distill.metrics import read_metrics
from distill.recipe import EvaluationSection, RuntimeSection
from distill.recipe.file import load_recipe
from distill.stages import run_recipe
from distill.training import Position, Saver

EVALUATION = {
    "sources": [{"kind": "class_folders", "root": "x"}],
    "resize_short_px": 28,
    "crop_px": 28,
    "batch_size": 4,
}


class Pictures:
    """Pictures of which reading number 7 does not end well."""

    def __init__(self, fault):
        self.fault = fault
        self.labels = np.zeros(16, np.int64)
        self.ballast = bytes(2**20)  # more than a pipe holds: a process that starts must read it

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        if index == 7:
            FAULTS[self.fault]()
        return np.full((28, 28, 3), index, np.uint8)

    def name(self, index):
        return f"disk/{index}.jpg"


def die_while_sending():
    """Lets this process of the loader be killed in the middle of the next message that it sends."""
    from multiprocessing.connection import Connection

    def half(self, buffer, write=os.write):
        write(self._handle, bytes(buffer[: len(buffer) // 2]))
        os.kill(os.getpid(), signal.SIGKILL)

    Connection._send = half


FAULTS = {
    "is killed while it sends": die_while_sending,
    "hangs": lambda: time.sleep(3600),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "is stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "nothing": lambda: None,
}


def read_all(fault, **runtime):
    section = EvaluationSection.model_validate(EVALUATION)
    loader = EvaluationLoader(Pictures(fault), section, RuntimeSection.model_validate(runtime))
    return sum(len(batch.labels) for batch in loader)


def in_a_process(code, *arguments, timeout=100, before=(), **environment):
    """Runs code that knows this module; the processes of the loader import it too."""
    program = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); from test_hangs import *\n{code}"
    command = [*before, sys.executable, "-W", "ignore", "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=os.environ | environment)


READ = """
from distill.commands.command_line import run_command
fault, processes, seconds = sys.argv[1:]
runtime = {"loader_processes": int(processes), "read_timeout_seconds": float(seconds)}
run_command(lambda *_, **__: read_all(fault, **runtime), "", [])
"""


@pytest.mark.parametrize(("processes", "seconds"), [("0", "2"), ("1", "8")])  # a process needs seconds to start
def test_a_reading_that_hangs_is_named(processes, seconds):
    done = in_a_process(READ, "hangs", processes, seconds)
    assert done.returncode == 1
    assert f"error: no batch for {seconds} s" in done.stderr and f"disk/7.jpg (for {seconds} s)" in done.stderr


@pytest.mark.parametrize(
    ("fault", "seconds", "message"),
    [
        ("is killed", "60", "error: a process of the loader has died: .*exit code -9.*The last checkpoint is intact"),
        (
            "is killed while it sends",
            "60",
            "error: a process of the loader has died: .*signal 9 while it started or sent",
        ),
        ("is stopped", "2", r"error: no batch for 4 s .*\(runtime.loader_processes\) answers no more"),
    ],
)
def test_a_process_that_dies_or_stops_is_an_error_in_time(fault, seconds, message):
    done = in_a_process(READ, fault, "1", seconds)
    assert done.returncode == 1 and re.search(message, done.stderr)


def test_a_process_that_is_killed_before_it_has_its_work_is_an_error_in_time(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if '--multiprocessing-fork' in sys.orig_argv:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = in_a_process(READ, "nothing", "1", "60", PYTHONPATH=path)
    assert done.returncode == 1
    assert re.search("error: a process of the loader has died: .*signal 9 while it started or sent", done.stderr)


def test_too_little_shared_memory_says_what_to_do():
    """A /dev/shm of 64 kB, in name spaces of its own, where the system allows such."""
    small = [
        "unshare",
        "--mount",
        "--map-root-user",
        "bash",
        "-c",
        'mount -t tmpfs -o size=64k none /dev/shm && "$@"',
        "-",
    ]
    if os.getuid() == 0:
        small.remove("--map-root-user")
    if subprocess.run([*small, "true"], capture_output=True).returncode:
        pytest.skip("this system gives a process no name space of its own; the error itself is tested anyway")
    done = in_a_process(READ, "nothing", "1", "60", before=small)
    assert done.returncode == 1 and "/dev/shm" in done.stderr and "runtime.loader_processes=0" in done.stderr


def test_processes_that_cannot_start_say_what_to_do(monkeypatch):
    import multiprocessing.synchronize

    def no_semaphore(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", no_semaphore)
    with pytest.raises(RunError, match=r"1 processes cannot start: No space left .*/dev/shm.*loader_processes=0"):
        read_all("nothing", loader_processes=1)


# --- the clock --------------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_nothing(small_recipe, whole_run, tmp_path, monkeypatch):
    """Wall clocks are set, back and forth; what is due, and how long it took, goes by a clock that is not."""
    jumps = np.random.default_rng(0).uniform(-1e8, 1e8, 10_000).tolist()
    plain = time.time
    monkeypatch.setattr(time, "time", lambda: plain() + jumps.pop())
    recipe = load_recipe(small_recipe(), ["runtime.checkpoint_every_minutes=60"])
    result = run_recipe(recipe, tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / "student.safetensors").read_bytes() == whole_run
    assert 0 <= result.final.seconds < 300
    trained = [each for each in read_metrics(tmp_path / "run" / "metrics.jsonl") if each["kind"] == "train"]
    assert all(each["images_per_second"] > 0 and 0 <= each["data_wait_share"] <= 1 for each in trained)


def test_checkpoints_are_due_by_a_clock_that_nobody_sets(small_recipe, tmp_path, monkeypatch):
    recipe = load_recipe(small_recipe(), ["runtime={checkpoint_every_minutes: 10}"])
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: 0.0)
    saver = Saver(recipe, tmp_path, learner=None, position=Position())
    assert not saver.is_due(1)
    now[0] += 599.0
    assert not saver.is_due(1)
    now[0] += 1.0
    assert saver.is_due(1)
