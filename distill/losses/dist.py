"""DIST: distillation by correlation instead of an exact match."""

import paddle
from paddle import Tensor

from distill.losses.log_probabilities import log_probability_pair

# The smallest squared norm of a centred vector, as the 1e-8 of the paper's code on the norm: the correlation
# of a constant vector is 0 then, and its gradient 0 instead of NaN.
_SMALLEST_SQUARED_NORM = 1e-16


def dist(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, beta: float, gamma: float) -> Tensor:
    """Pearson distances between the predictions, along the classes and along the batch.

        T^2 (beta inter + gamma intra),   s, t = softmax(logits / T)
        inter = 1 - 1/N sum_n pearson(s[n, :], t[n, :])     does an image rank the classes alike?
        intra = 1 - 1/C sum_c pearson(s[:, c], t[:, c])     does a class rank the images alike?

    **Depends on the micro-batch**: `intra` correlates over the N samples of one forward pass, so the term
    changes with the recipe's device_batch_size, and accumulating over micro-batches is not the same as one
    large batch. A class whose probability is constant in the batch (always for N = 1) counts as uncorrelated:
    1, without gradient. T^2 is applied, as in the paper's code.

    Args:
        student_logits: [N, C], any float type.
        teacher_logits: [N, C], any float type; receives no gradient.
        temperature: T > 0; the paper uses 1 for ResNet34 -> ResNet18 and 4 on CIFAR-100.
        beta: >= 0, of `inter`; the paper uses 1 on ImageNet, 2 on CIFAR-100.
        gamma: >= 0, of `intra`; the paper uses 1 on ImageNet, 2 on CIFAR-100.

    Returns:
        float32 scalar in [0, 2 T^2 (beta + gamma)] up to rounding; 0 where the distributions agree and no
        class is constant in the batch.

    Raises:
        ValueError: Shapes or temperature are wrong.

    Source: Huang et al. 2022, arXiv 2205.10536, equations 6-10.
    """
    log_s, log_t = log_probability_pair(student_logits, teacher_logits, temperature)
    s, t = log_s.exp(), log_t.exp()
    inter = 1.0 - (_standardized(s, axis=1) * _standardized(t, axis=1)).sum(axis=1).mean()
    intra = 1.0 - (_standardized(s, axis=0) * _standardized(t, axis=0)).sum(axis=0).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _standardized(x: Tensor, axis: int) -> Tensor:
    """Centred and of norm 1 along `axis`, so that a product summed over it is Pearson's correlation."""
    centred = x - x.mean(axis=axis, keepdim=True)
    squared_norm = centred.square().sum(axis=axis, keepdim=True)
    return centred * paddle.rsqrt(squared_norm.clip(min=_SMALLEST_SQUARED_NORM))
