import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from distill.data.watch import ChildProcesses, StuckReading, reading, slowest_reading, watched


class Named:
    def name(self, index):
        return f"disk/{index}.jpg"


def test_elements_pass_in_order():
    assert list(watched(iter(range(100)), 5.0)) == list(range(100))


def test_an_error_passes_as_it_is():
    def elements():
        yield 1
        raise ValueError("the reason")

    found = watched(elements(), 5.0)
    assert next(found) == 1
    with pytest.raises(ValueError, match="the reason"):
        next(found)


def test_a_reading_that_hangs_is_named():
    release, left = threading.Event(), threading.Event()

    def elements():
        yield 0
        with reading(Named(), 7):
            release.wait(20)
        left.set()
        yield 1

    found = watched(elements(), 0.3)
    assert next(found) == 0
    with pytest.raises(StuckReading, match=r"no batch for 0\.3 s .*disk/7\.jpg \(for 0 s\)"):
        next(found)
    release.set()
    assert left.wait(20)


@pytest.mark.parametrize("words", [[1], []])
def test_waiting_in_vain_ends_behind_the_last_words(monkeypatch, words):
    monkeypatch.setattr("distill.data.watch.POLL_SECONDS", 0.05)
    monkeypatch.setattr("distill.data.watch.LAST_WORDS_SECONDS", 1.0)
    release = threading.Event()

    def elements():
        release.wait(0.5 if words else 20)
        yield from words

    found = watched(elements(), 60.0, lambda: "nobody is there")
    if words:
        assert list(found) == words
    else:
        with pytest.raises(StuckReading, match=r"^nobody is there$"):
            next(found)
        release.set()


def test_a_child_that_a_signal_ended_is_noticed_and_others_are_not():
    context = multiprocessing.get_context("fork")
    earlier = context.Process(target=time.sleep, args=(60,))
    earlier.start()
    children = ChildProcesses()
    ends, sleeps = context.Process(target=time.sleep, args=(0,)), context.Process(target=time.sleep, args=(60,))
    for each in (ends, sleeps):
        each.start()
    assert children.killed_by() is None
    earlier.kill()
    ends.join()
    earlier.join()
    assert children.killed_by() is None
    sleeps.terminate()
    sleeps.join()
    assert children.killed_by() == signal.SIGTERM


def test_a_child_that_is_killed_before_the_first_question_is_noticed():
    children = ChildProcesses()
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert children.killed_by() == signal.SIGKILL
    child.join()


def test_a_child_that_multiprocessing_does_not_know_is_noticed_and_its_end_is_left_to_others():
    earlier = subprocess.Popen(["sleep", "60"])
    children = ChildProcesses()
    ends, sleeps = subprocess.Popen(["true"]), subprocess.Popen(["sleep", "60"])
    earlier.kill()
    os.waitid(os.P_PID, ends.pid, os.WEXITED | os.WNOWAIT)
    assert children.killed_by() is None
    sleeps.kill()
    os.waitid(os.P_PID, sleeps.pid, os.WEXITED | os.WNOWAIT)
    assert children.killed_by() == signal.SIGKILL
    assert [each.wait() for each in (earlier, ends, sleeps)] == [-signal.SIGKILL, 0, -signal.SIGKILL]
    assert children.killed_by() is None


def test_a_child_that_is_killed_between_two_elements_is_noticed(monkeypatch):
    monkeypatch.setattr("distill.data.watch.LAST_WORDS_SECONDS", 0.2)
    release = threading.Event()

    def elements():
        yield 1
        release.wait(20)

    children = ChildProcesses()
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    found = watched(elements(), 60.0, lambda: f"signal {children.killed_by()}" if children.killed_by() else None)
    assert next(found) == 1
    child.kill()
    child.join()
    with pytest.raises(StuckReading, match=r"^signal 9$"):
        next(found)
    release.set()


def test_nothing_is_left_noted_behind_a_reading():
    with reading(Named(), 1):
        assert slowest_reading().startswith("disk/1.jpg")
    assert slowest_reading() is None


def test_a_run_whose_disk_hangs_ends_and_names_the_file(digits, tmp_path):
    recipe = digits.recipe(tmp_path / "digits.yaml", runtime={"read_timeout_seconds": 1.0})
    code = (
        "import sys, time\n"
        "from distill.data.idx import IdxImages\n"
        "plain = IdxImages.read\n"
        "IdxImages.read = lambda self, index: time.sleep(3600) if index == 5 else plain(self, index)\n"
        "from distill.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["train", str(recipe), "--output", str(tmp_path / "run"), "--device", "cpu"]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert time.monotonic() - started < 110
    assert done.returncode == 1
    assert "train-images.gz#5" in done.stderr
    assert "Traceback" not in done.stderr
