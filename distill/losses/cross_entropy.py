"""Cross-entropy against the ground truth, and against soft targets."""

import paddle.nn.functional as F
from paddle import Tensor

from distill.losses.log_probabilities import log_probabilities


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    partner_labels: Tensor | None = None,
    lam: Tensor | None = None,
) -> Tensor:
    """Cross-entropy with integer labels, optionally smoothed, optionally mixed.

        1/N sum_n - sum_c y[n, c] log p[n, c]
        y = lam q(labels) + (1 - lam) q(partner_labels),   q(k)[c] = (1 - e) [c = k] + e / C

    An unlabelled sample (label -1) has q = 0: it contributes nothing, in a mixture only its own share.
    The divisor stays N, so that the weight of one labelled sample does not depend on its neighbours.

    Args:
        logits: [N, C], any float type.
        labels: int64 [N] in [-1, C).
        label_smoothing: e in [0, 1) (Szegedy et al. 2016, arXiv 1512.00567).
        partner_labels: int64 [N] in [-1, C), the labels of the images mixed in (Zhang et al. 2018,
            arXiv 1710.09412); given together with `lam`.
        lam: float [N] in [0, 1], the share of the sample itself.

    Returns:
        float32 scalar, >= 0: the mean over N of the sum over C.

    Raises:
        ValueError: Only one of `partner_labels` and `lam` is given.
    """
    if (partner_labels is None) != (lam is None):
        raise ValueError("mixed labels need both partner_labels and lam, received only one of them")
    num_classes = logits.shape[1]
    targets = smoothed_targets(labels, num_classes, label_smoothing)
    if partner_labels is not None and lam is not None:
        share = lam.astype("float32").unsqueeze(1)
        targets = share * targets + (1.0 - share) * smoothed_targets(partner_labels, num_classes, label_smoothing)
    return soft_cross_entropy(logits, targets)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with targets that are distributions already: 1/N sum_n - sum_c y[n, c] log p[n, c].

    Args:
        logits: [N, C], any float type.
        targets: y, float [N, C], rows sum to 1 (or are 0: no target). Used as they are, no softmax.

    Returns:
        float32 scalar: the mean over N of the sum over C.

    Raises:
        ValueError: The shapes differ.
    """
    if list(logits.shape) != list(targets.shape):
        raise ValueError(f"targets must have the logits' shape {list(logits.shape)}, received {list(targets.shape)}")
    return -(targets.astype("float32") * log_probabilities(logits)).sum(axis=1).mean()


def smoothed_targets(labels: Tensor, num_classes: int, label_smoothing: float = 0.0) -> Tensor:
    """One row a sample: (1 - e) at the label plus e / C everywhere; a row of zeros for the label -1.

    Args:
        labels: int64 [N] in [-1, C).
        num_classes: C.
        label_smoothing: e in [0, 1).

    Returns:
        float32 [N, C].
    """
    labelled = (labels >= 0).astype("float32").unsqueeze(1)
    one_hot = F.one_hot(labels.clip(min=0), num_classes).astype("float32")
    return labelled * ((1.0 - label_smoothing) * one_hot + label_smoothing / num_classes)
