"""Kullback-Leibler divergence with temperature: the loss of knowledge distillation."""

from paddle import Tensor

from distill.losses.log_probabilities import log_probability_pair


def kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) between softened distributions.

        T^2 / N sum_n sum_c t[n, c] (log t[n, c] - log s[n, c]),   s, t = softmax(logits / T)

    T^2 is applied: it keeps the size of the gradient about the same for every T.

    Args:
        student_logits: [N, C], any float type.
        teacher_logits: [N, C], any float type; receives no gradient.
        temperature: T > 0.

    Returns:
        float32 scalar, >= 0 up to rounding, 0 where the distributions agree: the mean over N of the sum over C.

    Raises:
        ValueError: Shapes or temperature are wrong.

    Source: Hinton et al. 2015, arXiv 1503.02531, section 2.
    """
    log_s, log_t = log_probability_pair(student_logits, teacher_logits, temperature)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(axis=1).mean()
