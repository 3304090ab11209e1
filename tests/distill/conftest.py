import itertools
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distill import cli
from distill.models import create_model
from distill.weights import write_weights


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a ResNet18_vd x 0.125 with 10 classes, fresh."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model = create_model("ResNet18_vd", 10, width=0.125)
    write_weights(path, {name: value.numpy() for name, value in model.state_dict().items()})
    return path


OWN_NETWORKS = """\
import paddle
from paddle import nn
from paddle.nn import functional


class Net(nn.Layer):
    def __init__(self, num_classes, width, dropout):
        super().__init__()
        self.stem = nn.Conv2D(3, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2D(width)
        self.body = nn.Sequential(nn.Conv2D(width, 2 * width, 3, stride=2, padding=1), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, num_classes)
        self.register_buffer("steps", paddle.zeros([1], dtype="int64"))

    def forward(self, images):
        maps = self.body(functional.relu(self.norm(self.stem(images))))
        vectors = maps.mean([2, 3]).reshape([maps.shape[0], -1])  # as many people write it
        return self.head(self.dropout(vectors))


def tiny(num_classes, width=4, dropout=0.0):
    return Net(num_classes, width, dropout)
"""
_numbers = itertools.count()


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a module of a user's own into the current folder, a temporary one; returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(text: str = OWN_NETWORKS) -> str:
        name = f"own_networks_{next(_numbers)}"  # Python imports a module once a process
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.fixture
def run_cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line of `distill`; returns exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            cli.main([*map(str, arguments)])
        output, errors = capfd.readouterr()
        return int(leaving.value.code or 0), output, errors

    return run


# Trains, and is killed without warning behind the given update or file of a checkpoint, or with half of the given
# record of a store written.
CHILD = """
import os, signal, sys
from pathlib import Path
from distill.parallel import import_paddle
import_paddle()
from distill import checkpoint, stages
from distill.learner import Learner
from distill.recipe.file import load_recipe

recipe, output, kill_at, where = sys.argv[1:]
counts = {"update": 0, "checkpoint": 0, "record": 0}

def is_due(what):
    counts[what] += 1
    return where == what and counts[what] == int(kill_at)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def killed_behind(what, function):
    def call(*arguments):
        result = function(*arguments)
        if is_due(what):
            kill()
        return result
    return call

def pwrite(descriptor, data, offset, write=os.pwrite):
    if is_due("record"):
        write(descriptor, bytes(data)[: len(data) // 2], offset)
        kill()
    return write(descriptor, data, offset)

Learner.update = killed_behind("update", Learner.update)
checkpoint.write_synced = killed_behind("checkpoint", checkpoint.write_synced)
os.pwrite = pwrite
stages.run_recipe(load_recipe(recipe), Path(output), resume=True, device="cpu")
"""


@pytest.fixture
def train_and_kill() -> Callable[..., None]:
    """Trains a recipe, resuming, in a process that is killed at the update, checkpoint or record of that number.

    -1: it ends well.
    """

    def train(recipe: Path, output: Path, kill_at: int, where: str = "update") -> None:
        command = [sys.executable, "-W", "ignore", "-c", CHILD, str(recipe), str(output), str(kill_at), where]
        ended = subprocess.run(command, cwd=recipe.parent, capture_output=True, timeout=120)
        assert ended.returncode == (0 if kill_at < 0 else -signal.SIGKILL), ended.stderr.decode()

    return train
