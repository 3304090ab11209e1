"""An ONNX file as a frozen network, computed by ONNX Runtime on a CPU; see `distill.engines.engine.Engine`.

Its float32 answers were the same bits for any batch size (1 to 48) and number of threads (1 to 8): onnxruntime 1.32,
Zen 4, five convolutional networks, dense and depthwise, of up to 2048 channels and 1000 classes.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.engines.file_engine import TRIED, FileEngine, NetworkInput, check_logits
from distill.engines.onnx_file import check_onnx
from distill.errors import UserError, did_you_mean
from distill.recipe import NormalizationSection

_TYPES = {"tensor(float)": "float32"}  # others are called as in NumPy: tensor(float16), tensor(uint8)


def open_onnx_engine(
    path: Path | str,
    normalization: NormalizationSection | None,
    *,
    threads: int,
    size_px: int,
    num_classes: int | None,
    logits_output: str | None = None,
    embedding_output: str | None = None,
    outputs: Sequence[str] = ("logits", "embedding"),
    view_px: int | None = None,
) -> FileEngine:
    """Opens an ONNX file with one input, [N, 3, H, W] or [N, H, W, 3], by its shape, float32, float16 or uint8.

    Args:
        path: The file; weights above 2 GB lie beside it, as ONNX prescribes.
        normalization: Applied before the network; None: it takes bytes.
        threads: Of ONNX Runtime.
        size_px: Side of the images that the engine will be given; tried at once.
        num_classes: What the logits must have; None: any number.
        logits_output: [N, num_classes]. Default: the first output.
        embedding_output: [N, D] or [N, D, 1, 1]; any tensor of the graph, such as the input of the last layer.
            Default: the second output.
        outputs: Which of "logits" and "embedding" are wanted.
        view_px: Side of the view that the images are made of, where it is another one; for errors.

    Raises:
        UserError: ONNX Runtime is missing, the file is none or is refused (see `distill.engines.onnx_file`), takes
            something else, an output is missing or has another shape.
    """
    runtime = import_extra("onnxruntime")
    check_onnx(import_extra("onnx"), path)
    source: str | bytes = str(path)
    try:
        session = runtime.InferenceSession(source, **session_options(runtime, threads))
        takes = _input(path, session.get_inputs())
        takes.check_side(path, size_px, view_px or size_px)
        takes.check_normalization(path, normalization)
        there = [output.name for output in session.get_outputs()]
        names = _output_names(str(path), there, outputs, logits_output, embedding_output)
        hidden = [name for name in names.values() if name not in there]
        if hidden:
            source = _with_outputs(str(path), hidden)
            session = runtime.InferenceSession(source, **session_options(runtime, threads))
        given = session.get_inputs()[0].name
        engine = FileEngine(
            lambda values: session.run(list(names.values()), {given: values}),
            takes,
            list(names),
            normalization,
            "ONNX Runtime, float32",
        )
        answers = engine(np.zeros((TRIED, size_px, size_px, 3), np.uint8))
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's own, which share no base
        raise UserError(f"{path}: ONNX Runtime cannot use it with images of {size_px} px: {error}") from error
    hint = "Name the right output as logits_output" + (", or correct num_classes" if num_classes is not None else "")
    check_logits(path, names["logits"], answers["logits"].shape, num_classes, hint)
    return engine


def _input(path: Path | str, inputs: Sequence[Any]) -> NetworkInput:
    if len(inputs) != 1:
        names = ", ".join(repr(each.name) for each in inputs)
        raise UserError(f"{path} has {len(inputs)} inputs, {names:.200}, expected one: images")
    kind = inputs[0].type
    return NetworkInput.of(
        path, inputs[0].name, inputs[0].shape, _TYPES.get(kind, kind.removeprefix("tensor(").removesuffix(")"))
    )


def _output_names(
    path: str, there: list[str], wanted: Sequence[str], logits: str | None, embedding: str | None
) -> dict[str, str]:
    if "embedding" in wanted and embedding is None and len(there) < 2:
        raise UserError(
            f"{path}: it has the one output {there[0]!r}; name the tensor that feeds the last layer as embedding_output"
        )
    names = {"logits": logits or there[0]}
    return {**names, "embedding": embedding or there[1]} if "embedding" in wanted else names


def _with_outputs(path: str, names: list[str]) -> bytes:
    """The model with inner tensors of its graph as further outputs."""
    onnx = import_extra("onnx")
    model = onnx.load(path)
    inner = {name for node in model.graph.node for name in node.output}
    for name in names:
        if name not in inner:
            raise UserError(f"{path}: it has no tensor {name!r}.{did_you_mean(name, inner)}")
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    serialised: bytes = model.SerializeToString()
    return serialised


def session_options(runtime: Any, threads: int) -> dict[str, Any]:
    """What ONNX Runtime's sessions are opened with: on a CPU, with so many threads, saying errors only."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: it warns of unused initialisers
    return {"sess_options": options, "providers": ["CPUExecutionProvider"]}


def import_extra(package: str) -> Any:
    """Imports a package of the extra `export`.

    Raises:
        UserError: It cannot be imported; says what to install.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"ONNX needs {package}, which cannot be imported ({error}): pip install 'paddle-distill[export]'"
        ) from error
