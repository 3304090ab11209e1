"""An ONNX file as a frozen network: the interface of `distill.engine.Engine`, computed by ONNX Runtime."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from distill.engine import Answers, EngineImages
from distill.errors import UserError, did_you_mean
from distill.onnx_file import check_onnx
from distill.recipe import NormalizationSection


class OnnxEngine:
    """See `distill.engine.Engine`; images are [N, H, W, 3]. ONNX Runtime is the plain model here."""

    def __init__(self, session: Any, outputs: dict[str, str], normalization: NormalizationSection) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self._outputs = outputs
        self._mean = np.asarray(normalization.mean, np.float32)
        self._std = np.asarray(normalization.std, np.float32)
        self.description = "ONNX Runtime, float32"
        self.largest_difference = 0.0

    def __call__(self, images: EngineImages) -> Answers:
        """See `distill.engine.Engine`."""
        unit = images.astype(np.float32) / np.float32(255.0) if images.dtype == np.uint8 else images
        planes = np.ascontiguousarray(((unit - self._mean) / self._std).transpose(0, 3, 1, 2))
        values = self._session.run(list(self._outputs.values()), {self._input: planes})
        return {
            name: value.reshape(len(value), -1).astype(np.float32, copy=False)
            for name, value in zip(self._outputs, values, strict=True)
        }


def open_onnx_engine(
    path: Path | str,
    normalization: NormalizationSection,
    *,
    threads: int,
    size_px: int,
    num_classes: int,
    logits_output: str | None = None,
    embedding_output: str | None = None,
) -> OnnxEngine:
    """Opens an ONNX file with one input, float32 [N, 3, size_px, size_px], normalised, any N.

    Args:
        path: The file; weights above 2 GB lie beside it, as ONNX prescribes.
        normalization: Applied before the network.
        threads: Of ONNX Runtime.
        size_px: Side of the images that the engine will be given; tried at once.
        num_classes: What the logits must have.
        logits_output: [N, num_classes]. Default: the first output.
        embedding_output: [N, D] or [N, D, 1, 1]; any tensor of the graph, such as the input of the last layer.
            Default: the second output.

    Raises:
        UserError: ONNX Runtime is missing, the file is none or is refused (see `distill.onnx_file`), an output is
            missing or has another shape.
    """
    runtime = import_extra("onnxruntime")
    check_onnx(import_extra("onnx"), path)
    source: str | bytes = str(path)
    try:
        outputs = [
            output.name for output in runtime.InferenceSession(source, **session_options(runtime, 1)).get_outputs()
        ]
        names = _output_names(str(path), outputs, logits_output, embedding_output)
        hidden = [name for name in names.values() if name not in outputs]
        if hidden:
            source = _with_outputs(str(path), hidden)
        session = runtime.InferenceSession(source, **session_options(runtime, threads))
        engine = OnnxEngine(session, names, normalization)
        answers = engine(np.zeros((2, size_px, size_px, 3), np.uint8))
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's own, which share no base
        raise UserError(f"{path}: ONNX Runtime cannot use it with images of {size_px} px: {error}") from error
    shape = answers["logits"].shape
    if shape != (2, num_classes):
        raise UserError(
            f"{path}: {names['logits']!r} has the shape {list(shape)} for 2 images, expected [2, {num_classes}]. "
            "Name the right output as logits_output, or correct num_classes"
        )
    return engine


def _output_names(path: str, outputs: list[str], logits: str | None, embedding: str | None) -> dict[str, str]:
    if embedding is None and len(outputs) < 2:
        raise UserError(
            f"{path}: it has the one output {outputs[0]!r}; name the tensor that feeds the last layer as "
            "embedding_output"
        )
    return {"logits": logits or outputs[0], "embedding": embedding or outputs[1]}


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
