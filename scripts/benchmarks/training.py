"""What the benchmarks of training steps share: a recipe, a batch of noise, and the steps of a `Learner` on it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from contenders import IMAGENET, NUM_CLASSES

from distill.data.types import Batch
from distill.recipe import Recipe

if TYPE_CHECKING:
    from distill.learner import Learner

CROSS_ENTROPY = {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}}
KL = {"kl": {"weight": 1.0, "temperature": 1.0}}


def training_recipe(
    model: str,
    px: int,
    batch: int,
    *,
    loss: dict[str, Any],
    images: str = "none",
    teacher: dict[str, Any] | None = None,
) -> Recipe:
    """One epoch over a folder of images with one sub-folder a class.

    Args:
        model: The student.
        px: Height and width of the views: the centres of images of that size.
        batch: Images a step.
        loss: The section `loss`.
        images: The folder; a step needs no images.
        teacher: The section `teacher`.
    """
    source = {"kind": "class_folders", "root": images}
    stage = {
        "name": "train",
        "epochs": 1,
        "global_batch_size": batch,
        "device_batch_size": batch,
        "data": {"sources": [source]},
        "view": {"size_px": px, "crop": {"kind": "center", "resize_short_px": px}, "horizontal_flip": 0.5},
        "normalization": IMAGENET.model_dump(),
        "evaluation": {"sources": [source], "resize_short_px": px, "crop_px": px},
        "teacher": teacher,
        "loss": loss,
        "optimizer": {
            "kind": "momentum",
            "learning_rate": 0.01,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-4,
            "decay_bias_and_norm": False,
        },
        "schedule": {"kind": "constant", "warmup_epochs": 0},
    }
    return Recipe.model_validate(
        {
            "name": "benchmark",
            "description": "",
            "seed": 0,
            "num_classes": NUM_CLASSES,
            "model": {"name": model},
            "stages": [stage],
        }
    )


def noise_batch(px: int, batch: int) -> Batch:
    """Labelled images of noise."""
    return Batch(
        images=np.random.default_rng(0).integers(0, 256, (batch, 3, px, px), dtype=np.uint8),
        labels=np.arange(batch, dtype=np.int64) % NUM_CLASSES,
        indices=np.arange(batch, dtype=np.int64),
        partner=None,
        lam=None,
        epoch=0,
        step=0,
        ends_step=True,
        global_count=batch,
        failures=(),
    )


def training_step(learner: "Learner", next_batch: Callable[[], Batch]) -> Callable[[], None]:
    """Forward, backward and update on a batch, as `distill.training` makes them."""

    def step() -> None:
        terms = learner.accumulate(next_batch())
        learner.update(0.01)
        float(terms["loss"])  # read, as a run does now and then: nothing is left to be computed later

    return step
