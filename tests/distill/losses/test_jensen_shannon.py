import numpy as np
import paddle
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

from distill.losses.jensen_shannon import jensen_shannon


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_value_and_gradient(assert_agrees, logit_pair, temperature: float) -> None:
    student, teacher = logit_pair

    def reference(logits: np.ndarray) -> float:
        t, s = softmax(teacher / temperature, axis=1), softmax(logits / temperature, axis=1)
        return temperature**2 * (jensenshannon(s, t, axis=1) ** 2).mean()  # SciPy gives the square root

    assert_agrees(
        lambda logits: jensen_shannon(logits, paddle.to_tensor(teacher, dtype="float32"), temperature=temperature),
        reference,
        student,
    )


def test_is_bounded_by_log_2() -> None:
    opposite = paddle.to_tensor([[1e4, 0.0]]), paddle.to_tensor([[0.0, 1e4]])
    assert jensen_shannon(*opposite, temperature=1.0).item() == pytest.approx(np.log(2), rel=1e-6)
