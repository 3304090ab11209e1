"""Rules that hold for every loss between two sets of logits."""

from collections.abc import Callable

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distill.losses.dist import dist
from distill.losses.dkd import dkd
from distill.losses.jensen_shannon import jensen_shannon
from distill.losses.kl import kl
from distill.losses.symmetric_kl import symmetric_kl

LogitLoss = Callable[[paddle.Tensor, paddle.Tensor], paddle.Tensor]

SHAPE = (3, 4)
TARGET = np.array([0, 3, 1])
LOSSES: dict[str, LogitLoss] = {
    "kl": lambda s, t: kl(s, t, temperature=2.0),
    "symmetric_kl": lambda s, t: symmetric_kl(s, t, temperature=2.0),
    "jensen_shannon": lambda s, t: jensen_shannon(s, t, temperature=2.0),
    "dkd": lambda s, t: dkd(s, t, paddle.to_tensor(TARGET[: len(s)]), temperature=2.0, alpha=1.0, beta=2.0),
    "dist": lambda s, t: dist(s, t, temperature=2.0, beta=1.0, gamma=1.0),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
some_examples = settings(max_examples=40, deadline=None)
logits = arrays(np.float32, SHAPE, elements=st.floats(-20, 20, width=32))
extreme_logits = arrays(np.float32, SHAPE, elements=st.sampled_from([-1e4, 0.0, 1.0, 9999.0, 1e4]))


def value(loss: LogitLoss, student: np.ndarray, teacher: np.ndarray) -> float:
    return loss(paddle.to_tensor(student), paddle.to_tensor(teacher)).item()


@every_loss
@some_examples
@given(student=logits, teacher=logits)
def test_is_never_negative(loss: LogitLoss, student: np.ndarray, teacher: np.ndarray) -> None:
    assert value(loss, student, teacher) >= -1e-5  # T^2 = 4 times the rounding of sums near 1


@every_loss
@some_examples
@given(both=logits)
def test_is_zero_without_slope_where_both_agree(loss: LogitLoss, both: np.ndarray) -> None:
    if loss is LOSSES["dist"]:  # a class that is constant in the batch counts as uncorrelated
        both = np.random.default_rng(int(abs(both).sum())).standard_normal(SHAPE).astype(np.float32)
    student = paddle.to_tensor(both, stop_gradient=False)
    result = loss(student, paddle.to_tensor(both))
    result.backward()
    assert result.item() == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(student.grad.numpy(), 0, atol=1e-5)


@every_loss
@some_examples
@given(student=logits, teacher=logits, shift=st.integers(-8, 8))
def test_ignores_a_shift_of_all_logits_of_a_sample(
    loss: LogitLoss, student: np.ndarray, teacher: np.ndarray, shift: int
) -> None:
    moved = value(loss, student + np.array([[shift], [0], [-shift]], np.float32), teacher + np.float32(shift))
    assert moved == pytest.approx(value(loss, student, teacher), rel=1e-4, abs=1e-4)


@every_loss
@some_examples
@given(student=extreme_logits, teacher=extreme_logits)
def test_stays_finite_for_extreme_logits(loss: LogitLoss, student: np.ndarray, teacher: np.ndarray) -> None:
    tensor = paddle.to_tensor(student, stop_gradient=False)
    result = loss(tensor, paddle.to_tensor(teacher))
    result.backward()
    assert np.isfinite(result.item())
    assert np.isfinite(tensor.grad.numpy()).all()


@every_loss
def test_takes_float16_and_answers_in_float32(loss: LogitLoss) -> None:
    rng = np.random.default_rng(1)
    student, teacher = (rng.standard_normal(SHAPE).astype(np.float16) for _ in range(2))
    tensor = paddle.to_tensor(student, stop_gradient=False)
    result = loss(tensor, paddle.to_tensor(teacher))
    result.backward()
    assert result.dtype == paddle.float32
    assert tensor.grad.dtype == paddle.float16
    assert result.item() == value(loss, student.astype(np.float32), teacher.astype(np.float32))


@every_loss
def test_a_single_sample_gives_a_finite_gradient(loss: LogitLoss) -> None:
    student = paddle.to_tensor([[1.0, 2.0, 0.0, -1.0]], stop_gradient=False)
    loss(student, paddle.to_tensor([[0.0, 2.0, 1.0, 3.0]])).backward()
    assert np.isfinite(student.grad.numpy()).all()
    assert np.abs(student.grad.numpy()).max() > 0


@every_loss
def test_every_loss_lowers_itself_by_gradient_descent(loss: LogitLoss) -> None:
    rng = np.random.default_rng(5)
    student = paddle.to_tensor(rng.standard_normal(SHAPE), dtype="float32", stop_gradient=False)
    teacher = paddle.to_tensor(rng.standard_normal(SHAPE), dtype="float32")
    before = loss(student, teacher)
    before.backward()
    after = loss(student.detach() - 0.1 * student.grad, teacher)
    assert after.item() < before.item()
