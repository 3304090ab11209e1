"""What networks that are files have alike, whoever computes them: the images they take, an engine around them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.engines.engine import Answers, EngineImages
from distill.errors import UserError
from distill.recipe import NormalizationSection

TYPES = {"float32": np.float32, "float16": np.float16, "uint8": np.uint8}
"""Of a network's input."""
TRIED = 3
"""Images that a network is tried with."""
_BYTE_STD = 1.0 / 255.0

Run = Callable[[NDArray[Any]], Sequence[NDArray[Any]]]
"""Computes a network: an array that it takes to its outputs, in order."""


@dataclass(frozen=True)
class NetworkInput:
    """The images that a network takes.

    Attributes:
        planes: Whether they are [N, 3, H, W], and not [N, H, W, 3].
        type: One of `TYPES`.
        batch: N, where it is fixed.
        height_px: H, where it is fixed.
        width_px: W, likewise.
    """

    planes: bool
    type: str
    batch: int | None = None
    height_px: int | None = None
    width_px: int | None = None

    @classmethod
    def of(cls, path: object, name: str, shape: Sequence[object], type_: str) -> "NetworkInput":
        """Recognises it by an input's shape.

        Args:
            path: Of the network, for errors.
            name: Of the input.
            shape: Numbers; anything else, and what is below 1, stands for any number.
            type_: As NumPy calls it.

        Raises:
            UserError: It takes something else.
        """
        sizes = [size if isinstance(size, int) and size > 0 else None for size in shape]
        shown = ", ".join("?" if size is None else str(size) for size in sizes)
        if len(sizes) != 4 or type_ not in TYPES or 3 not in (sizes[1], sizes[3]):
            raise UserError(
                f"{path}: its input {name!r} is {type_} [{shown}], expected RGB images, {' or '.join(TYPES)}, [N, 3, "
                "H, W] or [N, H, W, 3], the 3 stated"
            )
        planes = sizes[1] == 3
        height, width = sizes[2:] if planes else sizes[1:3]
        return cls(planes, type_, sizes[0], height, width)

    def check_side(self, path: object, side_px: int, view_px: int) -> None:
        """Raises UserError where the network takes images of another size than `side_px`.

        Args:
            path: Of the network, for errors.
            side_px: Of the images that it will be given.
            view_px: Of the student's view, from which they are made.
        """
        fixed = [size for size in (self.height_px, self.width_px) if size is not None]
        if all(size == side_px for size in fixed):
            return
        if len(set(fixed)) > 1:
            raise UserError(
                f"{path} takes images of {self.height_px} x {self.width_px} px, and those of a recipe are square: "
                "export it for square ones"
            )
        given = "the view has" if side_px == view_px else f"the view of {view_px} px is resized to"
        raise UserError(f"{path} takes images of {fixed[0]} px, and {given} {side_px} px: state resize_px: {fixed[0]}")

    def check_normalization(self, path: object, normalization: NormalizationSection | None) -> None:
        """Raises UserError where a network that takes bytes is to be given something else, or the reverse."""
        if normalization is None and self.type != "uint8":
            raise UserError(f"{path}: state its normalization, it takes {self.type}")
        if normalization is not None and self.type == "uint8" and not _gives_bytes(normalization):
            raise UserError(
                f"{path} takes bytes, 0 to 255, and normalises them itself: state normalization {{mean: [0, 0, 0], "
                f"std: [{_BYTE_STD:.15g}, {_BYTE_STD:.15g}, {_BYTE_STD:.15g}]}}"
            )

    def prepared(self, unit: NDArray[np.float32], normalization: NormalizationSection | None) -> NDArray[Any]:
        """What the network takes of images float32 [N, H, W, 3] in [0, 1]; bytes are rounded."""
        if self.type == "uint8" or normalization is None:
            values = np.rint(unit * np.float32(255))
        else:
            values = (unit - np.asarray(normalization.mean, np.float32)) / np.asarray(normalization.std, np.float32)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if self.planes else values, TYPES[self.type])


def _gives_bytes(normalization: NormalizationSection) -> bool:
    wanted = np.array([(0.0,) * 3, (_BYTE_STD,) * 3])
    return bool(np.allclose(np.array([normalization.mean, normalization.std]), wanted, rtol=1e-5, atol=1e-7))


class FileEngine:
    """See `distill.engines.engine.Engine`; images are [N, H, W, 3]. The file is the plain model here.

    Args:
        run: Computes it.
        takes: Its input.
        outputs: Names of its answers, in the order of `run`'s.
        normalization: Applied before the network; None where it takes bytes.
        description: Of what computes.

    Attributes:
        batch: Images a call of the network; None: as many as are given. A short batch is filled up with its last one.
    """

    def __init__(
        self,
        run: Run,
        takes: NetworkInput,
        outputs: Sequence[str],
        normalization: NormalizationSection | None,
        description: str,
    ) -> None:
        self._run = run
        self._takes = takes
        self._outputs = tuple(outputs)
        self._normalization = normalization
        self.batch = takes.batch
        self.description = description
        self.largest_difference = 0.0

    def __call__(self, images: EngineImages) -> Answers:
        """See `distill.engines.engine.Engine`."""
        unit = images.astype(np.float32, copy=images.dtype == np.uint8)
        if images.dtype == np.uint8:
            unit /= np.float32(255.0)
        values = self._takes.prepared(unit, self._normalization)
        size = self.batch or len(values)
        parts = [self._answers(values[at : at + size], size) for at in range(0, len(values), size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def _answers(self, values: NDArray[Any], size: int) -> Answers:
        count = len(values)
        if count < size:
            values = np.concatenate([values, np.repeat(values[-1:], size - count, axis=0)])
        found = self._run(values)
        return {
            name: value.reshape(len(value), -1).astype(np.float32, copy=False)[:count]
            for name, value in zip(self._outputs, found, strict=True)
        }

    def settle(self, side_px: int) -> None:
        """Computes one image at a time from now on where an image's answer depends on the others beside it.

        Kernels may choose another order of sums for another number of images. Tried with `TRIED` images of noise.

        Args:
            side_px: Height and width of the images that it will be given.
        """
        noise = np.random.default_rng(0).random((TRIED, side_px, side_px, 3), dtype=np.float32)
        together = self(noise)
        alone = [self(noise[at : at + 1]) for at in range(TRIED)]
        if any((np.concatenate([each[name] for each in alone]) != together[name]).any() for name in self._outputs):
            self.batch = self._takes.batch or 1
            if self.batch == 1:
                self.description += ", one image at a time"


def check_logits(path: object, name: str, shape: Sequence[int], num_classes: int | None, hint: str) -> None:
    """Checks the shape of the logits that a network answered `TRIED` images with.

    Args:
        path: Of the network, for errors.
        name: Of the output.
        shape: What it has.
        num_classes: What it must have; None: any number from 2.
        hint: What to do otherwise.

    Raises:
        UserError: It has another one.
    """
    if len(shape) == 2 and shape[0] == TRIED and (shape[1] == num_classes if num_classes is not None else shape[1] > 1):
        return
    classes = "classes" if num_classes is None else num_classes
    raise UserError(
        f"{path}: {name!r} has the shape {list(shape)} for {TRIED} images, expected [{TRIED}, {classes}]. {hint}"
    )
