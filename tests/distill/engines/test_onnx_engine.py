import numpy as np
import pytest

from distill.engines.onnx_engine import open_onnx_engine
from distill.errors import UserError
from distill.recipe import NormalizationSection

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
NORMALIZATION = NormalizationSection(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
WEIGHT = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def write_network(path, outputs):
    """Global average of each channel ("pooled"), then a linear layer ("logits")."""
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    shapes = {"pooled": ["N", 3, 1, 1], "logits": ["N", 5]}
    graph = onnx.helper.make_graph(
        [
            node("GlobalAveragePool", ["x"], ["pooled"]),
            node("Flatten", ["pooled"], ["flat"]),
            node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "network",
        [info("x", onnx.TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [info(name, onnx.TensorProto.FLOAT, shapes[name]) for name in outputs],
        [onnx.numpy_helper.from_array(WEIGHT, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def open_it(path, **changes):
    return open_onnx_engine(path, NORMALIZATION, **{"threads": 1, "size_px": 8, "num_classes": 5} | changes)


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        (["logits", "pooled"], {}),
        (["pooled", "logits"], {"logits_output": "logits", "embedding_output": "pooled"}),
        (["logits"], {"embedding_output": "flat"}),
    ],
    ids=["two outputs", "named outputs", "inner tensor"],
)
def test_answers(tmp_path, outputs, names):
    engine = open_it(write_network(tmp_path / "n.onnx", outputs), **names)
    images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    answers = engine(images)
    pooled = ((images / 255.0 - NORMALIZATION.mean) / NORMALIZATION.std).mean(axis=(1, 2))
    np.testing.assert_allclose(answers["embedding"], pooled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(answers["logits"], pooled @ WEIGHT, rtol=1e-4, atol=1e-5)
    assert all(value.dtype == np.float32 for value in answers.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "embedding_output"),
        ({"embedding_output": "polled"}, "no tensor 'polled'. Did you mean 'pooled'"),
        ({"embedding_output": "flat", "num_classes": 4}, r"\[3, 5\] for 3 images, expected \[3, 4\]"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, changes, message):
    path = write_network(tmp_path / "n.onnx", ["logits"])
    with pytest.raises(UserError, match=message):
        open_it(path, **changes)


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "n.onnx").write_bytes(b"not a network")
    with pytest.raises(UserError, match=r"n\.onnx is not a usable network"):
        open_it(tmp_path / "n.onnx")
