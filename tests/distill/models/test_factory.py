import gc
import re
import weakref

import numpy as np
import paddle
import pytest

from distill.engines.engine import open_engine
from distill.errors import RunError, UserError
from distill.models import build_model
from distill.models.factory import FactoryNetwork, find_factory, imported_code
from distill.models.kernels import compute_with
from distill.parallel import Device
from distill.recipe import ModelSection, NormalizationSection
from distill.weights import load_into, read_weights, sha256_of, write_weights

GREY = NormalizationSection(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CPU = Device(kind="cpu", threads=1)


def built(name: str, num_classes: int = 5, size_px: int = 28, **section) -> FactoryNetwork:
    return build_model(ModelSection(name=name, **section), num_classes, size_px=size_px)


def noise(count: int = 3, side: int = 28) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(1).standard_normal((count, 3, side, side), dtype=np.float32))


def test_the_network_keeps_its_names_and_its_answers(own_module):
    network = built(f"{own_module()}:tiny", arguments={"width": 6})
    own = network.network
    assert list(network.state_dict()) == list(own.state_dict())
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in own.named_parameters()]
    assert [name for name, _ in network.named_sublayers()] == [name for name, _ in own.named_sublayers()]
    assert own.training and own.norm.training
    network.eval()
    assert not own.training and not own.norm.training
    np.testing.assert_array_equal(network(noise()).numpy(), own(noise()).numpy())
    network.train()
    assert own.training and own.norm.training


def test_every_layer_is_a_tap(own_module):
    network = built(f"{own_module()}:tiny")
    network.eval()
    assert network.classifier == "head"
    assert network.tap_channels == {
        "stem": 4, "norm": 4, "body": 8, "body.0": 8, "body.1": 8, "dropout": 8, "head": 5, "embedding": 8, "logits": 5,
    }  # fmt: skip
    assert network.vector_taps == {"dropout", "head", "embedding", "logits"}
    taps = network.taps(noise(), ["body", "stem", "embedding", "logits"])
    assert [list(tap.shape) for tap in taps.values()] == [[3, 8, 7, 7], [3, 4, 14, 14], [3, 8], [3, 5]]
    np.testing.assert_array_equal(taps["logits"].numpy(), network(noise()).numpy())
    np.testing.assert_array_equal(network.classify(taps["embedding"]).numpy(), taps["logits"].numpy())
    np.testing.assert_allclose(taps["embedding"].numpy(), taps["body"].numpy().mean((2, 3)), rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match=r"unknown tap 'bodi'. Did you mean 'body'"):
        network.taps(noise(), ["bodi"])


def test_nothing_that_was_caught_is_kept_even_where_the_pass_fails(own_module):
    network = built(f"{own_module()}:tiny")
    caught = weakref.ref(network.taps(noise(), ["body"])["body"])
    with pytest.raises(ValueError):
        network.taps(paddle.zeros([2, 7, 28, 28]), ["body", "embedding"])
    gc.collect()
    assert caught() is None
    hooks = [len(layer._forward_post_hooks) + len(layer._forward_pre_hooks) for layer in network.sublayers()]
    assert sum(hooks) == 0


def test_gradients_flow_through_taps_and_none_without_gradient(own_module):
    network = built(f"{own_module()}:tiny")
    network.taps(noise(), ["body"])["body"].mean().backward()
    assert network.network.stem.weight.grad is not None
    assert network.network.head.weight.grad is None
    with paddle.no_grad():
        assert network.taps(noise(), ["body"])["body"].stop_gradient


def test_the_same_seed_gives_the_same_bits_whatever_was_built_before(own_module):
    name = f"{own_module()}:tiny"
    states, parameters = [], []
    for before in (0, 2):
        for _ in range(before):
            built(name)
        paddle.seed(7)
        network = built(name)
        states.append({key: value.numpy().tobytes() for key, value in network.state_dict().items()})
        parameters.append([parameter.name for parameter in network.parameters()])
    assert states[0] == states[1]
    assert parameters[0] == parameters[1]  # optimiser states are keyed by them
    paddle.seed(8)
    assert states[0] != {key: value.numpy().tobytes() for key, value in built(name).state_dict().items()}


