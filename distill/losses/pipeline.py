"""From a recipe's loss section to named terms and their weighted sum."""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor, nn

from distill.errors import UserError, did_you_mean
from distill.losses.cross_entropy import cross_entropy
from distill.losses.dist import dist
from distill.losses.dkd import dkd, target_classes
from distill.losses.feature_mse import Projection, feature_mse
from distill.losses.jensen_shannon import jensen_shannon
from distill.losses.kl import kl
from distill.losses.symmetric_kl import symmetric_kl

LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "kl": kl,
    "symmetric_kl": symmetric_kl,
    "jensen_shannon": jensen_shannon,
    "dkd": dkd,
    "dist": dist,
    "feature_mse": feature_mse,
}

_VECTORS = frozenset({"embedding", "logits"})
_SHOWN_LAYERS = 20

Parameters = Mapping[str, float | str]


@dataclass(frozen=True)
class Targets:
    """The ground truth of a micro-batch.

    Attributes:
        labels: int64 [N] in [-1, C); -1 for unlabelled.
        partner: int64 [N] in [0, N), the place in the micro-batch of the image mixed in; None: not mixed.
        lam: float32 [N] in [0, 1], the share of the image itself; given together with `partner`.
    """

    labels: Tensor
    partner: Tensor | None = None
    lam: Tensor | None = None

    @classmethod
    def of_batch(
        cls, labels: np.ndarray, partner: np.ndarray | None = None, lam: np.ndarray | None = None
    ) -> "Targets":
        """Copies the arrays of a batch to the device."""
        if (partner is None) != (lam is None):
            raise ValueError("a mixed batch needs both partner and lam, received only one of them")
        if partner is None:
            return cls(paddle.to_tensor(labels))
        return cls(paddle.to_tensor(labels), paddle.to_tensor(partner), paddle.to_tensor(lam, dtype="float32"))

    @property
    def partner_labels(self) -> Tensor | None:
        """int64 [N], the labels of the images mixed in."""
        return None if self.partner is None else self.labels.index_select(self.partner)


class DistillationLoss(nn.Layer):
    """The terms that a recipe names. Its parameters (the projection of features) are trained with the student.

    Args:
        terms: By name of `LOSSES`, the parameters of that function and `weight` > 0; feature_mse takes
            `student_layer` and `teacher_layer` instead.
        student_channels: Channels of the student's taps by name; used by feature_mse only.
        teacher_channels: The teacher's.
        student_vectors: Which of the student's taps are no maps: [N, D] or [N, T, D].
        teacher_vectors: Likewise, of the teacher's.
        data_format: "NCHW" or "NHWC", of maps.

    Attributes:
        student_taps: The taps of the student that are needed besides the logits.
        teacher_taps: The teacher's.

    Raises:
        ValueError: A term is unknown.
        UserError: A layer is unknown, or a map is compared with a vector.
    """

    def __init__(
        self,
        terms: Mapping[str, Parameters],
        *,
        student_channels: Mapping[str, int],
        teacher_channels: Mapping[str, int],
        student_vectors: Set[str] = _VECTORS,
        teacher_vectors: Set[str] = _VECTORS,
        data_format: str = "NCHW",
    ) -> None:
        super().__init__()
        for name in terms:
            if name not in LOSSES:
                raise ValueError(f"unknown loss term {name!r}. Valid: {', '.join(LOSSES)}.{did_you_mean(name, LOSSES)}")
        self._weights = {name: float(term["weight"]) for name, term in terms.items()}
        self._parameters_of = {
            name: {key: float(value) for key, value in term.items() if key != "weight"}
            for name, term in terms.items()
            if name != "feature_mse"
        }
        self.student_taps: tuple[str, ...] = ()
        self.teacher_taps: tuple[str, ...] = ()
        if "feature_mse" in terms:
            vectors = student_vectors, teacher_vectors
            self._build_projection(terms["feature_mse"], student_channels, teacher_channels, vectors, data_format)

    def _build_projection(
        self,
        term: Parameters,
        student: Mapping[str, int],
        teacher: Mapping[str, int],
        vectors: tuple[Set[str], Set[str]],
        data_format: str,
    ) -> None:
        student_layer, teacher_layer = str(term["student_layer"]), str(term["teacher_layer"])
        for key, layer, channels in (("student", student_layer, student), ("teacher", teacher_layer, teacher)):
            if layer not in channels:
                raise UserError(
                    f"loss.feature_mse.{key}_layer: the {key} has no layer {layer!r} that computes one map or vector "
                    f"of each image. Valid: {_some(channels)}.{did_you_mean(layer, channels)}"
                )
        is_vector = student_layer in vectors[0]
        if is_vector != (teacher_layer in vectors[1]):
            raise UserError(
                f"loss.feature_mse compares {student_layer!r} with {teacher_layer!r}: one is a map, the other a "
                "vector. Choose two maps (in the series stem, stage1-4) or two vectors (embedding)"
            )
        self.projection = Projection(
            student[student_layer], teacher[teacher_layer], 1 if is_vector or data_format == "NCHW" else -1
        )
        self.student_taps, self.teacher_taps = (student_layer,), (teacher_layer,)

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor] | None, targets: Targets
    ) -> dict[str, Tensor]:
        """The terms, not yet weighted.

        Args:
            student: "logits" [N, C] and `student_taps`, any float type.
            teacher: "logits" [N, C] and `teacher_taps`; None where the only term is cross_entropy.
            targets: Of the same N samples.

        Returns:
            float32 scalars by the term's name; each a mean over the N samples of the micro-batch, so an
            accumulated update weighs a micro-batch by N / (samples of the update).

        Raises:
            ValueError: A term needs a teacher and there is none, or shapes do not match.
        """
        # Level O2 of automatic mixed precision casts even float32 inputs of most operations down again.
        with paddle.amp.auto_cast(enable=False):
            return {name: self._term(name, student, teacher, targets) for name in self._weights}

    def _term(
        self, name: str, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor] | None, targets: Targets
    ) -> Tensor:
        parameters = self._parameters_of.get(name, {})
        partner_labels, lam = targets.partner_labels, targets.lam
        if name == "cross_entropy":
            return LOSSES[name](student["logits"], targets.labels, partner_labels=partner_labels, lam=lam, **parameters)
        if teacher is None:
            raise ValueError(f"loss.{name} compares with a teacher, but no teacher's answer was given")
        if name == "feature_mse":
            return feature_mse(self.projection(student[self.student_taps[0]]), teacher[self.teacher_taps[0]])
        pair = student["logits"], teacher["logits"]
        if name == "dkd":
            target = target_classes(targets.labels, teacher["logits"], partner_labels=partner_labels, lam=lam)
            return LOSSES[name](*pair, target, **parameters)
        return LOSSES[name](*pair, **parameters)

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of what `forward` returned: the float32 scalar that is minimised.

        A weight applies to a single term too.
        """
        weighted = [self._weights[name] * value for name, value in terms.items()]
        return sum(weighted[1:], start=weighted[0])


def _some(names: Iterable[str]) -> str:
    """Names for a message: all of a few, the last of many."""
    listed = list(names)
    return ", ".join(listed if len(listed) <= _SHOWN_LAYERS else ["...", *listed[-_SHOWN_LAYERS:]])
