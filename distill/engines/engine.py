"""Fast forward passes of a frozen network: Paddle Inference with oneDNN on a CPU, mixed precision on a GPU.

Eager Paddle on a CPU reaches 3 images/s with a ResNet50 as it comes and 12 with `setup_process`; the predictor
20-24, with bfloat16 37-50 (two Zen 4 cores, 224 px). It folds batch normalisation into the convolutions' weights, and
ReLU and the residual sum into the convolutions, so that a ResNet is convolutions, poolings and one matrix product. Its
float32 answers were the same bits for any batch size and number of threads, so they can be stored.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor, nn

from distill.errors import DistillError, RunError, UserError
from distill.models import build_model
from distill.normalization import normalize
from distill.parallel import Device
from distill.recipe import NormalizationSection, TeacherModel
from distill.weights import load_into

EngineKind = Literal["auto", "predictor", "eager"]
Precision = Literal["float32", "bfloat16", "float16"]
EngineImages = NDArray[np.uint8] | NDArray[np.float32]
Answers = dict[str, NDArray[np.float32]]

TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.05}
"""Largest difference from the plain model, relative to the largest absolute value of the answer.

Measured with random weights at 64 px over thirteen networks of the series: at most 3e-6 in float32, 0.004-0.026 in
bfloat16. What 0.015 meant to a trained network
(recipes/fashion_mnist/teacher.yaml, 10,000 test images): 99.8 % of them kept their first class, top-1 went from 91.65
to 91.57 %, and the mean total variation between the two softmax was 0.0024. float16 is not yet measured.
"""


class Engine(Protocol):
    """A frozen network; not to be called from two threads at once.

    Attributes:
        description: What computes, for reports: "Paddle Inference, oneDNN, float32".
        largest_difference: From the plain model, on noise, relative as in `TOLERANCE`; 0 for the plain model.
    """

    description: str
    largest_difference: float

    def __call__(self, images: EngineImages) -> Answers:
        """The network's answers, by name.

        Args:
            images: uint8 [N, H, W, 3] (or [N, 3, H, W], as the engine was opened) in RGB, or float32 in [0, 1];
                not normalised. N >= 1.

        Returns:
            float32, N rows each: what was asked for at opening, e.g. "logits" [N, C], "embedding" [N, D].
        """


def open_teacher_engine(
    teacher: TeacherModel,
    num_classes: int,
    normalization: NormalizationSection,
    device: Device,
    *,
    outputs: Sequence[str] = ("logits", "embedding"),
    kind: EngineKind = "auto",
    precision: Precision = "float32",
    data_format: str = "NHWC",
    check_px: int = 224,
) -> Engine:
    """Builds a network of the series, loads its weights, and opens an engine for it.

    Args:
        teacher: Name, width, stem and weights; its own normalisation goes before `normalization`.
        num_classes: Of its classifier.
        normalization: Of images in [0, 1].
        device: What `setup_process` returned.
        outputs: See `open_engine`.
        kind: See `open_engine`.
        precision: See `open_engine`.
        data_format: Layout of the images that the engine will be given.
        check_px: Side of the images that the agreement is checked with.

    Raises:
        UserError: Weights that do not fit, or an engine or precision that the device has not.
        RunError: The engine's answers are not those of the plain model.
    """
    model = build_model(teacher, num_classes, size_px=check_px)
    load_into(model, Path(teacher.weights))
    return open_engine(
        model,
        teacher.normalization or normalization,
        device,
        outputs=outputs,
        kind=kind,
        precision=precision,
        data_format=data_format,
        check_px=check_px,
    )


def open_engine(
    model: nn.Layer,
    normalization: NormalizationSection,
    device: Device,
    *,
    outputs: Sequence[str] = ("logits", "embedding"),
    kind: EngineKind = "auto",
    precision: Precision = "float32",
    data_format: str = "NHWC",
    check_px: int = 224,
) -> Engine:
    """Opens an engine for a network that stands, and compares the two on noise.

    Args:
        model: A network of `distill.models`; put into evaluation mode. The predictor takes a copy of its weights.
        normalization: Applied inside the engine.
        device: What `setup_process` returned; its `threads` are the predictor's.
        outputs: Names of the model's taps: "logits", "embedding", "stage4" ...
        kind: "predictor": Paddle Inference with oneDNN, CPU only; "eager": the model as it is; "auto": the
            predictor on a CPU, eager on a GPU.
        precision: "bfloat16" needs a CPU with AVX-512 or a GPU, "float16" a GPU.
        data_format: Layout of the images that the engine will be given, "NHWC" or "NCHW".
        check_px: Side of the images that the agreement is checked with.

    Raises:
        UserError: An engine or a precision that the device has not.
        RunError: The engine's answers differ from the plain model's by more than `TOLERANCE`.
    """
    chosen = ("predictor" if device.kind == "cpu" else "eager") if kind == "auto" else kind
    check_support(chosen, precision, device)
    model.eval()
    answers = _Answers(model, normalization, outputs, data_format)
    answers.eval()
    plain = EagerEngine(answers, outputs)
    if chosen == "eager" and precision == "float32":
        return plain
    with quiet():  # Paddle prints on stdout while it optimises the graph, at the first call too
        engine = (
            EagerEngine(answers, outputs, precision)
            if chosen == "eager"
            else _exported(answers, outputs, precision, device.threads)
        )
        engine.largest_difference = largest_difference(engine, plain, check_px, data_format)
    check_agreement(engine.description, engine.largest_difference, precision)
    return engine


def _exported(answers: nn.Layer, outputs: Sequence[str], precision: Precision, threads: int) -> Engine:
    """A predictor, where Paddle can write the network for it: not every Python code of somebody else's.

    Raises:
        RunError: It cannot.
    """
    try:
        return PredictorEngine(answers, outputs, precision, threads)
    except DistillError:
        raise
    except Exception as error:  # whatever the translation of a network's own code can raise
        reason = " ".join(str(error).split())
        raise RunError(
            f"Paddle Inference cannot compute this network: {type(error).__name__}: {reason[-300:]}. Use the engine "
            "'eager'"
        ) from error


def largest_difference(engine: Engine, plain: Engine, size_px: int, data_format: str) -> float:
    """The greatest |engine - plain| / max |plain| over all answers to two images of noise."""
    shape = (2, size_px, size_px, 3) if data_format == "NHWC" else (2, 3, size_px, size_px)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return relative_difference(engine(noise), plain(noise))


def relative_difference(received: Answers, expected: Answers) -> float:
    """The greatest |received - expected| / max |expected| over all answers; NaN where one holds NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        return float(
            np.max(
                [
                    np.abs(received[name] - each).max() / np.maximum(np.abs(each).max(), 1e-12)
                    for name, each in expected.items()
                ]
            )
        )


