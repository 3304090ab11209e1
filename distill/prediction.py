"""The classes that a trained student sees in images of a user's own."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from distill.data.augment import evaluation_view
from distill.data.class_folders import IMAGE_SUFFIXES
from distill.data.decode import decode_image
from distill.data.image_list import open_image_list, read_encoded
from distill.data.types import UndecodableImage
from distill.display import Display
from distill.errors import UserError
from distill.models import build_model
from distill.normalization import normalize, to_unit_range
from distill.parallel import DeviceKind, setup_process
from distill.recipe import Recipe, Stage
from distill.recipe.file import load_recipe
from distill.weights import load_into

LIST_SUFFIXES = (".txt", ".parquet")
EXPORTED_BATCH_SIZE = 32


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
    _check_request(images, top_k)
    recipe, weights = _open_run(run, weights)
    names = read_class_names(class_names, recipe.num_classes) if class_names is not None else None
    setup_process(device)
    model = build_model(recipe.model, recipe.num_classes, size_px=recipe.stages[-1].evaluation.crop_px)
    load_into(model, weights)
    return predict_images(model, images, recipe=recipe, top_k=top_k, names=names)


def predict_images(
    model: paddle.nn.Layer, images: Sequence[Path], *, recipe: Recipe, top_k: int, names: Sequence[str] | None = None
) -> list[Prediction]:
    """Classifies images with a model that stands, see `predict`; sets it to evaluation mode."""
    stage = recipe.stages[-1]
    model.eval()
    return _classify(
        lambda views: _model_logits(model, views, stage, recipe.model.data_format),
        images,
        resize_short_px=stage.evaluation.resize_short_px,
        crop_px=stage.evaluation.crop_px,
        batch_size=stage.evaluation.batch_size,
        top_k=top_k,
        names=names,
    )


def predict_exported(
    exported: Path, images: Sequence[Path], *, top_k: int = 5, class_names: Path | None = None
) -> list[Prediction]:
    """Classifies images with a network that `distill export` wrote, on the CPU.

    Args:
        exported: The folder, or a file of the network in it.
        images: See `predict`.
        top_k: See `predict`.
        class_names: See `predict`; default: the names in `inference.yml`, if any.

    Raises:
        UserError: As `predict`, and what `open_exported` raises.
    """
    from distill.export.files import open_exported

    _check_request(images, top_k)
    network = open_exported(exported, setup_process("cpu"))
    description = network.description
    names = description.class_names
    return _classify(
        network.logits,
        images,
        resize_short_px=description.resize_short_px,
        crop_px=description.crop_px,
        batch_size=EXPORTED_BATCH_SIZE,
        top_k=top_k,
        names=read_class_names(class_names, description.num_classes) if class_names is not None else names,
    )


def find_images(given: Sequence[Path]) -> list[Path]:
    """The images that a user means: files, all images of a folder, all that a list names.

    Args:
        given: Folders are searched at any depth, sorted, without what is hidden; a .txt or .parquet file is an image
            list, whose paths are relative to its folder; any other file is an image.

    Raises:
        UserError: A folder without images, or a list that cannot be used.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = _images_below(path)
            if not inside:
                raise UserError(f"{path}: no images in this folder; looked for {', '.join(IMAGE_SUFFIXES)}")
            found += inside
        elif path.suffix.lower() in LIST_SUFFIXES:
            listed = open_image_list(path, path.parent, None)
            found += [Path(os.fsdecode(listed.path(index))) for index in range(len(listed))]
        else:
            found.append(path)
    return found


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


def _images_below(folder: Path) -> list[Path]:
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        own = (name for name in files if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES))
        found += [Path(parent) / name for name in own]
    return sorted(found)


def _check_request(images: Sequence[Path], top_k: int) -> None:
    if not images:
        raise UserError("no image to classify: name at least one file")
    if top_k < 1:
        raise UserError(f"--top-k must be >= 1, received {top_k}")


def _classify(
    logits: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    images: Sequence[Path],
    *,
    resize_short_px: int,
    crop_px: int,
    batch_size: int,
    top_k: int,
    names: Sequence[str] | None,
) -> list[Prediction]:
    """Asks `logits` about views uint8 [N, crop_px, crop_px, 3]; it returns float32 [N, num_classes]."""
    predictions: list[Prediction] = []
    with Display("predict", len(images), unit="image") as display:
        for paths in _chunks(images, batch_size):
            views = [_view(path, resize_short_px, crop_px) for path in paths]
            decoded = [view for view in views if isinstance(view, np.ndarray)]
            rows = iter(softmax(logits(np.stack(decoded))) if decoded else ())
            for path, view in zip(paths, views, strict=True):
                if isinstance(view, str):
                    predictions.append(Prediction(str(path), error=view))
                else:
                    predictions.append(Prediction(str(path), top_classes(next(rows), top_k, names)))
            display.advance(len(predictions), {})
    return predictions


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The probabilities float64 [N, C] of logits [N, C]."""
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return probabilities


def _view(path: Path, resize_short_px: int, crop_px: int) -> NDArray[np.uint8] | str:
    """Returns uint8 [crop_px, crop_px, 3], or why there is none."""
    try:
        image = decode_image(read_encoded(os.fsencode(path)), str(path))
    except OSError as error:
        return error.strerror or str(error)
    except UndecodableImage as error:
        return error.reason
    return evaluation_view(image, resize_short_px, crop_px)


def _model_logits(
    model: paddle.nn.Layer, views: NDArray[np.uint8], stage: Stage, data_format: str
) -> NDArray[np.float32]:
    """Returns float32 [N, num_classes] for N views."""
    images = views if data_format == "NHWC" else np.ascontiguousarray(views.transpose(0, 3, 1, 2))
    with paddle.no_grad():
        logits = model(normalize(to_unit_range(images), stage.normalization, data_format))
    return np.asarray(logits.astype("float32").numpy())


def _chunks(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(paths), size):
        yield paths[start : start + size]
