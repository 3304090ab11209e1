"""Weights on the disk, as NumPy arrays: `.safetensors` (ours), `.pdparams` (published), `.pth` (PyTorch's)."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from distill.errors import UserError
from distill.files import check_regular, write_atomically
from distill.weights.pdparams import read_pdparams
from distill.weights.pickles import RefusedPickle
from distill.weights.torch_files import read_torch, widen_bfloat16

_SAFETENSORS_TYPES = {
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    "BOOL": "?",
}


def read_weights(path: Path | str) -> dict[str, np.ndarray]:
    """Reads a state dict; nothing in the file is executed.

    bfloat16, which NumPy lacks, comes as float32 of the same value.

    Args:
        path: a `.safetensors` file, a `.pdparams` file that `paddle.save` wrote, or a `.pth`, `.pt` or `.bin` file that
            `torch.save` wrote.

    Returns:
        The arrays by key; they may be read-only.

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds something other than arrays.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise UserError(f"{path}: weights are read from {', '.join(READERS)} files, received {path.suffix!r}")
    try:
        check_regular(path)
        return READERS[path.suffix](path)
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
        check_regular(path)
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
        check_regular(path)
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
    content = path.read_bytes()
    tensors = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    # It passes over all but the last of equal keys, and has found the header to be sound.
    json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")], object_pairs_hook=_check_keys_differ)
    return {key: _from_safetensors(tensor["dtype"], tensor["data"], tensor["shape"]) for key, tensor in tensors}


def _check_keys_differ(pairs: list[tuple[str, Any]]) -> None:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"it has the key {twice[0]!r:.60} twice")


def _from_safetensors(name: str, data: bytes, shape: list[int]) -> np.ndarray:
    if name == "BF16":
        return widen_bfloat16(np.frombuffer(data, np.uint16)).reshape(shape)
    if name not in _SAFETENSORS_TYPES:
        raise ValueError(f"it holds an array of type {name}; expected one of BF16, {', '.join(_SAFETENSORS_TYPES)}")
    return np.frombuffer(data, _SAFETENSORS_TYPES[name]).reshape(shape)


def _read_pdparams(path: Path) -> dict[str, np.ndarray]:
    arrays = read_pdparams(path)
    # Paddle has no uint16 parameters: these are the bits of bfloat16
    return {key: widen_bfloat16(array) if array.dtype == np.uint16 else array for key, array in arrays.items()}


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".safetensors": _read_safetensors,
    ".pdparams": _read_pdparams,
    **dict.fromkeys((".pth", ".pt", ".bin"), read_torch),
}
"""By the suffix of the files that each reads."""
