"""What a run's student, and its teacher, say to evaluation images: worst classes and largest disagreements."""

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import paddle
from numpy.typing import NDArray

from distill.data.augment import evaluation_view
from distill.data.sources import Images, open_sources
from distill.data.types import UndecodableImage
from distill.display import Display
from distill.errors import DistillError
from distill.models import build_model
from distill.normalization import normalize, to_unit_range
from distill.parallel import Device
from distill.prediction import softmax
from distill.recipe import ClassFoldersSource, Recipe
from distill.teachers.teacher import Teacher, open_teacher
from distill.weights import load_into

WORST_CLASSES = 8
DISAGREEMENTS = 12
THUMBNAIL_PX = 144


@dataclass(frozen=True)
class ClassMistakes:
    """A class and what the student takes its images for.

    Attributes:
        name: The class.
        images: How many of it were shown.
        accuracy: Share of them that the student classifies rightly, in [0, 1].
        taken_for: Other classes and how many images were taken for them, the most frequent first.
    """

    name: str
    images: int
    accuracy: float
    taken_for: list[tuple[str, int]]


@dataclass(frozen=True)
class Disagreement:
    """An image on which student and teacher differ.

    Attributes:
        picture: A data URL.
        file: Its name.
        label: Its class.
        student: The student's best class and its probability.
        teacher: The teacher's.
        distance: Total variation, sum |p - q| / 2, in [0, 1].
    """

    picture: str
    file: str
    label: str
    student: tuple[str, float]
    teacher: tuple[str, float]
    distance: float


@dataclass(frozen=True)
class Answers:
    """What is shown of them.

    Attributes:
        images: How many were asked about, evenly spread over the evaluation images.
        of: How many evaluation images there are.
        worst: The classes with the lowest accuracy, worst first.
        disagreements: The largest first.
        no_teacher: Why there are no disagreements, else None.
        teacher_batch: How many images the teacher saw at once where it normalises by batch, so that its answer to one
            depends on the others; None where it does not.
    """

    images: int
    of: int
    worst: list[ClassMistakes]
    disagreements: list[Disagreement]
    no_teacher: str | None
    teacher_batch: int | None = None


def ask(recipe: Recipe, weights: Path, device: Device, *, at_most: int, names: list[str] | None = None) -> Answers:
    """Shows evaluation images of the last stage to the student, and to the teacher of the last stage that has one.

    Args:
        recipe: The run's.
        weights: Of the student.
        device: Where to compute.
        at_most: Images, >= 1; fewer where the evaluation has fewer.
        names: Of the classes; default: of the class folders, else the numbers.

    Raises:
        UserError: The evaluation images or the weights are missing.
    """
    stage = recipe.stages[-1]
    source = open_sources(stage.evaluation.sources, recipe.num_classes)
    names = names or class_names(recipe)
    model = build_model(recipe.model, recipe.num_classes, size_px=stage.evaluation.crop_px)
    load_into(model, weights)
    model.eval()
    teacher = _open_teacher(recipe, device)
    chosen = np.unique(np.linspace(0, len(source) - 1, min(at_most, len(source))).astype(np.int64))
    kept: list[int] = []
    own: list[NDArray[np.float64]] = []
    other: list[NDArray[np.float64]] = []
    size = stage.evaluation.batch_size
    with Display("report", len(chosen), unit="image") as display:
        for start in range(0, len(chosen), size):
            indices, views = _views(source, chosen[start : start + size], recipe)
            display.advance(min(start + size, len(chosen)), {})
            if not indices:
                continue
            images = to_unit_range(views)
            with paddle.no_grad():
                logits = model(normalize(images, stage.normalization, recipe.model.data_format))
            kept += indices
            own.append(softmax(logits.astype("float32").numpy()))
            if isinstance(teacher, Teacher):
                other.append(softmax(teacher(images)["logits"].astype("float32").numpy()))
    if not own:
        return Answers(0, len(source), [], [], "no evaluation image can be decoded")
    labels, student = source.labels[kept], np.concatenate(own)
    shown = _disagreements(source, kept, student, np.concatenate(other), names) if other else []
    reason = teacher if isinstance(teacher, str) else None
    worst = worst_classes(labels, student.argmax(1), names)
    return Answers(len(kept), len(source), worst, shown, reason, min(size, len(chosen)) if _by_batch(recipe) else None)


