"""Which sample is mixed with which, and how much: mixup partners and weights."""

import numpy as np

from distill.data.random import Stream, generator
from distill.data.types import FloatArray, IntArray


def mixup_plan(
    seed: int, stage: int, epoch: int, first: int, end: int, group_size: int, alpha: float
) -> tuple[IntArray, FloatArray]:
    """Partners and weights of the samples at the positions [first, end) of an epoch's order.

    mixed_i = lam_i x_i + (1 - lam_i) x_partner(i), lam_i ~ Beta(alpha, alpha); the same for the targets
    (Zhang et al. 2018, arXiv 1710.09412, eq. 1).

    Deliberate deviations: partners stay inside a group of `group_size` consecutive positions, so that no
    rank and no micro-batch ever needs another's images; every sample has a weight of its own (the paper's
    code draws one a batch); the partners form one random cycle through the group, since in a small group
    a free permutation would leave many samples unmixed.

    Args:
        seed: The recipe's seed.
        stage: The stage's place in the recipe.
        epoch: The epoch.
        first: A multiple of group_size.
        end: A multiple of group_size, or the end of the epoch (a last group of one stays unmixed).
        group_size: >= 2.
        alpha: > 0.

    Returns:
        (partner int64 [N]: index in 0..N-1, lam float32 [N] in [0, 1]), with N = end - first.

    Raises:
        ValueError: `first` would split a group.
    """
    if first % group_size:
        raise ValueError(f"first must be a multiple of group_size {group_size}, received {first}")
    partner = np.arange(end - first, dtype=np.int64)
    lam = np.ones(end - first, dtype=np.float32)
    for begin in range(first, end, group_size):
        size = min(group_size, end - begin)
        if size == 1:
            continue
        random = generator(seed, stage, epoch, begin // group_size, Stream.MIX)
        cycle = random.permutation(size) + (begin - first)
        partner[cycle] = np.roll(cycle, 1)
        lam[begin - first : begin - first + size] = random.beta(alpha, alpha, size)
    return partner, lam


def keep_samples(partner: IntArray, lam: FloatArray, kept: IntArray) -> tuple[IntArray, FloatArray]:
    """The plan of the samples `kept`, renumbered; where the partner is gone a sample stays unmixed.

    Args:
        partner: int64 [N].
        lam: float32 [N].
        kept: int64 [K], ascending places in 0..N-1.

    Returns:
        (partner int64 [K] in 0..K-1, lam float32 [K]).
    """
    new_place = np.full(len(partner), -1, dtype=np.int64)
    new_place[kept] = np.arange(len(kept))
    moved = new_place[partner[kept]]
    gone = moved < 0
    return np.where(gone, np.arange(len(kept)), moved), np.where(gone, np.float32(1), lam[kept])
