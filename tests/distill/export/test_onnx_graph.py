import numpy as np
import onnx
import onnxruntime
import paddle
import pytest

from distill.errors import RunError
from distill.export.folding import fold_batch_norm
from distill.export.onnx_graph import onnx_network
from distill.models import create_model
from distill.recipe import NormalizationSection


def answer(model, images, output="logits"):
    if output != "logits":
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([output], {"images": images})[0]


@pytest.fixture(scope="module")
def network():
    paddle.seed(2)
    model = create_model("ResNet18_vd", 5, width=0.125)
    return fold_batch_norm(model)


@pytest.mark.parametrize("name", ["ResNet18", "ResNet34_vd", "ResNet50_vc", "ResNeXt101_32x8d_wsl"])
@pytest.mark.parametrize("stem_stride", [1, 4])
def test_every_kind_of_network_at_an_odd_size(name, stem_stride):
    paddle.seed(3)
    network = fold_batch_norm(create_model(name, 4, width=0.125, stem_stride=stem_stride))
    images = np.random.default_rng(0).normal(size=(2, 3, 45, 45)).astype("f4")
    with paddle.no_grad():
        expected = network(paddle.to_tensor(images)).numpy()
    received = answer(onnx_network(network, 45), images)
    np.testing.assert_allclose(received, expected, atol=1e-5 * np.abs(expected).max())


def test_batch_normalisation_is_folded_and_the_batch_is_free(network):
    model = onnx_network(network, 32)
    kinds = {node.op_type for node in model.graph.node}
    assert kinds == {"Conv", "Relu", "Add", "AveragePool", "MaxPool", "GlobalAveragePool", "Flatten", "Gemm"}
    images = np.random.default_rng(1).normal(size=(5, 3, 32, 32)).astype("f4")
    whole = answer(model, images)
    np.testing.assert_allclose(answer(model, images[:2]), whole[:2], atol=1e-5 * np.abs(whole).max())
    assert answer(model, images, "embedding").shape == (5, network.tap_channels["embedding"])


def test_bytes_are_normalised_inside(network):
    normalization = NormalizationSection(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    pixels = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
    planes = ((pixels / 255 - normalization.mean) / normalization.std).transpose(0, 3, 1, 2).astype("f4")
    expected = answer(onnx_network(network, 32), planes)
    received = answer(onnx_network(network, 32, normalization=normalization), pixels)
    np.testing.assert_allclose(received, expected, atol=1e-4 * np.abs(expected).max())


def test_half_precision_halves_the_file_and_keeps_its_interface(network):
    images = np.random.default_rng(3).normal(size=(2, 3, 32, 32)).astype("f4")
    single, half = onnx_network(network, 32), onnx_network(network, 32, half=True)
    assert half.ByteSize() < 0.6 * single.ByteSize()
    expected, received = answer(single, images), answer(half, images)
    assert received.dtype == np.float32
    np.testing.assert_allclose(received, expected, atol=0.02 * np.abs(expected).max())


def test_a_value_beyond_half_precision_is_refused(network):
    kept = network.fc.bias.numpy()
    network.fc.bias.set_value(np.full(5, 1e5, "f4"))
    try:
        with pytest.raises(RunError, match=r"fc\.bias has values up to 1e\+05, too large for float16"):
            onnx_network(network, 32, half=True)
    finally:
        network.fc.bias.set_value(kept)
