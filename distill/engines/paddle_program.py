"""Looks through a program of Paddle Inference that somebody else made, before Paddle reads it.

A program may hold operators that do more than compute: tried with Paddle 3.3.1, `save` in a .pdmodel writes any file
that its user may write, and `read_file` reads one. Others open sockets, run serialised engines of other libraries or
call functions of the process (`py_func`). So only operators that image networks consist of are taken. Weights must be
whole: Paddle opens a file that was cut off without a word. What a program costs in time and memory is not bounded.
"""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from distill.errors import UserError
from distill.files import check_regular

MAX_FILE_BYTES = 2**26
"""Of a program, which holds no weights: those of the series have 0.1 MB."""

_NAMES = """
    data feed fetch shadow_output
    conv2d depthwise_conv2d conv2d_transpose depthwise_conv2d_transpose pool2d max_pool2d_with_index
    batch_norm sync_batch_norm layer_norm group_norm instance_norm p_norm norm dropout
    matmul matmul_v2 mul bmm addmm dot einsum fc
    relu relu6 leaky_relu prelu elu selu celu gelu silu swish mish hardswish hard_swish hardsigmoid hard_sigmoid
    hardtanh brelu sigmoid logsigmoid tanh tanh_shrink softplus softsign softmax log_softmax
    add subtract multiply divide maximum minimum elementwise_add elementwise_sub elementwise_mul elementwise_div
    elementwise_max elementwise_min elementwise_pow pow floor_divide remainder
    abs exp log log1p sqrt rsqrt square scale clip floor ceil round sign sin cos erf reciprocal cast assign
    sum mean max min prod reduce_sum reduce_mean reduce_max reduce_min reduce_prod logsumexp argmax arg_max topk
    top_k_v2 cumsum
    reshape reshape2 flatten flatten2 flatten_contiguous_range squeeze squeeze2 unsqueeze unsqueeze2 transpose
    transpose2 concat split split_with_num stack unstack unbind slice strided_slice expand expand_v2 expand_as
    expand_as_v2 tile pad pad2d pad3d roll flip gather gather_nd index_select shape shape64 one_hot one_hot_v2
    full full_int_array full_like full_with_tensor full_batch_size_like fill_constant fill_any_like
    fill_constant_batch_size_like assign_value assign_value_ range arange linspace meshgrid eye tril triu where
    equal not_equal less_than less_equal greater_than greater_equal logical_and logical_or logical_not
    nearest_interp nearest_interp_v2 bilinear_interp bilinear_interp_v2 bicubic_interp bicubic_interp_v2
    pixel_shuffle channel_shuffle shuffle_channel
    quantize_linear dequantize_linear
"""
OPERATORS = frozenset(_NAMES.split())
"""What may occur; of Paddle's two formats, old and new names. A _ behind a name means: in place."""
_BUILTIN = frozenset({"p", "0.combine", "0.split", "0.slice", "0.constant"})  # of the new format: weights, lists
_DIALECT = "1."  # the new format's number of Paddle's own operators
_DTYPES = {4: "float16", 5: "float32", 20: "uint8"}  # of the old format
_ITEM_BYTES = {
    0: 1,
    1: 2,
    2: 4,
    3: 8,
    4: 2,
    5: 4,
    6: 8,
    20: 1,
    21: 1,
    22: 2,
}  # of a tensor in a file of weights, by type
_LONGEST_DESCRIPTION = 2**10


@dataclass(frozen=True)
class ProgramInput:
    """An input of a program.

    Attributes:
        name: Of the input.
        shape: -1 where any number fits.
        type: As NumPy calls it, or a number of Paddle's.
    """

    name: str
    shape: tuple[int, ...]
    type: str


