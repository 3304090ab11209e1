"""The files of an exported network: writing them, and opening them again."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor, nn

from distill.engines.engine import open_engine, open_predictor, quiet, run_predictor, save_program
from distill.engines.onnx_engine import import_extra, session_options
from distill.engines.onnx_file import check_onnx
from distill.engines.paddle_program import check_program
from distill.errors import UserError
from distill.export.description import FILE, Description, Format, read_description
from distill.export.folding import fold_batch_norm
from distill.export.onnx_graph import onnx_network
from distill.export.quantization import quantize
from distill.files import write_atomically
from distill.models import build_model
from distill.models.resnet import ResNet
from distill.normalization import normalize
from distill.parallel import Device
from distill.recipe import NormalizationSection
from distill.weights import load_into, sha256_of, write_weights

if TYPE_CHECKING:
    from distill.models import Network

REPORT = "export.json"
CALIBRATION_BATCH = 16
NAMES: dict[Format, tuple[tuple[str, ...], ...]] = {
    "paddle": (("inference.json", "inference.pdiparams"), ("inference.pdmodel", "inference.pdiparams")),
    "onnx": (("inference.onnx",),),
    "safetensors": (("inference.safetensors",),),
}
"""The network's files, for each version of Paddle that writes others."""

Logits = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class ExportedNetwork:
    """An exported network, open.

    Attributes:
        description: What it is.
        logits: Maps views uint8 [N, crop_px, crop_px, 3], RGB, to float32 [N, num_classes].
        engine: What computes, for people.
    """

    description: Description
    logits: Logits
    engine: str


def write_network(
    model: "Network",
    description: Description,
    inside: NormalizationSection | None,
    images: Sequence[np.ndarray],
    to: Path,
) -> None:
    """Writes a network's own files into a folder.

    Args:
        model: Trained.
        description: Says which files.
        inside: The normalisation that becomes a part of the network, or None.
        images: For int8: views uint8 [crop_px, crop_px, 3] to calibrate with.
        to: The folder.

    Raises:
        RunError: They cannot be written, or not in this precision.
    """
    names = NAMES[description.format][0]
    if description.format == "safetensors":
        arrays = {key: value.numpy() for key, value in model.state_dict().items()}
        half = description.precision == "float16"
        write_weights(to / names[0], {k: v.astype(np.float16) if half else v for k, v in arrays.items()})
    elif description.format == "paddle":
        # Paddle Inference folds batch normalisation itself; of a factory's network nobody knows where it is.
        _save_paddle(fold_batch_norm(model) if isinstance(model, ResNet) else model, description, inside, to)
    else:
        network = onnx_network(
            fold_batch_norm(model),
            description.crop_px,
            half=description.precision == "float16",
            normalization=inside,
        )
        if description.precision == "int8":
            parts = (images[at : at + CALIBRATION_BATCH] for at in range(0, len(images), CALIBRATION_BATCH))
            quantize(network, to / names[0], (prepared(np.stack(part), description) for part in parts))
        else:
            write_atomically(to / names[0], network.SerializeToString())


