import pytest

TEACHER = {"name": "ResNet18_vd", "width": 0.125}


@pytest.fixture
def taught(digits, teacher_weights, tmp_path):
    """Writes a recipe of one epoch with a teacher whose answers are stored in `store`; keywords replace its keys."""

    def write(name="taught", labels=(), **changes):
        content = {
            "epochs": 1,
            "teacher": {
                "batch_norm": "stored",
                "models": [TEACHER | {"weights": str(teacher_weights)}],
                "labels": {"folder": str(tmp_path / "store"), "top_classes": 4} | dict(labels),
            },
            "loss": {"kl": {"weight": 1.0, "temperature": 2.0}},
            "mixup": {"alpha": 0.2, "group_size": 4},
        }
        return digits.recipe(tmp_path / f"{name}.yaml", **(content | changes))

    return write


@pytest.fixture
def small_blocks(monkeypatch):
    """Stores that are made in the test have blocks of 32 positions and shards of 64."""
    monkeypatch.setattr("distill.labels.store.BLOCK_POSITIONS", 32)
    monkeypatch.setattr("distill.labels.store.SHARD_BLOCKS", 2)
