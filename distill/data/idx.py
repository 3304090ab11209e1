"""IDX files, the format of MNIST and Fashion-MNIST: grey images, one byte a pixel, in one file."""

import gzip
import hashlib
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.types import UNLABELLED, Image, IntArray
from distill.errors import UserError
from distill.files import check_regular

MAX_BYTES = 2**32
"""Of a file's content, which is held in memory."""

_UNSIGNED_BYTE = 0x08
_CHUNK_BYTES = 2**20


class IdxImages:
    """The images of an IDX file, held in memory.

    Args:
        images: IDX file of unsigned bytes with three dimensions [N, H, W], plain or gzip.
        labels: IDX file of unsigned bytes [N]; None: unlabelled.
        num_classes: Labels must be below it; None withholds them.

    Raises:
        UserError: A file is missing, damaged, of another kind, or a label is outside the classes.
    """

    def __init__(self, images: Path, labels: Path | None, num_classes: int | None) -> None:
        self._path = images
        self._images = read_idx(images, dimensions=3)
        self.labels: IntArray = np.full(len(self._images), UNLABELLED, dtype=np.int64)
        if labels is not None and num_classes is not None:
            self.labels = self._read_labels(labels, num_classes)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Image:
        """uint8 [H, W, 3]: the grey value in every channel."""
        return np.repeat(self._images[index][:, :, np.newaxis], 3, axis=2)

    def open(self, index: int) -> Image:
        """`read`: there is nothing to save."""
        return self.read(index)

    def name(self, index: int) -> str:
        """file#index."""
        return f"{self._path}#{index}"

    def content_digest(self, first: int, end: int) -> str:
        """A hash of the pixels of the images [first, end)."""
        height_and_width = str(self._images.shape[1:]).encode()
        return hashlib.sha256(height_and_width + self._images[first:end].tobytes()).hexdigest()

    def sample_sizes(self, first: int, end: int, count: int) -> list[int]:
        """Nothing: the hash says all."""
        return []

    def _read_labels(self, path: Path, num_classes: int) -> IntArray:
        labels = read_idx(path, dimensions=1).astype(np.int64)
        if len(labels) != len(self):
            raise UserError(f"{path}: {len(labels)} labels, but {self._path} has {len(self)} images")
        outside = np.flatnonzero(labels >= num_classes)
        if len(outside):
            raise UserError(
                f"{path}: label {labels[outside[0]]} of image {outside[0]} is outside the classes "
                f"0..{num_classes - 1}; is num_classes right?"
            )
        return labels


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Reads an IDX file of unsigned bytes.

    Format: two zero bytes, the type 0x08, the number of dimensions, each dimension as a big-endian uint32, the data.

    Args:
        path: Plain or gzip.
        dimensions: What is expected: 3 for images, 1 for labels.

    Raises:
        UserError: Missing, damaged, or another kind of file.
    """
    header = 4 + 4 * dimensions
    try:
        check_regular(path)
        with path.open("rb") as plain:
            is_compressed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_compressed else path.open("rb") as file:
            shape = _shape(file.read(header), dimensions, path)
            # One byte more than announced, and no more: a small gzip can hold gigabytes.
            data = _read_at_most(file.read, math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if len(data) != math.prod(shape):
        found = f"{len(data)} bytes" if len(data) < math.prod(shape) else f"more than {math.prod(shape)} bytes"
        raise UserError(f"{path}: its header announces {shape}, but {found} of data follow")
    array = np.frombuffer(data, np.uint8).reshape(shape)
    array.flags.writeable = False
    return array


def _read_at_most(read: Callable[[int], bytes], size: int) -> bytearray:
    """Bit by bit: Python takes the memory for all that is asked for, also where the file has next to nothing."""
    data = bytearray()
    while part := read(min(size - len(data), _CHUNK_BYTES)):
        data += part
    return data


def _shape(header: bytes, dimensions: int, path: Path) -> list[int]:
    expected = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if header[:4] != expected:
        raise UserError(
            f"{path}: not an IDX file of bytes with {dimensions} dimension(s): expected it to start with "
            f"{expected.hex()}, received {header[:4].hex() or 'an empty file'}"
        )
    if len(header) < 4 + 4 * dimensions:
        raise UserError(f"{path}: it ends in its header")
    shape = [int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4)]
    if 0 in shape or math.prod(shape) > MAX_BYTES:
        raise UserError(f"{path}: its header announces {shape}, expected between 1 and {MAX_BYTES} bytes")
    return shape