def class_names(recipe: Recipe) -> list[str]:
    """Names of the recipe's classes: of the folders of its evaluation where it has such, else the numbers."""
    for source in recipe.stages[-1].evaluation.sources:
        if isinstance(source, ClassFoldersSource) and Path(source.root).is_dir():
            folders = [path.name for path in Path(source.root).iterdir() if path.is_dir()]
            found = sorted((name for name in folders if not name.startswith(".")), key=str.encode)
            return found + [str(number) for number in range(len(found), recipe.num_classes)]
    return [str(number) for number in range(recipe.num_classes)]


def worst_classes(labels: NDArray[np.int64], predicted: NDArray[np.int64], names: list[str]) -> list[ClassMistakes]:
    """The classes with the most mistakes in proportion; a class without a mistake is none of them."""
    found = []
    for label in np.unique(labels).tolist():
        answers = np.bincount(predicted[labels == label], minlength=len(names))
        images, right = int(answers.sum()), int(answers[label])
        answers[label] = 0
        most = [number for number in np.argsort(-answers, kind="stable")[:3].tolist() if answers[number]]
        if most:
            wrong = [(names[number], int(answers[number])) for number in most]
            found.append(ClassMistakes(names[label], images, right / images, wrong))
    return sorted(found, key=lambda mistakes: mistakes.accuracy)[:WORST_CLASSES]


def _disagreements(
    source: Images, kept: list[int], student: NDArray[np.float64], teacher: NDArray[np.float64], names: list[str]
) -> list[Disagreement]:
    distances = np.abs(student - teacher).sum(1) / 2
    shown = []
    for row in np.argsort(-distances, kind="stable")[:DISAGREEMENTS].tolist():
        index = kept[row]
        first, second = int(student[row].argmax()), int(teacher[row].argmax())
        shown.append(
            Disagreement(
                picture=thumbnail(source.read(index)),
                file=source.name(index),
                label=names[int(source.labels[index])],
                student=(names[first], float(student[row, first])),
                teacher=(names[second], float(teacher[row, second])),
                distance=float(distances[row]),
            )
        )
    return shown


def thumbnail(image: NDArray[np.uint8]) -> str:
    """A data URL of uint8 [H, W, 3] RGB, at most THUMBNAIL_PX wide and high."""
    scale = THUMBNAIL_PX / max(image.shape[:2])
    if scale < 1:
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    _, data = cv2.imencode(".png", image[:, :, ::-1])
    return f"data:image/png;base64,{base64.b64encode(data.tobytes()).decode()}"


def _views(source: Images, chosen: NDArray[np.int64], recipe: Recipe) -> tuple[list[int], NDArray[np.uint8]]:
    """The indices that can be decoded, and their views in the student's layout."""
    section = recipe.stages[-1].evaluation
    indices, views = [], []
    for index in chosen.tolist():
        try:
            image = source.read(index)
        except UndecodableImage:
            continue
        indices.append(index)
        views.append(evaluation_view(image, section.resize_short_px, section.crop_px))
    if not views:
        return [], np.zeros((0, 3, 1, 1), np.uint8)
    stacked = np.stack(views)
    return indices, stacked if recipe.model.data_format == "NHWC" else np.ascontiguousarray(
        stacked.transpose(0, 3, 1, 2)
    )


def _taught_stages(recipe: Recipe) -> list[int]:
    return [number for number, stage in enumerate(recipe.stages) if stage.teacher is not None]


def _by_batch(recipe: Recipe) -> bool:
    """Whether the teacher that is asked normalises by batch."""
    sections = [recipe.stages[number].teacher for number in _taught_stages(recipe)]
    return bool(sections) and sections[-1] is not None and sections[-1].batch_norm == "batch"


def _open_teacher(recipe: Recipe, device: Device) -> Teacher | str:
    """The teacher, or why there is none."""
    with_teacher = _taught_stages(recipe)
    if not with_teacher:
        return "the recipe has no teacher"
    try:
        return open_teacher(recipe, with_teacher[-1], device)
    except DistillError as error:
        return str(error)
