"""What can be checked of a run before anything is computed: images, weights, soft labels, folder."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distill.data.sources import Images, open_sources
from distill.data.types import UNLABELLED, UndecodableImage
from distill.errors import DistillError, UserError
from distill.labels.inventory import Inventory, take_inventory
from distill.labels.manifest import label_store, missing_weights
from distill.models import build_model
from distill.models.factory_names import is_factory
from distill.models.plan import plan_network, state_shapes
from distill.models.specs import SPECS
from distill.recipe import AnySource, AnyTeacher, ModelSection, Recipe, Stage, TeacherModel
from distill.stages import check_folder
from distill.teachers.files import digest_of, find_files, open_file_teacher
from distill.teachers.teacher import class_map_of
from distill.weights import load_into, read_weights, sha256_of
from distill.weights.loading import fit

SAMPLED_IMAGES = 256
_SHOWN = 3
_IMPROBABLE = 0.01  # below it, chance does not explain how many of the sampled images cannot be decoded


@dataclass
class StageCheck:
    """What is known of a stage.

    Attributes:
        images: Training samples in an epoch.
        source_images: Of each training source, repetitions not counted.
        evaluation_source_images: Of each evaluation source.
        sampled: How many sampled images can be decoded, one line for training and one for evaluation.
        weights: One line a file: what it fits, its SHA-256.
        labels: Of the stage's soft labels, if it has any.
    """

    images: int = 0
    source_images: list[int] = field(default_factory=list)
    evaluation_source_images: list[int] = field(default_factory=list)
    sampled: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    labels: Inventory | None = None

    @property
    def evaluation_images(self) -> int:
        """Images to evaluate on."""
        return sum(self.evaluation_source_images)


def check_run(
    recipe: Recipe, output: Path, *, resume: bool = False, accept_changes: Sequence[str] = ()
) -> list[StageCheck]:
    """Checks everything that a run of the recipe into `output` needs; writes nothing.

    Args:
        recipe: What would be run.
        output: The run's folder, as `run_recipe` takes it.
        resume: Likewise.
        accept_changes: Likewise.

    Returns:
        What is known of each stage.

    Raises:
        UserError: States all that is wrong.
    """
    problems: list[str] = []
    with _noted(problems, "the run's folder"):
        check_folder(recipe, output, resume=resume, accept_changes=accept_changes)
    opened: dict[AnySource, Images] = {}
    checks = [_check_stage(recipe, number, opened, problems) for number in range(len(recipe.stages))]
    size_px = recipe.stages[0].view.size_px
    if recipe.model.weights is not None:
        with _noted(problems, "model.weights"):
            checks[0].weights.insert(0, check_weights(recipe.model, recipe.model.weights, recipe.num_classes, size_px))
    elif is_factory(recipe.model.name):
        with _noted(problems, "model.name"):
            build_model(recipe.model, recipe.num_classes, size_px=size_px)
    if problems:
        problems = list(dict.fromkeys(problems))
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise UserError(f"{count} of {recipe.name}:\n  " + "\n  ".join(problems))
    return checks


@contextmanager
def _noted(problems: list[str], where: str) -> Iterator[None]:
    """Adds an error to the problems instead of raising it."""
    try:
        yield
    except DistillError as error:
        problems.append(f"{where}: {error}")


def _check_stage(recipe: Recipe, number: int, opened: dict[AnySource, Images], problems: list[str]) -> StageCheck:
    stage = recipe.stages[number]
    key = f"stages.{stage.name}"
    found = StageCheck()
    training = _open_each(stage.data.sources, recipe, opened, f"{key}.data.sources", problems)
    evaluation = _open_each(stage.evaluation.sources, recipe, opened, f"{key}.evaluation.sources", problems)
    repeats = [source.repeat for source in stage.data.sources]
    found.images = sum(len(images) for images in training)
    found.source_images = [len(images) // repeat for images, repeat in zip(training, repeats, strict=False)]
    found.evaluation_source_images = [len(images) for images in evaluation]
    for images in evaluation:
        unlabelled = np.flatnonzero(images.labels == UNLABELLED)
        if len(unlabelled):
            name = images.name(int(unlabelled[0]))
            problems.append(f"{key}.evaluation.sources: {len(unlabelled):,} images have no label, the first is {name}")
    for what, opened_images, allowed in (
        ("data", training, stage.data.max_undecodable_fraction),
        ("evaluation", evaluation, stage.evaluation.max_undecodable_fraction),
    ):
        with _noted(problems, f"{key}.{what}"):
            found.sampled.append(sample_images(opened_images, allowed))
    _check_teacher(recipe, number, found, problems)
    return found


def _open_each(
    sources: Sequence[AnySource], recipe: Recipe, opened: dict[AnySource, Images], key: str, problems: list[str]
) -> list[Images]:
    """Those that can be opened; each is opened once for all stages."""
    for place, source in enumerate(sources):
        if source not in opened:
            with _noted(problems, f"{key}.{place}"):
                opened[source] = open_sources([source], recipe.num_classes)
    return [opened[source] for source in sources if source in opened]


def sample_images(sources: Sequence[Images], allowed: float) -> str:
    """Decodes up to `SAMPLED_IMAGES` images, spread evenly over the sources.

    Args:
        sources: What to sample from.
        allowed: Largest share of images that may be undecodable.

    Returns:
        How many could be decoded, and which could not.

    Raises:
        UserError: More images than allowed are undecodable, as far as a sample tells.
    """
    failures: list[UndecodableImage] = []
    sampled = 0
    for images in sources:
        count = min(len(images), max(1, SAMPLED_IMAGES // len(sources)))
        for index in np.linspace(0, len(images) - 1, count).astype(np.int64).tolist():
            sampled += 1
            try:
                images.read(index)
            except UndecodableImage as error:
                failures.append(error)
    said = f"{sampled - len(failures):,} of {sampled:,} sampled images can be decoded"
    if not failures:
        return said
    said += f"; not {'; '.join(map(str, failures[:_SHOWN]))}"
    if chance_of(len(failures), sampled, allowed) < _IMPROBABLE:
        raise UserError(f"{said}. max_undecodable_fraction allows {allowed:.2%}: mend or remove them, or allow more")
    return said


def chance_of(failures: int, sampled: int, share: float) -> float:
    """How probable at least this many failures are in a sample of images of which `share` fail (binomial)."""
    fewer = range(failures)
    return max(0.0, 1.0 - sum(math.comb(sampled, k) * share**k * (1.0 - share) ** (sampled - k) for k in fewer))


def _check_teacher(recipe: Recipe, number: int, found: StageCheck, problems: list[str]) -> None:
    """Weights of the teachers, and what is stored of their answers; a whole store replaces absent weights."""
    stage = recipe.stages[number]
    key = f"stages.{stage.name}.teacher"
    if stage.labels is not None and not problems:  # what is stored depends on the images
        with _noted(problems, f"{key}.labels"):
            source = open_sources(stage.data.sources, recipe.num_classes)
            found.labels = take_inventory(label_store(recipe, number, source, create=False), stage)
    absent = missing_weights(stage) if needs_no_teacher(found) else []
    for place, model in enumerate(stage.teacher.models if stage.teacher is not None else ()):
        if not_there := [path for path in (model.file, model.classes) if path in absent]:
            found.weights.append(f"{not_there[0]} is not there: all its answers are stored")
            continue
        classes = None
        with _noted(problems, f"{key}.models.{place}.{'weights' if isinstance(model, TeacherModel) else 'path'}"):
            said, classes = _check_teacher_file(model, stage.view.size_px, recipe.num_classes)
            found.weights.append(said)
        with _noted(problems, f"{key}.models.{place}.classes"):
            if classes is not None and (mapped := class_map_of(model, classes, recipe.num_classes)) is not None:
                found.weights.append(
                    f"{model.classes} maps {len(mapped.teacher_classes):,} of {classes:,} classes to the student's "
                    f"{recipe.num_classes:,}, SHA-256 {mapped.sha256}"
                )


def _check_teacher_file(model: AnyTeacher, view_px: int, num_classes: int) -> tuple[str, int]:
    """What a teacher's file is, where it fits, and how many classes it answers with."""
    if isinstance(model, TeacherModel):
        classes = model.num_classes or num_classes
        return check_weights(model, model.weights, classes, model.resize_px or view_px), classes
    engine = open_file_teacher(model, view_px=view_px, threads=1)
    said = f"{model.path} answers with {engine.num_classes:,} classes ({engine.description}), SHA-256 "
    return said + digest_of(model), engine.num_classes


