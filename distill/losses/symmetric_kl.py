"""Half the symmetric Kullback-Leibler divergence: SSLD's loss."""

from paddle import Tensor

from distill.losses.log_probabilities import log_probability_pair


def symmetric_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """1/2 (KL(student || teacher) + KL(teacher || student)).

        T^2 / N sum_n 1/2 sum_c (t[n, c] - s[n, c]) (log t[n, c] - log s[n, c]),   s, t = softmax(logits / T)

    SSLD publishes its loss as "JS", yet this is what its code computes (with T = 1, and neither a
    ground-truth term nor mixup). The Jensen-Shannon divergence proper is `jensen_shannon`; it is
    bounded, and on random logits several times smaller. T^2 is applied as in `kl`.

    Args:
        student_logits: [N, C], any float type.
        teacher_logits: [N, C], any float type; receives no gradient.
        temperature: T > 0.

    Returns:
        float32 scalar, >= 0 (every summand is), 0 where the distributions agree: the mean over N of the sum over C.

    Raises:
        ValueError: Shapes or temperature are wrong.

    Source: Cui et al. 2021, "Beyond Self-Supervision" (SSLD), arXiv 2103.05959; PaddleClas, its JS loss.
    """
    log_s, log_t = log_probability_pair(student_logits, teacher_logits, temperature)
    return temperature**2 * (0.5 * (log_t.exp() - log_s.exp()) * (log_t - log_s)).sum(axis=1).mean()
