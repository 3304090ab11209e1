"""Which sample is mixed with which, how, and how much: partners, weights and boxes of mixup and CutMix."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distill.data.random import Stream, generator
from distill.data.types import FloatArray, IntArray
from distill.recipe import MixSection, Stage


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class MixPlan:
    """How N consecutive samples are mixed with each other.

    Attributes:
        partner: int64 [N] in 0..N-1; an unmixed sample is its own.
        lam: float32 [N] in [0, 1], the share of the sample itself, in the targets and, without a box, in the image.
        boxes: int64 [N, 4], left, top, right, bottom in pixels: where the partner's pixels replace the sample's.
            Without area where a sample is mixed up, or not mixed. None: there is no CutMix.
    """

    partner: IntArray
    lam: FloatArray
    boxes: IntArray | None

    @property
    def cut(self) -> NDArray[np.bool_] | None:
        """Who gets a box of its partner: bool [N]; None where `boxes` is."""
        if self.boxes is None:
            return None
        left, top, right, bottom = self.boxes.T
        cut: NDArray[np.bool_] = (right > left) & (bottom > top)
        return cut


def mix_plan(stage: Stage, seed: int, stage_index: int, epoch: int, first: int, end: int) -> MixPlan:
    """How the samples at the positions [first, end) of an epoch's order are mixed.

    Mixup (Zhang et al. 2018, arXiv 1710.09412, eq. 1): lam x_i + (1 - lam) x_partner, lam ~ Beta(alpha, alpha); the
    same for the targets. CutMix (Yun et al. 2019, arXiv 1905.04899, eq. 1 and 2): x_i with a box of x_partner, its
    sides sqrt(1 - lam) of the image's, its centre anywhere, cut off at the border; lam, the weight of the targets,
    then becomes the share of the image that the box leaves.

    Deliberate deviations: partners stay inside a group of `group_size` consecutive positions, so that no rank and no
    micro-batch ever needs another's images; every sample has a weight and a box of its own (the papers' code draws one
    a batch); the partners form one random cycle through the group, since in a small group a free permutation would
    leave many samples unmixed. With both, each group is mixed in one way, drawn with their probabilities.

    Args:
        stage: Its mixup, cutmix and size of the views.
        seed: The recipe's seed.
        stage_index: The stage's place in the recipe.
        epoch: The epoch.
        first: A multiple of the group size.
        end: A multiple of the group size, or the end of the epoch (a last group of one stays unmixed).

    Raises:
        ValueError: `first` would split a group.
    """
    group_size, count = stage.mix_group_size, end - first
    if first % group_size:
        raise ValueError(f"first must be a multiple of group_size {group_size}, received {first}")
    partner = np.arange(count, dtype=np.int64)
    lam = np.ones(count, dtype=np.float32)
    boxes = np.zeros((count, 4), dtype=np.int64)
    for begin in range(0, count, group_size):
        size = min(group_size, count - begin)
        if size == 1:
            continue
        random = generator(seed, stage_index, epoch, (first + begin) // group_size, Stream.MIX)
        group = slice(begin, begin + size)
        cycle = random.permutation(size) + begin
        # Mixup's weights are drawn first and the way is chosen last: so they are the same with and without CutMix.
        mixed_up = random.beta(stage.mixup.alpha, stage.mixup.alpha, size) if stage.mixup is not None else None
        cut = _cut(random, size, stage.cutmix.alpha, stage.view.size_px) if stage.cutmix is not None else None
        choice = random.random()
        if mixed_up is not None and choice < _probability(stage.mixup):
            lam[group] = mixed_up
        elif cut is not None and choice < _probability(stage.mixup) + _probability(stage.cutmix):
            boxes[group], lam[group] = cut
        else:
            continue
        partner[cycle] = np.roll(cycle, 1)
    return MixPlan(partner, lam, boxes if stage.cutmix is not None else None)


def keep_samples(plan: MixPlan, kept: IntArray) -> MixPlan:
    """The plan of the samples `kept`, renumbered; where the partner is gone a sample stays unmixed.

    Args:
        plan: Of N samples.
        kept: int64 [K], ascending places in 0..N-1.
    """
    new_place = np.full(len(plan.partner), -1, dtype=np.int64)
    new_place[kept] = np.arange(len(kept))
    moved = new_place[plan.partner[kept]]
    gone = moved < 0
    return MixPlan(
        partner=np.where(gone, np.arange(len(kept)), moved),
        lam=np.where(gone, np.float32(1), plan.lam[kept]),
        boxes=np.where(gone[:, None], 0, plan.boxes[kept]) if plan.boxes is not None else None,
    )


def paste_boxes(images: NDArray[np.uint8], plan: MixPlan, data_format: Literal["NCHW", "NHWC"]) -> NDArray[np.uint8]:
    """CutMix: the images with the boxes of their partners.

    It is done here, on bytes, and not on the device as mixup: a box is copied in microseconds, while arithmetic with a
    mask takes a CPU longer than mixup itself.

    Args:
        images: uint8 [N, 3, S, S] or [N, S, S, 3]; not changed.
        plan: Of these N samples.
        data_format: "NCHW" or "NHWC".

    Returns:
        uint8 of the same shape; the images themselves where nobody gets a box.
    """
    if plan.boxes is None or plan.cut is None or not plan.cut.any():
        return images
    pasted = images.copy()
    for place in np.flatnonzero(plan.cut).tolist():
        left, top, right, bottom = plan.boxes[place].tolist()
        rows, columns = slice(top, bottom), slice(left, right)
        part = (slice(None), rows, columns) if data_format == "NCHW" else (rows, columns)
        pasted[place][part] = images[plan.partner[place]][part]
    return pasted


def _probability(section: MixSection | None) -> float:
    if section is None:
        return 0.0
    return 1.0 if section.probability is None else section.probability


def _cut(random: np.random.Generator, count: int, alpha: float, size_px: int) -> tuple[IntArray, FloatArray]:
    """Boxes int64 [N, 4] in images of size_px, and the share float32 [N] of the image that each leaves."""
    lam = random.beta(alpha, alpha, count)
    half = (size_px * np.sqrt(1 - lam)).astype(np.int64) // 2  # whole pixels, as in the authors' code
    centres = random.integers(0, size_px, (2, count))
    begins, ends = np.maximum(centres - half, 0), np.minimum(centres + half, size_px)
    areas = (ends - begins).prod(axis=0)
    return np.concatenate([begins, ends]).T, (1 - areas / size_px**2).astype(np.float32)