def needs_no_teacher(found: StageCheck) -> bool:
    """Whether all of a teacher's answers are stored."""
    return found.labels is not None and not found.labels.missing


def check_weights(section: ModelSection, path: str, num_classes: int, size_px: int) -> str:
    """What a file of weights is, where it fits.

    Args:
        section: The network.
        path: The file.
        num_classes: Of the classifier.
        size_px: Side of the images that a factory's network will be given.

    Raises:
        UserError: It is absent, damaged, or does not fit the network.
    """
    if is_factory(section.name):
        load_into(build_model(section, num_classes, size_px=size_px), path)
    else:
        fit(read_weights(path), network_shapes(section, num_classes, size_px), source=path)
    return f"{path} fits {section.name}, SHA-256 {sha256_of(path)}"


def network_shapes(section: ModelSection, num_classes: int, size_px: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a network's state; a factory's network is built for it, see `check_weights`."""
    if is_factory(section.name):
        model = build_model(section, num_classes, size_px=size_px)
        return {key: tuple(value.shape) for key, value in model.state_dict().items()}
    plan = plan_network(SPECS[section.name], num_classes, width=section.width, stem_stride=section.stem_stride)
    return state_shapes(plan)


def teacher_bytes(stage: Stage, num_classes: int) -> int:
    """Float32 values of all teachers; of files what they take on the disk."""
    total = 0
    for model in stage.teacher.models if stage.teacher is not None else ():
        if isinstance(model, TeacherModel):
            shapes = network_shapes(
                model, model.num_classes or num_classes, model.resize_px or stage.view.size_px
            ).values()
            total += 4 * sum(math.prod(shape) for shape in shapes)
        elif Path(model.file).exists():
            total += sum(path.stat().st_size for path in find_files(model).all)
    return total
