"""Batch-normalisation statistics estimated anew, as before a finetuning at another size.

At a larger size objects look larger than in the training before, and the mean over more pixels varies less, so that the
statistics that were stored then fit no more (Touvron et al. 2019, arXiv 1906.06423).
"""

from collections.abc import Iterable

import numpy as np
import paddle
from paddle import Tensor, nn

from distill.data.loader import TrainLoader
from distill.data.sampler import MicroBatch
from distill.data.types import Batch, ImageSource
from distill.display import Display
from distill.errors import RunError
from distill.models.batch_norm import BATCH_NORMS
from distill.normalization import normalize, to_unit_range
from distill.recipe import Recipe


def recalibrate(model: nn.Layer, batches: Iterable[Tensor]) -> int:
    """Replaces the statistics of every BN layer by those over all of `batches`, each normalised by its own.

    Of a layer's inputs with the mean m_b and the biased variance v_b in batch b of n_b images, n = sum n_b,

        mean     = 1/n sum n_b m_b
        variance = 1/n sum n_b (v_b + m_b^2) - mean^2,

    which for the first layer are mean and variance over all images; the inputs of later layers depend on how the
    images are put into batches. Wu and Johnson 2021 (arXiv 2105.07576) call this PreciseBN.

    Args:
        model: Left in evaluation mode; nothing but the statistics changes.
        batches: Normalised images float32 [n_b, 3, H, W] or [n_b, H, W, 3], n_b >= 1.

    Returns:
        n, the number of images; 0 leaves the statistics as they are.
    """
    layers = [layer for layer in model.sublayers(include_self=True) if isinstance(layer, BATCH_NORMS)]
    sums = [np.zeros((2, *layer._mean.shape)) for layer in layers]  # float64
    before = [(layer._momentum, layer._mean.clone(), layer._variance.clone()) for layer in layers]
    images = 0
    try:
        model.train()
        for layer in layers:
            layer._momentum = 0.0  # after a forward pass the stored statistics are the batch's own
        for batch in batches:
            with paddle.no_grad():
                model(batch)
            count = int(batch.shape[0])
            images += count
            for layer, total in zip(layers, sums, strict=True):
                mean, variance = (value.numpy().astype(np.float64) for value in (layer._mean, layer._variance))
                total += count * np.stack([mean, variance + mean**2])
    finally:
        for layer, (momentum, mean, variance) in zip(layers, before, strict=True):
            layer._momentum = momentum
            _set(layer._mean, mean)
            _set(layer._variance, variance)
        model.eval()
    if images:
        for layer, total in zip(layers, sums, strict=True):
            mean, square = total / images
            _set(layer._mean, paddle.to_tensor(mean, dtype="float32"))
            _set(layer._variance, paddle.to_tensor(np.maximum(square - mean**2, 0.0), dtype="float32"))
    return images


def recalibrate_stage(model: nn.Layer, recipe: Recipe, number: int, images: ImageSource) -> int:
    """`recalibrate` with the first images of the stage's first epoch, in its views, not mixed.

    Batches are of `device_batch_size`, so that the result is a function of recipe, images and weights.

    Returns:
        How many images were used.

    Raises:
        RunError: None of them can be decoded.
    """
    stage = recipe.stages[number]
    if stage.recalibrate_bn is None:
        raise ValueError(f"stage {stage.name} has no recalibrate_bn")
    plain = stage.model_copy(update={"mixup": None, "cutmix": None, "teacher": None})
    loader = TrainLoader.of_stage(recipe.with_stage(number, plain), number, images)
    wanted = min(stage.recalibrate_bn.images, len(images))
    size = stage.device_batch_size
    parts = [
        MicroBatch(epoch=0, step=0, first=first, end=min(first + size, wanted), ends_step=True, global_count=size)
        for first in range(0, wanted, size)
    ]
    with Display("batch norm", len(parts), unit="batch") as display:
        batches = _shown(loader.views(parts), display)
        inputs = (
            normalize(to_unit_range(batch.images), stage.normalization, recipe.model.data_format)
            for batch in batches
            if len(batch.labels)
        )
        used = recalibrate(model, inputs)
        if not used:
            raise RunError(f"stages.{stage.name}.recalibrate_bn: none of {wanted} images can be decoded. Mend them")
        display.say(f"batch normalisation has the statistics of {used:,} images at {stage.view.size_px} px")
    return used


def _shown(batches: Iterable[Batch], display: Display) -> Iterable[Batch]:
    for number, batch in enumerate(batches, 1):
        yield batch
        display.advance(number, {})


def _set(statistic: Tensor, value: Tensor) -> None:
    with paddle.no_grad():
        statistic.set_value(value)
