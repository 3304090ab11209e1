"""Gradients of all ranks, summed once a step.

Not by Paddle's DataParallel: it wants every parameter to get a gradient on every rank, and none outside the network
that it wraps, such as the loss's projections; and a rank whose last micro-batch is empty would have the others wait for
ever. Here parameters that got no gradient count as zeros.

On GPUs a bucket of gradients is summed while the backward pass of the step's last micro-batch still computes those of
the layers before it. On a CPU the ranks first wait for each other (`World.gather`), and then sum: gloo gives up after
30 s, which a rank with busy cores may need for a micro-batch, it computes in the thread that asks for a sum, and there
is nothing to gain, for both need the same cores.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import paddle
from paddle import Tensor

from distill.distributed.world import World
from distill.errors import RunError

BUCKET_ELEMENTS = 8_000_000
"""32 MB of float32: few messages, and little memory beside the gradients."""


class GradientSum:
    """Replaces the gradients of a step by their sums over all ranks.

    Every rank must have the same parameters in the same order. Buckets are summed in one order on all ranks, whichever
    of them fills first, as collectives must be: from the last parameter to the first, as a backward pass goes.

    Args:
        world: The ranks.
        parameters: Those that are trained.
        during_backward: Whether buckets are summed as soon as they are filled (see above).
        bucket_elements: Of a bucket, unless one parameter alone has more.
    """

    def __init__(
        self,
        world: World,
        parameters: Sequence[Tensor],
        *,
        during_backward: bool,
        bucket_elements: int = BUCKET_ELEMENTS,
    ) -> None:
        self._world = world
        self._buckets = _buckets(list(reversed(parameters)), bucket_elements)
        self._unfilled: list[int] = []  # parameters without their last gradient, by bucket; empty: nobody looks
        self._begun: list[tuple[Tensor, Any]] = []  # of the first buckets: the flat tensor, Paddle's task
        self._failure: RunError | None = None
        if during_backward and world.rank.size > 1:
            # Paddle keeps a hook as long as the parameter, and cannot collect what that holds in return.
            own = weakref.ref(self)
            for number, bucket in enumerate(self._buckets):
                for parameter in bucket:
                    parameter._register_backward_hook(_hook(own, number))

    def before_last_backward(self) -> None:
        """To be called before the last backward pass of a step, by ranks that make one."""
        self._unfilled = [len(bucket) for bucket in self._buckets]

    def finish(self) -> None:
        """Sums what is not yet summed, and puts the sums in place of the gradients. All ranks must call it.

        Raises:
            RunError: A rank could not be reached.
        """
        self._unfilled = []
        if self._failure is not None:
            raise self._failure
        with paddle.no_grad():
            for bucket, (flat, task) in zip(self._buckets, self._begun, strict=False):
                task.wait()
                _scatter(flat, [parameter.grad for parameter in bucket])
        for bucket in self._buckets[len(self._begun) :]:  # one after the other: little memory beside the gradients
            sum_over_ranks(self._world, gradients_of(bucket))
        self._begun = []

    def _filled(self, number: int) -> None:
        """A parameter of a bucket has got its gradient."""
        if not self._unfilled or self._failure is not None:
            return
        self._unfilled[number] -= 1
        try:
            with paddle.no_grad():
                while len(self._begun) < len(self._buckets) and self._unfilled[len(self._begun)] == 0:
                    self._begin(self._buckets[len(self._begun)])
        except RunError as error:  # Paddle would make a SystemError of it
            self._failure = error

    def _begin(self, bucket: Sequence[Tensor]) -> None:
        flat = paddle.concat([gradient.flatten() for gradient in gradients_of(bucket)])
        self._begun.append((flat, self._world.begin_sum(flat)))


def _hook(own: "weakref.ref[GradientSum]", number: int) -> Callable[[], None]:
    def filled() -> None:
        gradient_sum = own()
        if gradient_sum is not None:
            gradient_sum._filled(number)

    return filled


def sum_over_ranks(world: World, tensors: Sequence[Tensor]) -> None:
    """Replaces every tensor by its sum over all ranks, which must give equal shapes and types in the same order.

    Raises:
        RunError: A rank could not be reached.
    """
    with paddle.no_grad():
        for bucket in _buckets(tensors, BUCKET_ELEMENTS):
            flat = paddle.concat([tensor.flatten() for tensor in bucket])
            world.sum_(flat)
            _scatter(flat, bucket)


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients, each there: zeros where this rank computed none, for its micro-batches were empty."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = paddle.zeros_like(parameter)
    return [parameter.grad for parameter in parameters]


def _scatter(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copies the parts of a flat tensor into the tensors that it was put together from."""
    parts = paddle.split(flat, [tensor.size for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        paddle.assign(part.reshape(tensor.shape), tensor)


def _buckets(tensors: Sequence[Tensor], most_elements: int) -> list[list[Tensor]]:
    """Neighbours of one type, of `most_elements` together unless one alone has more."""
    buckets: list[list[Tensor]] = []
    filled = 0
    for tensor in tensors:
        same_type = bool(buckets) and buckets[-1][0].dtype == tensor.dtype
        if not same_type or filled + tensor.size > most_elements:
            buckets.append([])
            filled = 0
        buckets[-1].append(tensor)
        filled += tensor.size
    return buckets
