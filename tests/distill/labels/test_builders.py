import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.errors import RunError, UserError
from distill.labels.builders import teacher_processes, visible_gpu
from distill.recipe.file import load_recipe
from distill.stages import run_recipe


def running(marker):
    """Processes whose command line names a path."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if str(marker).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_a_process_of_its_own_computes_the_answers(taught, tmp_path, monkeypatch):
    run_recipe(load_recipe(taught("alone", labels={"folder": str(tmp_path / "alone")})), tmp_path / "one", device="cpu")
    monkeypatch.setattr("distill.labels.waiting.POLL_SECONDS", 0.01)
    monkeypatch.setattr("distill.learner.open_teacher", lambda *_: pytest.fail("a teacher was built"))
    recipe = load_recipe(taught(), ["teacher.devices=[cpu]"])
    run_recipe(recipe, tmp_path / "run", device="cpu")
    one, run = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("one", "run"))
    assert one == run
    assert not running(tmp_path)


def test_one_that_fails_stops_training_with_its_words(taught, tmp_path):
    recipe = load_recipe(taught(), ["teacher.devices=['gpu:9999']"])
    words = r"the teacher on gpu:9999 .* ended with status 2:(.|\n)*error: --device gpu: this PaddlePaddle"
    with pytest.raises(RunError, match=words):
        run_recipe(recipe, tmp_path / "run", device="cpu")
    assert not running(tmp_path)


def test_they_end_with_an_error_of_the_run(taught, tmp_path):
    recipe = load_recipe(taught(epochs=1000), ["teacher.devices=[cpu, cpu]"])
    with pytest.raises(ZeroDivisionError), teacher_processes(recipe, 0, tmp_path) as builders:
        assert [builder.process.poll() for builder in builders] == [None, None]
        raise ZeroDivisionError
    assert all(builder.process.returncode == -signal.SIGTERM for builder in builders)
    assert not running(tmp_path)


def test_they_end_when_the_run_is_killed(taught, tmp_path):
    recipe = taught(epochs=1000)
    options = ["--set", "teacher.devices=[cpu]", "--output", str(tmp_path / "run"), "--device", "cpu"]
    command = [sys.executable, "-W", "ignore", "-m", "distill", "train", str(recipe), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(running(tmp_path)) < 2 and process.poll() is None:
            time.sleep(0.1)
        log = tmp_path / "run" / "stages" / "0-train" / "builder-0.log"
        while "answers are in" not in log.read_text() and process.poll() is None:
            time.sleep(0.1)
        assert process.poll() is None
        process.kill()
    while running(tmp_path):  # the test's time limit ends it otherwise
        time.sleep(0.1)


def test_which_gpu_a_builder_sees():
    assert visible_gpu("cpu", None) == visible_gpu("cpu", "3") == ""
    assert [visible_gpu(device, None) for device in ("gpu", "gpu:0", "gpu:5")] == ["0", "0", "5"]
    assert [visible_gpu(device, "4,6") for device in ("gpu", "gpu:1")] == ["4", "6"]
    with pytest.raises(RunError, match="there is no gpu:2, CUDA_VISIBLE_DEVICES shows 2: '4,6'"):
        visible_gpu("gpu:2", "4,6")


def test_devices_need_a_store_and_known_names(taught):
    with pytest.raises(UserError, match=r"teacher\.devices must come with labels: the store through which"):
        load_recipe(taught(), ["teacher.labels=null", "teacher.devices=[cpu]"])
    for name in ("tpu", "gpu:x", "gpu:"):
        with pytest.raises(UserError, match=rf"teacher\.devices\.0 must be text that matches .*, received '{name}'"):
            load_recipe(taught(), [f"teacher.devices=['{name}']"])