def check_program(path: Path) -> list[ProgramInput]:
    """Checks a program; its weights are not read.

    Args:
        path: A .json or .pdmodel file.

    Returns:
        Its inputs.

    Raises:
        UserError: It is damaged, or uses an operator that is none of `OPERATORS`.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
        return _check_json(content) if path.suffix == ".json" else _check_protobuf(content)
    except OSError as error:
        raise UserError(f"Cannot read the network {path}: {error.strerror or error}") from error
    except Exception as error:  # protobuf's own share no base with what damaged JSON raises
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{path} is not a usable program: {reason}. Export it again, or do not trust it") from error


def _check_operator(name: str) -> None:
    if name not in OPERATORS and name.removesuffix("_") not in OPERATORS:
        raise ValueError(
            f"it uses the operator {name!r:.60}, which is none that image networks consist of, and may do more than "
            "compute"
        )


# --- .json, as Paddle 3 writes it -----------------------------------------------------------------


def _check_json(content: bytes) -> list[ProgramInput]:
    document = json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    inputs = []
    for operator in _operators(document["program"]["regions"]):
        name = str(operator["#"])
        if name in _BUILTIN:
            continue
        if not name.startswith(_DIALECT):
            raise ValueError(f"it uses the operator {name!r:.60} of another dialect than Paddle's own")
        _check_operator(name.removeprefix(_DIALECT))
        if name == f"{_DIALECT}data":
            facts = {each["N"]: each["AT"]["D"] for each in operator["A"]}
            inputs.append(ProgramInput(str(facts["name"]), tuple(map(int, facts["shape"])), str(facts["dtype"])))
    return inputs


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without keys that occur twice, of which two readers may take different ones."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has an object with the same key twice")
    return found


def _operators(regions: Any) -> Iterator[dict[str, Any]]:
    """Those of all blocks, and of the regions inside operators."""
    waiting = [*regions]
    while waiting:
        for block in waiting.pop()["blocks"]:
            for operator in block["ops"]:
                yield operator
                waiting += operator.get("regions", [])


# --- .pdmodel, as Paddle 2 writes it --------------------------------------------------------------


def _check_protobuf(content: bytes) -> list[ProgramInput]:
    from paddle.base.proto import framework_pb2

    program = framework_pb2.ProgramDesc()
    program.ParseFromString(content)
    fed = set()
    for block in program.blocks:
        for operator in block.ops:
            _check_operator(operator.type)
            if operator.type == "feed":
                fed |= {name for output in operator.outputs for name in output.arguments}
    inputs = []
    for variable in program.blocks[0].vars:
        if variable.name in fed:
            kinds = variable.type  # Paddle 2 calls the field otherwise
            tensor = (kinds.dense_tensor if hasattr(kinds, "dense_tensor") else kinds.lod_tensor).tensor
            kind = _DTYPES.get(tensor.data_type, f"type {tensor.data_type}")
            inputs.append(ProgramInput(variable.name, tuple(tensor.dims), kind))
    return inputs


# --- .pdiparams -----------------------------------------------------------------------------------


def check_program_weights(path: Path) -> None:
    """Checks that a file of weights is whole: tensors one behind the other up to its end. Their values are not read.

    A tensor is a version (uint32), levels of nesting (uint64, and for each a length and as many bytes), once more a
    version, the length of its description (int32), the description (protobuf: type and shape) and its values.

    Raises:
        UserError: It is damaged or cannot be read.
    """
    try:
        check_regular(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            while file.tell() < size:
                _pass_tensor(file, size)
    except OSError as error:
        raise UserError(f"Cannot read the weights {path}: {error.strerror or error}") from error
    except Exception as error:  # protobuf's own
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is not a whole file of weights: {reason}. Copy or export it again") from error


def _pass_tensor(file: BinaryIO, size: int) -> None:
    from paddle.base.proto import framework_pb2

    _, levels = struct.unpack("<IQ", file.read(12))
    for _ in range(min(levels, size)):
        _skip(file, struct.unpack("<Q", file.read(8))[0], size)
    _, length = struct.unpack("<Ii", file.read(8))
    if not 0 <= length <= _LONGEST_DESCRIPTION:
        raise ValueError(f"a tensor's description of {length} bytes")
    description = framework_pb2.VarType.TensorDesc()
    description.ParseFromString(file.read(length))
    if description.data_type not in _ITEM_BYTES or min(description.dims, default=1) < 0:
        raise ValueError(f"a tensor of type {description.data_type} and shape {list(description.dims)[:8]}")
    _skip(file, _ITEM_BYTES[description.data_type] * math.prod(description.dims), size)


def _skip(file: BinaryIO, count: int, size: int) -> None:
    if file.tell() + count > size:
        raise ValueError("a tensor lies beyond its end")
    file.seek(count, 1)
