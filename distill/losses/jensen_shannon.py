"""The Jensen-Shannon divergence proper (SSLD's "JS" is `symmetric_kl`)."""

import math

import paddle
from paddle import Tensor

from distill.losses.log_probabilities import log_probability_pair


def jensen_shannon(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """1/2 KL(student || m) + 1/2 KL(teacher || m) with the mixture m = (student + teacher) / 2.

        T^2 / N sum_n 1/2 sum_c (s log(s / m) + t log(t / m)),   s, t = softmax(logits / T)

    T^2 is applied as in `kl`.

    Args:
        student_logits: [N, C], any float type.
        teacher_logits: [N, C], any float type; receives no gradient.
        temperature: T > 0.

    Returns:
        float32 scalar in [0, T^2 ln 2] up to rounding, 0 where the distributions agree: the mean over N of
        the sum over C.

    Raises:
        ValueError: Shapes or temperature are wrong.

    Source: Lin 1991, "Divergence measures based on the Shannon entropy", equation 3.1.
    """
    log_s, log_t = log_probability_pair(student_logits, teacher_logits, temperature)
    log_mixture = paddle.logsumexp(paddle.stack([log_s, log_t]), axis=0) - math.log(2)
    per_class = log_s.exp() * (log_s - log_mixture) + log_t.exp() * (log_t - log_mixture)
    return temperature**2 * (0.5 * per_class).sum(axis=1).mean()
