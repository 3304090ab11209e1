"""What a run does to the outside, and what it leaves where its numbers go wrong."""

import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest

from distill import checkpoint
from distill.errors import RunError
from distill.learner import Learner
from distill.recipe.file import load_recipe
from distill.stages import run_recipe


def listening():
    """The sockets of this process on which somebody could connect, as the kernel sees them."""
    own = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            own |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(f"/proc/self/fd/{descriptor}")))
        except OSError:  # the listing's own
            continue
    tables = [Path(f"/proc/self/net/{name}") for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return own & {line[9] for line in lines if line[3] == "0A"}


def test_nothing_listens_on_the_network(small_recipe, tmp_path, monkeypatch):
    before = listening()
    with socket.create_server(("127.0.0.1", 0)):
        assert len(listening() - before) == 1  # it would be seen
    seen, plain = [], Learner.update
    monkeypatch.setattr(Learner, "update", lambda *arguments: (seen.append(listening()), plain(*arguments))[1])
    run_recipe(load_recipe(small_recipe()), tmp_path / "run", device="cpu")
    assert len(seen) == 8 and set.union(*seen) <= before


def test_a_loss_that_is_not_finite_leaves_what_was_good(small_recipe, tmp_path):
    stages = [{"name": "good"}, {"name": "bad", "optimizer": {"learning_rate": 1e30}}]
    recipe = load_recipe(small_recipe(stages=stages, schedule={"kind": "constant", "warmup_epochs": 0}))
    with pytest.raises(RunError, match=r"the loss is not finite at step \d+: .*The last checkpoint is intact"):
        run_recipe(recipe, tmp_path / "run", device="cpu")
    folders = [tmp_path / "run" / "stages" / name / "checkpoints" for name in ("0-good", "1-bad")]
    assert checkpoint.latest(folders[0]).step == 8
    saved = [checkpoint.load(path) for folder in folders for path in folder.glob("step-*")]
    floating = [array for each in saved for array in each.tensors.values() if array.dtype.kind == "f"]
    assert floating and all(np.isfinite(array).all() for array in floating)
