import numpy as np
import paddle
import pytest
from scipy.special import log_softmax

from distill.losses.log_probabilities import log_probabilities, log_probability_pair


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_equals_scipy(temperature: float) -> None:
    logits = np.random.default_rng(0).standard_normal((4, 9)) * 5
    result = log_probabilities(paddle.to_tensor(logits, dtype="float32"), temperature)
    np.testing.assert_allclose(result.numpy(), log_softmax(logits / temperature, axis=1), rtol=1e-5, atol=1e-5)


def test_computes_half_precision_in_float32() -> None:
    logits = np.array([[60000.0, 0.0, -60000.0]], dtype=np.float16)
    result = log_probabilities(paddle.to_tensor(logits))
    assert result.dtype == paddle.float32
    np.testing.assert_array_equal(result.numpy(), [[0.0, -60000.0, -120000.0]])  # beyond float16's 65504
    bfloat16 = log_probabilities(paddle.to_tensor([[1.0, 2.0]]).astype("bfloat16"))
    assert bfloat16.dtype == paddle.float32


def test_far_classes_are_not_cut_off() -> None:
    # Paddle's own log_softmax answers -64 here on a CPU, and gives the last logit the gradient exp(-64).
    logits = paddle.to_tensor([[1e4, 0.0, 9900.0]], stop_gradient=False)
    result = log_probabilities(logits)
    result[0, 2].backward()
    np.testing.assert_array_equal(result.numpy(), [[0.0, -1e4, -100.0]])
    np.testing.assert_array_equal(logits.grad.numpy(), [[-1.0, 0.0, 1.0]])


def test_a_common_offset_costs_no_precision() -> None:
    logits = np.random.default_rng(0).integers(-20, 20, (8, 100)) + 1e4  # exact in float32
    result = log_probabilities(paddle.to_tensor(logits, dtype="float32"))
    np.testing.assert_allclose(result.numpy(), log_softmax(logits, axis=1), rtol=1e-6)


def test_teacher_gets_no_gradient() -> None:
    student = paddle.to_tensor([[1.0, 2.0]], stop_gradient=False)
    teacher = paddle.to_tensor([[2.0, 1.0]], stop_gradient=False)
    log_s, log_t = log_probability_pair(student, teacher, 1.0)
    (log_s * log_t).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_refuses_a_temperature_that_is_not_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be > 0, received"):
        log_probabilities(paddle.zeros([1, 2]), temperature)


def test_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\[4, 3\] and \[1, 3\]"):
        log_probability_pair(paddle.zeros([4, 3]), paddle.zeros([1, 3]), 1.0)
    with pytest.raises(ValueError, match=r"must be \[N, C\], received the shape \[3\]"):
        log_probabilities(paddle.zeros([3]))
