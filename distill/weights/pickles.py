"""An interpreter of the few pickle instructions that dicts of arrays consist of; it cannot run code from a file.

`pickle.load`, and so `paddle.load` and `torch.load` as it was, calls whatever function the file names. Here the names
in the file are only compared with a fixed list, never imported. Every length is checked against the bytes that are
really there, so that a small file cannot ask for much memory.
"""

import math
import pickletools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_DTYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]")


class RefusedPickle(ValueError):
    """The file is damaged, or holds something other than arrays."""


@dataclass(frozen=True)
class Name:
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
class PendingArray:
    """An array whose shape and content follow in a second instruction."""

    array: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Takes what NumPy gives to `ndarray.__setstate__`."""
        _, shape, dtype, fortran_order, data = state
        self.array = _array(data, dtype, shape, "F" if fortran_order else "C")


def text_of(value: object) -> str:
    """Returns a text as it is; guards what gets hashed or shown too, as nested tuples can take for ever.

    Raises:
        RefusedPickle: it is something else.
    """
    if not isinstance(value, str):
        raise RefusedPickle(f"expected text, found {type(value).__name__}")
    return value


def shape_of(value: Any) -> tuple[int, ...]:
    """Returns a list or tuple of at most 32 sizes >= 0 as a tuple.

    Raises:
        RefusedPickle: it is something else.
    """
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
    shape = shape_of(shape)
    needed = math.prod(shape) * dtype.dtype.itemsize
    if needed != len(data):
        raise RefusedPickle(f"an array of shape {list(shape)} needs {needed} bytes, the file has {len(data)}")
    array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    array.flags.writeable = False
    return array


class Machine:
    """Interprets the instructions of a pickle that plain data and arrays need.

    Args:
        size_bytes: of the file.
        calls: what stands for calling a function that the file names, beside NumPy's and Python's own.
        names: what a file may refer to besides, without calling it.
        persistent: turns a persistent id, with which a file refers to data outside the pickle, into a value; None
            refuses these. With it, attributes of a dict are passed over: PyTorch adds some to a state dict.
    """

    def __init__(
        self,
        size_bytes: int,
        *,
        calls: Mapping[Name, Callable[..., Any]] | None = None,
        names: Collection[Name] = (),
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self._calls = {**_MEANINGS, **(calls or {})}
        self._names = {*self._calls, _NDARRAY, *names}
        self._persistent = persistent
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

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    # containers

    def _tuple_of(self, length: int) -> None:
        values = self._stack[len(self._stack) - length :]
        if len(values) != length:
            raise IndexError("a tuple of missing values")
        del self._stack[len(self._stack) - length :]
        self._stack.append(tuple(values))

    def _tuple_to_mark(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise RefusedPickle(f"expected a list, found {type(target).__name__}")
        target.extend(values)

    def _update(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise RefusedPickle(f"expected a dict, found {type(target).__name__}")
        target.update(zip(map(text_of, values[::2]), values[1::2], strict=True))

    # names, and what stands for calling them

    def _name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_name(module, name)

    def _stacked_name(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push_name(module, name)

    def _push_name(self, module: object, name: object) -> None:
        known = Name(text_of(module), text_of(name))
        if known not in self._names:
            raise RefusedPickle(
                f"it asks to call {module!r:.40}.{name!r:.40}, which a file of arrays does not need: do not trust it"
            )
        self._stack.append(known)

    def _call(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not Name or function not in self._calls or type(arguments) is not tuple:
            raise RefusedPickle("it calls something that is not a function")
        result = self._calls[function](*arguments)
        self._spend(result)
        self._stack.append(result)

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is dict and self._persistent is not None:
            return
        if not isinstance(target, PendingArray | _PendingDtype):
            raise RefusedPickle(f"it changes a {type(target).__name__}")
        target.build(state)
        if isinstance(target, PendingArray):
            self._spend(target.array)

    def _refer(self, _: Any) -> None:
        if self._persistent is None:
            raise RefusedPickle("it refers to data outside the pickle")
        self._stack.append(self._persistent(self._stack.pop()))

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
    return text_of(text).encode(encoding)


def _pending_dtype(code: str, _align: object = False, _copy: object = True) -> _PendingDtype:
    if not isinstance(code, str) or not _DTYPE_CODE.fullmatch(code):
        raise RefusedPickle(f"it holds an array of type {code!r:.40}; only plain numbers are read")
    return _PendingDtype(code)


def _number(dtype: object, data: object) -> np.ndarray:
    return _array(data, dtype, (), "C")


def _ordered_dict(pairs: Any = ()) -> dict[str, Any]:
    return {text_of(key): value for key, value in pairs}


_NDARRAY = Name("numpy", "ndarray")  # an argument of _reconstruct, never called
_MEANINGS: dict[Name, Callable[..., Any]] = {
    Name("_codecs", "encode"): _encode,
    Name("__builtin__", "bytes"): lambda: b"",  # how protocol 2 spells no bytes at all
    Name("collections", "OrderedDict"): _ordered_dict,
    Name("numpy", "dtype"): _pending_dtype,
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and NumPy 2
    _MEANINGS[Name(f"{_core}.multiarray", "_reconstruct")] = lambda cls, shape, code: PendingArray()
    _MEANINGS[Name(f"{_core}.multiarray", "scalar")] = _number
    _MEANINGS[Name(f"{_core}.numeric", "_frombuffer")] = _array

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
_INSTRUCTIONS: dict[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine._mark,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "MEMOIZE": Machine._memoize,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "TUPLE": Machine._tuple_to_mark,
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "APPEND": lambda machine, _: machine._extend([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine._extend(machine._pop_to_mark()),
    "SETITEM": lambda machine, _: machine._update([machine._stack.pop(-2), machine._stack.pop()]),
    "SETITEMS": lambda machine, _: machine._update(machine._pop_to_mark()),
    "GLOBAL": Machine._name,
    "STACK_GLOBAL": Machine._stacked_name,
    "REDUCE": Machine._call,
    "BUILD": Machine._build,
    "BINPERSID": Machine._refer,
}
