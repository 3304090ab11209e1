"""A reader of `paddle.save` files (`.pdparams`) that cannot run code from them.

Such a file is a pickle. `pickle.load`, and so `paddle.load`, calls whatever function the file names.
This reader interprets the few instructions that dicts of arrays consist of, and nothing else: the
names in the file are only compared with a fixed list, never imported. Every length is checked against
the bytes that are really there, so that a small file cannot ask for much memory.
"""

import io
import math
import mmap
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PARAMETER_NAMES = "StructuredToParameterName@@"
"""Where Paddle keeps its automatic names (`conv2d_0.w_0`); a model does not need them."""
SLICED_ARRAYS = "UnpackBigParamInfor@@"
"""Where Paddle tells how arrays above 1 GiB were cut, because pickle protocol 2 ends at 4 GiB."""

_DTYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]")


class RefusedPickle(ValueError):
    """The file is damaged, or holds something other than arrays."""


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
            content = _Machine(size).run(mapped)
    return _arrays(content)


def read_plain_pickle(data: bytes) -> dict[str, Any]:
    """Reads another pickle of plain data: a dict of numbers, text, lists and arrays; text of Python 2 as Latin-1.

    Raises:
        RefusedPickle: see there.
    """
    content = _Machine(len(data)).run(io.BytesIO(data))
    if not isinstance(content, dict):
        raise RefusedPickle(f"expected a dict, found {type(content).__name__}")
    return {key: value.array if isinstance(value, _PendingArray) else value for key, value in content.items()}


def _arrays(content: object) -> dict[str, np.ndarray]:
    """Checks what was read and joins sliced arrays."""
    if not isinstance(content, dict):
        raise RefusedPickle(f"expected a dict of arrays, found {type(content).__name__}")
    content.pop(PARAMETER_NAMES, None)
    slicing = content.pop(SLICED_ARRAYS, {})
    arrays = {}
    for key, value in content.items():
        if isinstance(value, _PendingArray):
            value = value.array
        if not isinstance(value, np.ndarray):
            raise RefusedPickle(f"expected an array under the key {key!r}, found {type(value).__name__}")
        arrays[key] = value
    return _join_slices(arrays, slicing)


