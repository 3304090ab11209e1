"""Frozen teachers behind one call."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from distill.engines.engine import (
    Precision,
    check_agreement,
    check_support,
    open_engine,
    relative_difference,
    with_agreement,
)
from distill.errors import UserError, did_you_mean
from distill.losses.log_probabilities import log_softmax
from distill.models import build_model
from distill.models.batch_norm import BATCH_NORMS
from distill.models.factory_names import is_factory
from distill.models.kernels import compute_with
from distill.normalization import normalize
from distill.parallel import Device
from distill.recipe import (
    AnyTeacher,
    NormalizationSection,
    OnnxTeacher,
    PaddleTeacher,
    Recipe,
    TeacherModel,
    TeacherSection,
)
from distill.teachers.classes import ClassMap, read_class_map
from distill.teachers.files import digest_of, identity_of, open_file_teacher
from distill.weights import load_into


class Teacher:
    """One or more frozen networks. Neither parameters nor buffers ever change.

    Not an `nn.Layer`, so that no `train()`, `state_dict()` or optimiser of the student can reach it.

    Each sees the images at its own size (`resize_px`), and answers for the student's classes (`classes`).

    Args:
        section: Networks or files, normalisation, how BN normalises ("stored" or "batch" statistics), precision.
        num_classes: C, the student's.
        student_normalization: Used by the teachers that state none of their own.
        taps: Names of the taps wanted besides the logits; of a single teacher only.
        data_format: Layout of the images that are given and of the maps that are returned: the student's.
            A teacher built with another one gets its images transposed.
        device: Where it computes; lets `section.engine` "auto" choose. None: eager.
        check_px: Side of the noise on which an engine is checked against the plain model.

    Attributes:
        identity: Name and SHA-256 of each teacher's file, and of its map of classes.
        tap_channels: Channels by tap; empty for several teachers.
        vector_taps: Those that are no maps; likewise.
        engines: What computes, in which precision and how near to the plain model, of each network.

    Raises:
        UserError: Weights, files or a map of classes are missing or do not fit, taps of several teachers or of a file
            are asked for, or the device has not the precision.
        RunError: The engine's answers differ from the plain model's by more than `distill.engines.engine.TOLERANCE`.
    """

    def __init__(
        self,
        section: TeacherSection,
        num_classes: int,
        student_normalization: NormalizationSection,
        taps: Sequence[str] = (),
        *,
        data_format: str = "NCHW",
        device: Device | None = None,
        check_px: int = 224,
    ) -> None:
        if taps and len(section.models) > 1:
            raise UserError(
                f"teacher.models: {len(section.models)} teachers, but loss.feature_mse compares with one teacher's "
                f"{taps[0]!r}. Keep one teacher, or remove loss.feature_mse"
            )
        wanted = _Wanted(section, num_classes, student_normalization, tuple(taps), data_format, device, check_px)
        self._members = [
            _network_member(model, wanted) if isinstance(model, TeacherModel) else _FileMember(model, wanted)
            for model in section.models
        ]
        self._sides = [model.resize_px for model in section.models]
        self._maps = [
            class_map_of(model, member.num_classes, num_classes)
            for model, member in zip(section.models, self._members, strict=True)
        ]
        self._taps = tuple(taps)
        self._data_format = data_format
        self.engines = [member.description for member in self._members]
        self._unsound: dict[str, Tensor] = {}
        self._names = [f"{model.name} ({model.file})" for model in section.models]
        self.identity = [
            entry
            for model, classes in zip(section.models, self._maps, strict=True)
            for entry in identity_of(model.name, digest_of(model), classes.sha256 if classes is not None else None)
        ]
        alone = self._members[0] if len(self._members) == 1 else None
        self.tap_channels: dict[str, int] = alone.tap_channels if alone is not None else {}
        self.vector_taps: frozenset[str] = alone.vector_taps if alone is not None else frozenset()

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """The teacher's answers, without gradient: float32, computed in its own precision whatever the student's.

        Args:
            images: float32 [N, 3, H, W] or [N, H, W, 3] by `data_format`, in [0, 1], mixed already, not
                normalised.

        Returns:
            "logits" float32 [N, C] and the taps asked for. Of several teachers the logits are
            log(mean over the teachers of softmax(logits)): at temperature 1 their averaged probabilities.
        """
        with paddle.no_grad():
            answers = [self._answer(number, images) for number in range(len(self._members))]
            for name, answer in zip(self._names, answers, strict=True):
                count = _count_not_finite(answer)
                self._unsound[name] = self._unsound[name] + count if name in self._unsound else count
            if len(answers) == 1:
                return answers[0]
            with paddle.amp.auto_cast(enable=False):
                return {"logits": average_logits([answer["logits"] for answer in answers])}

    def take_unsound_answers(self) -> dict[str, Tensor]:
        """By network and weights: how many of its answers since the last call hold NaN or infinity; scalar tensors.

        They stay on the device, so that counting stops nothing.
        """
        counts, self._unsound = self._unsound, {}
        return counts

    def _answer(self, number: int, images: Tensor) -> dict[str, Tensor]:
        """One teacher's, over the student's classes."""
        side, classes = self._sides[number], self._maps[number]
        if side is not None:
            images = resized(images, side, self._data_format)
        answer = self._members[number].answer(images, self._taps, self._data_format)
        if classes is not None:
            answer["logits"] = paddle.to_tensor(classes.logits(answer["logits"].numpy()))
        return answer


def resized(images: Tensor, side_px: int, data_format: str) -> Tensor:
    """Images of another size: bilinear, half-pixel centres, borders repeated, no smoothing before shrinking.

    As OpenCV's INTER_LINEAR and PyTorch's `interpolate(align_corners=False)`; an image's bits do not depend on the
    others or on the layout.

    Args:
        images: float32 [N, 3, H, W] or [N, H, W, 3].
        side_px: Wanted height and width; images that have them are returned as they are.
        data_format: "NCHW" or "NHWC".
    """
    height, width = images.shape[2:] if data_format == "NCHW" else images.shape[1:3]
    if height == width == side_px:
        return images
    with paddle.amp.auto_cast(enable=False):
        return F.interpolate(
            images, [side_px, side_px], mode="bilinear", align_corners=False, align_mode=0, data_format=data_format
        )


def class_map_of(model: AnyTeacher, teachers: int, students: int) -> ClassMap | None:
    """How a teacher's classes become the student's; None where they are the same.

    Raises:
        UserError: They are not and nothing maps them, or the map does not fit.
    """
    if model.classes is not None:
        return read_class_map(model.classes, students, teachers)
    if teachers != students:
        raise UserError(
            f"the teacher {model.name} has {teachers} classes and the student {students}: state classes: FILE, which "
            "maps the ones to the others"
        )
    return None


def open_teacher(recipe: Recipe, number: int, device: Device) -> Teacher:
    """The teacher of stage `number` of a recipe, which must have one."""
    stage = recipe.stages[number]
    if stage.teacher is None:
        raise ValueError(f"stage {stage.name} has no teacher")
    feature = stage.loss.feature_mse
    return Teacher(
        stage.teacher,
        recipe.num_classes,
        stage.normalization,
        taps=[feature.teacher_layer] if feature is not None else (),
        data_format=recipe.model.data_format,
        device=device,
        check_px=stage.view.size_px,
    )


def uses_predictor(section: TeacherSection, device: Device | None) -> bool:
    """Whether Paddle Inference computes (`distill.engines`): on a CPU, with stored statistics, unless not wanted.

    Raises:
        UserError: The device has not the precision, or not with this engine and these statistics.
    """
    on_cpu = device is not None and device.kind == "cpu"
    fast = on_cpu and section.engine == "auto" and section.batch_norm == "stored"
    if on_cpu and not fast and section.precision != "float32":
        raise UserError(
            f"teacher.precision: on a CPU {section.precision!r} needs teacher.engine 'auto' and teacher.batch_norm "
            f"'stored', received {section.engine!r} and {section.batch_norm!r}: eager Paddle computes in float32 only. "
            "Change these, or use precision 'float32'"
        )
    if device is not None:
        try:
            check_support("predictor" if fast else "eager", section.precision, device)
        except UserError as error:
            raise UserError(f"teacher.precision: {error}") from None
    return fast


def average_logits(logits: Sequence[Tensor]) -> Tensor:
    """log(1/K sum_k softmax(logits_k)) of K teachers, each float32 [N, C]; a softmax of it is the mean."""
    log_probabilities = paddle.stack([log_softmax(each) for each in logits])
    return paddle.logsumexp(log_probabilities, axis=0) - paddle.log(paddle.to_tensor(float(len(logits))))


@dataclass(frozen=True)
class _Wanted:
    """What all teachers of a section are built for; see the arguments of `Teacher`."""

    section: TeacherSection
    num_classes: int
    student_normalization: NormalizationSection
    taps: tuple[str, ...]
    data_format: str
    device: Device | None
    check_px: int


def _network_member(model: TeacherModel, wanted: _Wanted) -> "_Member | _EngineMember":
    section, device = wanted.section, wanted.device
    fast = uses_predictor(section, device)
    check_px = model.resize_px or wanted.check_px
    # The predictor has a layout of its own; a transposition inside it makes Paddle 3.3.1 fail.
    if fast and not is_factory(model.name):
        model = model.model_copy(update={"data_format": wanted.data_format})
    classes = model.num_classes or wanted.num_classes
    member = _Member(model, classes, wanted.student_normalization, section.batch_norm, check_px)
    _check_taps(wanted.taps, member.tap_channels)
    if fast and device is not None:
        return _EngineMember(member, wanted.taps, device, section.precision, check_px)
    if device is not None and section.engine == "auto" and section.precision == "float32":
        member.use_fast_kernels()
    member.set_precision(section.precision, wanted.taps, check_px)
    return member


class _Member:
    """One frozen network with its own normalisation."""

    def __init__(
        self,
        section: TeacherModel,
        num_classes: int,
        student_normalization: NormalizationSection,
        batch_norm: str,
        size_px: int,
    ) -> None:
        self.model = build_model(section, num_classes, size_px=size_px)
        self.tap_channels, self.vector_taps = self.model.tap_channels, self.model.vector_taps
        self.num_classes = num_classes
        load_into(self.model, Path(section.weights))
        freeze(self.model, batch_statistics=batch_norm == "batch")
        self.normalization = section.normalization or student_normalization
        self._data_format = section.data_format
        self._precision: Precision = "float32"
        self.description = "eager Paddle, float32"

    def use_fast_kernels(self) -> None:
        """Computes with oneDNN from now on, where this is a CPU that has it."""
        compute_with(self.model, "auto")
        self.description = f"eager Paddle, {self.model.kernels.description}, float32"

    def set_precision(self, precision: Precision, taps: Sequence[str], check_px: int) -> None:
        """Computes in `precision` from now on, if that agrees with float32 on noise."""
        if precision == "float32":
            return
        shape = (2, 3, check_px, check_px)
        noise = paddle.to_tensor(np.random.default_rng(0).random(shape, dtype=np.float32))
        expected = {name: value.numpy() for name, value in self.answer(noise, taps, "NCHW").items()}
        self._precision = precision
        received = {name: value.numpy() for name, value in self.answer(noise, taps, "NCHW").items()}
        difference = relative_difference(received, expected)
        check_agreement(f"eager Paddle, {precision}", difference, precision)
        self.description = with_agreement(f"eager Paddle, {precision}", difference)

    def answer(self, images: Tensor, taps: Sequence[str], data_format: str) -> dict[str, Tensor]:
        mixed = self._precision != "float32"
        with paddle.amp.auto_cast(enable=mixed, dtype=self._precision if mixed else "float16"):
            images = _relaid(normalize(images, self.normalization, data_format), data_format, self._data_format)
            outputs = self.model.taps(images, [*taps, "logits"])
        return {
            name: _relaid(value.astype("float32"), self._data_format, data_format) for name, value in outputs.items()
        }


class _EngineMember:
    """One frozen network on a fast engine, in the network's own layout.

    The network itself is not kept: the engine has a copy of its weights, and a large teacher's fill a gigabyte.
    """

    def __init__(
        self, member: _Member, taps: Sequence[str], device: Device, precision: Precision, check_px: int
    ) -> None:
        self.tap_channels, self.vector_taps = member.tap_channels, member.vector_taps
        self._data_format: str = member.model.data_format
        self.num_classes = member.num_classes
        self._engine = open_engine(
            member.model,
            member.normalization,
            device,
            outputs=[*taps, "logits"],
            precision=precision,
            data_format=self._data_format,
            check_px=check_px,
        )
        self.description = with_agreement(self._engine.description, self._engine.largest_difference)

    def answer(self, images: Tensor, taps: Sequence[str], data_format: str) -> dict[str, Tensor]:
        outputs = self._engine(_relaid(images, data_format, self._data_format).numpy())
        return {
            name: _relaid(paddle.to_tensor(value), self._data_format, data_format) for name, value in outputs.items()
        }


def _check_taps(taps: Sequence[str], channels: Mapping[str, int]) -> None:
    for tap in taps:
        if tap not in channels:
            raise UserError(
                f"loss.feature_mse.teacher_layer: the teacher has no layer {tap!r} that computes one map or vector of "
                f"each image.{did_you_mean(tap, channels)} Its last ones: {', '.join([*channels][-8:])}"
            )


def _count_not_finite(answers: Mapping[str, Tensor]) -> Tensor:
    """Of the answers [N, ...] to N images: how many are not finite, an int64 scalar."""
    # A map of features is judged by its sum, which is quicker than to look at each of millions of values.
    maps = [value.flatten(1).sum(axis=1, keepdim=True) for name, value in answers.items() if name != "logits"]
    return paddle.logical_not(paddle.isfinite(paddle.concat([answers["logits"], *maps], axis=1)).all(axis=1)).sum()


class _FileMember:
    """One network that is a file, computed on the CPU wherever the student is."""

    tap_channels: ClassVar[dict[str, int]] = {}
    vector_taps: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, teacher: OnnxTeacher | PaddleTeacher, wanted: _Wanted) -> None:
        if wanted.taps:
            raise UserError(f"teacher.models: {teacher.name} is a file and has no {wanted.taps[0]!r} to compare with")
        threads = wanted.device.threads if wanted.device is not None else 1
        self._engine = open_file_teacher(teacher, view_px=wanted.check_px, threads=threads)
        self.num_classes = self._engine.num_classes
        self.description = self._engine.description

    def answer(self, images: Tensor, taps: Sequence[str], data_format: str) -> dict[str, Tensor]:
        values = images.numpy()
        answers = self._engine(values.transpose(0, 2, 3, 1) if data_format == "NCHW" else values)
        return {name: paddle.to_tensor(value) for name, value in answers.items()}


def freeze(model: nn.Layer, *, batch_statistics: bool) -> None:
    """Puts a model into evaluation mode for good: no gradients, and buffers that no call moves.

    Args:
        model: Changed in place; its parameters and buffers keep their values.
        batch_statistics: BN normalises by mean and variance of the batch instead of the stored ones, as
            the published SSLD runs had it (there by leaving the teacher in training mode, which also
            moves what is stored).
    """
    model.eval()
    for parameter in model.parameters():
        parameter.stop_gradient = True
    if batch_statistics:
        for layer in model.sublayers(include_self=True):
            if isinstance(layer, BATCH_NORMS):
                layer.training = layer.keeps_statistics = True  # for kernels that do not call the layer itself
                layer.forward = functools.partial(_normalize_by_batch, layer)


def _normalize_by_batch(layer: nn.Layer, features: Tensor) -> Tensor:
    # Paddle's kernel always writes new running statistics when it uses those of the batch: give it copies.
    normalized = F.batch_norm(
        features,
        layer._mean.clone(),
        layer._variance.clone(),
        layer.weight,
        layer.bias,
        training=True,
        epsilon=layer._epsilon,
        data_format=layer._data_layout if isinstance(layer, nn.BatchNorm) else layer._data_format,
    )
    activation = getattr(layer, "_act", None)  # of the older nn.BatchNorm, a name such as "relu"
    return normalized if activation is None else getattr(F, activation)(normalized)


def _relaid(value: Tensor, given: str, wanted: str) -> Tensor:
    """Transposes a map between NCHW and NHWC; vectors and equal layouts pass."""
    if value.ndim != 4 or given == wanted:
        return value
    return value.transpose([0, 3, 1, 2] if wanted == "NCHW" else [0, 2, 3, 1])
