"""Paddle's oneDNN by ctypes: descriptors of memory, compiled primitives, and how they are called.

Eager Paddle computes convolutions on a CPU by im2col and a matrix product, and everything else on one thread. Its
wheel brings the library along all the same (libs/libdnnl.so.3), for Paddle Inference. Names and numbers are those of
its C interface, which is stable through the releases 3.x (https://oneapi-src.github.io/oneDNN, dnnl.h, dnnl_types.h).
"""

import contextlib
import ctypes
import functools
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor

from distill.errors import RunError

Shape = tuple[int, ...]
Pointer = ctypes.c_void_p
MAJOR, OLDEST_MINOR = 3, 3
"""The string tags of layouts and the arguments below came with 3.1; 3.3 is what Paddle 2.6 has."""

FLOAT32 = 3
NHWC, VECTOR = "acdb", "a"  # oneDNN gives shapes as N, C, H, W in every layout
_CPU = 1
_IN_ORDER = 1
_LAYOUT_ANY = 1
_MOST_DIMENSIONS = 12
_SOURCE, _OUTPUT = 1, 17
_STATUS = {1: "out of memory", 2: "invalid arguments", 3: "not implemented", 4: "a primitive ran out of order"}


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_int), ("minor", ctypes.c_int), ("patch", ctypes.c_int))


class _Argument(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int), ("memory", Pointer))


class Handle:
    """An object that oneDNN made; it is destroyed with the last reference to it.

    Args:
        pointer: Its address.
        destroy: The function that destroys it.
    """

    def __init__(self, pointer: Pointer, destroy: Any) -> None:
        self._as_parameter_ = pointer  # what ctypes hands over in its place
        weakref.finalize(self, destroy, pointer).atexit = False

    @property
    def address(self) -> int:
        """Where it lies."""
        return int(self._as_parameter_.value or 0)


Layouts = dict[int, Handle | Pointer]
"""The memory descriptor of each argument of a primitive."""


class Library:
    """The library with one engine and one stream.

    Args:
        folder: Holds libdnnl.so.3, and libiomp5.so, whose threads it computes with.

    Attributes:
        version: Of the library, such as "3.6.2".
        threads: See `use_threads`.

    Raises:
        RunError: It is missing, cannot be loaded, or its version is not one of those that this was written for.
    """

    threads = 1

    def __init__(self, folder: Path) -> None:
        path = folder / "libdnnl.so.3"
        try:
            self._functions = ctypes.CDLL(str(path))
            self._openmp = ctypes.CDLL(str(folder / "libiomp5.so"))
        except OSError as error:
            raise RunError(f"Paddle's oneDNN cannot be loaded: {error}") from error
        self._functions.dnnl_version.restype = ctypes.POINTER(_Version)
        self._functions.dnnl_primitive_desc_query_md.restype = Pointer
        self._functions.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        found = self._functions.dnnl_version().contents
        self.version = f"{found.major}.{found.minor}.{found.patch}"
        if found.major != MAJOR or found.minor < OLDEST_MINOR:
            raise RunError(f"{path} is oneDNN {self.version}, expected {MAJOR}.{OLDEST_MINOR} or a later {MAJOR}.x")
        self._lock = threading.Lock()
        self.engine = self.create("engine", "engine_create", _CPU, ctypes.c_size_t(0))
        self.stream = self.create("stream", "stream_create", self.engine, _IN_ORDER)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """One caller at a time, with `use_threads`' number of threads: both for building and for running primitives.

        A primitive's arguments serve one call at a time. Paddle's predictor leaves the calling thread with one OpenMP
        thread, and with another number a primitive is another one, slower and with other bits.
        """
        with self._lock:
            self._openmp.omp_set_num_threads(self.threads)
            yield

    def create(self, kind: str, function: str, *arguments: Any) -> Handle:
        """Calls `dnnl_<function>`, which writes a new object's address to its first argument."""
        pointer = Pointer()
        with self.at_work():
            self.call(function, ctypes.byref(pointer), *arguments)
        return Handle(pointer, getattr(self._functions, f"dnnl_{kind}_destroy"))

    def call(self, function: str, *arguments: Any) -> None:
        """Calls `dnnl_<function>`.

        Raises:
            RunError: It returned a status other than 0.
        """
        status = getattr(self._functions, f"dnnl_{function}")(*arguments)
        if status:
            raise RunError(f"oneDNN {self.version}: dnnl_{function}: {_STATUS.get(status, f'status {status}')}")

    def describe(self, operation: str, *arguments: Any) -> Handle:
        """The descriptor of a primitive, such as "binary"."""
        return self.create("primitive_desc", f"{operation}_primitive_desc_create", self.engine, *arguments)

    def chosen_layout(self, description: Handle, query: int) -> Pointer:
        """The memory descriptor of one of a primitive's arguments; it lives as long as `description`."""
        return Pointer(self._functions.dnnl_primitive_desc_query_md(description, query, 0))

    def size_bytes(self, layout: Handle | Pointer) -> int:
        """What a tensor of this memory descriptor needs."""
        return int(self._functions.dnnl_memory_desc_get_size(layout))

    def equal(self, left: Handle | Pointer, right: Handle | Pointer) -> bool:
        """Whether two memory descriptors mean the same layout."""
        return bool(self._functions.dnnl_memory_desc_equal(left, right))


