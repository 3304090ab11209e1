import threading

import numpy as np
import pytest

from distill import checkpoint
from distill.checkpoint_writer import CheckpointWriter
from distill.errors import RunError


@pytest.fixture
def gate(monkeypatch):
    """Lets no checkpoint be written before it is set."""
    gate, save = threading.Event(), checkpoint.save

    def late(*arguments):
        assert gate.wait(60)
        return save(*arguments)

    monkeypatch.setattr(checkpoint, "save", late)
    yield gate
    gate.set()


def test_it_returns_before_the_checkpoint_is_there_and_finish_waits_for_it(tmp_path, gate):
    writer = CheckpointWriter(tmp_path, keep=2)
    writer.write(1, {"weights": np.arange(3.0)}, {"images": 5})
    writer.check()
    assert checkpoint.latest(tmp_path) is None
    gate.set()
    writer.finish()
    saved = checkpoint.latest(tmp_path)
    assert (saved.step, saved.state) == (1, {"images": 5})
    assert np.array_equal(saved.tensors["weights"], np.arange(3.0))


def test_checkpoints_come_in_their_order_and_the_oldest_go(tmp_path):
    writer = CheckpointWriter(tmp_path, keep=2)
    for step in range(1, 6):
        writer.write(step, {"step": np.array([step])}, {})
    writer.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_what_went_wrong_is_told_once_at_the_next_occasion(tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    writer = CheckpointWriter(blocked, keep=2)
    writer.write(1, {}, {})
    with pytest.raises(RunError, match="blocked"):
        writer.finish()
    writer.finish()
    writer.write(2, {}, {})
    with pytest.raises(RunError, match="blocked"):
        writer.write(3, {}, {})
