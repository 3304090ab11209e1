import os
import signal
import subprocess
import sys
import time

import pytest

from data_mining.executors import map_shards, memory_per_worker, threads_per_worker, worker_count
from data_mining.recipe import RuntimeSection
from data_mining.shards import Shard
from distill.errors import RunError, UserError

JOBS = """
import functools, os, signal, sys, time
from pathlib import Path
from distill.errors import UserError

def work(folder, shard):
    import cv2
    (Path(folder) / shard.key).write_text(f"{os.getpid()} {cv2.getNumThreads()} {os.environ.get('OMP_NUM_THREADS')}")

def die_once(folder, shard):
    marker = Path(folder) / ("died-" + shard.key)
    if shard.key == "2" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    work(folder, shard)

def die(folder, shard):
    if shard.key == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    work(folder, shard)

def fail(folder, shard):
    if shard.key == "1":
        raise UserError("the pool is empty")
    work(folder, shard)

def stumble(folder, shard):
    {}["x"]

def wait(folder, shard):
    work(folder, shard)
    time.sleep(60)
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """A module that other processes can import too."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "mining_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "mining_jobs", raising=False)
    import mining_jobs

    return mining_jobs


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def shards(count):
    return [Shard(str(number), "files", f"shard {number}") for number in range(count)]


def run(jobs, name, folder, count, **runtime):
    function = jobs.functools.partial(getattr(jobs, name), folder)
    map_shards(function, shards(count), RuntimeSection(**runtime), title="work")


def done(folder):
    return {path.name: path.read_text().split() for path in folder.iterdir() if not path.name.startswith("died")}


def test_workers_share_the_shards_with_one_thread_each(jobs, folder):
    run(jobs, "work", folder, 4, workers=2)
    found = done(folder)
    assert sorted(found) == ["0", "1", "2", "3"]
    assert str(os.getpid()) not in {pid for pid, *_ in found.values()}
    assert {tuple(threads) for _, *threads in found.values()} == {("1", "1")}


def test_one_worker_is_this_process(jobs, folder):
    run(jobs, "work", folder, 2, workers=1)
    assert {pid for pid, *_ in done(folder).values()} == {str(os.getpid())}


def test_nothing_to_do_starts_nothing(jobs, folder):
    run(jobs, "work", folder, 0, executor="ray")
    assert done(folder) == {}


def test_the_shard_of_a_worker_that_died_is_done_by_another(jobs, folder):
    run(jobs, "die_once", folder, 4, workers=2)
    assert sorted(done(folder)) == ["0", "1", "2", "3"]
    assert (folder / "died-2").exists()


def test_a_shard_that_always_kills_its_worker_is_given_up(jobs, folder):
    with pytest.raises(RunError, match=r"shard 1: the worker died 2 times \(signal 9\).*fewer --workers"):
        run(jobs, "die", folder, 2, workers=2, attempts=2)
    assert "1" not in done(folder)


def test_an_error_about_a_shard_arrives_as_itself(jobs, folder):
    with pytest.raises(UserError, match="the pool is empty"):
        run(jobs, "fail", folder, 3, workers=2)
    with pytest.raises(RunError, match="shard 0: unexpected KeyError: 'x'"):
        run(jobs, "stumble", folder, 1, workers=2)


def test_workers_end_with_their_parent(jobs, folder):
    code = (
        "import functools, mining_jobs\nfrom data_mining.executors import map_shards\n"
        "from data_mining.recipe import RuntimeSection\nfrom data_mining.shards import Shard\n"
        f"shards = [Shard(str(n), 'files', 'shard') for n in range(2)]\n"
        f"work = functools.partial(mining_jobs.wait, {str(folder)!r})\n"
        "if __name__ == '__main__': map_shards(work, shards, RuntimeSection(workers=2), title='work')\n"
    )
    script = folder.parent / "parent.py"
    script.write_text(code)
    path = os.pathsep.join([str(folder.parent / "modules"), os.getcwd()])
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path})
    try:
        wait_until(lambda: len(done(folder)) == 2 and all(done(folder).values()))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    pids = [int(pid) for pid, *_ in done(folder).values()]
    wait_until(lambda: not any(map(is_running, pids)))


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_ray_gives_the_shard_of_a_lost_worker_to_another(jobs, folder):
    pytest.importorskip("ray")
    code = (
        "import functools, mining_jobs\nfrom data_mining.executors import map_shards\n"
        "from data_mining.recipe import RuntimeSection\nfrom data_mining.shards import Shard\n"
        "shards = [Shard(str(n), 'files', f'shard {n}') for n in range(4)]\n"
        f"work = functools.partial(mining_jobs.die_once, {str(folder)!r})\n"
        "map_shards(work, shards, RuntimeSection(executor='ray', workers=2), title='work')\n"
    )
    # a process of its own: Ray's background threads outlive ray.shutdown
    path = os.pathsep.join([str(folder.parent / "modules"), os.getcwd()])
    environment = {**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert sorted(done(folder)) == ["0", "1", "2", "3"]
    assert (folder / "died-2").exists()


def test_ray_that_is_not_installed_is_explained(jobs, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'paddle-distill\[ray\]'"):
        run(jobs, "work", folder, 1, executor="ray")


def test_shares_of_a_worker():
    runtime = RuntimeSection(workers=4, memory="2GiB")
    assert (worker_count(runtime), memory_per_worker(runtime)) == (4, 2**29)
    cores = len(os.sched_getaffinity(0))
    assert worker_count(RuntimeSection()) == cores
    assert threads_per_worker(RuntimeSection(workers=1)) == cores
    assert threads_per_worker(RuntimeSection(workers=10**4)) == 1
