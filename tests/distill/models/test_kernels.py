"""A whole network on oneDNN against Paddle's kernels, and the choice between them."""

import numpy as np
import paddle
import pytest

from distill.errors import RunError
from distill.models import create_model, kernels
from distill.models.kernels import OneDnnKernels, PaddleKernels, choose_kernels
from distill.student import Student

TAPS = ["stem", "stage1", "stage4", "embedding", "logits"]


def network(data_format="NCHW", name="ResNet50_vd"):
    paddle.seed(1)
    return create_model(name, 10, width=0.125, data_format=data_format)


def images(data_format="NCHW"):
    array = np.random.default_rng(0).standard_normal((8, 3, 65, 47)).astype("float32")
    return paddle.to_tensor(array if data_format == "NCHW" else array.transpose(0, 2, 3, 1).copy())


def answers_and_gradients(model, data_format="NCHW"):
    outputs = model.taps(images(data_format), TAPS)
    sum((value * value).mean() for value in outputs.values()).backward()
    gradients = {name: value.grad.numpy() for name, value in model.named_parameters() if value.grad is not None}
    model.clear_gradients()
    return {name: value.numpy() for name, value in outputs.items()} | gradients


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50_vc", "ResNet50_vd", "ResNeXt101_32x8d_wsl"])
@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_taps_and_gradients_equal_those_of_paddles_kernels(name, data_format):
    # With stored statistics: the batch's own, of few pixels, would blow rounding up.
    model = network(data_format, name)
    model.eval()
    expected = answers_and_gradients(model, data_format)
    model.use_kernels(OneDnnKernels(data_format))
    received = answers_and_gradients(model, data_format)
    assert received.keys() == expected.keys()
    for key, value in expected.items():
        assert received[key].shape == value.shape, key
        assert np.abs(received[key] - value).max() <= 2e-5 * np.abs(value).max(), key


def test_training_moves_the_statistics_as_paddles_kernels_do():
    states = []
    for chosen in (PaddleKernels("NCHW"), OneDnnKernels("NCHW")):
        model = network(name="ResNet18_vd")
        model.use_kernels(chosen)
        model.train()
        model(images())
        states.append({key: value.numpy() for key, value in model.state_dict().items()})
    for key, value in states[0].items():
        assert np.abs(states[1][key] - value).max() <= 1e-4 * max(np.abs(value).max(), 1e-3), key


def test_a_step_repeats_to_the_last_bit():
    results = []
    for _ in range(2):
        model = network()
        model.use_kernels(OneDnnKernels("NCHW"))
        model.train()
        results.append(answers_and_gradients(model))
    assert all(np.array_equal(results[0][key], results[1][key]) for key in results[0])


def test_frozen_layers_get_no_gradient_and_keep_their_statistics():
    model = network()
    model.use_kernels(OneDnnKernels("NCHW"))
    student = Student(model, freeze=["stem.*", "blocks.0.*"])
    before = {name: model.state_dict()[name].numpy() for name in student.frozen}
    student.train_mode()
    gradients = answers_and_gradients(model)
    assert not student.frozen & set(gradients)
    assert {name for name, _ in student.parameters_to_train()} <= set(gradients)
    assert all(np.array_equal(model.state_dict()[name].numpy(), value) for name, value in before.items())


def test_weights_travel_between_kernels():
    model, other = network(), network()
    other.use_kernels(OneDnnKernels("NCHW"))
    assert list(model.state_dict()) == list(other.state_dict())


@pytest.mark.parametrize("choice", ["auto", "onednn"])
def test_onednn_is_taken_on_a_cpu(choice):
    chosen, problem = choose_kernels("NCHW", choice)
    assert isinstance(chosen, OneDnnKernels)
    assert chosen.description.startswith("oneDNN 3.")
    assert problem is None


def test_paddles_kernels_are_taken_on_request():
    chosen, problem = choose_kernels("NCHW", "paddle")
    assert isinstance(chosen, PaddleKernels)
    assert problem is None


def test_where_onednn_is_wrong_paddles_kernels_compute_and_the_reason_is_told(monkeypatch):
    def differs():
        raise RunError("oneDNN 3.0.0 differs")

    monkeypatch.setattr(kernels, "check_onednn", differs)
    chosen, problem = choose_kernels("NCHW", "auto")
    assert isinstance(chosen, PaddleKernels)
    assert problem == "oneDNN 3.0.0 differs"
    with pytest.raises(RunError, match=r"runtime\.student_kernels onednn: oneDNN 3\.0\.0 differs\. Use auto or paddle"):
        choose_kernels("NCHW", "onednn")
