"""A teacher that is a file on one rank and on two: real processes."""

import numpy as np
import pytest

from distill import checkpoint
from distill.export.folding import fold_batch_norm
from distill.export.onnx_graph import onnx_network
from distill.models import create_model

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
GREY = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.3, 0.35]}


def write_teacher(path):
    """A network with random weights, other ones in each file."""
    model = create_model("ResNet18_vd", 10, width=0.125)
    model.eval()
    path.write_bytes(onnx_network(fold_batch_norm(model), 28).SerializeToString())


@pytest.fixture
def taught(digits, tmp_path):
    """A recipe with a live teacher, teacher.onnx in the current folder."""
    return digits.recipe(
        tmp_path / "taught.yaml",
        teacher={
            "batch_norm": "stored",
            "models": [{"kind": "onnx", "path": "teacher.onnx", "normalization": GREY}],
        },
        loss={"kl": {"weight": 1.0, "temperature": 2.0}},
        mixup={"alpha": 0.2, "group_size": 4},
        global_batch_size=64,
        epochs=1,
        runtime={"checkpoint_every_steps": 1, "keep_checkpoints": 4},
    )


def test_two_ranks_learn_from_a_file_what_one_learns(taught, start_ranks, tmp_path):
    write_teacher(tmp_path / "teacher.onnx")
    found = []
    for size in (1, 2):
        command = ["train", str(taught), "--output", f"run-{size}", "--device", "cpu"]
        ranks = start_ranks(*[command] * size, folders=[tmp_path] * size).ended()
        assert [rank.status for rank in ranks] == [0] * size, ranks
        found.append(checkpoint.load(tmp_path / f"run-{size}/stages/0-train/checkpoints/step-00000002").tensors)
    alone, together = found
    for key, value in alone.items():
        np.testing.assert_allclose(together[key], value, rtol=1e-4, atol=1e-5 * max(1e-6, np.abs(value).max()))


def test_ranks_with_other_files_are_named(taught, start_ranks, tmp_path):
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder in folders:
        folder.mkdir()
        write_teacher(folder / "teacher.onnx")
    command = ["train", str(taught), "--output", str(tmp_path / "run"), "--device", "cpu"]
    ranks = start_ranks(command, command, folders=folders).ended()
    assert [rank.status for rank in ranks] == [2, 2], ranks
    assert "the ranks would not train the same" in ranks[0].said
    assert "teacher.onnx" in ranks[0].said
