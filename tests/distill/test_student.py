import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.models import create_model
from distill.student import Student, matching_names


@pytest.fixture
def model() -> paddle.nn.Layer:
    paddle.seed(0)
    return create_model("ResNet18_vd", 10, width=0.125, stem_stride=1)


@pytest.fixture(scope="module")
def images() -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(0).standard_normal((4, 3, 28, 28)), dtype="float32")


def arrays(model: paddle.nn.Layer) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def train(student: Student, images: paddle.Tensor, steps: int = 1) -> None:
    parameters = [parameter for _, parameter in student.parameters_to_train()]
    optimizer = paddle.optimizer.Momentum(0.1, parameters=parameters)
    for _ in range(steps):
        student.train_mode()
        student.outputs(images)["logits"].square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
        student.update_ema()


def changed(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


def test_everything_is_trained_by_default(model, images) -> None:
    student, before = Student(model), arrays(model)
    learnable = [name for name, _ in model.named_parameters() if not name.endswith(("._mean", "._variance"))]
    assert [name for name, _ in student.parameters_to_train()] == learnable
    train(student, images)
    assert changed(before, arrays(model)) == set(before)


def test_only_the_classifier_moves_when_all_else_is_frozen(model, images) -> None:
    student, before = Student(model, freeze=["stem.*", "blocks.*"]), arrays(model)
    assert [name for name, _ in student.parameters_to_train()] == ["fc.weight", "fc.bias"]
    train(student, images, steps=2)
    assert changed(before, arrays(model)) == {"fc.weight", "fc.bias"}
    assert {name for name, p in model.named_parameters() if not p.stop_gradient} == {"fc.weight", "fc.bias"}


def test_frozen_batch_norm_uses_its_stored_statistics(model, images) -> None:
    model.eval()
    expected = model(images).numpy()
    student = Student(model, freeze=["*.bn.*"])
    student.train_mode()
    np.testing.assert_array_equal(student.outputs(images)["logits"].numpy(), expected)
    model.train()
    assert np.abs(model(images).numpy() - expected).max() > 0.1


def test_statistics_follow_their_layer(model, images) -> None:
    before = arrays(model)
    student = Student(model, freeze=["stem.1.bn.weight", "stem.1.bn.bias", "stem.2.bn._mean"])
    train(student, images)
    assert set(before) - changed(before, arrays(model)) == {
        *(f"stem.1.bn.{part}" for part in ("weight", "bias", "_mean", "_variance")),
        *(f"stem.2.bn.{part}" for part in ("_mean", "_variance")),
    }


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_half_of_a_batch_norm_cannot_be_frozen(model, part: str) -> None:
    """Paddle would compute no gradient for the other half either."""
    with pytest.raises(UserError, match=rf"stem\.0\.bn only {part} is frozen.*Use 'stem\.0\.bn\.\*'"):
        Student(model, freeze=[f"stem.0.bn.{part}"])


def test_a_new_student_of_the_same_model_is_not_frozen_by_the_old_one(model) -> None:
    Student(model, freeze=["blocks.*"])
    assert all(not parameter.stop_gradient for _, parameter in Student(model).parameters_to_train())


def test_a_pattern_without_a_match_names_the_nearest(model) -> None:
    with pytest.raises(UserError, match=r"'block\.0\.\*' matches no parameter\. Nearest: 'blocks\.0\.\*'"):
        Student(model, freeze=["stem.*", "block.0.*"])
    with pytest.raises(UserError, match="leaves no parameter to train"):
        Student(model, freeze=["*"])


def test_outputs_hold_the_logits_and_the_taps(model, images) -> None:
    outputs = Student(model).outputs(images, ("stage4", "embedding"))
    assert {name: value.shape for name, value in outputs.items()} == {
        "stage4": [4, 64, 4, 4],
        "embedding": [4, 64],
        "logits": [4, 10],
    }


def test_average_follows_parameters_and_statistics(model, images) -> None:
    student = Student(model, ema_decay=0.75)
    expected = {name: value.astype(np.float64) for name, value in arrays(model).items()}
    for _ in range(3):
        train(student, images)
        for name, value in arrays(model).items():
            expected[name] = 0.75 * expected[name] + 0.25 * value
    state = student.ema_state()
    assert set(state) == set(model.state_dict())
    for name, value in state.items():
        assert value.dtype == paddle.float32
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-5, atol=1e-6)
    assert np.abs(state["stem.0.bn._mean"].numpy() - arrays(model)["stem.0.bn._mean"]).max() > 0


