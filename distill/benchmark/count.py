"""Parameters and multiply-accumulates, counted from shapes.

The framework's own counter is not used: it misses functional operations and fails with recent NumPy.
"""

from math import prod

from distill.models.plan import ConvPlan, NetworkPlan, state_shapes


def parameters(plan: NetworkPlan) -> int:
    """Trainable values: convolutions, batch normalisations' scale and shift, classifier."""
    return sum(prod(shape) for key, shape in state_shapes(plan).items() if not key.endswith(("._mean", "._variance")))


def multiply_accumulates(plan: NetworkPlan, height_px: int = 224, width_px: int | None = None) -> int:
    """Multiply-accumulates of the convolutions and the classifier for one image.

    Batch normalisation folds into the convolutions and poolings have no multiplications: neither counts.

    Args:
        plan: The network.
        height_px: Of the image.
        width_px: Of the image; as high as wide if left out.
    """
    size = (height_px, height_px if width_px is None else width_px)
    total = 0
    for conv in plan.stem:
        size, macs = _convolve(conv, size)
        total += macs
    if plan.max_pool:
        size = _halved(size)
    for blocks in plan.stages:
        for block in blocks:
            if block.shortcut is not None:
                total += _convolve(block.shortcut, size)[1]
            for conv in block.convs:
                size, macs = _convolve(conv, size)
                total += macs
    return total + plan.tap_channels["embedding"] * plan.num_classes


def _convolve(conv: ConvPlan, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """The output's height and width, and the multiply-accumulates."""
    if conv.stride == 2:
        size = _halved(size)
    kernel = conv.kernel_px**2 * conv.in_channels // conv.groups
    return size, size[0] * size[1] * conv.out_channels * kernel


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    """Strided convolutions, max-pooling and average pooling of this series all round up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2
