import os
from collections import Counter
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from distill.engines.engine import (
    TOLERANCE,
    EagerEngine,
    PredictorEngine,
    largest_difference,
    open_engine,
    open_teacher_engine,
    relative_difference,
)
from distill.errors import RunError, UserError
from distill.models import create_model
from distill.parallel import Device
from distill.recipe import NormalizationSection, TeacherModel
from distill.weights import write_weights

NORMALIZATION = NormalizationSection(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
CPU = Device(kind="cpu", threads=2)


@pytest.fixture(scope="module")
def model():
    paddle.seed(5)
    model = create_model("ResNet18_vd", 7, width=0.125, stem_stride=1)
    model.train()
    for seed in range(3):  # statistics that differ from the initial 0 and 1
        paddle.seed(seed)
        model(paddle.randn([8, 3, 32, 32]))
    model.eval()
    return model


@pytest.fixture(scope="module")
def predictor(model):
    return open_engine(model, NORMALIZATION, CPU, check_px=32)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def by_hand(model, images):
    """Normalises with NumPy in float64 and asks the model for its taps."""
    unit = (images / 255.0 - NORMALIZATION.mean) / NORMALIZATION.std
    tensor = paddle.to_tensor(unit.transpose(0, 3, 1, 2).astype(np.float32))
    with paddle.no_grad():
        return {name: value.numpy() for name, value in model.taps(tensor, ("logits", "embedding")).items()}


def test_the_predictor_answers_as_the_model(model, predictor, images):
    assert isinstance(predictor, PredictorEngine)
    answers = predictor(images)
    assert set(answers) == {"logits", "embedding"}
    for name, expected in by_hand(model, images).items():
        assert answers[name].dtype == np.float32
        np.testing.assert_allclose(answers[name], expected, rtol=1e-4, atol=1e-5)


def test_answers_depend_on_neither_batch_nor_threads(model, predictor, images):
    together = predictor(images)
    one_thread = open_engine(model, NORMALIZATION, Device("cpu", 1), check_px=32)
    for name, rows in together.items():
        assert np.array_equal(rows, one_thread(images)[name])
        assert np.array_equal(rows, np.concatenate([predictor(images[i : i + 1])[name] for i in range(5)]))


def test_floats_in_the_unit_range_are_the_same_images(predictor, images):
    unit = images.astype(np.float32) / np.float32(255)
    assert np.array_equal(predictor(unit)["logits"], predictor(images)["logits"])


def test_the_other_layout(model, predictor, images):
    engine = open_engine(model, NORMALIZATION, CPU, data_format="NCHW", outputs=("logits",), check_px=32)
    answers = engine(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    assert set(answers) == {"logits"}
    np.testing.assert_allclose(answers["logits"], predictor(images)["logits"], rtol=1e-5, atol=1e-6)


def test_the_eager_engine_answers_as_the_model(model, images):
    engine = open_engine(model, NORMALIZATION, CPU, kind="eager")
    assert isinstance(engine, EagerEngine) and engine.largest_difference == 0.0
    for name, expected in by_hand(model, images).items():
        np.testing.assert_allclose(engine(images)[name], expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_is_opened_from_its_weights(model, predictor, images, tmp_path):
    weights = tmp_path / "teacher.safetensors"
    write_weights(weights, {key: value.numpy() for key, value in model.state_dict().items()}, {})
    section = TeacherModel(name="ResNet18_vd", width=0.125, stem_stride=1, weights=str(weights))
    engine = open_teacher_engine(section, 7, NORMALIZATION, CPU, check_px=32)
    assert np.array_equal(engine(images)["logits"], predictor(images)["logits"])


def test_the_difference_is_relative_to_the_largest_answer():
    class Constant:
        def __init__(self, value):
            self.value = value

        def __call__(self, images):
            return {"logits": np.array([self.value], np.float32)}

    assert largest_difference(Constant([1.0, -3.0]), Constant([1.0, -4.0]), 8, "NHWC") == 0.25


@pytest.mark.parametrize("broken", ["embedding", "logits"])
def test_a_difference_from_or_to_nan_is_nan(broken):
    fine = {name: np.ones((1, 2), np.float32) for name in ("embedding", "logits")}
    not_finite = fine | {broken: np.array([[1.0, np.nan]], np.float32)}
    assert np.isnan(relative_difference(not_finite, fine))
    assert np.isnan(relative_difference(fine, not_finite))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_becomes_convolutions_poolings_and_one_product(model, images, precision):
    """Batch normalisation is folded into the weights; ReLU and the residual sum into the convolutions."""
    if precision == "bfloat16" and "avx512bw" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("bfloat16 needs AVX-512")
    engine = open_engine(model, NORMALIZATION, CPU, precision=precision, check_px=32)
    ran = []
    engine._predictor.register_output_hook(lambda operation, *_: ran.append(operation.partition(":")[0]))
    engine(images)
    conversions = {"onednn_to_paddle_layout", "transpose", "quantize", "dequantize"}
    counts = Counter(name.partition(".")[2] for name in ran)
    assert {name: n for name, n in counts.items() if name not in conversions} == {
        "subtract": 1,  # of the mean
        "divide": 1,  # by the standard deviation
        "fused_conv2d": sum(isinstance(layer, nn.Conv2D) for layer in model.sublayers()),
        "pool2d": 3,  # of the shortcuts
        "mean": 1,
        "fc": 1,
    }


def test_an_engine_that_disagrees_is_refused(model, monkeypatch):
    call = PredictorEngine.__call__
    monkeypatch.setattr(
        PredictorEngine, "__call__", lambda self, images: {k: v + 0.01 for k, v in call(self, images).items()}
    )
    with pytest.raises(RunError, match="differs from the plain model"):
        open_engine(model, NORMALIZATION, CPU, check_px=32)


def test_opening_prints_nothing(model, capfd):
    open_engine(model, NORMALIZATION, CPU, check_px=32)
    assert capfd.readouterr() == ("", "")


def test_what_a_failed_opening_printed_is_shown(model, monkeypatch, capfd):
    def fail(*_):
        os.write(1, b"a hint")
        raise RuntimeError

    monkeypatch.setattr("distill.engines.engine.largest_difference", fail)
    with pytest.raises(RuntimeError):
        open_engine(model, NORMALIZATION, CPU, check_px=32)
    assert "a hint" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("device", "kind", "precision", "message"),
    [
        ("gpu", "predictor", "float32", "on a CPU only"),
        ("cpu", "eager", "bfloat16", "float32 only"),
        ("cpu", "predictor", "float16", "float32 or bfloat16"),
    ],
)
def test_what_a_device_cannot_do_is_refused(model, device, kind, precision, message):
    with pytest.raises(UserError, match=message):
        open_engine(model, NORMALIZATION, Device(device, 2), kind=kind, precision=precision)


def test_bfloat16_needs_a_gpu_that_has_it(model, monkeypatch):
    monkeypatch.setattr(paddle.amp, "is_bfloat16_supported", lambda: False)
    with pytest.raises(UserError, match=r"compute capability 8\.0"):
        open_engine(model, NORMALIZATION, Device("gpu", 2), precision="bfloat16")


def test_bfloat16_needs_its_instructions(model, monkeypatch):
    monkeypatch.setattr("distill.engines.engine._cpu_flags", lambda: "sse4_2 avx2")
    with pytest.raises(UserError, match="AVX-512"):
        open_engine(model, NORMALIZATION, CPU, precision="bfloat16")


@pytest.mark.skipif("avx512bw" not in Path("/proc/cpuinfo").read_text(), reason="bfloat16 needs AVX-512")
def test_bfloat16_is_near(model, images):
    engine = open_engine(model, NORMALIZATION, CPU, precision="bfloat16", check_px=32)
    assert 1e-4 < engine.largest_difference < TOLERANCE["bfloat16"]
    expected = by_hand(model, images)["logits"]
    assert np.abs(engine(images)["logits"] - expected).max() < TOLERANCE["bfloat16"] * np.abs(expected).max()
