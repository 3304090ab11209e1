import numpy as np
import paddle
import pytest
from scipy.special import log_softmax

from distill.losses.cross_entropy import cross_entropy, smoothed_targets, soft_cross_entropy

LABELS = np.array([2, -1, 0, 6, 3])
PARTNERS = np.array([4, 1, -1, 6, -1])
LAM = np.array([0.3, 0.8, 0.25, 0.5, 1.0])


def one_sample(log_p: np.ndarray, label: int, smoothing: float) -> float:
    if label < 0:
        return 0.0
    return -(1 - smoothing) * log_p[label] - smoothing * log_p.mean()


def reference(logits: np.ndarray, smoothing: float, *, mixed: bool) -> float:
    total = 0.0
    for log_p, label, partner, lam in zip(log_softmax(logits, axis=1), LABELS, PARTNERS, LAM, strict=True):
        share = lam if mixed else 1.0
        total += share * one_sample(log_p, label, smoothing) + (1 - share) * one_sample(log_p, partner, smoothing)
    return total / len(logits)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_and_gradient(assert_agrees, logit_pair, smoothing: float, mixed: bool) -> None:
    mixing = {"partner_labels": paddle.to_tensor(PARTNERS), "lam": paddle.to_tensor(LAM)} if mixed else {}
    assert_agrees(
        lambda logits: cross_entropy(logits, paddle.to_tensor(LABELS), label_smoothing=smoothing, **mixing),
        lambda logits: reference(logits, smoothing, mixed=mixed),
        logit_pair[0],
    )


def test_agrees_with_the_framework_on_plain_labels(logit_pair) -> None:
    logits, labels = paddle.to_tensor(logit_pair[0], dtype="float32"), paddle.to_tensor([1, 2, 3, 4, 5])
    expected = paddle.nn.functional.cross_entropy(logits, labels)
    assert cross_entropy(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_unlabelled_samples_have_no_gradient_and_stay_in_the_divisor(logit_pair) -> None:
    logits = paddle.to_tensor(logit_pair[0], dtype="float32", stop_gradient=False)
    labels = np.array([-1, 3, -1, -1, -1])
    loss = cross_entropy(logits, paddle.to_tensor(labels), label_smoothing=0.1)
    loss.backward()
    alone = cross_entropy(logits[1:2], paddle.to_tensor([3]), label_smoothing=0.1)
    assert loss.item() == pytest.approx(alone.item() / 5, rel=1e-6)
    assert not logits.grad.numpy()[labels < 0].any()
    assert logits.grad.numpy()[1].any()


def test_only_unlabelled_samples_give_zero(logit_pair) -> None:
    logits = paddle.to_tensor(logit_pair[0], dtype="float32", stop_gradient=False)
    loss = cross_entropy(logits, paddle.full([5], -1, dtype="int64"))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.numpy().any()


def test_soft_targets_are_used_as_they_are(assert_agrees, logit_pair) -> None:
    targets = np.random.default_rng(1).dirichlet(np.ones(7), size=5)
    assert_agrees(
        lambda logits: soft_cross_entropy(logits, paddle.to_tensor(targets)),
        lambda logits: -(targets * log_softmax(logits, axis=1)).sum() / 5,
        logit_pair[0],
    )


def test_smoothed_targets_are_distributions_or_nothing() -> None:
    targets = smoothed_targets(paddle.to_tensor([1, -1]), 4, 0.2).numpy()
    np.testing.assert_allclose(targets, [[0.05, 0.85, 0.05, 0.05], [0, 0, 0, 0]], rtol=1e-6)


def test_extreme_logits_stay_finite() -> None:
    logits = paddle.to_tensor([[1e4, -1e4, 0.0]], stop_gradient=False)
    loss = cross_entropy(logits, paddle.to_tensor([1]), label_smoothing=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(0.9 * 2e4 + 0.1 * (2e4 + 1e4) / 3)
    assert np.isfinite(logits.grad.numpy()).all()


def test_refuses_half_a_mixture_and_other_shapes() -> None:
    with pytest.raises(ValueError, match="both partner_labels and lam"):
        cross_entropy(paddle.zeros([2, 3]), paddle.to_tensor([0, 1]), lam=paddle.ones([2]))
    with pytest.raises(ValueError, match=r"\[2, 3\], received \[1, 3\]"):
        soft_cross_entropy(paddle.zeros([2, 3]), paddle.zeros([1, 3]))
