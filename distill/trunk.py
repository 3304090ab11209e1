"""All of a student but its classifier, where only that is trained: images to features, without gradient."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from distill.data.types import Batch
from distill.engines.engine import Engine, open_engine, with_agreement
from distill.errors import RunError
from distill.features import FeatureFolder
from distill.normalization import normalize
from distill.parallel import Device
from distill.recipe import NormalizationSection, Recipe


class Trunk:
    """The frozen part of a network of `distill.models`, on a CPU by Paddle Inference (see `distill.engines.engine`).

    Its float32 answers are there the same bits for any batch, so that features which were stored, and features which
    are computed, train the same classifier. On a GPU its bits depend on the kernels that are chosen.

    Args:
        model: Put into evaluation mode. Its trunk must not change any more: the engine has a copy of its weights.
        normalization: Of images in [0, 1].
        device: What `setup_process` returned.
        check_px: Side of the noise on which the engine is checked against the plain model.
        amp: "O1" computes in mixed precision, on a GPU.

    Attributes:
        description: What computes, and how near to the plain model; why it is the plain model where an engine was
            refused.
    """

    def __init__(
        self, model: nn.Layer, normalization: NormalizationSection, device: Device, check_px: int, *, amp: str = "O0"
    ) -> None:
        model.eval()
        self._model = model
        self._amp = amp
        self._normalization = normalization
        self._engine: Engine | None = None
        self.description = "eager Paddle"
        if device.kind == "cpu":
            try:
                self._engine = open_engine(
                    model,
                    normalization,
                    device,
                    outputs=("embedding",),
                    data_format=model.data_format,
                    check_px=check_px,
                )
            except RunError as error:
                self.description = f"eager Paddle ({error})"
        if self._engine is not None:
            self.description = with_agreement(self._engine.description, self._engine.largest_difference)

    @property
    def width(self) -> int:
        """D, the features of an image."""
        return int(self._model.tap_channels["embedding"])

    def __call__(self, images: Tensor) -> Tensor:
        """The features float32 [N, D] of float32 images [N, 3, H, W] or [N, H, W, 3] in [0, 1], not normalised."""
        if self._engine is not None:
            return paddle.to_tensor(self._engine(images.numpy())["embedding"])
        with paddle.no_grad(), paddle.amp.auto_cast(enable=self._amp != "O0", level="O1"):
            inputs = normalize(images, self._normalization, self._model.data_format)
            return self._model.taps(inputs, ["embedding"])["embedding"].astype("float32")

    def of_batch(self, batch: Batch, images: Tensor) -> Tensor:
        """The features of a batch, read where a store has them; those that it lacks are computed and stored.

        Args:
            batch: Its images may be absent where all features are known.
            images: float32, its images in [0, 1], mixed already.

        Returns:
            float32 [N, D].

        Raises:
            RunError: They could not be stored.
        """
        known = batch.features
        if known is None:
            return self(images)
        if not known.usable.all():  # it may have been stored since the loader looked
            known = known.source.read(batch.indices)
        missing = np.flatnonzero(~known.usable)
        if not len(missing):
            return paddle.to_tensor(known.values)
        wanted = images if len(missing) == len(known.usable) else images.index_select(paddle.to_tensor(missing))
        values = known.values.copy()
        values[missing] = self(wanted).numpy()
        known.source.add(batch.indices[missing], values[missing])
        return paddle.to_tensor(values)

    def identity(self) -> dict[str, Any]:
        """What the features depend on besides images and view, as JSON holds it: layers, weights, what computes."""
        classifier = f"{self._model.classifier}."
        digest = hashlib.sha256(self._model.architecture.encode())
        for name, value in self._model.state_dict().items():
            if not name.startswith(classifier):
                array = value.numpy()
                digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return {
            "sha256": digest.hexdigest(),
            "data_format": self._model.data_format,
            "normalization": self._normalization.model_dump(mode="json"),
            "engine": self._engine.description if self._engine is not None else f"eager Paddle, amp {self._amp}",
            "paddle": paddle.__version__,
        }


def open_features(trunk: Trunk | None, recipe: Recipe, number: int, own_folder: Path) -> FeatureFolder | None:
    """Where stage `number` keeps the features of images that it sees again; None where it keeps none.

    Args:
        trunk: What computes them; None where more than the classifier is trained.
        recipe: Its `runtime` says whether and where.
        number: Of the stage.
        own_folder: The stage's own place, which is removed behind it.
    """
    shared = recipe.runtime.features_folder
    seen_again = recipe.stages[number].epochs > 1 or shared is not None
    if trunk is None or not recipe.runtime.reuse_features or not seen_again:
        return None
    return FeatureFolder(Path(shared) if shared is not None else own_folder, trunk.identity(), trunk.width)