def test_what_is_frozen_has_no_average(model, images) -> None:
    student = Student(model, freeze=["stem.*", "blocks.*.bn.weight", "blocks.*.bn.bias"], ema_decay=0.75)
    before = arrays(model)
    train(student, images, steps=2)
    state = student.ema_state()
    assert set(state) == changed(before, arrays(model))
    assert {name.split(".")[-2] for name in state} == {"conv", "fc"}
    with student.with_ema_weights():
        assert changed(before, arrays(model)) == set(state)


@pytest.mark.parametrize(
    ("freeze", "only"),
    [
        (["stem.*", "blocks.*"], True),
        (["stem.*", "blocks.*", "fc.bias"], True),
        (["*.conv.weight", "*.bn.weight", "*.bn.bias"], True),
        (["stem.*"], False),
        (["*.conv.weight"], False),
        ([], False),
    ],
)
def test_whether_the_classifier_alone_is_trained(model, freeze: list[str], only: bool) -> None:
    assert Student(model, freeze=freeze).trains_classifier_only is only


def test_the_classifier_of_the_embedding_gives_the_logits(model, images) -> None:
    student = Student(model)
    outputs = student.outputs(images, ["embedding"])
    np.testing.assert_array_equal(student.classify(outputs["embedding"])["logits"].numpy(), outputs["logits"].numpy())


def test_averaged_weights_are_there_for_the_context_only(model, images) -> None:
    student = Student(model, ema_decay=0.9)
    train(student, images, steps=2)
    own, average = arrays(model), {name: value.numpy() for name, value in student.ema_state().items()}
    with student.with_ema_weights():
        assert not changed(average, arrays(model))
    assert not changed(own, arrays(model))
    with pytest.raises(RuntimeError, match="evaluation failed"), student.with_ema_weights():
        raise RuntimeError("evaluation failed")
    assert not changed(own, arrays(model))
    train(student, images)
    assert changed(own, arrays(model)) == set(own)


def test_average_goes_on_bitwise_after_a_restore(model, images) -> None:
    student = Student(model, ema_decay=0.9)
    train(student, images)
    saved = {name: value.numpy().copy() for name, value in student.ema_state().items()}
    other = Student(model, ema_decay=0.9)
    other.restore_ema(saved)
    student.update_ema()
    other.update_ema()
    for name, value in student.ema_state().items():
        assert value.numpy().tobytes() == other.ema_state()[name].numpy().tobytes()


def test_restoring_refuses_what_does_not_fit(model) -> None:
    student = Student(model, ema_decay=0.9)
    saved = {name: value.numpy() for name, value in student.ema_state().items()}
    with pytest.raises(ValueError, match=r"does not fit the student: fc\.bias"):
        student.restore_ema({name: value for name, value in saved.items() if name != "fc.bias"})
    with pytest.raises(ValueError, match=r"does not fit the student: fc\.bias"):
        student.restore_ema(saved | {"fc.bias": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="does not fit"):
        Student(model).restore_ema(saved)


def test_without_an_average_nothing_happens(model, images) -> None:
    student = Student(model)
    train(student, images)
    own = arrays(model)
    assert student.ema_state() == {}
    student.restore_ema({})
    with student.with_ema_weights():
        assert not changed(own, arrays(model))


def test_half_precision_weights_have_a_float32_average() -> None:
    model = paddle.nn.Linear(2, 3)
    model.to(dtype="float16")
    student = Student(model, ema_decay=0.999)
    weight = model.weight.numpy()
    model.weight.set_value(weight + np.float16(1))
    student.update_ema()
    expected = weight.astype(np.float32) + np.float32(0.001) * (
        model.weight.numpy().astype(np.float32) - weight.astype(np.float32)
    )
    np.testing.assert_allclose(student.ema_state()["weight"].numpy(), expected, rtol=1e-6)
    with student.with_ema_weights():
        assert model.weight.dtype == paddle.float16


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab.c", min_size=1, max_size=6), min_size=1, unique=True))
def test_patterns_match_like_globs(names: list[str]) -> None:
    assert matching_names(["*"], names) == set(names)
    assert matching_names(names, names) == set(names)
    assert matching_names([], names) == set()
    prefix = names[0][0]
    assert matching_names([f"{prefix}*"], names) == {name for name in names if name.startswith(prefix)}
