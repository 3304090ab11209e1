"""Looks through an ONNX file that somebody else made, before ONNX Runtime reads it.

A network is a program, if one of harmless instructions. Refused are what would read other files than the network's own
weights, instructions that come from elsewhere, and tensors that no network of this project has. What a network costs
in time and in many smaller tensors is not bounded.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.files import check_regular

MAX_FILE_BYTES = 2**31 - 1
"""What protobuf can hold; larger weights lie in files of their own."""
MAX_VALUES = 2**31
"""In one tensor: 8.6 GB of float32."""
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Where operators come from; the last are ONNX Runtime's own, which its optimiser writes."""


def check_onnx(onnx: Any, path: Path | str) -> None:
    """Checks a file without reading its external data.

    Args:
        onnx: The package.
        path: The file.

    Raises:
        UserError: It is damaged, or refused for one of the reasons above.
    """
    with _explained(path):
        model = _read(onnx, path)
        _check_operators(model)
        for tensor in _tensors(model):
            _check_values(tensor.name, tensor.dims)
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                _check_external(tensor, path)
        for value in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info:
            _check_values(value.name, [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.dim_value])


def external_files(onnx: Any, path: Path | str) -> list[Path]:
    """The files beside a network that hold weights of it, sorted; raises as `check_onnx`."""
    with _explained(path):
        tensors = [each for each in _tensors(_read(onnx, path)) if each.data_location == onnx.TensorProto.EXTERNAL]
        return sorted({Path(_check_external(tensor, path)) for tensor in tensors})


def _read(onnx: Any, path: Path | str) -> Any:
    check_regular(path)
    if os.path.getsize(path) > MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
    return onnx.load(str(path), load_external_data=False)


@contextlib.contextmanager
def _explained(path: Path | str) -> Iterator[None]:
    """Tells a user what is wrong with a network."""
    try:
        yield
    except OSError as error:
        raise UserError(f"Cannot read the network {path}: {error.strerror or error}") from error
    except Exception as error:  # protobuf's and the shape inference's own share no base
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a usable network: {reason}. Export it again, or do not trust it") from error


def _check_operators(model: Any) -> None:
    known = {*DOMAINS, *(function.domain for function in model.functions)}
    for node in _nodes(model):
        if node.domain not in known:
            raise ValueError(
                f"it uses the operator {node.op_type!r:.40} of {node.domain!r:.40}; only those of ONNX are run"
            )


def _check_values(name: str, dims: Any) -> None:
    if min(dims, default=0) < 0 or math.prod(dims) > MAX_VALUES:
        shown = ", ".join(map(str, list(dims)[:8]))
        raise ValueError(f"its tensor {name!r:.40} has the shape [{shown}], expected at most {MAX_VALUES} values")


def _check_external(tensor: Any, network: Path | str) -> str:
    """The path of external data: of a file in or below the network's folder that has the bytes."""
    folder = os.path.realpath(os.path.dirname(os.path.abspath(network)))
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    target = os.path.realpath(os.path.join(folder, location))
    if os.path.isabs(location) or os.path.commonpath([folder, target]) != folder:
        raise ValueError(
            f"its tensor {tensor.name!r:.40} is to be read from {location!r:.80}, which is not in its own folder"
        )
    check_regular(target)
    offset, length = (int(entries.get(key, "0")) for key in ("offset", "length"))
    if offset < 0 or length < 0 or offset + length > os.path.getsize(target):
        raise ValueError(f"its tensor {tensor.name!r:.40} lies beyond the end of {location!r:.80}")
    return target


def _graphs(model: Any) -> Iterator[Any]:
    """The graph, the bodies of functions, and all graphs inside them."""
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += attribute.graphs
                if attribute.HasField("g"):
                    waiting.append(attribute.g)


def _nodes(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from graph.node


def _tensors(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from getattr(graph, "initializer", ())  # the body of a function has none
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from attribute.tensors
            yield attribute.t
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