def prepared(views: NDArray[np.uint8], description: Description) -> NDArray[Any]:
    """What the network takes: the views as they are, or float32 [N, 3, crop_px, crop_px], normalised.

    Args:
        views: uint8 [N, crop_px, crop_px, 3], RGB.
        description: Of the network.
    """
    if description.normalization is None:
        return views
    mean, std = (np.asarray(v, np.float32) for v in (description.normalization.mean, description.normalization.std))
    planes: NDArray[Any] = ((views.astype(np.float32) / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(planes)


def open_exported(path: Path, device: Device) -> ExportedNetwork:
    """Opens what `distill export` wrote.

    An ONNX file and a program of Paddle Inference are looked through first (see `distill.engines.onnx_file` and
    `distill.engines.paddle_program`).

    Args:
        path: The folder, or a file of the network in it.
        device: What `setup_process` returned; it computes on the CPU.

    Raises:
        UserError: It is incomplete, damaged, or something else.
    """
    description, files = find_exported(path)
    logits, engine = _OPENERS[description.format](files, description, device)
    return ExportedNetwork(description, logits, engine)


def find_exported(path: Path) -> tuple[Description, list[Path]]:
    """What `distill export` wrote, and the network's files, unchanged; `path` and errors as of `open_exported`."""
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise UserError(f"{path} does not exist: expected a folder that `distill export` wrote, or a file in it")
    description = read_description(folder / FILE)
    files = _files(folder, description)
    if path != folder and path not in files:
        expected = ", ".join(file.name for file in files)
        raise UserError(f"{path} is no file of the network that {folder / FILE} describes, which is in {expected}")
    _check_unchanged(folder, files)
    return description, files


def _files(folder: Path, description: Description) -> list[Path]:
    choices = NAMES[description.format]
    for names in choices:
        if all((folder / name).is_file() for name in names):
            return [folder / name for name in names]
    raise UserError(f"{folder} is incomplete: expected {' or '.join(' and '.join(names) for names in choices)} in it")


def _check_unchanged(folder: Path, files: Sequence[Path]) -> None:
    """Compares the files with the hashes in the report: Paddle Inference opens one that was cut off without a word."""
    report = folder / REPORT
    try:
        expected = json.loads(report.read_text(encoding="utf-8"))["files"]
        same = [expected[file.name] == sha256_of(file) for file in files]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{report} cannot be used: {error}. Expected a folder that `distill export` wrote") from error
    changed = [file.name for file, unchanged in zip(files, same, strict=True) if not unchanged]
    if changed:
        raise UserError(
            f"{folder}: {', '.join(changed)} is not the file that was exported: its SHA-256 is not that in "
            f"{REPORT}. Copy the folder again"
        )


# --- Paddle Inference ---------------------------------------------------------------------------


class _FromBytes(nn.Layer):
    """uint8 [N, H, W, 3] to logits."""

    def __init__(self, network: nn.Layer, normalization: NormalizationSection) -> None:
        super().__init__()
        self._network = network
        self._normalization = normalization

    def forward(self, images: Tensor) -> Tensor:
        """Normalises and answers."""
        planes = (images.astype("float32") / 255.0).transpose([0, 3, 1, 2])
        return self._network(normalize(planes, self._normalization, "NCHW"))


def _save_paddle(network: "Network", description: Description, inside: NormalizationSection | None, to: Path) -> None:
    side = [description.crop_px, description.crop_px]
    layer, shape, kind = network, [None, 3, *side], "float32"
    if inside is not None:
        layer, shape, kind = _FromBytes(network, inside), [None, *side, 3], "uint8"
        layer.eval()
    with quiet():
        save_program(layer, to / "inference", paddle.static.InputSpec(shape, kind, "images"))


def _open_paddle(files: Sequence[Path], description: Description, device: Device) -> tuple[Logits, str]:
    check_program(files[0])
    with quiet():  # Paddle prints on stdout while it optimises the graph, at the first call too
        predictor = open_predictor(files[0], files[1], "float32", device.threads)
        side = description.crop_px
        run_predictor(predictor, prepared(np.zeros((1, side, side, 3), np.uint8), description))
    return lambda views: run_predictor(predictor, prepared(views, description))[0], "Paddle Inference, oneDNN, float32"


# --- ONNX, safetensors --------------------------------------------------------------------------


def _open_onnx(files: Sequence[Path], description: Description, device: Device) -> tuple[Logits, str]:
    runtime = import_extra("onnxruntime")
    check_onnx(import_extra("onnx"), files[0])
    try:
        session = runtime.InferenceSession(str(files[0]), **session_options(runtime, device.threads))
    except Exception as error:  # ONNX Runtime's own, which share no base
        raise UserError(f"{files[0]}: ONNX Runtime cannot use it: {error}") from error

    def logits(views: NDArray[np.uint8]) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = session.run(["logits"], {"images": prepared(views, description)})[0]
        return answer

    return logits, f"ONNX Runtime {runtime.__version__}, CPU"


def _open_safetensors(files: Sequence[Path], description: Description, device: Device) -> tuple[Logits, str]:
    if description.normalization is None:
        raise UserError(f"{files[0]}: weights alone cannot hold the normalisation, and {FILE} states none")
    model = build_model(description.model, description.num_classes, size_px=description.crop_px)
    load_into(model, files[0])
    engine = open_engine(model, description.normalization, device, outputs=("logits",), kind="eager")
    return lambda views: engine(views)["logits"], engine.description


_OPENERS: dict[Format, Callable[[Sequence[Path], Description, Device], tuple[Logits, str]]] = {
    "paddle": _open_paddle,
    "onnx": _open_onnx,
    "safetensors": _open_safetensors,
}
