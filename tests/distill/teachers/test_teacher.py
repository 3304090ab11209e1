import contextlib
import hashlib
import re
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn
from scipy.special import softmax

from distill.engines.engine import TOLERANCE
from distill.errors import RunError, UserError
from distill.losses.pipeline import DistillationLoss, Targets
from distill.models import create_model
from distill.models.resnet import ResNet
from distill.normalization import normalize
from distill.parallel import Device
from distill.recipe import NormalizationSection, TeacherSection
from distill.student import Student
from distill.teachers.teacher import Teacher, average_logits, freeze
from distill.weights import write_weights

PLAIN = NormalizationSection(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
GREY = NormalizationSection(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def tiny(data_format: str = "NCHW") -> ResNet:
    return create_model("ResNet18_vd", 10, width=0.125, stem_stride=1, data_format=data_format)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of two tiny networks that answer each image differently; their stored statistics fit no batch."""
    paths = []
    for seed in (0, 1):
        paddle.seed(seed)
        rng = np.random.default_rng(seed)
        model = tiny()
        other_images = paddle.to_tensor(rng.random((16, 3, 28, 28)), dtype="float32")
        with paddle.no_grad():
            for _ in range(30):
                model(other_images)
        state = {name: value.numpy() for name, value in model.state_dict().items()}
        for name in [name for name in state if name.endswith("_variance")]:
            state[name] = state[name] * rng.uniform(0.8, 1.2, state[name].shape).astype(np.float32)
        path = tmp_path_factory.mktemp("teacher") / f"{seed}.safetensors"
        write_weights(path, state)
        model.eval()
        answers = model(other_images).numpy()
        assert answers.std(axis=0).min() > 0.01, "a dead network would pass every test"
        paths.append(str(path))
    return paths


@pytest.fixture(scope="module")
def images() -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(0).random((4, 3, 28, 28), dtype=np.float32))


def section(*paths: str, batch_norm: str = "stored", **model: object) -> TeacherSection:
    network = {"name": "ResNet18_vd", "width": 0.125, "stem_stride": 1, **model}
    return TeacherSection.model_validate(
        {"models": [{**network, "weights": path} for path in paths], "batch_norm": batch_norm}
    )


def snapshot(teacher: Teacher) -> list[dict[str, bytes]]:
    return [{k: v.numpy().tobytes() for k, v in m.model.state_dict().items()} for m in teacher._members]


def loaded(path: str, data_format: str = "NCHW") -> ResNet:
    from distill.weights import load_into

    model = tiny(data_format)
    load_into(model, path)
    return model


@pytest.mark.parametrize("batch_norm", ["stored", "batch"])
def test_parameters_and_buffers_never_change(weights: list[str], images: paddle.Tensor, batch_norm: str) -> None:
    """Neither by its own calls, nor by a training step of a student that learns from it."""
    teacher = Teacher(section(*weights[:1], batch_norm=batch_norm), 10, PLAIN, ("stage4",))
    before = snapshot(teacher)
    student = Student(tiny(), ema_decay=0.9)
    loss = DistillationLoss(
        {
            "kl": {"weight": 1.0, "temperature": 2.0},
            "feature_mse": {"weight": 1.0, "student_layer": "stage4", "teacher_layer": "stage4"},
        },
        student_channels=student.model.tap_channels,
        teacher_channels=teacher.tap_channels,
    )
    parameters = [p for _, p in student.parameters_to_train()] + loss.parameters()
    optimizer = paddle.optimizer.Momentum(0.1, parameters=parameters)
    student_before = student.model.state_dict()["fc.weight"].numpy().copy()
    for _ in range(2):
        student.train_mode()
        answers = teacher(images)
        terms = loss(student.outputs(images, loss.student_taps), answers, Targets(paddle.full([4], -1, "int64")))
        loss.total(terms).backward()
        optimizer.step()
        optimizer.clear_grad()
        student.update_ema()
    assert np.abs(student.model.state_dict()["fc.weight"].numpy() - student_before).max() > 0
    assert snapshot(teacher) == before
    assert all(p.grad is None and p.stop_gradient for m in teacher._members for p in m.model.parameters())
    assert all(answer.stop_gradient for answer in answers.values())


def test_buffers_survive_images_that_are_not_finite(weights: list[str]) -> None:
    teacher = Teacher(section(*weights[:1], batch_norm="batch"), 10, PLAIN)
    before = snapshot(teacher)
    teacher(paddle.full([2, 3, 28, 28], float("nan")))
    assert snapshot(teacher) == before


def test_stored_statistics_make_an_answer_independent_of_the_batch(weights: list[str], images: paddle.Tensor) -> None:
    teacher = Teacher(section(*weights[:1]), 10, PLAIN)
    model = loaded(weights[0])
    model.eval()
    np.testing.assert_array_equal(teacher(images)["logits"].numpy(), model(images).numpy())
    alone = teacher(images[:1])["logits"].numpy()
    np.testing.assert_allclose(alone, teacher(images)["logits"].numpy()[:1], rtol=1e-4, atol=1e-5)


def test_batch_statistics_are_those_of_a_network_in_training_mode(weights: list[str], images: paddle.Tensor) -> None:
    teacher = Teacher(section(*weights[:1], batch_norm="batch"), 10, PLAIN)
    model = loaded(weights[0])
    model.train()
    first, second = teacher(images)["logits"].numpy(), teacher(images)["logits"].numpy()
    np.testing.assert_array_equal(first, model(images).numpy())
    np.testing.assert_array_equal(first, second)
    stored = Teacher(section(*weights[:1]), 10, PLAIN)(images)["logits"].numpy()
    assert np.abs(first - stored).max() > 0.1


def test_frozen_batch_norm_equals_numpy() -> None:
    layer = nn.BatchNorm2D(3)
    layer.weight.set_value(np.array([1.0, 2.0, 3.0], np.float32))
    layer.bias.set_value(np.array([0.5, 0.0, -0.5], np.float32))
    freeze(layer, batch_statistics=True)
    x = np.random.default_rng(0).normal(5, 3, (4, 3, 2, 2)).astype(np.float32)
    mean, variance = (f(x, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.var))
    expected = (x - mean) / np.sqrt(variance + 1e-5) * np.array([1, 2, 3]).reshape(3, 1, 1) + np.array(
        [0.5, 0, -0.5]
    ).reshape(3, 1, 1)
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer._mean.numpy(), 0)


def test_uses_its_own_normalization_else_the_students(weights: list[str], images: paddle.Tensor) -> None:
    model = loaded(weights[0])
    model.eval()
    expected = model(normalize(images, GREY)).numpy()
    assert np.abs(expected - model(images).numpy()).max() > 0.1
    of_student = Teacher(section(*weights[:1]), 10, GREY)
    own = Teacher(section(*weights[:1], normalization=GREY.model_dump()), 10, PLAIN)
    np.testing.assert_array_equal(of_student(images)["logits"].numpy(), expected)
    np.testing.assert_array_equal(own(images)["logits"].numpy(), expected)


def test_several_teachers_answer_with_their_mean_probability(weights: list[str], images: paddle.Tensor) -> None:
    each = [softmax(Teacher(section(path), 10, PLAIN)(images)["logits"].numpy(), axis=1) for path in weights]
    both = Teacher(section(*weights), 10, PLAIN)
    before = snapshot(both)
    answers = both(images)
    assert list(answers) == ["logits"]
    np.testing.assert_allclose(np.exp(answers["logits"].numpy()), np.mean(each, axis=0), rtol=1e-4)
    assert snapshot(both) == before
    assert before[0] != before[1]


def test_averaging_stays_finite_where_teachers_disagree_completely() -> None:
    certain = paddle.to_tensor([[1e4, 0.0, 0.0]]), paddle.to_tensor([[0.0, 1e4, 0.0]])
    np.testing.assert_allclose(average_logits(certain).numpy(), [[np.log(0.5), np.log(0.5), -1e4]], rtol=1e-6)


def test_taps_come_in_the_layout_of_the_images(weights: list[str], images: paddle.Tensor) -> None:
    taps = ("stage3", "embedding")
    nchw = Teacher(section(*weights[:1]), 10, GREY, taps)(images)
    assert nchw["stage3"].shape == [4, 32, 7, 7]
    last = Teacher(section(*weights[:1]), 10, GREY, taps, data_format="NHWC")(images.transpose([0, 2, 3, 1]))
    own = Teacher(section(*weights[:1], data_format="NHWC"), 10, GREY, taps)(images)
    for name, value in nchw.items():
        np.testing.assert_allclose(own[name].numpy(), value.numpy(), rtol=1e-3, atol=1e-4)
        moved = last[name].transpose([0, 3, 1, 2]) if name == "stage3" else last[name]
        np.testing.assert_allclose(moved.numpy(), value.numpy(), rtol=1e-3, atol=1e-4)


def test_identity_is_name_and_checksum_of_the_file(weights: list[str]) -> None:
    teacher = Teacher(section(*weights), 10, PLAIN)
    expected = [("ResNet18_vd", hashlib.sha256(Path(path).read_bytes()).hexdigest()) for path in weights]
    assert teacher.identity == expected


def test_errors(weights: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 teachers, but loss\.feature_mse"):
        Teacher(section(*weights), 10, PLAIN, ("stage4",))
    with pytest.raises(UserError, match=r"missing\.safetensors"):
        Teacher(section(str(tmp_path / "missing.safetensors")), 10, PLAIN)
    with pytest.raises(UserError, match=r"fc\.weight"):
        Teacher(section(weights[0]), 7, PLAIN)


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_the_fast_engine_answers_as_the_plain_network(weights, data_format) -> None:
    section = TeacherSection.model_validate(
        {
            "batch_norm": "stored",
            "models": [
                {"name": "ResNet18_vd", "width": 0.125, "stem_stride": 1, "weights": path, "data_format": data_format}
                for path in weights[:1]
            ],
        }
    )
    plain = Teacher(section, 10, GREY, ["stage2"], data_format=data_format)
    fast = Teacher(section, 10, GREY, ["stage2"], data_format=data_format, device=Device("cpu", 2), check_px=28)
    assert plain.engines == ["eager Paddle, float32"]
    assert re.fullmatch(r"Paddle Inference, oneDNN, float32 \(within \de-0[5-9] of the plain model\)", fast.engines[0])
    shape = [5, 3, 28, 28] if data_format == "NCHW" else [5, 28, 28, 3]
    images = paddle.to_tensor(np.random.default_rng(0).random(shape), dtype="float32")
    for name, value in plain(images).items():
        np.testing.assert_allclose(fast(images)[name].numpy(), value.numpy(), rtol=1e-4, atol=1e-4)


def with_one_model(path: str, **changes: object) -> TeacherSection:
    network = {"name": "ResNet18_vd", "width": 0.125, "stem_stride": 1, "weights": path}
    return TeacherSection.model_validate({"batch_norm": "stored", "models": [network]} | changes)


@pytest.mark.parametrize(
    ("change", "engine"),
    [({"engine": "eager"}, "eager Paddle, float32"), ({"batch_norm": "batch"}, r"eager Paddle, oneDNN \S+, float32")],
)
def test_the_plain_network_answers_where_the_engine_may_not(weights, images, change, engine) -> None:
    section = with_one_model(weights[0], **change)
    teacher = Teacher(section, 10, GREY, device=Device("cpu", 2), check_px=28)
    assert re.fullmatch(engine, teacher.engines[0])
    plain = Teacher(section, 10, GREY)  # without a device: nothing is chosen
    before = {name: value.numpy() for name, value in teacher._members[0].model.state_dict().items()}
    assert np.allclose(teacher(images)["logits"].numpy(), plain(images)["logits"].numpy(), rtol=1e-4, atol=1e-5)
    assert all(np.array_equal(teacher._members[0].model.state_dict()[name].numpy(), before[name]) for name in before)


@pytest.mark.skipif("avx512bw" not in Path("/proc/cpuinfo").read_text(), reason="bfloat16 needs AVX-512")
def test_a_teacher_in_bfloat16_is_near_and_says_so(weights, images) -> None:
    plain = Teacher(with_one_model(weights[0]), 10, GREY, ["stage2"])(images)
    teacher = Teacher(
        with_one_model(weights[0], precision="bfloat16"), 10, GREY, ["stage2"], device=Device("cpu", 2), check_px=28
    )
    assert re.fullmatch(r"Paddle Inference, oneDNN, bfloat16 \(within 0\.0\d+ of the plain model\)", teacher.engines[0])
    for name, value in teacher(images).items():
        difference = np.abs(value.numpy() - plain[name].numpy()).max() / np.abs(plain[name].numpy()).max()
        assert value.dtype == paddle.float32 and 1e-5 < difference < TOLERANCE["bfloat16"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("change", [{"engine": "eager"}, {"batch_norm": "batch"}])
def test_a_precision_that_eager_paddle_has_not_on_a_cpu_is_refused(weights, precision, change) -> None:
    section = with_one_model(weights[0], precision=precision, **change)
    with pytest.raises(UserError, match=rf"teacher\.precision: on a CPU '{precision}' needs teacher\.engine 'auto'"):
        Teacher(section, 10, GREY, device=Device("cpu", 2))


def test_a_precision_that_the_engine_has_not_is_refused(weights) -> None:
    section = with_one_model(weights[0], precision="float16")
    with pytest.raises(UserError, match=r"teacher\.precision: .*float32 or bfloat16, received precision 'float16'"):
        Teacher(section, 10, GREY, device=Device("cpu", 2))


class Casting:
    """Stands in for a GPU's automatic mixed precision: rounds the logits as float16 does, or spoils them."""

    def __init__(self, monkeypatch, error: float) -> None:
        self.types: list[str] = []
        taps, active = ResNet.taps, []

        @contextlib.contextmanager
        def auto_cast(enable: bool = True, dtype: str = "float16"):
            if enable:
                self.types.append(dtype)
            active.append(enable)
            yield
            active.pop()

        def rounded(model, images, names):
            return {name: value * (1 + error * active[-1]) for name, value in taps(model, images, names).items()}

        monkeypatch.setattr(paddle.amp, "auto_cast", auto_cast)
        monkeypatch.setattr(ResNet, "taps", rounded)


def test_on_a_gpu_the_plain_network_computes_in_its_own_precision(weights, images, monkeypatch) -> None:
    casting = Casting(monkeypatch, 0.01)
    teacher = Teacher(with_one_model(weights[0], precision="float16"), 10, GREY, device=Device("gpu", 2), check_px=28)
    assert teacher.engines == ["eager Paddle, float16 (within 0.01 of the plain model)"]
    assert teacher(images)["logits"].dtype == paddle.float32
    assert casting.types == ["float16", "float16"]  # while it was checked, and now


def test_a_precision_that_answers_otherwise_is_refused(weights, monkeypatch) -> None:
    Casting(monkeypatch, 0.2)
    with pytest.raises(RunError, match=r"eager Paddle, float16 differs from the plain model by 0\.2"):
        Teacher(with_one_model(weights[0], precision="float16"), 10, GREY, device=Device("gpu", 2), check_px=28)


@pytest.mark.parametrize(("teacher", "student"), [("NHWC", "NCHW"), ("NCHW", "NHWC")])
def test_the_fast_engine_answers_in_the_students_layout(weights, teacher, student) -> None:
    network = {"name": "ResNet18_vd", "width": 0.125, "stem_stride": 1, "weights": weights[0], "data_format": teacher}
    section = TeacherSection.model_validate({"batch_norm": "stored", "models": [network]})
    plain = Teacher(section, 10, GREY, ["stage2"], data_format=student)
    fast = Teacher(section, 10, GREY, ["stage2"], data_format=student, device=Device("cpu", 2), check_px=28)
    assert fast.engines[0].startswith("Paddle Inference")
    shape = [2, 3, 28, 28] if student == "NCHW" else [2, 28, 28, 3]
    views = paddle.to_tensor(np.random.default_rng(0).random(shape), dtype="float32")
    for name, value in plain(views).items():
        np.testing.assert_allclose(fast(views)[name].numpy(), value.numpy(), rtol=1e-4, atol=1e-4)