@functools.cache
def onednn() -> Library:
    """The library in the folder of the Paddle that is imported; raises as `Library`."""
    return Library(Path(paddle.__file__).parent / "libs")


def use_threads(threads: int) -> None:
    """Sets the number of threads that primitives are built for and run with, >= 1; before the first is built."""
    Library.threads = threads


class Primitive:
    """A compiled operation.

    Args:
        description: Its descriptor.
        layouts: The memory descriptor of each argument, in the order in which `run` takes the tensors.
    """

    def __init__(self, description: Handle, layouts: Layouts) -> None:
        self._library = library = onednn()
        self._description = description  # layouts that were asked of it end with it
        self._primitive = library.create("primitive", "primitive_create", description)
        self._memories = [
            library.create("memory", "memory_create", layout, library.engine, None) for layout in layouts.values()
        ]
        self._arguments = (_Argument * len(layouts))()
        for argument, kind, memory_handle in zip(self._arguments, layouts, self._memories, strict=True):
            argument.kind, argument.memory = kind, memory_handle.address

    def run(self, *tensors: Tensor) -> None:
        """Reads and writes the tensors' memory, which must lie as the layouts say: contiguous."""
        library = self._library
        with library.at_work():
            for handle, tensor in zip(self._memories, tensors, strict=True):
                library.call("memory_set_data_handle", handle, Pointer(tensor.data_ptr()))
            library.call("primitive_execute", self._primitive, library.stream, len(tensors), self._arguments)


class Reordering:
    """Copies a tensor from one layout to another, where they differ.

    Args:
        source: The memory descriptor of what is there.
        target: The one that is wanted.
    """

    def __init__(self, source: Handle | Pointer, target: Handle | Pointer) -> None:
        library = onednn()
        self.source_bytes = library.size_bytes(source)
        self._target_bytes = library.size_bytes(target)
        self._primitive = None
        if not library.equal(source, target):
            engine = library.engine
            description = library.create(
                "primitive_desc", "reorder_primitive_desc_create", source, engine, target, engine, None
            )
            self._primitive = Primitive(description, {_SOURCE: source, _OUTPUT: target})

    @property
    def needed(self) -> bool:
        """Whether the layouts differ."""
        return self._primitive is not None

    def run(self, source: Tensor, target: Tensor | None = None) -> Tensor:
        """Returns the tensor in the other layout: `source` itself where they are equal, else `target` or a new one."""
        if self._primitive is None:
            return source
        target = buffer(self._target_bytes) if target is None else target
        self._primitive.run(source, target)
        return target


def memory(shape: Shape, layout: str | None = NHWC) -> Handle:
    """A memory descriptor of float32; without a layout, the primitive that gets it chooses one."""
    library, sizes = onednn(), dimensions(shape)
    if layout is None:
        create = "memory_desc_create_with_tag"
        return library.create("memory_desc", create, len(shape), sizes, FLOAT32, _LAYOUT_ANY)
    create = "memory_desc_create_with_string_tag"
    return library.create("memory_desc", create, len(shape), sizes, FLOAT32, layout.encode())


def dimensions(values: Sequence[int]) -> Any:
    """The int64[12] that oneDNN takes for shapes, strides and paddings."""
    return (ctypes.c_int64 * _MOST_DIMENSIONS)(*values)


def buffer(size_bytes: int) -> Tensor:
    """Memory whose content only oneDNN understands."""
    return paddle.empty([-(-size_bytes // 4)], "float32")
