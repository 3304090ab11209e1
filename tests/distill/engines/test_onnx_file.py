"""Hostile networks are refused before ONNX Runtime reads them."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.engines.onnx_engine import open_onnx_engine
from distill.engines.onnx_file import check_onnx
from distill.errors import UserError
from distill.recipe import NormalizationSection

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
WEIGHT = np.arange(15, dtype=np.float32).reshape(3, 5)


def network(*before, weight=None, logits="product", more=(), domains=()):
    """Average, linear layer; `before` are nodes in front of it."""
    nodes = [
        *before,
        node("GlobalAveragePool", ["x"], ["pooled"]),
        node("Flatten", ["pooled"], ["flat"]),
        node("MatMul", ["flat", "w"], ["product"]),
    ]
    if logits != "product":
        nodes.append(node("Add", ["product", logits], ["logits"]))
    outputs = [info("product" if logits == "product" else "logits", 1, ["N", 5]), info("flat", 1, ["N", 3])]
    weight = onnx.numpy_helper.from_array(WEIGHT, "w") if weight is None else weight
    graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, ["N", 3, "H", "W"])], outputs, [weight, *more])
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in (("", 13), *domains)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def external(location, offset=0, length=WEIGHT.nbytes, dims=(3, 5)):
    tensor = onnx.TensorProto(name="w", data_type=1, dims=dims, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": str(offset), "length": str(length)}.items():
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=value))
    return tensor


def numbers(name, *values):
    return onnx.numpy_helper.from_array(np.array(values, np.int64), name)


def body(*nodes):
    return onnx.helper.make_graph(list(nodes), "body", [], [info("filled", 1, None)])


@pytest.fixture
def folder(tmp_path):
    """A network's folder with weights of its own, beside what is none of its business."""
    (tmp_path / "network").mkdir()
    for name in ("network/w.bin", "secret.bin"):
        (tmp_path / name).write_bytes(WEIGHT.tobytes())
    (tmp_path / "network" / "link.bin").symlink_to(tmp_path / "secret.bin")
    os.mkfifo(tmp_path / "network" / "pipe.bin")
    return tmp_path / "network"


def open_it(path):
    normalization = NormalizationSection(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return open_onnx_engine(path, normalization, threads=1, size_px=8, num_classes=5)


def test_weights_beside_the_network_are_its_own(folder):
    (folder / "n.onnx").write_bytes(network(weight=external("w.bin")))
    white = np.full((2, 8, 8, 3), 255, np.uint8)
    np.testing.assert_allclose(open_it(folder / "n.onnx")(white)["logits"], [WEIGHT.sum(0)] * 2, rtol=1e-6)


HUGE = (2**40, 2**40)
HOSTILE = {
    "weights from above": (network(weight=external("../secret.bin")), "not in its own folder"),
    "weights from anywhere": (network(weight=external("/etc/passwd")), "'/etc/passwd', which is not in its own folder"),
    "weights behind a link": (network(weight=external("link.bin")), "not in its own folder"),
    "weights from a pipe": (network(weight=external("pipe.bin")), "not a regular file"),
    "weights from nowhere": (network(weight=external("")), "Is a directory"),
    "weights beyond the file": (network(weight=external("w.bin", 4)), "beyond the end"),
    "weights before the file": (network(weight=external("w.bin", -60)), "beyond the end"),
    "weights of a strange length": (network(weight=external("w.bin", 0, "x")), "not a usable network"),
    "a huge weight": (network(weight=external("w.bin", dims=HUGE)), "expected at most 2147483648 values"),
    "a weight of less than nothing": (network(weight=external("w.bin", dims=(-3, -5))), r"the shape \[-3, -5\]"),
    "a huge constant": (
        network(node("Constant", [], ["c"], value=external("w.bin", dims=HUGE)), logits="c"),
        "expected at most",
    ),
    "a fill of 137 GB": (
        network(
            node("ConstantOfShape", ["s"], ["big"]),
            node("ReduceMax", ["big"], ["one"], keepdims=0),
            logits="one",
            more=[numbers("s", 2**18, 2**17)],
        ),
        r"'big' has the shape \[262144, 131072\]",
    ),
    "another's operator": (
        network(node("Evil", ["x"], ["e"], domain="evil.org"), domains=[("evil.org", 1)]),
        "the operator 'Evil' of 'evil.org'",
    ),
    "another's operator in a branch": (
        network(
            node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True))),
            node(
                "If",
                ["yes"],
                ["filled"],
                then_branch=body(node("Evil", [], ["filled"], domain="evil.org")),
                else_branch=body(node("Constant", [], ["filled"], value_float=1.0)),
            ),
            logits="filled",
        ),
        "the operator 'Evil' of 'evil.org'",
    ),
    "weights from above in a branch": (
        network(
            node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True))),
            node(
                "If",
                ["yes"],
                ["filled"],
                then_branch=body(node("Constant", [], ["filled"], value=external("../secret.bin"))),
                else_branch=body(node("Constant", [], ["filled"], value_float=1.0)),
            ),
            logits="filled",
        ),
        "not in its own folder",
    ),
    "half a file": (network()[:-40], "not a usable network"),
    "nothing": (b"", "not a usable network|cannot use it|has no output"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_networks_are_refused(folder, name):
    content, message = HOSTILE[name]
    path = folder / "n.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        open_it(path)
    assert "n.onnx" in str(error.value)


@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "n.onnx")
    for name, reason in {"n.onnx": "not a regular file", "none": "No such file", ".": "Is a directory"}.items():
        with pytest.raises(UserError, match=f"Cannot read the network .*: {reason}"):
            check_onnx(onnx, tmp_path / name)


REAL = network(more=[numbers("s", 2, 3)])


@given(data=st.data())
def test_any_damage_is_accepted_or_a_user_error(tmp_path_factory, data):
    content = bytearray(REAL)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content)) | st.just(len(content))) :]
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(content)
    try:
        check_onnx(onnx, path)
    except UserError as error:
        assert "damaged.onnx" in str(error)
