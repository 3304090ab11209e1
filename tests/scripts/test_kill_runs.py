import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "faults" / "kill_runs.py"

# Stands for a run: it counts to five in a file, goes on where it was, and leaves the weights given.
TRAINER = """
import sys, time
from pathlib import Path
folder, weights = Path(sys.argv[1]), sys.argv[2]
folder.mkdir(exist_ok=True)
done = int((folder / "step").read_text()) if (folder / "step").exists() else 0
for step in range(done, 5):
    time.sleep(0.05)
    (folder / "new").write_text(str(step + 1))
    (folder / "new").rename(folder / "step")
(folder / "student.safetensors").write_text(weights)
"""


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("kill_runs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def trying(script, tmp_path, monkeypatch):
    """Tries a fault on stand-ins of which those after a fault leave `weights`."""
    started = []

    def run(fault, times, weights="the same", resumed="the same"):
        popen = subprocess.Popen

        def start(command, **options):
            folder, resume = command[command.index("--output") + 1], "--resume" in command
            started.append((Path(folder).name, resume))
            return popen([sys.executable, "-c", TRAINER, folder, resumed if resume else weights], **options)

        monkeypatch.setattr(script.subprocess, "Popen", start)
        runs = script.Runs(tmp_path / "recipe.yaml", tmp_path)
        return script.try_fault(runs, fault, times, random.Random(0), lambda: None), started

    return run


def test_runs_that_go_on_where_they_were_lose_nothing(script, trying):
    tally, started = trying(script.FAULTS["run"], 3)
    assert (tally.tried, tally.survived, tally.nothing_lost, tally.problems) == (3, 3, 3, [])
    assert {name for name, resume in started if resume} == {"run-0", "run-1", "run-2"}


def test_other_weights_are_noticed(script, trying):
    tally, _ = trying(script.FAULTS["often"], 2, resumed="others")
    assert (tally.survived, tally.nothing_lost) == (2, 0)
    assert all("other weights" in problem for problem in tally.problems)


def test_a_run_that_does_not_survive_is_noticed(script, trying, monkeypatch):
    monkeypatch.setattr(script, "MOST_SITTINGS", 1)
    tally, _ = trying(script.FAULTS["run"], 1)
    assert (tally.tried, tally.survived, tally.nothing_lost) == (1, 0, 0)
    assert "not finished after 1 sittings" in tally.problems[0]


def test_the_table_has_a_line_a_fault(script):
    tallies = {"run": script.Tally(5, 5, 5), "all": script.Tally(5, 4, 3)}
    assert script.table(tallies).splitlines()[2:] == [
        "| the run is killed | 5 | 5 | 5 |",
        "| the run and its loader's process are killed at once | 5 | 4 | 3 |",
    ]
