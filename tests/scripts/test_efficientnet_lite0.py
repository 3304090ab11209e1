"""The example of a foreign teacher: its plan, its weights, its graph against NumPy, and the files it refuses."""

import hashlib
import importlib
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.engines.onnx_file import check_onnx
from distill.errors import RunError, UserError

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
EXAMPLES = Path(__file__).parents[2] / "scripts" / "examples"


def load(name):
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))


example, graph = load("efficientnet_lite0"), load("efficientnet_lite0_graph")

# As Lite0, in small: a block without expansion, strides 1 and 2, kernels 3 and 5, with and without a shortcut.
SMALL = graph.Architecture(
    stem_channels=4,
    stages=(
        graph.Stage(blocks=1, kernel=3, stride=1, expansion=1, channels=4),
        graph.Stage(blocks=2, kernel=5, stride=2, expansion=2, channels=6),
        graph.Stage(blocks=1, kernel=3, stride=2, expansion=3, channels=5),
    ),
    head_channels=7,
    classes=3,
)


@pytest.fixture(scope="module")
def weights():
    """Random, with activations on both sides of 0 and of 6."""
    random = np.random.Generator(np.random.Philox(0))
    arrays = {}
    for key, shape in graph.expected_shapes(SMALL).items():
        if key.endswith("running_var"):
            arrays[key] = random.uniform(0.5, 2.0, shape)
        else:
            arrays[key] = random.normal(1.0 if "_bn" in key else 0.0, 1.0, shape)
    return {key: array.astype(np.float32) for key, array in arrays.items()}


# --- an independent computation -------------------------------------------------------------------


