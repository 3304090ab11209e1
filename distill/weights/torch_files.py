"""A reader of `torch.save` files (`.pth`, `.pt`, `.bin`) that cannot run code from them.

Since PyTorch 1.6 such a file is a zip: `NAME/data.pkl`, a pickle in which each tensor refers to a storage by its key,
and `NAME/data/KEY`, the storages' bytes, uncompressed. Before, it was a sequence of pickles followed by the storages;
many published files still are. Both are read here; the pickles go through `distill.weights.pickles`.
"""

import io
import math
import mmap
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from distill.weights.pickles import Machine, Name, RefusedPickle, shape_of, text_of

_ZIP_START = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_WRAPPERS = ("state_dict", "model")
"""Keys under which training scripts keep the state dict beside the epoch, the optimizer's state and so on."""

_STORAGE_TYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",  # its bits; widened at the end
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_STORAGE_NAMES = {Name("torch", name): name for name in _STORAGE_TYPES}


@dataclass(frozen=True)
class _Storage:
    """A flat row of numbers, whose bytes are elsewhere in the file."""

    key: str
    type_name: str
    size: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage: element (i, j, ...) is number offset + i * stride[0] + j * stride[1] + ... of it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict that `torch.save` wrote, alone or under "state_dict" or "model".

    Returns:
        The arrays by key; bfloat16 as float32 of the same value. "module." in front of all keys, which
        DataParallel adds, is left out.

    Raises:
        RefusedPickle: see there.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        if size == 0:
            raise RefusedPickle("the file is empty")
        file.seek(0)
        try:
            content, storages = (_read_zip if file.read(4) == _ZIP_START else _read_legacy)(file, size)
        except (zipfile.BadZipFile, struct.error, NotImplementedError, RuntimeError, EOFError) as error:
            raise RefusedPickle(str(error) or "it is damaged") from error
    return _without_prefix(_arrays(_state_dict(content), storages, size))


