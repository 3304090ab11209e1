"""What computes the layers of a network: Paddle's own kernels, or on a CPU the oneDNN of its wheel."""

import functools
from typing import TYPE_CHECKING, Literal, Protocol

import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from distill.errors import RunError
from distill.models.plan import ConvPlan

if TYPE_CHECKING:
    from distill.models import Network

KernelChoice = Literal["auto", "onednn", "paddle"]


class Kernels(Protocol):
    """The operations that a network is made of. Maps have a layout of the kernels' own between `enter` and `leave`."""

    @property
    def description(self) -> str:
        """What computes, in a few words."""

    def enter(self, images: Tensor) -> Tensor:
        """Brings images in the network's layout into the kernels' own."""

    def leave(self, maps: Tensor) -> Tensor:
        """Brings maps back into the network's layout."""

    def conv_norm(self, maps: Tensor, plan: ConvPlan, convolution: nn.Conv2D, norm: nn.BatchNorm2D) -> Tensor:
        """Average pooling where planned, convolution, batch normalisation, ReLU where planned."""

    def max_pool(self, maps: Tensor) -> Tensor:
        """3x3 maxima of stride 2 and padding 1."""

    def add_relu(self, left: Tensor, right: Tensor) -> Tensor:
        """relu(left + right)."""

    def mean(self, maps: Tensor) -> Tensor:
        """The mean over a map's pixels: [N, C]."""


class PaddleKernels:
    """Paddle's kernels, for any device and type.

    Args:
        data_format: "NCHW" or "NHWC".
    """

    description = "Paddle's kernels"

    def __init__(self, data_format: str) -> None:
        self._data_format = data_format

    def enter(self, images: Tensor) -> Tensor:
        """See `Kernels`; these compute in the network's layout."""
        return images

    def leave(self, maps: Tensor) -> Tensor:
        """See `Kernels`."""
        return maps

    def conv_norm(self, maps: Tensor, plan: ConvPlan, convolution: nn.Conv2D, norm: nn.BatchNorm2D) -> Tensor:
        """See `Kernels`."""
        if plan.average_pooled:
            # Round up and leave out what lies beyond the border, as published: at odd sizes the last
            # row and column are means of the pixels that exist.
            maps = functional.avg_pool2d(
                maps, 2, plan.stride, ceil_mode=True, exclusive=True, data_format=self._data_format
            )
        maps = norm(convolution(maps))
        return functional.relu(maps) if plan.activation else maps

    def max_pool(self, maps: Tensor) -> Tensor:
        """See `Kernels`."""
        return functional.max_pool2d(maps, 3, 2, 1, data_format=self._data_format)

    def add_relu(self, left: Tensor, right: Tensor) -> Tensor:
        """See `Kernels`."""
        return functional.relu(left + right)

    def mean(self, maps: Tensor) -> Tensor:
        """See `Kernels`."""
        return maps.mean(axis=[2, 3] if self._data_format == "NCHW" else [1, 2])


class OneDnnKernels:
    """oneDNN's kernels, for float32 on a CPU; maps are [N, H, W, C] between `enter` and `leave`.

    Forward and backward passes agree with Paddle's up to rounding, and are bitwise repeatable with the same number of
    threads.

    Args:
        data_format: "NCHW" or "NHWC".

    Raises:
        RunError: See `check_onednn`.
    """

    def __init__(self, data_format: str) -> None:
        from distill.onednn import functions

        self.description = f"oneDNN {check_onednn()}"
        self._functions = functions
        self._transposes = data_format == "NCHW"

    def enter(self, images: Tensor) -> Tensor:
        """See `Kernels`."""
        return images.transpose([0, 2, 3, 1]) if self._transposes else images

    def leave(self, maps: Tensor) -> Tensor:
        """See `Kernels`."""
        return maps.transpose([0, 3, 1, 2]) if self._transposes else maps

    def conv_norm(self, maps: Tensor, plan: ConvPlan, convolution: nn.Conv2D, norm: nn.BatchNorm2D) -> Tensor:
        """See `Kernels`."""
        if plan.average_pooled:
            maps = self._functions.average_pool(maps, plan.stride)
        return self._functions.conv_norm(
            maps,
            convolution.weight,
            norm,
            stride=1 if plan.average_pooled else plan.stride,
            padding_px=plan.kernel_px // 2,
            groups=plan.groups,
            relu=plan.activation,
        )

    def max_pool(self, maps: Tensor) -> Tensor:
        """See `Kernels`."""
        return self._functions.max_pool(maps)

    def add_relu(self, left: Tensor, right: Tensor) -> Tensor:
        """See `Kernels`."""
        return self._functions.add_relu(left, right)

    def mean(self, maps: Tensor) -> Tensor:
        """See `Kernels`."""
        return maps.mean(axis=[1, 2])


@functools.cache
def check_onednn() -> str:
    """Compares a few small layers, forward and backward, with Paddle's kernels; once a process.

    Returns:
        oneDNN's version.

    Raises:
        RunError: There is no such library, it lacks a function, or an answer differs by more than rounding.
    """
    from distill.onednn.check import compare_with_paddle

    if not paddle.get_device().startswith("cpu"):
        raise RunError(f"oneDNN computes on a CPU, and this process on {paddle.get_device()}")
    return compare_with_paddle()


def compute_with(network: "Network", choice: KernelChoice) -> str | None:
    """Has a network compute with the kernels of `choose_kernels`, where it can compute with others than its own.

    Returns:
        Why "auto" did not take oneDNN on a CPU; None otherwise.

    Raises:
        RunError: As `choose_kernels`.
    """
    if network.published_names:
        kernels, problem = choose_kernels(network.data_format, choice)
        network.use_kernels(kernels)
        return problem
    reason = "a network of your own calls Paddle itself, and oneDNN computes the layers of the series alone"
    if choice == "onednn":
        raise RunError(f"runtime.student_kernels onednn: {reason}. Use auto or paddle")
    return reason if choice == "auto" and paddle.get_device().startswith("cpu") else None


def choose_kernels(data_format: str, choice: KernelChoice) -> tuple[Kernels, str | None]:
    """The kernels to train with.

    Args:
        data_format: "NCHW" or "NHWC", of the network.
        choice: "auto" takes oneDNN on a CPU where it passes `check_onednn`.

    Returns:
        The kernels, and why "auto" did not take oneDNN on a CPU; None otherwise.

    Raises:
        RunError: `choice` is "onednn", and it cannot be used.
    """
    if choice == "paddle" or (choice == "auto" and not paddle.get_device().startswith("cpu")):
        return PaddleKernels(data_format), None
    try:
        return OneDnnKernels(data_format), None
    except (RunError, AttributeError) as error:  # AttributeError: a function is not in the library
        if choice == "onednn":
            raise RunError(f"runtime.student_kernels onednn: {error}. Use auto or paddle") from error
        return PaddleKernels(data_format), str(error)
