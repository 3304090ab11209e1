"""The benchmarks start, and run at a tiny size; what they measure is not looked at."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "scripts" / "benchmarks"
COMMANDS = ("teacher_engine", "student_step", "distill_step", "fix_stage", "training_memory", "image_list")
TINY = ("--model", "ResNet18", "--px", "32", "--batch", "2", "--repeats", "1")


def run(name, *arguments):
    command = [sys.executable, str(FOLDER / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250)


def succeeded(name, folder, *arguments):
    """Runs a benchmark: what it printed, and the JSON that it wrote."""
    done = run(name, *arguments, "--json", folder / "results.json")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def side_by_side():
    spec = importlib.util.spec_from_file_location("side_by_side", FOLDER / "side_by_side.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_says_what_it_does(name):
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python scripts/benchmarks/{name}.py" in done.stdout
    assert "--json FILE" in done.stdout and "--worker" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "1"], "--batch must be at least 2, received 1"),
        (["--model", "ResNet5"], "invalid choice: 'ResNet5'"),
        (["--torch-python", "no/such/python"], "--torch-python: there is no no/such/python"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments, message):
    done = run("student_step", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_student_step(tmp_path):
    said, results = succeeded("student_step", tmp_path, *TINY)
    as_it_comes, _, ours = results["results"]
    assert (as_it_comes["name"], ours["name"]) == ("Paddle as it comes", "ours, on oneDNN")
    assert as_it_comes["faster"] == 1.0 and ours["aim"] == "3x" and len(ours["seconds"]) == 1
    # as torchvision's ResNet18, and the convolution on the first shortcut, which this series has
    assert said.count(f"{11_689_512 + 64 * 64 + 2 * 64:,} parameters") == 3
    assert results["environment"]["threads"] == len(os.sched_getaffinity(0))


def test_a_distilled_step(tmp_path):
    said, results = succeeded("distill_step", tmp_path, *TINY, "--teacher", "ResNet18_vd")
    names = [row["name"] for row in results["results"]]
    assert names[:3] == ["labels alone", "stored soft labels", "live teacher, engine float32"]
    assert names[-1] == "live teacher, eager"
    assert "Paddle Inference, oneDNN, float32" in said and "stored / labels alone:" in said


def test_epochs_of_the_classifier_alone(tmp_path):
    said, results = succeeded("fix_stage", tmp_path, *TINY, "--images", 5)
    names = [row["name"] for row in results["results"]]
    assert names == ["whole network", "classifier, first epoch", "classifier, later epochs"]
    assert [row["aim"] for row in results["results"]] == ["", "3x", "10x"]
    assert "epochs of 5 images of 32 px, 2 a step" in said and "ms/epoch" in said
    done = run("fix_stage", *TINY, "--images", 1)
    assert done.returncode == 2 and "--images must be at least --batch 2, received 1" in done.stderr


def test_a_training_run_is_watched(tmp_path):
    picture = tmp_path / "memory.png"
    said, results = succeeded("training_memory", tmp_path, "--epochs", 3, "--images", 200, "--picture", picture)
    assert [row["epoch"] for row in results["results"]] == [1, 2, 3]
    assert all(row["rss_mb"] > 100 for row in results["results"])
    assert "growth of the largest RSS after the 2nd epoch" in said and picture.stat().st_size > 1000


def test_lists_are_read(tmp_path):
    said, results = succeeded("image_list", tmp_path, "--lines", 1200)
    assert [(row["kind"], row["lines"]) for row in results["results"]] == [("txt", 1200), ("parquet", 1200)]
    assert all(row["step_ms"] > 0 for row in results["results"])
    assert "1st batch s" in said


def test_a_ratio_compares_steps_of_the_same_round(side_by_side):
    seconds = {"slow": [1.0, 4.0, 1.0], "fast": [0.5, 1.0, 0.5]}  # the machine was busy in the second round
    slow, fast = side_by_side.summary(seconds, 8, reference="slow", aims={"fast": "2x"})
    assert (slow["faster"], fast["faster"]) == (1.0, 2.0)
    assert (fast["step_ms"], fast["images_per_second"], fast["spread_percent"]) == (500.0, 16.0, 100.0)
    assert (slow["aim"], fast["aim"]) == ("", "2x")


def test_contenders_take_turns(side_by_side, monkeypatch):
    monkeypatch.setattr(side_by_side, "SPIN_SECONDS", 0.0)
    order = []
    contenders = {name: lambda name=name: float(len(order)) if order.append(name) is None else 0.0 for name in "ab"}
    assert side_by_side.take_turns(contenders, 2) == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    assert order == ["a", "b", "a", "b"]


def test_a_process_answers_until_it_is_left_and_keeps_its_prints_to_itself(side_by_side, tmp_path, monkeypatch):
    monkeypatch.setenv("A_SETTING", "ours")
    program = tmp_path / "contender.py"
    program.write_text(
        f"import sys; sys.path.append({str(FOLDER)!r})\n"
        "import os, time\n"
        "import side_by_side\n"
        "side_by_side.LEAST_SECONDS = 0.05\n"
        "def build():\n"
        "    os.write(1, b'a library says something')\n"
        "    return lambda: time.sleep(0.01), {'setting': os.environ.get('A_SETTING')}\n"
        "side_by_side.serve(build)\n"
    )
    with side_by_side.Process([sys.executable, str(program)]) as contender:
        assert contender.facts == {"setting": "ours"}
        assert contender() >= 0.01 and contender() >= 0.01
    with side_by_side.Process([sys.executable, str(program)], without=["A_SETTING"]) as contender:
        assert contender.facts == {"setting": None}


def test_a_contender_that_fails_says_why(side_by_side):
    with pytest.raises(RuntimeError, match="no such network"):
        side_by_side.Process([sys.executable, "-c", "raise SystemExit('no such network')"])
