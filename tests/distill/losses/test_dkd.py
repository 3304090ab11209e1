import numpy as np
import paddle
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from distill.losses.dkd import dkd, target_classes
from distill.losses.kl import kl

TARGET = np.array([0, 6, 3, 3, 1])


def reference(student: np.ndarray, teacher: np.ndarray, temperature: float, alpha: float, beta: float) -> float:
    """Equation 7 of the paper, a sample at a time, with the probabilities spelled out."""
    total = 0.0
    for z_s, z_t, k in zip(student / temperature, teacher / temperature, TARGET, strict=True):
        s, t = softmax(z_s), softmax(z_t)
        tckd = entropy([t[k], 1 - t[k]], [s[k], 1 - s[k]])
        nckd = entropy(np.delete(t, k) / (1 - t[k]), np.delete(s, k) / (1 - s[k]))
        total += alpha * tckd + beta * nckd
    return temperature**2 * total / len(TARGET)


@pytest.mark.parametrize(("temperature", "alpha", "beta"), [(1.0, 1.0, 0.5), (4.0, 1.0, 8.0), (2.0, 1.0, 0.0)])
def test_value_and_gradient(assert_agrees, logit_pair, temperature: float, alpha: float, beta: float) -> None:
    student, teacher = logit_pair
    target, teacher_tensor = paddle.to_tensor(TARGET), paddle.to_tensor(teacher, dtype="float32")
    assert_agrees(
        lambda logits: dkd(logits, teacher_tensor, target, temperature=temperature, alpha=alpha, beta=beta),
        lambda logits: reference(logits, teacher, temperature, alpha, beta),
        student,
    )


def test_its_parts_add_up_to_kl(logit_pair) -> None:
    student, teacher = (paddle.to_tensor(x, dtype="float32") for x in logit_pair)
    for n in range(5):
        pair = student[n : n + 1], teacher[n : n + 1]
        rest = 1 - softmax(logit_pair[1][n])[TARGET[n]]
        both = dkd(*pair, paddle.to_tensor(TARGET[n : n + 1]), temperature=1.0, alpha=1.0, beta=float(rest))
        assert both.item() == pytest.approx(kl(*pair, temperature=1.0).item(), rel=1e-4)


def test_two_classes_leave_nothing_to_the_second_part() -> None:
    student = paddle.to_tensor([[1.0, -1.0]], stop_gradient=False)
    loss = dkd(student, paddle.to_tensor([[0.0, 3.0]]), paddle.to_tensor([1]), temperature=1.0, alpha=0.0, beta=1.0)
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.numpy().any()


def test_certain_teacher_keeps_its_knowledge_of_the_others() -> None:
    # 1 - t[target] is 0 in float32 here; a version that divides by it would be NaN.
    student = paddle.to_tensor([[50.0, 0.0, 0.0]])
    teacher = paddle.to_tensor([[50.0, np.log(3.0), 0.0]], dtype="float32")
    loss = dkd(student, teacher, paddle.to_tensor([0]), temperature=1.0, alpha=1.0, beta=1.0)
    assert loss.item() == pytest.approx(entropy([0.75, 0.25], [0.5, 0.5]), rel=1e-4)


def test_target_is_the_label_or_what_the_teacher_sees() -> None:
    teacher = paddle.to_tensor([[0.0, 5.0, 1.0], [9.0, 0.0, 0.0]])
    labels = paddle.to_tensor([2, -1])
    assert target_classes(labels, teacher).tolist() == [2, 0]
    partner_labels, lam = paddle.to_tensor([0, 2]), paddle.to_tensor([0.4, 0.4])
    assert target_classes(labels, teacher, partner_labels=partner_labels, lam=lam).tolist() == [0, 2]
    mostly_itself = paddle.to_tensor([0.6, 0.6])
    assert target_classes(labels, teacher, partner_labels=partner_labels, lam=mostly_itself).tolist() == [2, 0]