@pytest.mark.parametrize("network", ["own", "mobilenet"])
@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
def test_paddle_inference_gives_the_same_answers(own_module, network, data_format):
    if network == "own":
        model, layer = built(f"{own_module()}:tiny"), "body.0"
    else:
        model = built("paddle.vision.models:mobilenet_v3_small", size_px=64, arguments={"scale": 0.35})
        layer = "blocks.3"
        assert model.classifier == "classifier.3"
    outputs = [layer, "embedding", "logits", model.classifier]  # the last two are one value
    engine = open_engine(model, GREY, CPU, outputs=outputs, data_format=data_format, check_px=64)
    assert engine.description == "Paddle Inference, oneDNN, float32"
    assert engine.largest_difference < 1e-5
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    answers = engine(images if data_format == "NHWC" else np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    assert {name: len(value) for name, value in answers.items()} == dict.fromkeys(outputs, 3)
    with paddle.no_grad():
        planes = paddle.to_tensor((images.transpose(0, 3, 1, 2).astype(np.float32) / 255 - 0.5) / 0.25)
        expected = model.taps(planes, outputs)
    for name, value in answers.items():
        np.testing.assert_allclose(value, expected[name].numpy(), rtol=1e-4, atol=1e-5)


def test_what_paddle_cannot_export_is_named_and_computes_eagerly():
    network = built("paddle.vision.models:shufflenet_v2_x0_25", size_px=64)  # it reshapes to sizes that vary
    with pytest.raises(RunError, match=r"Paddle Inference cannot compute this network: .*Use the engine 'eager'"):
        open_engine(network, GREY, CPU, check_px=64)
    answers = open_engine(network, GREY, CPU, kind="eager")(np.zeros((2, 64, 64, 3), np.uint8))
    assert answers["logits"].shape == (2, 5)


def test_its_weights_load_under_their_own_names_alone(own_module, tmp_path):
    name = f"{own_module()}:tiny"
    network, other = built(name), built(name)
    state = {key: value.numpy() for key, value in network.state_dict().items()} | {"steps": np.array([7], np.int64)}
    path = tmp_path / "own.safetensors"
    write_weights(path, state)
    load_into(other, path)
    for key, value in other.network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[key])
        assert value.numpy().dtype == state[key].dtype
    find_factory(name)(num_classes=5).set_state_dict(  # the user's program reads what we wrote
        {key: paddle.to_tensor(value) for key, value in read_weights(path).items()}
    )
    renamed = {key.replace("head", "fc"): value for key, value in state.items() if key != "norm.bias"}
    renamed["stem.bias"] = np.zeros(9, np.float32)
    renamed["steps"] = np.zeros(1, np.float32)
    renamed["norm._mean"] = np.full(4, np.nan, np.float32)
    write_weights(path, renamed)
    before = {key: value.numpy().tobytes() for key, value in other.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_into(other, path)
    for part in (
        "does not fit the network of",
        "missing in the file: head.bias, head.weight, norm.bias",
        "in the file, not in the network: fc.bias, fc.weight",
        "stem.bias (expected [4], received [9])",
        "steps (expected int64, received float32)",
        "norm._mean (holds NaN or infinity)",
    ):
        assert part in str(error.value)
    assert before == {key: value.numpy().tobytes() for key, value in other.state_dict().items()}


def test_onednn_is_not_used_and_the_log_can_say_why(own_module):
    network = built(f"{own_module()}:tiny")
    assert "calls Paddle itself" in compute_with(network, "auto")
    assert compute_with(network, "paddle") is None
    assert network.kernels.description == "Paddle's kernels"
    with pytest.raises(RunError, match="student_kernels onednn: a network of your own"):
        compute_with(network, "onednn")


def test_the_code_that_ran_is_named(own_module, tmp_path):
    name = f"{own_module()}:tiny"
    assert imported_code(["ResNet18", name]) == {}
    built(name)
    file = tmp_path / f"{name.partition(':')[0]}.py"
    assert imported_code(["ResNet18", name]) == {name: (str(file), sha256_of(file))}
    passed_on = f"{own_module(f'from {file.stem} import tiny')}:tiny"
    built(passed_on)
    assert imported_code([passed_on]) == {passed_on: (str(file), sha256_of(file))}


OTHERS = """
import paddle, sys
from subprocess import call as run_it
from os import system as call_it
from paddle import nn

class Base(nn.Layer):
    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.last = nn.Linear(6, num_classes)

    def forward(self, images):
        return self.last(self.first(images.mean([2, 3])))

class Scaled(Base):
    def forward(self, images):
        return 2 * super().forward(images)

class Twice(Base):
    def forward(self, images):
        vectors = images.mean([2, 3])
        return self.last(self.first(vectors) + self.first(2 * vectors))

class Pair(Base):
    def forward(self, images):
        return [super().forward(images)] * 2

class Fails(Base):
    def forward(self, images):
        raise RuntimeError("no such luck")

class Half(Base):
    def forward(self, images):
        return super().forward(images).astype("float64")

def without_classes(width=3): ...
def needs_more(num_classes, depth): ...
def not_a_network(num_classes): return 3
def more_classes(num_classes): return Base(num_classes + 1)
def fails(num_classes): raise LookupError("it is broken")
def leaves(num_classes): sys.exit(3)
number = 3
"""


@pytest.mark.parametrize(
    ("function", "section", "message"),
    [
        ("Bas", {}, "has no 'Bas'. Did you mean 'Base'?"),
        ("number", {}, "must be a function that returns a network, received a int"),
        ("without_classes", {}, "(width=3) does not take num_classes"),
        ("needs_more", {}, "missing a required argument: 'depth'. Give it in model.arguments"),
        (
            "needs_more",
            {"arguments": {"dept": 1}},
            "does not take model.arguments.dept. Did you mean 'depth'?",
        ),
        ("not_a_network", {}, "must return a network, a paddle.nn.Layer, received a int"),
        ("more_classes", {}, "must return logits float32 [2, 5] of 2 images, received float32 [2, 6]"),
        ("Half", {}, "received float64 [2, 5]"),
        ("Pair", {}, "received a list"),
        ("fails", {}, "failed: LookupError: it is broken"),
        ("leaves", {}, "failed: SystemExit: 3"),
        ("Fails", {}, "fails on images float32 [2, 3, 28, 28]: RuntimeError: no such luck"),
        ("Base", {"classifier": "lats"}, "has no layer 'lats'. Did you mean 'last'?"),
        ("Base", {"classifier": "first"}, "does not make the logits"),
        ("Scaled", {"classifier": "last"}, "does not make the logits"),
        ("Twice", {"classifier": "first"}, "is computed more than once in a forward pass"),
        ("run_it", {"arguments": {"args": "touch executed", "shell": True}}, "of Python's own module subprocess"),
        ("call_it", {"arguments": {"command": "touch executed"}}, "of Python's own module posix"),
    ],
)
def test_errors_name_the_factory_and_what_is_wrong(own_module, tmp_path, function, section, message):
    module = own_module(OTHERS)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        built(f"{module}:{function}", **section)
    assert module in str(error.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_package_at_all", "importing .* failed: No module named 'no_such_package_at_all'"),
        ("def f(:\n", "importing .* failed: SyntaxError"),
        ("raise RuntimeError('on purpose')", "importing .* failed: RuntimeError: on purpose"),
        ("raise SystemExit(0)", "importing .* failed: SystemExit: 0"),
    ],
)
def test_a_module_that_cannot_be_imported(own_module, text, message):
    with pytest.raises(UserError, match=message):
        built(f"{own_module(text)}:f")


def test_a_module_that_is_not_there_is_searched_in_the_current_folder(own_module, tmp_path):
    module = own_module()
    with pytest.raises(UserError, match=f"no module '{module}s'. Did you mean '{module}'.*{tmp_path}"):
        built(f"{module}s:tiny")
    with pytest.raises(UserError, match=r"no module 'paddle.vision.modelz'. Did you mean 'paddle.vision.models'"):
        built("paddle.vision.modelz:resnet18")


def test_a_last_linear_layer_that_makes_no_logits_is_no_classifier(own_module):
    module = own_module(OTHERS)
    network = built(f"{module}:Scaled")
    assert network.classifier is None
    assert set(network.tap_channels) == {"first", "last", "logits"}
    network = built(f"{module}:Twice")
    assert network.classifier == "last"
    assert set(network.tap_channels) == {"last", "embedding", "logits"}  # the first layer has two answers