def with_agreement(description: str, difference: float) -> str:
    """What computes, and its `largest_difference` from the plain model."""
    return f"{description} (within {difference:.1g} of the plain model)"


def check_agreement(description: str, difference: float, precision: Precision) -> None:
    """Refuses an engine whose `largest_difference` from the plain model is beyond `TOLERANCE`, or NaN.

    Raises:
        RunError: It is.
    """
    if math.isnan(difference):
        raise RunError(
            f"{description}: the network's answers to noise are not finite. Check its weights and its normalization."
        )
    if not difference <= TOLERANCE[precision]:
        raise RunError(
            f"{description} differs from the plain model by {difference:.2g} of the largest answer, expected <= "
            f"{TOLERANCE[precision]:g}. Use the engine 'eager', or the precision 'float32'."
        )


class EagerEngine:
    """The model itself, on a GPU with automatic mixed precision; see `Engine`."""

    def __init__(self, answers: nn.Layer, outputs: Sequence[str], precision: Precision = "float32") -> None:
        self._answers = answers
        self._outputs = tuple(outputs)
        self._precision = precision
        self.description = f"eager Paddle, {precision}"
        self.largest_difference = 0.0

    def __call__(self, images: EngineImages) -> Answers:
        """See `Engine`."""
        given = paddle.to_tensor(images)  # bytes travel to the device as bytes
        tensor = given.astype("float32") / 255.0 if images.dtype == np.uint8 else given
        mixed = self._precision != "float32"
        amp_type = self._precision if mixed else "float16"
        with paddle.no_grad(), paddle.amp.auto_cast(enable=mixed, dtype=amp_type):
            values = self._answers(tensor)
        return {
            name: np.asarray(value.astype("float32").numpy()) for name, value in zip(self._outputs, values, strict=True)
        }


class PredictorEngine:
    """Paddle Inference with oneDNN on a CPU; see `Engine`."""

    def __init__(self, answers: nn.Layer, outputs: Sequence[str], precision: Precision, threads: int) -> None:
        self._outputs = tuple(outputs)
        self._predictor = _predictor(answers, precision, threads)
        self.description = f"Paddle Inference, oneDNN, {precision}"
        self.largest_difference = 0.0

    def __call__(self, images: EngineImages) -> Answers:
        """See `Engine`."""
        given = images.astype(np.float32) / np.float32(255.0) if images.dtype == np.uint8 else images
        return dict(zip(self._outputs, run_predictor(self._predictor, given), strict=True))


