import numpy as np
import paddle
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from distill.losses.kl import kl


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_value_and_gradient(assert_agrees, logit_pair, temperature: float) -> None:
    student, teacher = logit_pair

    def reference(logits: np.ndarray) -> float:
        t, s = softmax(teacher / temperature, axis=1), softmax(logits / temperature, axis=1)
        return temperature**2 * entropy(t, s, axis=1).mean()

    assert_agrees(
        lambda logits: kl(logits, paddle.to_tensor(teacher, dtype="float32"), temperature=temperature),
        reference,
        student,
    )


def test_the_teacher_comes_first_in_the_divergence() -> None:
    # The teacher is certain, the student is not: KL(teacher || student) = log 2, the other way round it is large.
    student, teacher = paddle.to_tensor([[0.0, 0.0]]), paddle.to_tensor([[100.0, 0.0]])
    assert kl(student, teacher, temperature=1.0).item() == pytest.approx(np.log(2), rel=1e-6)
    assert kl(teacher, student, temperature=1.0).item() > 40