def same_convolution(images, weight, stride, groups):
    """TensorFlow's SAME, by its documentation: out = ceil(in / stride), the smaller half of the padding first."""
    height, width = images.shape[2:]
    kernel = weight.shape[2]
    outs = [-(-side // stride) for side in (height, width)]
    padding = [max((out - 1) * stride + kernel - side, 0) for out, side in zip(outs, (height, width), strict=True)]
    padded = np.pad(images, [(0, 0), (0, 0), *((total // 2, total - total // 2) for total in padding)])
    result = np.zeros((len(images), len(weight), *outs))
    inputs, outputs = weight.shape[1], len(weight) // groups
    for group in range(groups):
        part = padded[:, group * inputs : (group + 1) * inputs]
        kernels = weight[group * outputs : (group + 1) * outputs]
        for row in range(outs[0]):
            for column in range(outs[1]):
                top, left = row * stride, column * stride
                patch = part[:, :, top : top + kernel, left : left + kernel]
                result[:, group * outputs : (group + 1) * outputs, row, column] = np.einsum(
                    "nihw,oihw->no", patch, kernels
                )
    return result


def by_hand(weights, images):
    """SMALL written out, batch normalisation unfolded, in float64."""
    arrays = {key: array.astype(np.float64) for key, array in weights.items()}

    def layer(x, key, norm, stride=1, groups=1, linear=False):
        x = same_convolution(x, arrays[f"{key}.weight"], stride, groups)
        gamma, beta, mean, variance = (
            arrays[f"{norm}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        x = (x - mean) / np.sqrt(variance + 0.001) * gamma + beta
        return x if linear else np.minimum(np.maximum(x, 0.0), 6.0)

    def block(x, name, stride, expand, shortcut):
        entering = x
        if expand:
            x = layer(x, f"{name}._expand_conv", f"{name}._bn0")
        x = layer(x, f"{name}._depthwise_conv", f"{name}._bn1", stride, x.shape[1])
        x = layer(x, f"{name}._project_conv", f"{name}._bn2", linear=True)
        return x + entering if shortcut else x

    x = layer(images.astype(np.float64), "_conv_stem", "_bn0", stride=2)
    x = block(x, "_blocks.0", stride=1, expand=False, shortcut=True)
    x = block(x, "_blocks.1", stride=2, expand=True, shortcut=False)
    x = block(x, "_blocks.2", stride=1, expand=True, shortcut=True)
    x = block(x, "_blocks.3", stride=2, expand=True, shortcut=False)
    embedding = layer(x, "_conv_head", "_bn1").mean(axis=(2, 3))
    return embedding @ arrays["_fc.weight"].T + arrays["_fc.bias"], embedding


@pytest.mark.parametrize("size", [(16, 16), (15, 15), (17, 12), (1, 2)], ids=str)
def test_the_graph_computes_what_the_network_does(weights, size, tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(graph.build_network(weights, SMALL), path)
    check_onnx(onnx, path)
    images = np.random.Generator(np.random.Philox(1)).normal(0.0, 1.0, (3, 3, *size)).astype(np.float32)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits, embedding = session.run(["logits", "embedding"], {"images": images})
    expected_logits, expected_embedding = by_hand(weights, images)
    assert expected_embedding.max() > 0.0
    np.testing.assert_allclose(embedding, expected_embedding, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-3)
    assert logits.dtype == embedding.dtype == np.float32


@given(st.integers(1, 40), st.sampled_from([1, 2]), st.sampled_from([3, 5]))
@settings(max_examples=30, deadline=None)
def test_same_padding_of_what_we_compare_with_has_tensorflows_size(side, stride, kernel):
    result = same_convolution(np.ones((1, 1, side, side)), np.ones((1, 1, kernel, kernel)), stride, 1)
    assert result.shape[2:] == ((side + stride - 1) // stride,) * 2


def test_outputs_come_in_the_order_that_mining_expects(weights):
    model = graph.build_network(weights, SMALL, {"licence": "Apache-2.0"})
    assert [output.name for output in model.graph.output] == ["logits", "embedding"]
    assert [(prop.key, prop.value) for prop in model.metadata_props] == [("licence", "Apache-2.0")]


def test_lite0_has_its_published_size():
    shapes = graph.expected_shapes(graph.LITE0)
    statistics = ("running_mean", "running_var")
    assert sum(int(np.prod(shape)) for key, shape in shapes.items() if not key.endswith(statistics)) == 4_652_008
    blocks = graph.plan_network(graph.LITE0)
    assert len(blocks) == 18 and sum(block.shortcut for block in blocks) == 9


def test_folding_does_not_change_a_channel_that_is_normalised_already():
    convolution = graph.Convolution("conv", "norm", (2, 1, 1, 1))
    weights = {"conv.weight": np.array([2.0, -3.0]).reshape(2, 1, 1, 1), "norm.weight": np.ones(2)}
    weights |= {"norm.bias": np.array([0.0, 5.0]), "norm.running_mean": np.array([0.0, 4.0])}
    weights["norm.running_var"] = np.full(2, 1.0 - graph.BATCH_NORM_EPSILON)
    weight, bias = graph.fold_batch_norm(weights, convolution)
    np.testing.assert_allclose(weight.ravel(), [2.0, -3.0], rtol=1e-6)
    np.testing.assert_allclose(bias, [0.0, 1.0], rtol=1e-6)


# --- weights of something else ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("_blocks.2._bn1.running_var"), r"_blocks\.2\._bn1\.running_var is missing"),
        (lambda w: w.update({"_blocks.9._bn1.bias": np.zeros(1)}), r"_blocks\.9\._bn1\.bias is unknown"),
        (
            lambda w: w.update({"_fc.weight": np.zeros((4, 7), np.float32)}),
            r"_fc\.weight is float32 \[4, 7\], expected floating \[3, 7\]",
        ),
        (lambda w: w.update({"_fc.bias": np.zeros(3, np.int64)}), r"_fc\.bias is int64 \[3\], expected floating"),
        (lambda w: w.clear(), r"_conv_stem\.weight is missing; .*, and \d+ more"),
    ],
    ids=["missing", "unknown", "shape", "integers", "nothing"],
)
def test_weights_of_something_else_are_refused(weights, change, message):
    changed = dict(weights)
    change(changed)
    with pytest.raises(UserError, match=message):
        graph.build_network(changed, SMALL)


def test_what_pytorch_counts_is_passed_over(weights):
    graph.check_weights(weights | {"_bn0.num_batches_tracked": np.int64(7)}, SMALL)


# --- wheels -----------------------------------------------------------------------------------------


def wheel_of(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return path


def package_like(wheel, **changes):
    changes |= {"wheel": wheel.name, "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
    return replace(example.PHOTOGRAPHS, **changes)


def test_wanted_files_of_a_known_wheel_are_read_in_order(tmp_path):
    members = {f"foolbox__data__imagenet_0{number}_{number}.jpg": bytes([number]) for number in (2, 1)}
    wheel = wheel_of(tmp_path / "w.whl", **members, foolbox__data__mnist_00_7=b"no")
    assert list(example.read_wheel(package_like(wheel), wheel).items()) == [
        ("foolbox/data/imagenet_01_1.jpg", b"\x01"),
        ("foolbox/data/imagenet_02_2.jpg", b"\x02"),
    ]


def test_another_wheel_is_refused_before_it_is_opened(tmp_path):
    wheel = tmp_path / example.WEIGHTS.wheel
    wheel.write_bytes(b"not even a zip")
    found = hashlib.sha256(b"not even a zip").hexdigest()
    with pytest.raises(UserError, match=f"has the SHA-256 {found}, expected {example.WEIGHTS.sha256}"):
        example.read_wheel(example.WEIGHTS, wheel)


def test_a_wheel_without_what_is_wanted_or_with_too_much_is_refused(tmp_path):
    empty = wheel_of(tmp_path / "empty.whl", readme=b"")
    with pytest.raises(UserError, match="nothing wanted"):
        example.read_wheel(package_like(empty), empty)
    large = wheel_of(
        tmp_path / "large.whl", foolbox__data__imagenet_00_1=b"", **{"foolbox__data__imagenet_00_1.jpg": bytes(9)}
    )
    with pytest.raises(UserError, match=r"imagenet_00_1\.jpg is too large"):
        example.read_wheel(package_like(large, most_bytes=8), large)


@pytest.mark.parametrize("kind", ["missing", "folder", "other"])
def test_the_command_names_a_file_that_it_cannot_use(tmp_path, monkeypatch, capsys, kind):
    wheel = tmp_path / "some.whl"
    if kind == "folder":
        wheel.mkdir()
    elif kind == "other":
        wheel.write_bytes(b"other")
    output = tmp_path / "weights" / "network.onnx"
    monkeypatch.setattr(sys, "argv", ["efficientnet_lite0.py", "--wheel", str(wheel), "--output", str(output)])
    assert example.main() == 2
    said = capsys.readouterr().err
    assert str(wheel) in said and example.WEIGHTS.wheel in said and not output.exists()


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip itself, without a network
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    package = replace(example.WEIGHTS, name="paddle-distill-no-such-package")
    with pytest.raises(RunError, match=r"pip could not fetch paddle-distill-no-such-package==0\.1\.0: .* by hand"):
        example.download(package, tmp_path / "wheels")


def test_a_wheel_that_is_there_is_not_fetched(tmp_path):
    (tmp_path / example.WEIGHTS.wheel).write_bytes(b"")
    assert example.download(example.WEIGHTS, tmp_path) == tmp_path / example.WEIGHTS.wheel
