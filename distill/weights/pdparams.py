"""A reader of `paddle.save` files (`.pdparams`) that cannot run code from them.

Such a file is a pickle, which `distill.weights.pickles` interprets.
"""

import io
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from distill.weights.pickles import Machine, PendingArray, RefusedPickle, shape_of, text_of

PARAMETER_NAMES = "StructuredToParameterName@@"
"""Where Paddle keeps its automatic names (`conv2d_0.w_0`); a model does not need them."""
SLICED_ARRAYS = "UnpackBigParamInfor@@"
"""Where Paddle tells how arrays above 1 GiB were cut, because pickle protocol 2 ends at 4 GiB."""


def read_pdparams(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict that `paddle.save` wrote, with any of its pickle protocols (2 to 4).

    Returns:
        The arrays by key, read-only. Arrays above 1 GiB that Paddle cut into slices are joined.
        uint16 is Paddle's way of storing bfloat16 and is left as it is.

    Raises:
        RefusedPickle: see there.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        if size == 0:
            raise RefusedPickle("the file is empty")
        # Read through a map, a read never allocates more than the file holds, whatever it declares.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            content = Machine(size).run(mapped)
    return _arrays(content)


def read_plain_pickle(data: bytes) -> dict[str, Any]:
    """Reads another pickle of plain data: a dict of numbers, text, lists and arrays; text of Python 2 as Latin-1.

    Raises:
        RefusedPickle: see there.
    """
    content = Machine(len(data)).run(io.BytesIO(data))
    if not isinstance(content, dict):
        raise RefusedPickle(f"expected a dict, found {type(content).__name__}")
    return {key: value.array if isinstance(value, PendingArray) else value for key, value in content.items()}


def _arrays(content: object) -> dict[str, np.ndarray]:
    """Checks what was read and joins sliced arrays."""
    if not isinstance(content, dict):
        raise RefusedPickle(f"expected a dict of arrays, found {type(content).__name__}")
    content.pop(PARAMETER_NAMES, None)
    slicing = content.pop(SLICED_ARRAYS, {})
    arrays = {}
    for key, value in content.items():
        if isinstance(value, PendingArray):
            value = value.array
        if not isinstance(value, np.ndarray):
            raise RefusedPickle(f"expected an array under the key {key!r}, found {type(value).__name__}")
        arrays[key] = value
    return _join_slices(arrays, slicing)


def _join_slices(arrays: dict[str, np.ndarray], slicing: object) -> dict[str, np.ndarray]:
    try:
        for key, how in slicing.items():  # type: ignore[attr-defined]
            # pop: a slice that could be named twice would let a small file grow without bound
            parts = [arrays.pop(text_of(name)) for name in how["slices"]]
            arrays[key] = np.concatenate(parts).reshape(shape_of(how["OriginShape"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RefusedPickle(f"its entry {SLICED_ARRAYS!r} does not fit its arrays") from error
    return arrays
