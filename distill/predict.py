"""The classes that a trained student sees in images of a user's own."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import paddle
from rich.table import Table
from rich.text import Text

from distill.data.augment import evaluation_view
from distill.data.decode import decode_image
from distill.data.types import UndecodableImage
from distill.errors import UserError
from distill.models import build_model
from distill.normalization import normalize, to_unit_range
from distill.parallel import DeviceKind, setup_process
from distill.recipe import Recipe, Stage
from distill.recipe_file import load_recipe
from distill.weights import load_into


@dataclass(frozen=True)
class RankedClass:
    """A class and how likely the student finds it.

    Attributes:
        index: In [0, num_classes).
        name: From the list of class names, None without one.
        probability: The softmax of its logit, in [0, 1].
    """

    index: int
    name: str | None
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What the student sees in one image.

    Attributes:
        image: The file, as it was given.
        classes: The most probable first; empty where the image cannot be decoded.
        error: Why it cannot be decoded, else None.
    """

    image: str
    classes: tuple[RankedClass, ...] = ()
    error: str | None = None


def predict(
    run: Path,
    images: Sequence[Path],
    *,
    top_k: int = 5,
    weights: Path | None = None,
    class_names: Path | None = None,
    device: DeviceKind = "auto",
) -> list[Prediction]:
    """Classifies images with a run's student, prepared as its last stage evaluates.

    Args:
        run: The folder that `distill train` wrote, or a recipe file together with `weights`.
        images: Files of any format that training reads.
        top_k: How many classes an image, >= 1; all where there are fewer.
        weights: A .safetensors or .pdparams file of the recipe's network; default: the run's student.
        class_names: A text file with the name of one class a line.
        device: "cpu", "gpu" or "auto".

    Returns:
        One for each image, in order; an image that cannot be decoded has an `error`, the others are
        classified all the same.

    Raises:
        UserError: No image, a top_k below 1, or a run, weights or class names that do not fit.
    """
    if not images:
        raise UserError("no image to classify: name at least one file")
    if top_k < 1:
        raise UserError(f"--top-k must be >= 1, received {top_k}")
    recipe, weights = _open_run(run, weights)
    names = read_class_names(class_names, recipe.num_classes) if class_names is not None else None
    setup_process(device)
    model = build_model(recipe.model, recipe.num_classes)
    load_into(model, weights)
    return predict_images(model, images, recipe=recipe, top_k=top_k, names=names)


def predict_images(
    model: paddle.nn.Layer, images: Sequence[Path], *, recipe: Recipe, top_k: int, names: Sequence[str] | None = None
) -> list[Prediction]:
    """Classifies images with a model that stands, see `predict`; sets it to evaluation mode."""
    stage = recipe.stages[-1]
    model.eval()
    predictions: list[Prediction] = []
    for paths in _chunks(images, stage.evaluation.batch_size):
        views = [_view(path, stage) for path in paths]
        decoded = [view for view in views if isinstance(view, np.ndarray)]
        rows = iter(_probabilities(model, decoded, stage, recipe.model.data_format))
        for path, view in zip(paths, views, strict=True):
            if isinstance(view, str):
                predictions.append(Prediction(str(path), error=view))
            else:
                predictions.append(Prediction(str(path), top_classes(next(rows), top_k, names)))
    return predictions


def top_classes(probabilities: np.ndarray, top_k: int, names: Sequence[str] | None = None) -> tuple[RankedClass, ...]:
    """Returns the `top_k` most probable of [C] probabilities; of equal ones the lower index first."""
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return tuple(RankedClass(int(i), names[i] if names else None, float(probabilities[i])) for i in best)


def read_class_names(path: Path, num_classes: int) -> list[str]:
    """Reads a class name a line.

    Raises:
        UserError: The file cannot be read, or has not one line for each class.
    """
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the class names {path}: {error}") from error
    if len(names) != num_classes:
        raise UserError(f"{path} must have {num_classes} lines, one for each class, received {len(names)}")
    return names


def predictions_json(predictions: Sequence[Prediction]) -> str:
    """Returns the predictions as a JSON list."""
    return json.dumps([asdict(prediction) for prediction in predictions], indent=2, ensure_ascii=False)


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """Returns the predictions as a table for the terminal."""
    table = Table("image", "class", "probability", box=None, header_style="bold")
    for prediction in predictions:
        # file and class names are data: as Text, "[bold]" in one of them is no markup
        if prediction.error is not None:
            table.add_row(Text(prediction.image), Text(f"not classified: {prediction.error}"), "")
        for rank, ranked in enumerate(prediction.classes):
            label = str(ranked.index) if ranked.name is None else f"{ranked.index} {ranked.name}"
            image = "" if rank else prediction.image
            table.add_row(Text(image), Text(label), f"{ranked.probability:.4f}")
    return table


def _open_run(run: Path, weights: Path | None) -> tuple[Recipe, Path]:
    """Returns a run's recipe, and the weights: those given or the run's student."""
    recipe_path = run / "recipe.yaml" if run.is_dir() else run
    if not recipe_path.exists():
        raise UserError(f"{recipe_path} does not exist: expected a folder that `distill train` wrote, or a recipe")
    if weights is None:
        weights = recipe_path.parent / "student.safetensors"
        if not run.is_dir() or not weights.exists():
            raise UserError(
                f"there are no weights {weights}. Let the run finish, or name some with --weights "
                "(a stage's are in stages/*/student.safetensors)"
            )
    return load_recipe(recipe_path), weights


def _view(path: Path, stage: Stage) -> np.ndarray | str:
    """Returns uint8 [crop_px, crop_px, 3], or why there is none."""
    try:
        image = decode_image(path.read_bytes(), str(path))
    except OSError as error:
        return error.strerror or str(error)
    except UndecodableImage as error:
        return error.reason
    return evaluation_view(image, stage.evaluation.resize_short_px, stage.evaluation.crop_px)


def _probabilities(model: paddle.nn.Layer, views: Sequence[np.ndarray], stage: Stage, data_format: str) -> np.ndarray:
    """Returns float32 [N, num_classes] for N views."""
    if not views:
        return np.empty((0, 0), np.float32)
    images = np.stack(views)
    if data_format == "NCHW":
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    with paddle.no_grad():
        logits = model(normalize(to_unit_range(images), stage.normalization, data_format))
        probabilities: np.ndarray = paddle.nn.functional.softmax(logits.astype("float32"), axis=-1).numpy()
    return probabilities


def _chunks(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(paths), size):
        yield paths[start : start + size]
