"""From bytes to what a network sees: [0, 1], mixed, normalised; all of it on the device."""

import numpy as np
import paddle
from paddle import Tensor

from distill.data.types import Batch
from distill.recipe import NormalizationSection

# Broadcasting on a CPU takes 7-14 times as long where the smaller operand comes first or has leading ones in its shape
# (3.3.1, 128 images of 28 px), with the same bits; so images come first here, and a channel's values as [3, 1, 1].


def to_unit_range(images: np.ndarray) -> Tensor:
    """Copies uint8 images [N, ...] to the device, as bytes, and divides by 255: float32 in [0, 1]."""
    return paddle.to_tensor(images).astype("float32") / 255.0


def seen_images(batch: Batch) -> Tensor:
    """What teacher and student see of a batch: mixed, not normalised; float32 of its images' shape, in [0, 1]."""
    images = to_unit_range(batch.images)
    if batch.cut is None or batch.lam is None:
        return mix_images(images, batch.partner, batch.lam)
    share = np.where(batch.cut, np.float32(1), batch.lam)
    return images if (share == 1).all() else mix_images(images, batch.partner, share)


def mix_images(images: Tensor, partner: np.ndarray | None, lam: np.ndarray | None) -> Tensor:
    """Mixup: lam images + (1 - lam) images[partner]. Returns the images as they are where both are None.

    Args:
        images: float32 [N, 3, H, W] or [N, H, W, 3].
        partner: int64 [N] in [0, N), places in this micro-batch.
        lam: float32 [N] in [0, 1], the share of the image itself.

    Returns:
        float32 of the same shape.

    Raises:
        ValueError: Only one of `partner` and `lam` is given.

    Source: Zhang et al. 2018, arXiv 1710.09412.
    """
    if (partner is None) != (lam is None):
        raise ValueError("mixing images needs both partner and lam, received only one of them")
    if partner is None or lam is None:
        return images
    share = paddle.to_tensor(lam, dtype="float32").reshape([-1, 1, 1, 1])
    return images * share + images.index_select(paddle.to_tensor(partner)) * (1.0 - share)


def normalize(images: Tensor, normalization: NormalizationSection, data_format: str = "NCHW") -> Tensor:
    """(images - mean) / std, a channel each.

    Args:
        images: float32 [N, 3, H, W] or [N, H, W, 3], RGB in [0, 1].
        normalization: Mean and standard deviation in the order R, G, B.
        data_format: "NCHW" or "NHWC".

    Returns:
        float32 of the same shape.
    """
    # Paddle Inference takes a whole NHWC network for NCHW where this shape is [3].
    shape = [3, 1, 1] if data_format == "NCHW" else [1, 1, 1, 3]
    mean = paddle.to_tensor(normalization.mean, dtype="float32").reshape(shape)
    std = paddle.to_tensor(normalization.std, dtype="float32").reshape(shape)
    return (images - mean) / std
