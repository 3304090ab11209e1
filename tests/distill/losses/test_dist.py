import numpy as np
import paddle
import pytest
from scipy.special import softmax
from scipy.stats import pearsonr

from distill.losses.dist import dist


def reference(student: np.ndarray, teacher: np.ndarray, temperature: float, beta: float, gamma: float) -> float:
    s, t = softmax(student / temperature, axis=1), softmax(teacher / temperature, axis=1)
    inter = 1 - np.mean([pearsonr(s[n], t[n])[0] for n in range(len(s))])
    intra = 1 - np.mean([pearsonr(s[:, c], t[:, c])[0] for c in range(s.shape[1])])
    return temperature**2 * (beta * inter + gamma * intra)


@pytest.mark.parametrize(("temperature", "beta", "gamma"), [(1.0, 1.0, 1.0), (4.0, 2.0, 0.5), (1.0, 0.0, 1.0)])
def test_value_and_gradient(assert_agrees, logit_pair, temperature: float, beta: float, gamma: float) -> None:
    student, teacher = logit_pair
    teacher_tensor = paddle.to_tensor(teacher, dtype="float32")
    assert_agrees(
        lambda logits: dist(logits, teacher_tensor, temperature=temperature, beta=beta, gamma=gamma),
        lambda logits: reference(logits, teacher, temperature, beta, gamma),
        student,
    )


def test_a_single_sample_has_no_relation_to_others() -> None:
    student = paddle.to_tensor([[1.0, 2.0, 0.0]], stop_gradient=False)
    loss = dist(student, paddle.to_tensor([[0.0, 2.0, 1.0]]), temperature=1.0, beta=0.0, gamma=1.0)
    loss.backward()
    assert loss.item() == 1
    assert not student.grad.numpy().any()


def test_depends_on_the_micro_batch(logit_pair) -> None:
    student, teacher = (paddle.to_tensor(np.tile(x, (2, 1)), dtype="float32") for x in logit_pair)
    parameters = {"temperature": 1.0, "beta": 0.0, "gamma": 1.0}
    whole = dist(student, teacher, **parameters).item()
    parts = [dist(student[a : a + 2], teacher[a : a + 2], **parameters).item() for a in range(0, 10, 2)]
    assert abs(whole - np.mean(parts)) > 0.05
