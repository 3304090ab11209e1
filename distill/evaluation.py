"""Accuracy of a student on labelled images; the teacher never runs here."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import paddle
from numpy.typing import NDArray

from distill.data.loader import EvaluationLoader
from distill.data.sources import open_sources
from distill.data.types import Batch, Failure
from distill.display import Display
from distill.distributed.world import ALONE, World
from distill.engines.engine import Engine, EngineKind, open_engine
from distill.errors import RunError
from distill.metrics import topk_hits
from distill.models import build_model
from distill.normalization import normalize, to_unit_range
from distill.parallel import Device, DeviceKind, setup_process
from distill.recipe import EvaluationSection, NormalizationSection, Recipe, Stage
from distill.weights import load_into


@dataclass(frozen=True)
class Evaluation:
    """Accuracy over every labelled image that could be decoded.

    Attributes:
        top1: Share in [0, 1] whose largest logit is the label's.
        top5: Share in [0, 1] whose label is among the five largest (all, with fewer classes).
        images: How many were measured.
        undecodable: How many were not, because they could not be decoded.
    """

    top1: float
    top5: float
    images: int
    undecodable: int

    def as_dict(self) -> dict[str, float | int]:
        """For JSON."""
        return asdict(self)


def open_evaluation(stage: Stage, recipe: Recipe) -> EvaluationLoader:
    """The evaluation images of a stage.

    Raises:
        UserError: A source is empty or missing, or an image has no label.
    """
    source = open_sources(stage.evaluation.sources, recipe.num_classes)
    return EvaluationLoader(source, stage.evaluation, recipe.runtime, data_format=recipe.model.data_format)


def measure(
    model: paddle.nn.Layer,
    loader: Iterable[Batch],
    *,
    section: EvaluationSection,
    normalization: NormalizationSection,
    data_format: str,
    world: World = ALONE,
) -> Evaluation:
    """Runs `model`, in evaluation mode, over every batch of `loader`, which of several ranks has its share each.

    Raises:
        RunError: More images than `section.max_undecodable_fraction` cannot be decoded; names them.
    """
    model.eval()

    def logits(batch: Batch) -> NDArray[np.float32]:
        with paddle.no_grad():
            answer = model(normalize(to_unit_range(batch.images), normalization, data_format))
        return np.asarray(answer.astype("float32").numpy())

    return count_hits(logits, loader, section, world)


def count_hits(
    logits: Callable[[Batch], NDArray[np.float32]],
    loader: Iterable[Batch],
    section: EvaluationSection,
    world: World = ALONE,
) -> Evaluation:
    """Asks `logits`, float32 [N, C] of a batch of N images, about every batch of `loader`.

    Whole numbers are summed over the ranks, so that all of them return the same, whatever their number.

    Raises:
        RunError: As `measure`.
    """
    top1 = top5 = images = 0
    failures: list[Failure] = []
    for batch in loader:
        failures.extend(batch.failures)
        if len(batch.labels) == 0:
            continue
        answer = logits(batch)
        top1 += topk_hits(answer, batch.labels, 1)
        top5 += topk_hits(answer, batch.labels, 5)
        images += len(batch.labels)
    shares = world.gather((top1, top5, images, [(failure.name, failure.reason) for failure in failures]))
    top1, top5, images = (sum(share[part] for share in shares) for part in range(3))
    failures = [Failure(*failure) for share in shares for failure in share[3]]
    if len(failures) > section.max_undecodable_fraction * (images + len(failures)) or images == 0:
        named = "; ".join(f"{failure.name}: {failure.reason}" for failure in failures[:5])
        raise RunError(
            f"evaluation: {len(failures)} of {images + len(failures)} images cannot be decoded ({named}). "
            "Mend or remove them, or allow a share with evaluation.max_undecodable_fraction"
        )
    return Evaluation(top1=top1 / images, top5=top5 / images, images=images, undecodable=len(failures))


def evaluate_weights(recipe: Recipe, weights: Path, *, device: DeviceKind = "auto") -> Evaluation:
    """Measures weights as the recipe's last stage evaluates, on a CPU with Paddle Inference (`distill.engines.engine`).

    Args:
        recipe: States the network, the images and the preprocessing.
        weights: A .safetensors or .pdparams file of `recipe.model`.
        device: "cpu", "gpu" or "auto".
    """
    chosen = setup_process(device)
    stage = recipe.stages[-1]
    model = build_model(recipe.model, recipe.num_classes, size_px=stage.evaluation.crop_px)
    load_into(model, weights)
    loader = open_evaluation(stage, recipe)
    with Display("evaluate", len(loader), unit="batch") as display:
        engine = _open_student_engine(model, stage, chosen, display)
        return count_hits(lambda batch: engine(batch.images)["logits"], shown(loader, display), stage.evaluation)


def _open_student_engine(model: paddle.nn.Layer, stage: Stage, device: Device, display: Display) -> Engine:
    """The fast engine where it answers as the plain model does, else the plain model."""
    try:
        return _student_engine(model, stage, device, "auto")
    except RunError as error:
        display.say(f"the student is measured without the fast engine: {error}")
        return _student_engine(model, stage, device, "eager")


def _student_engine(model: paddle.nn.Layer, stage: Stage, device: Device, kind: EngineKind) -> Engine:
    return open_engine(
        model,
        stage.normalization,
        device,
        outputs=("logits",),
        kind=kind,
        data_format=model.data_format,
        check_px=stage.evaluation.crop_px,
    )


def shown(loader: EvaluationLoader, display: Display) -> Iterable[Batch]:
    """Passes the batches on, and shows how many have been dealt with."""
    images = 0
    for number, batch in enumerate(loader, 1):
        yield batch
        images += len(batch.labels)
        display.advance(number, {"images": str(images)})
