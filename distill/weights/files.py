"""Weights on the disk: `.safetensors` (ours) and `.pdparams` (published), as NumPy arrays."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from distill.errors import UserError
from distill.files import write_atomically
from distill.weights.pdparams import RefusedPickle, read_pdparams


def read_weights(path: Path | str) -> dict[str, np.ndarray]:
    """Reads a state dict; nothing in the file is executed.

    bfloat16, which NumPy lacks, comes as float32 of the same value.

    Args:
        path: a `.safetensors` file, or a `.pdparams` file that `paddle.save` wrote.

    Returns:
        The arrays by key; they may be read-only.

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds something other than arrays.
    """
    path = Path(path)
    readers = {".safetensors": _read_safetensors, ".pdparams": _read_pdparams}
    if path.suffix not in readers:
        raise UserError(f"{path}: weights are read from .safetensors and .pdparams files, received {path.suffix!r}")
    try:
        return readers[path.suffix](path)
    except OSError as error:
        raise UserError(f"Cannot read the weights {path}: {error.strerror or error}") from error
    except (RefusedPickle, safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a usable file of weights: {error}. Fetch it again.") from error


def write_weights(
    path: Path | str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a `.safetensors` file atomically.

    Args:
        path: the file; its folder must exist.
        arrays: by key, of any shape and numeric dtype, in any memory layout.
        metadata: what the arrays are (model, recipe, stage, ...), if anything, kept in the file's header.

    Raises:
        RunError: it could not be written; what was there before is intact.
    """
    write_atomically(path, to_safetensors(arrays, metadata))


def read_metadata(path: Path | str) -> dict[str, str]:
    """Reads the header's metadata of a `.safetensors` file, {} where it has none.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"Cannot read the weights {path}: {error}") from error


def sha256_of(path: Path | str) -> str:
    """Returns the SHA-256 of a file in hexadecimal: the identity of the weights in it.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"Cannot read the weights {path}: {error.strerror or error}") from error


def to_safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """Returns the content of a `.safetensors` file."""
    # The library writes the memory as it lies: a transposed view would come back scrambled.
    contiguous = {key: np.asarray(np.asanyarray(array), order="C") for key, array in arrays.items()}
    return safetensors.numpy.save(contiguous, dict(metadata) if metadata else None)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    tensors = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    return {key: _from_safetensors(tensor["dtype"], tensor["data"], tensor["shape"]) for key, tensor in tensors}


def _from_safetensors(name: str, data: bytes, shape: list[int]) -> np.ndarray:
    if name == "BF16":
        return widen_bfloat16(np.frombuffer(data, np.uint16)).reshape(shape)
    kind = {"F": "f", "I": "i", "U": "u"}.get(name[0])
    if name == "BOOL":
        return np.frombuffer(data, np.bool_).reshape(shape)
    if kind is None or not name[1:].isdigit():
        raise ValueError(f"it holds an array of type {name}; NumPy has no such type")
    return np.frombuffer(data, f"<{kind}{int(name[1:]) // 8}").reshape(shape)


def _read_pdparams(path: Path) -> dict[str, np.ndarray]:
    arrays = read_pdparams(path)
    # Paddle has no uint16 parameters: these are the bits of bfloat16
    return {key: widen_bfloat16(array) if array.dtype == np.uint16 else array for key, array in arrays.items()}


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Returns the float32 values of bfloat16 bits held as uint16; exact, as float32 only adds zeros at the end."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
