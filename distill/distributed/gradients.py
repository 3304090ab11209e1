"""Gradients of all ranks, summed once a step.

Not by Paddle's DataParallel, which sums while the backward pass still runs, in gloo's 30 s: a rank whose micro-batch is
empty, or whose cores are busy, would have the others wait there for a whole forward and backward pass, and on a CPU
with a large micro-batch that is more. It also wants every parameter to get a gradient on every rank, and none outside
the network that it wraps, such as the loss's projections. Here the ranks first wait for each other (`World.gather`),
then sum, in buckets. On a CPU there is nothing to overlap, for both need the same cores.
"""

from collections.abc import Sequence

import paddle
from paddle import Tensor

from distill.distributed.world import World

BUCKET_ELEMENTS = 8_000_000
"""32 MB of float32: few messages, and little memory beside the gradients."""


def sum_over_ranks(world: World, tensors: Sequence[Tensor]) -> None:
    """Replaces every tensor by its sum over all ranks, which must give equal shapes and types in the same order.

    Raises:
        RunError: A rank could not be reached.
    """
    with paddle.no_grad():
        for bucket in _buckets(tensors):
            flat = paddle.concat([tensor.flatten() for tensor in bucket])
            world.sum_(flat)
            parts = paddle.split(flat, [tensor.size for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                paddle.assign(part.reshape(tensor.shape), tensor)


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients, each there: zeros where this rank computed none, for its micro-batches were empty."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = paddle.zeros_like(parameter)
    return [parameter.grad for parameter in parameters]


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Neighbours of one type, of `BUCKET_ELEMENTS` together unless one alone has more."""
    buckets: list[list[Tensor]] = []
    filled = 0
    for tensor in tensors:
        same_type = bool(buckets) and buckets[-1][0].dtype == tensor.dtype
        if not same_type or filled + tensor.size > BUCKET_ELEMENTS:
            buckets.append([])
            filled = 0
        buckets[-1].append(tensor)
        filled += tensor.size
    return buckets
