import numpy as np
import paddle
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from distill.losses.jensen_shannon import jensen_shannon
from distill.losses.symmetric_kl import symmetric_kl


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_value_and_gradient(assert_agrees, logit_pair, temperature: float) -> None:
    student, teacher = logit_pair

    def reference(logits: np.ndarray) -> float:
        t, s = softmax(teacher / temperature, axis=1), softmax(logits / temperature, axis=1)
        return temperature**2 * 0.5 * (entropy(t, s, axis=1) + entropy(s, t, axis=1)).mean()

    assert_agrees(
        lambda logits: symmetric_kl(logits, paddle.to_tensor(teacher, dtype="float32"), temperature=temperature),
        reference,
        student,
    )


def test_is_symmetric(logit_pair) -> None:
    a, b = (paddle.to_tensor(x, dtype="float32") for x in logit_pair)
    assert symmetric_kl(a, b, temperature=2.0).item() == pytest.approx(symmetric_kl(b, a, temperature=2.0).item())


def test_is_another_function_than_jensen_shannon() -> None:
    rng = np.random.default_rng(0)
    a, b = (paddle.to_tensor(3 * rng.standard_normal((64, 10)), dtype="float32") for _ in range(2))
    assert symmetric_kl(a, b, temperature=1.0).item() > 5 * jensen_shannon(a, b, temperature=1.0).item()
