"""What an image shows, in a few bytes: a hash of the exact pixels, and a perceptual hash that survives small edits.

The perceptual hash is a DCT hash (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions")
with one change: a bit is the *sign* of a coefficient instead of its comparison with the median. Mirroring an
image changes the sign of the coefficients of odd horizontal frequency and of nothing else, so the hash of the
mirrored image is an exclusive or with a constant, and needs neither the image nor a second column. On 500
photographs the signs recognise the same edits as the median does, bit by bit (JPEG, resizing, blur: 0-1 of
64 bits; a crop to 80 %, a rotation by 5 degrees: 12); unrelated photographs differ in 32 +- 4.2 bits, least 12.
"""

import hashlib
from typing import TypeVar

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distill.data.types import Image

HASH_BITS = 64
_SIDE_PX = 32
_FLAT = 1e-3  # of a coefficient, in grey levels: rounding errors have a sign too, and must not decide

Hashes = TypeVar("Hashes", np.uint64, NDArray[np.uint64])


def _lowest_frequencies() -> NDArray[np.intp]:
    """The (vertical, horizontal) frequencies of the 64 bits: those nearest to 0, but not 0, which is brightness."""
    pairs = [(v, h) for v in range(_SIDE_PX) for h in range(_SIDE_PX) if (v, h) != (0, 0)]
    return np.array(sorted(pairs, key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair))[:HASH_BITS], np.intp)


_VERTICAL, _HORIZONTAL = _lowest_frequencies().T
_WEIGHTS = np.uint64(1) << np.arange(HASH_BITS, dtype=np.uint64)
MIRROR_BITS = np.uint64(_WEIGHTS[_HORIZONTAL % 2 == 1].sum())
"""The bits that change when an image is mirrored."""


def pixels_sha256(image: Image) -> bytes:
    """SHA-256 of an image's size and pixels: 32 bytes, equal for equal images of any file format.

    Args:
        image: uint8 [H, W, 3], RGB.
    """
    digest = hashlib.sha256(f"{image.shape[0]}x{image.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def perceptual_hash(image: Image) -> np.uint64:
    """The 64 signs of the lowest frequencies of an image, bit 0 the lowest.

    Compare two by the number of bits that differ: 0-8 are the same picture, about 32 are unrelated ones.

    Args:
        image: uint8 [H, W, 3], RGB.

    Returns:
        0 for an image of one colour.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    coefficients = cv2.dct(cv2.resize(grey, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float32))
    bits = coefficients[_VERTICAL, _HORIZONTAL] > _FLAT
    return np.uint64(_WEIGHTS[bits].sum())


def sha256_rows(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """The hashes of a column of an index as uint8 [N, 32]."""
    pieces = [_rows_of(chunk) for chunk in column.chunks]
    return np.concatenate([np.empty((0, 32), np.uint8), *pieces])


def _rows_of(chunk: pa.FixedSizeBinaryArray) -> NDArray[np.uint8]:
    values = np.frombuffer(chunk.buffers()[1], np.uint8).reshape(-1, 32)
    return values[chunk.offset : chunk.offset + len(chunk)]


def mirrored(hashes: Hashes) -> Hashes:
    """The perceptual hashes of the same images with left and right exchanged."""
    return hashes ^ MIRROR_BITS


def bits_apart(first: np.uint64 | NDArray[np.uint64], second: np.uint64 | NDArray[np.uint64]) -> NDArray[np.uint8]:
    """How many of the 64 bits differ: uint8, with broadcasting."""
    # Sums of neighbouring bits, pairs, nibbles, then all bytes at once; NumPy 1 has no bitwise_count.
    different = np.asarray(first ^ second)
    count = np.atleast_1d(different)  # of a scalar NumPy would warn that the last product overflows, as it must
    count = count - ((count >> np.uint64(1)) & np.uint64(0x5555555555555555))
    count = (count & np.uint64(0x3333333333333333)) + ((count >> np.uint64(2)) & np.uint64(0x3333333333333333))
    count = (count + (count >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    count = (count * np.uint64(0x0101010101010101)) >> np.uint64(56)
    total: NDArray[np.uint8] = count.astype(np.uint8).reshape(different.shape)
    return total