class _Answers(nn.Layer):
    """Images in [0, 1] to several taps: what is exported to the predictor."""

    def __init__(
        self, model: nn.Layer, normalization: NormalizationSection, outputs: Sequence[str], data_format: str
    ) -> None:
        super().__init__()
        self._model = model
        self._normalization = normalization
        self._outputs = tuple(outputs)
        self._data_format = data_format
        self.images_shape = [None, None, None, 3] if data_format == "NHWC" else [None, 3, None, None]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps float32 [N, H, W, 3] or [N, 3, H, W] in [0, 1] to the taps, in order."""
        images = normalize(images, self._normalization, self._data_format)
        if self._data_format != self._model.data_format:
            images = images.transpose([0, 3, 1, 2] if self._data_format == "NHWC" else [0, 2, 3, 1])
        taps = self._model.taps(images, self._outputs)
        return [taps[name] for name in self._outputs]


def _predictor(answers: nn.Layer, precision: Precision, threads: int) -> Any:
    """Exports the layer into a temporary folder and opens a predictor on it, which keeps nothing of the folder."""
    with tempfile.TemporaryDirectory() as folder:
        spec = paddle.static.InputSpec(answers.images_shape, "float32", "images")
        return open_predictor(*save_program(answers, Path(folder) / "network", spec), precision, threads)


def save_program(layer: nn.Layer, prefix: Path, images: paddle.static.InputSpec) -> tuple[Path, Path]:
    """Writes a layer for Paddle Inference.

    Args:
        layer: In evaluation mode.
        prefix: Of the files' names.
        images: Of its input.

    Returns:
        The program, .json or with older versions of Paddle .pdmodel, and the .pdiparams with its weights.

    Raises:
        RunError: They cannot be written.
    """
    try:
        paddle.jit.save(layer, str(prefix), input_spec=[images])
    except OSError as error:
        raise RunError(
            f"cannot write the network to {prefix.parent}: {error}. Choose a folder with more space (TMPDIR names that "
            "of temporary files)."
        ) from error
    program = next(path for end in (".json", ".pdmodel") if (path := prefix.with_name(prefix.name + end)).exists())
    return program, prefix.with_name(f"{prefix.name}.pdiparams")


def open_predictor(program: Path, weights: Path, precision: Precision, threads: int) -> Any:
    """Opens what `save_program` wrote in Paddle Inference with oneDNN, on a CPU; it keeps nothing of the files."""
    from paddle.inference import Config, create_predictor

    config = Config(str(program), str(weights))
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(threads)
    config.enable_mkldnn()
    # Compiled kernels are kept by input shape: the last batches are short, so allow a few shapes.
    config.set_mkldnn_cache_capacity(16)
    if precision == "bfloat16":
        config.enable_mkldnn_bfloat16()
    return create_predictor(config)


def run_predictor(predictor: Any, images: NDArray[Any]) -> list[NDArray[np.float32]]:
    """The answers of a network with one input, in the order of its outputs."""
    handle = predictor.get_input_handle(predictor.get_input_names()[0])
    handle.reshape(images.shape)
    handle.copy_from_cpu(np.ascontiguousarray(images))
    predictor.run()
    return [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]


def check_support(kind: Literal["predictor", "eager"], precision: Precision, device: Device) -> None:
    """Whether a device can compute so.

    Raises:
        UserError: It cannot; says what it can.
    """
    if kind == "predictor" and device.kind != "cpu":
        raise UserError("engine 'predictor' computes on a CPU only: use --device cpu, or engine 'eager'")
    if kind == "eager" and device.kind == "cpu" and precision != "float32":
        raise UserError(f"engine 'eager' on a CPU computes in float32 only, received precision {precision!r}")
    if kind == "predictor" and precision == "float16":
        raise UserError("engine 'predictor' computes in float32 or bfloat16, received precision 'float16'")
    if kind == "predictor" and precision == "bfloat16" and "avx512bw" not in _cpu_flags():
        raise UserError("precision 'bfloat16' needs a CPU with AVX-512, which this one has not: use 'float32'")
    if device.kind == "gpu" and precision == "bfloat16" and not paddle.amp.is_bfloat16_supported():
        raise UserError(
            "precision 'bfloat16' needs a GPU of compute capability 8.0 or more: use 'float16' or 'float32'"
        )


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what C++ code prints from the terminal, unless something fails."""
    with tempfile.TemporaryFile() as kept:
        saved = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
        try:
            for descriptor in saved:
                os.dup2(kept.fileno(), descriptor)
            yield
        except BaseException:
            kept.seek(0)
            os.write(saved[2], kept.read())
            raise
        finally:
            for descriptor, original in saved.items():
                os.dup2(original, descriptor)
                os.close(original)