def _read_zip(file: BinaryIO, size: int) -> tuple[object, Mapping[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        _check_members(archive.infolist(), members, size)
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise RefusedPickle(f"expected one data.pkl in the zip, found {len(pickles)}: not a file of torch.save")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise RefusedPickle("it was written on a big-endian machine")
        content = _machine(size).run(io.BytesIO(archive.read(pickles[0])))
        data = f"{folder}data/"
        return content, {name.removeprefix(data): archive.read(name) for name in members if name.startswith(data)}


def _check_members(infos: list[zipfile.ZipInfo], members: Mapping[str, zipfile.ZipInfo], size: int) -> None:
    """Without compression, and with no byte counted twice, a zip cannot hold more than the file's size."""
    if len(members) != len(infos):
        raise RefusedPickle("its zip has two members of one name")
    packed = [
        info for info in infos if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size
    ]
    if packed:
        raise RefusedPickle(f"its zip is compressed ({packed[0].filename!r:.60}); torch.save never does that")
    if sum(info.file_size for info in infos) > size:
        raise RefusedPickle("its zip declares more bytes than the file has")


def _read_legacy(file: BinaryIO, size: int) -> tuple[object, Mapping[str, bytes]]:
    # Read through a map, a read never allocates more than the file holds, whatever it declares.
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if mapped[:1] != b"\x80" or _machine(size).run(mapped) != _LEGACY_MAGIC:
            raise RefusedPickle("it is not a file of torch.save: neither a zip nor the form from before PyTorch 1.6")
        if _machine(size).run(mapped) != _LEGACY_PROTOCOL:
            raise RefusedPickle("it is of an unknown version of torch.save's old form")
        system = _machine(size).run(mapped)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise RefusedPickle("it was written on a big-endian machine")
        found: dict[str, _Storage] = {}
        content = _machine(size, found).run(mapped)
        keys = _machine(size).run(mapped)
        if not isinstance(keys, list) or sorted(map(text_of, keys)) != sorted(found):
            raise RefusedPickle("its list of storages does not fit its tensors")
        return content, {key: _legacy_storage(mapped, found[key]) for key in keys}


def _legacy_storage(mapped: mmap.mmap, storage: _Storage) -> bytes:
    (count,) = struct.unpack("<q", mapped.read(8))
    if count != storage.size:
        raise RefusedPickle(f"a storage of {storage.size} numbers has {count}")
    return mapped.read(count * np.dtype(_STORAGE_TYPES[storage.type_name]).itemsize)


def _machine(size: int, found: dict[str, _Storage] | None = None) -> Machine:
    """An interpreter for one of the file's pickles; keeps the storages that it refers to in `found`."""

    def storage(reference: Any) -> _Storage:
        kind, type_, key, _device, count, *views = reference
        if (
            kind != "storage"
            or type_ not in _STORAGE_NAMES
            or type(count) is not int
            or count < 0
            or views not in ([], [None])
        ):
            raise RefusedPickle("it refers to something that is not a storage of plain numbers")
        new = _Storage(text_of(key), _STORAGE_NAMES[type_], count)
        if known.setdefault(new.key, new) != new:
            raise RefusedPickle("it describes one storage in two ways")
        return new

    known = {} if found is None else found
    return Machine(size, calls=_CALLS, names=_STORAGE_NAMES, persistent=storage)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
    """Stands for `torch._utils._rebuild_tensor_v2`; gradients and hooks are left out."""
    shape, stride = shape_of(shape), shape_of(stride)
    if type(storage) is not _Storage or type(offset) is not int or offset < 0 or len(shape) != len(stride):
        raise RefusedPickle("expected a tensor of plain numbers")
    return _Tensor(storage, offset, shape, stride)


def _rebuild_parameter(tensor: Any, *_: Any) -> _Tensor:
    if type(tensor) is not _Tensor:
        raise RefusedPickle("expected a parameter of plain numbers")
    return tensor


_CALLS: dict[Name, Callable[..., Any]] = {
    Name("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    Name("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    Name("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


def _state_dict(content: object) -> dict[str, _Tensor]:
    """Finds the dict of tensors; numbers and text beside them belong to the training script."""
    if isinstance(content, dict):
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), dict):
                content = content[wrapper]
                break
    if not isinstance(content, dict) or not content:
        raise RefusedPickle(f"expected a dict of tensors, found {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(value, _Tensor):
            raise RefusedPickle(f"expected a tensor under the key {key!r:.60}, found {type(value).__name__}")
    return content


def _arrays(tensors: Mapping[str, _Tensor], storages: Mapping[str, bytes], size: int) -> dict[str, np.ndarray]:
    """Copies each tensor out of its storage; together they may not be larger than a file with shared weights is."""
    left_bytes = 4 * size
    arrays = {}
    for key, tensor in tensors.items():
        dtype = np.dtype(_STORAGE_TYPES[tensor.storage.type_name])
        data = storages.get(tensor.storage.key)
        if data is None or len(data) != tensor.storage.size * dtype.itemsize:
            raise RefusedPickle(f"the storage of {key!r:.60} is missing or has another size")
        count = math.prod(tensor.shape)
        left_bytes -= count * dtype.itemsize
        if left_bytes < 0:
            raise RefusedPickle("its tensors are far larger than the file")
        last = tensor.offset + sum(
            (length - 1) * step for length, step in zip(tensor.shape, tensor.stride, strict=True)
        )
        if count and last >= tensor.storage.size:
            raise RefusedPickle(f"the tensor {key!r:.60} reaches beyond its storage")
        numbers = np.frombuffer(data, dtype)[tensor.offset if count else 0 :]
        steps = tuple(
            step * dtype.itemsize if count and length > 1 else 0
            for length, step in zip(tensor.shape, tensor.stride, strict=True)
        )
        array = np.ascontiguousarray(np.lib.stride_tricks.as_strided(numbers, tensor.shape, steps)).reshape(
            tensor.shape
        )
        is_bfloat16 = tensor.storage.type_name == "BFloat16Storage"
        arrays[key] = widen_bfloat16(array) if is_bfloat16 else array
    return arrays


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Returns the float32 values of bfloat16 bits held as uint16; exact, as float32 only adds zeros at the end."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _without_prefix(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    prefix = "module."
    if all(key.startswith(prefix) for key in arrays):
        return {key.removeprefix(prefix): array for key, array in arrays.items()}
    return arrays