def _join_slices(arrays: dict[str, np.ndarray], slicing: object) -> dict[str, np.ndarray]:
    try:
        for key, how in slicing.items():  # type: ignore[attr-defined]
            # pop: a slice that could be named twice would let a small file grow without bound
            parts = [arrays.pop(_text(name)) for name in how["slices"]]
            arrays[key] = np.concatenate(parts).reshape(_shape(how["OriginShape"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RefusedPickle(f"its entry {SLICED_ARRAYS!r} does not fit its arrays") from error
    return arrays


# --- the machine ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Name:
    """A function or class that the file refers to; it is only ever compared."""

    module: str
    name: str


@dataclass
class _PendingDtype:
    """What `numpy.dtype("f4", False, True)` stands for; its byte order follows in a second instruction."""

    code: str
    order: str = "<"

    def build(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise RefusedPickle("an unknown byte order")
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


@dataclass
class _PendingArray:
    """An array whose shape and content follow in a second instruction."""

    array: np.ndarray | None = None

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran_order, data = state
        self.array = _array(data, dtype, shape, "F" if fortran_order else "C")


def _text(value: object) -> str:
    """Also guards what gets hashed or shown: nested tuples can take for ever."""
    if not isinstance(value, str):
        raise RefusedPickle(f"expected text, found {type(value).__name__}")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if (
        type(value) not in (list, tuple)
        or len(value) > 32
        or not all(type(size) is int and size >= 0 for size in value)
    ):
        raise RefusedPickle("an array's shape is not a few sizes")
    return tuple(value)


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Returns a view of `data`, if the declared shape needs exactly the bytes that are there."""
    if isinstance(data, str):  # Python 2 had one type for text and bytes
        data = data.encode("latin1")
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _PendingDtype) or order not in ("C", "F"):
        raise RefusedPickle("expected an array of plain numbers")
    shape = _shape(shape)
    needed = math.prod(shape) * dtype.dtype.itemsize
    if needed != len(data):
        raise RefusedPickle(f"an array of shape {list(shape)} needs {needed} bytes, the file has {len(data)}")
    array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    array.flags.writeable = False
    return array


class _Machine:
    """Interprets the instructions of a pickle that plain data and arrays need."""

    def __init__(self, size_bytes: int) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        # Steps that copy can be repeated on one value. An honest file copies each of its bytes at most
        # twice (text to bytes, bytes to an array of this machine's byte order).
        self._copies_left_bytes = 3 * size_bytes

    def run(self, file: Any) -> object:
        """Returns the object that the pickle in `file` describes."""
        try:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, MemoryError) as error:
            # RefusedPickle is a ValueError and keeps its words
            raise RefusedPickle(str(error) or "a damaged instruction") from error
        raise RefusedPickle("the file ends too early")

    def _step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _INSTRUCTIONS:
            _INSTRUCTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise RefusedPickle(f"it holds the instruction {name}, which no file of arrays needs")

    # stack and memo

    def mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    # containers

    def tuple_of(self, length: int) -> None:
        values = self._stack[len(self._stack) - length :]
        if len(values) != length:
            raise IndexError("a tuple of missing values")
        del self._stack[len(self._stack) - length :]
        self._stack.append(tuple(values))

    def tuple_to_mark(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise RefusedPickle(f"expected a list, found {type(target).__name__}")
        target.extend(values)

    def update(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise RefusedPickle(f"expected a dict, found {type(target).__name__}")
        target.update(zip(map(_text, values[::2]), values[1::2], strict=True))

    # names, and what stands for calling them

    def name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_name(module, name)

    def stacked_name(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push_name(module, name)

    def _push_name(self, module: object, name: object) -> None:
        known = _Name(_text(module), _text(name))
        if known not in _MEANINGS and known != _NDARRAY:
            raise RefusedPickle(
                f"it asks to call {module!r:.40}.{name!r:.40}, which a file of arrays does not need: do not trust it"
            )
        self._stack.append(known)

    def call(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not _Name or function not in _MEANINGS or type(arguments) is not tuple:
            raise RefusedPickle("it calls something that is not a function")
        result = _MEANINGS[function](*arguments)
        self._spend(result)
        self._stack.append(result)

    def build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, _PendingArray | _PendingDtype):
            raise RefusedPickle(f"it changes a {type(target).__name__}")
        target.build(state)
        if isinstance(target, _PendingArray):
            self._spend(target.array)

    def _spend(self, result: object) -> None:
        if isinstance(result, np.ndarray):
            self._copies_left_bytes -= result.nbytes
        elif isinstance(result, bytes | dict):
            self._copies_left_bytes -= len(result)
        if self._copies_left_bytes < 0:
            raise RefusedPickle("it asks for more memory than its content needs")


def _encode(text: str, encoding: str) -> bytes:
    """Pickle protocols 2 and 3 store bytes as text."""
    if encoding != "latin1":
        raise RefusedPickle("its bytes are stored in an unknown way")
    return _text(text).encode(encoding)


def _pending_dtype(code: str, _align: object = False, _copy: object = True) -> _PendingDtype:
    if not isinstance(code, str) or not _DTYPE_CODE.fullmatch(code):
        raise RefusedPickle(f"it holds an array of type {code!r:.40}; only plain numbers are read")
    return _PendingDtype(code)


def _number(dtype: object, data: object) -> np.ndarray:
    return _array(data, dtype, (), "C")


def _ordered_dict(pairs: Any = ()) -> dict[str, Any]:
    return {_text(key): value for key, value in pairs}


_NDARRAY = _Name("numpy", "ndarray")  # an argument of _reconstruct, never called
_MEANINGS: dict[_Name, Callable[..., Any]] = {
    _Name("_codecs", "encode"): _encode,
    _Name("__builtin__", "bytes"): lambda: b"",  # how protocol 2 spells no bytes at all
    _Name("collections", "OrderedDict"): _ordered_dict,
    _Name("numpy", "dtype"): _pending_dtype,
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and NumPy 2
    _MEANINGS[_Name(f"{_core}.multiarray", "_reconstruct")] = lambda cls, shape, code: _PendingArray()
    _MEANINGS[_Name(f"{_core}.multiarray", "scalar")] = _number
    _MEANINGS[_Name(f"{_core}.numeric", "_frombuffer")] = _array

_LITERALS = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.tuple_to_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.extend([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine._pop_to_mark()),
    "SETITEM": lambda machine, _: machine.update([machine._stack.pop(-2), machine._stack.pop()]),
    "SETITEMS": lambda machine, _: machine.update(machine._pop_to_mark()),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stacked_name,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}
