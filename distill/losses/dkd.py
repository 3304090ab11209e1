"""Decoupled knowledge distillation (DKD)."""

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from distill.losses.log_probabilities import log_probability_pair, log_softmax

# Added to a logit it takes that class out of a softmax: exp(-1e30) is 0, and unlike -inf it gives no
# 0 * inf in a product with that probability. The paper's code adds -1000, too little for large logits.
_EXCLUDED = -1e30


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    temperature: float,
    alpha: float,
    beta: float,
) -> Tensor:
    """KL(teacher || student) split into the part of the target class and the part of all others.

        T^2 / N sum_n (alpha TCKD[n] + beta NCKD[n]),   s, t = softmax(logits / T)
        TCKD = KL of the two-class distributions (t[target], 1 - t[target]) || (s[target], 1 - s[target])
        NCKD = KL between the distributions over the classes other than the target

    With alpha = 1 and beta = 1 - t[target] for each sample it would be `kl`. T^2 is applied.

    Args:
        student_logits: [N, C], any float type.
        teacher_logits: [N, C], any float type; receives no gradient.
        target: int64 [N] in [0, C): the class that is split off. The paper takes the label; see
            `target_classes` for unlabelled and mixed samples.
        temperature: T > 0; the paper uses 4 on CIFAR-100 and 1 on ImageNet.
        alpha: >= 0; the paper uses 1.
        beta: >= 0; the paper uses 8 on CIFAR-100 and 0.5 on ImageNet.

    Returns:
        float32 scalar, >= 0 up to rounding, 0 where the distributions agree: the mean over N.

    Raises:
        ValueError: Shapes or temperature are wrong.

    Source: Zhao et al. 2022, arXiv 2203.08679, equation 7. The paper's code also ramps the term up during
    the first epochs; this function does not.
    """
    log_s, log_t = log_probability_pair(student_logits, teacher_logits, temperature)
    is_target = F.one_hot(target, log_s.shape[1]).astype("float32")

    two_class_s, two_class_t = _two_class(log_s, is_target), _two_class(log_t, is_target)
    target_part = (two_class_t.exp() * (two_class_t - two_class_s)).sum(axis=1)

    others_s = log_softmax(log_s + _EXCLUDED * is_target)
    others_t = log_softmax(log_t + _EXCLUDED * is_target)
    others_part = (others_t.exp() * (others_t - others_s)).sum(axis=1)
    return temperature**2 * (alpha * target_part + beta * others_part).mean()


def target_classes(
    labels: Tensor, teacher_logits: Tensor, *, partner_labels: Tensor | None = None, lam: Tensor | None = None
) -> Tensor:
    """The class that `dkd` splits off, also where the paper defines none.

    The label; in a mixed image the label of the larger share; the teacher's top class where that image is
    unlabelled. A deviation from the paper, which knows labelled, unmixed images only.

    Args:
        labels: int64 [N] in [-1, C), -1 for unlabelled.
        teacher_logits: [N, C].
        partner_labels: int64 [N] in [-1, C), given together with `lam`.
        lam: float [N] in [0, 1], the share of the sample itself.

    Returns:
        int64 [N] in [0, C).
    """
    if partner_labels is not None and lam is not None:
        labels = paddle.where(lam >= 0.5, labels, partner_labels)
    return paddle.where(labels >= 0, labels, teacher_logits.argmax(axis=1))


def _two_class(log_probabilities: Tensor, is_target: Tensor) -> Tensor:
    """[N, 2]: log p[target] and log(1 - p[target]), the latter as a sum over the others, never as 1 - p."""
    target = (log_probabilities * is_target).sum(axis=1)
    others = paddle.logsumexp(log_probabilities + _EXCLUDED * is_target, axis=1)
    return paddle.stack([target, others], axis=1)
