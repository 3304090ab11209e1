"""The training loop of one stage, to be read from top to bottom: build, resume, update, evaluate, save."""

import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import paddle

from distill import checkpoint
from distill.checkpoint_writer import CheckpointWriter
from distill.data.failures import check_undecodable
from distill.data.loader import EvaluationLoader, TrainLoader
from distill.data.sources import Images, open_sources
from distill.data.types import Batch, Failure
from distill.display import readable_bytes
from distill.distributed.agreement import agree_on_stage
from distill.distributed.step import StepNews, exchange_news
from distill.distributed.sync_batch_norm import check_full_turns
from distill.distributed.world import ALONE, World
from distill.errors import RunError
from distill.evaluation import Evaluation
from distill.features import FeatureStore
from distill.journal import Journal
from distill.labels.builders import teacher_processes
from distill.labels.inventory import describe_labels
from distill.labels.manifest import open_labels
from distill.labels.waiting import arrived
from distill.learner import Learner
from distill.metrics import StepRecords
from distill.optim import learning_rate
from distill.parallel import Device
from distill.recalibrate import recalibrate_stage
from distill.recipe import Recipe
from distill.run_inputs import note_inputs
from distill.signals import Interrupted, StopRequest, stop_signals
from distill.trunk import open_features
from distill.weights import write_weights


@dataclass
class Position:
    """How far a stage has come; with the tensors of `Learner` all that a resume needs.

    Attributes:
        step: Updates done.
        images: Training images seen.
        undecodable: Files of the current epoch that could not be decoded.
        best_top1: Of the evaluations so far; -1 before the first.
        evaluation: The last one's `Evaluation.as_dict()`.
        seconds: Spent on the stage, over all sittings, up to the checkpoint.
    """

    step: int = 0
    images: int = 0
    undecodable: int = 0
    best_top1: float = -1.0
    evaluation: dict[str, Any] | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class StageResult:
    """What a stage reached, with the weights that it leaves in `student.safetensors`."""

    evaluation: Evaluation
    best_top1: float
    steps: int
    seconds: float


def stage_folder(run: Path, recipe: Recipe, number: int) -> Path:
    """Where a stage keeps its checkpoints and weights."""
    return run / "stages" / f"{number}-{recipe.stages[number].name}"


def train_stage(
    recipe: Recipe, number: int, run: Path, *, device: Device, start_from: Path | None = None, world: World = ALONE
) -> StageResult:
    """Trains stage `number` of a recipe, from its last checkpoint where there is one.

    Args:
        recipe: The whole recipe.
        number: Of the stage, from 0; it is part of the key of every random choice.
        run: The run's folder; the stage's own is `stage_folder(run, recipe, number)`.
        device: What `setup_process` returned.
        start_from: Weights that the stage before left; None: those of the recipe, or a fresh network.
        world: The ranks that train together, each of them here; all return the same.

    Raises:
        Interrupted: SIGTERM or SIGINT arrived; the state is saved.
        RunError: The loss or a teacher's answer is not finite, too many files cannot be decoded, or nothing can be
            saved.
    """
    stage = recipe.stages[number]
    folder = stage_folder(run, recipe, number)
    folder.mkdir(parents=True, exist_ok=True)
    source = open_sources(stage.data.sources, recipe.num_classes)
    evaluation_images = open_sources(stage.evaluation.sources, recipe.num_classes)
    place = {"rank": world.rank.number, "world_size": world.rank.size}
    evaluation_loader = EvaluationLoader.of_stage(recipe, number, evaluation_images, **place)  # tells a wrong list
    labels = open_labels(recipe, number, source)
    learner = Learner(recipe, number, device, start_from, labels, world)
    position = start_or_resume(learner, recipe, number, source, folder / "checkpoints")
    learner.open_trunk()
    check_ranks_agree(learner, position, {"images": source, "evaluation images": evaluation_images})
    note_inputs(
        run,
        recipe,
        number,
        images=source,
        evaluation_images=evaluation_images,
        teachers=learner.teacher_identity() or [],
        fresh=position.step == 0,
        world=world,
    )
    features = open_features(learner.trunk, recipe, number, folder / "features")
    kept = features.training(source, stage) if features is not None else None
    if features is not None:
        evaluation_loader = evaluation_loader.with_features(features.evaluation(evaluation_images, stage.evaluation))
    loader = TrainLoader.of_stage(recipe, number, source, labels=labels, features=kept, **place)

    last_step = stage.epochs * loader.steps_per_epoch
    journal = Journal(run, recipe, number, step=position.step, last_step=last_step, silent=not world.is_first)

    with (
        stop_signals() as stop,
        journal,
        Saver(recipe, folder / "checkpoints", learner, position) as saver,
        teacher_processes(recipe, number, folder, world.is_first) as builders,
    ):
        for line in announcement(recipe, number, len(source), loader.steps_per_epoch, learner, position, device, kept):
            journal.display.say(line)
        sitting = Sitting(learner, loader, position, saver, journal, stop, StepRecords(stage.name))
        batches = loader.batches(position.step, last_step)
        batches = journal.throughput.timed(
            arrived(batches, labels, recipe, number, builders, stop, journal.display.say)
        )
        for step in range(position.step, last_step):
            rate = learning_rate(
                step,
                steps_per_epoch=loader.steps_per_epoch,
                epochs=stage.epochs,
                peak=stage.optimizer.learning_rate,
                schedule=stage.schedule,
            )
            news = update(sitting, batches, rate)

            epoch, into_epoch = divmod(position.step, loader.steps_per_epoch)
            save_now = news.signal is not None or into_epoch == 0 or news.save
            if save_now or position.step % recipe.runtime.log_every_steps == 0:
                means = sitting.records.drain(world)  # stops here when a loss was not finite: never save behind one
                journal.training(step=position.step, images=position.images, rate=rate, terms=means)
            if into_epoch == 0:
                end_epoch(epoch, learner, evaluation_loader, folder, position, journal)
            if save_now:
                saver.save()
            if news.signal is not None:
                raise Interrupted(
                    f"stopped by {signal.Signals(news.signal).name} at step {position.step} of {last_step} of stage "
                    f"{stage.name}; the state is saved, --resume goes on from here",
                    news.signal,
                )
    leave_weights(learner, folder)
    return StageResult(Evaluation(**position.evaluation or {}), position.best_top1, position.step, position.seconds)


def start_or_resume(learner: Learner, recipe: Recipe, number: int, images: Images, checkpoints: Path) -> Position:
    """Takes up the last checkpoint; without one the stage begins, with the statistics that it asks for."""
    saved = common_checkpoint(learner.world, checkpoints)
    if saved is None and recipe.stages[number].recalibrate_bn is not None:
        if learner.world.is_first:
            recalibrate_stage(learner.student.model, recipe, number, images)
            with Saver(recipe, checkpoints, learner, Position()) as saver:
                saver.save()  # it may have taken long
        saved = common_checkpoint(learner.world, checkpoints)
    if saved is None:
        return Position()
    learner.restore(saved)
    return Position(**saved.state["position"])


def common_checkpoint(world: World, checkpoints: Path) -> checkpoint.Checkpoint | None:
    """The checkpoint that all ranks go on with: the last undamaged one that rank 0 finds.

    Raises:
        RunError: There are checkpoints and all are damaged, or a rank cannot read rank 0's.
    """
    own = checkpoint.latest(checkpoints) if world.is_first else None
    name = world.share(own.path.name if own is not None else None)
    if world.is_first or name is None:
        return own
    try:
        return checkpoint.load(checkpoints / name)
    except checkpoint.DamagedCheckpoint as error:
        raise RunError(
            f"rank 0 goes on with the checkpoint {checkpoints / name}, which rank {world.rank.number} cannot read: "
            f"{error}. The run's folder (--output) must be the same one on all hosts"
        ) from error


def check_ranks_agree(learner: Learner, position: Position, images: Mapping[str, Images]) -> None:
    """Stops where one of several ranks would begin with something else, or have nothing to do.

    Raises:
        UserError: Names what differs, and where.
    """
    if learner.world.rank.size > 1:
        check_full_turns(learner.stage, len(images["images"]), learner.world.rank.size)
        facts = {"step": position.step, **learner.facts()}
        agree_on_stage(learner.world, learner.stage.name, facts, learner.tensors(), images)


@dataclass(frozen=True)
class Sitting:
    """What the steps of a stage work with, from a start to the next stop."""

    learner: Learner
    loader: TrainLoader
    position: Position
    saver: "Saver"
    journal: Journal
    stop: StopRequest
    records: StepRecords


def update(sitting: Sitting, batches: Iterator[Batch], rate: float) -> StepNews:
    """One step of the optimiser on one global batch, gathered from as many micro-batches as it takes, on all ranks.

    Returns:
        What the ranks agreed on: whether to save, whether to stop.
    """
    learner, position, journal = sitting.learner, sitting.position, sitting.journal
    terms: dict[str, paddle.Tensor] = {}
    indices: list[np.ndarray] = []
    failures: list[Failure] = []
    for batch in batches:
        if batch.step == 0 and not indices:
            journal.first_views(batch.images)
        note_failures(sitting, batch.failures)
        for name, value in learner.accumulate(batch).items():
            terms[name] = terms[name] + value if name in terms else value
        indices.append(batch.indices)
        failures.extend(batch.failures)
        if batch.ends_step:
            break
    sitting.records.append(position.step + 1, terms, indices, learner.take_unsound_answers())
    own = StepNews(
        samples=sum(map(len, indices)),
        failures=failures,
        signal=sitting.stop.signal,  # read once: one that comes later in this turn waits for the next
        save=sitting.saver.is_due(position.step + 1),
    )
    news, failures_elsewhere = exchange_news(learner.world, own)
    note_failures(sitting, failures_elsewhere)
    learner.combine(news.samples)
    learner.update(rate)
    position.step += 1
    position.images += news.samples
    journal.throughput.images += news.samples
    return news


class Saver:
    """Decides when a checkpoint is due between epochs, and has it written beside training: on rank 0 alone.

    Leaving its context waits until all is written, and raises RunError where something could not be.
    """

    def __init__(self, recipe: Recipe, folder: Path, learner: Learner, position: Position) -> None:
        self._recipe, self._learner, self._position = recipe, learner, position
        self._writer = CheckpointWriter(folder, recipe.runtime.keep_checkpoints)
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether behind `step` updates the recipe's steps or minutes since the last checkpoint will have passed.

        Raises:
            RunError: The last checkpoint could not be written.
        """
        self._writer.check()
        runtime = self._recipe.runtime
        by_steps = runtime.checkpoint_every_steps
        by_time = time.monotonic() - self._last >= 60 * runtime.checkpoint_every_minutes
        return by_time or (by_steps is not None and step % by_steps == 0)

    def save(self) -> None:
        """Begins to write a checkpoint of the present position; raises as `is_due`."""
        now = time.monotonic()
        self._position.seconds += now - self._last
        self._last = now
        state = {
            "position": asdict(self._position),
            "scaler": self._learner.scaler_state(),
            "teacher": self._learner.teacher_identity(),
            "recipe": self._recipe.model_dump(mode="json"),
        }
        if self._learner.world.is_first:
            self._writer.write(self._position.step, self._learner.tensors(), state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.finish()


def announcement(
    recipe: Recipe,
    number: int,
    images: int,
    steps_per_epoch: int,
    learner: Learner,
    position: Position,
    device: Device,
    features: FeatureStore | None,
) -> list[str]:
    """What starts here, in a few lines."""
    stage = recipe.stages[number]
    teacher = " + ".join(model.name for model in stage.teacher.models) if stage.teacher else "none"
    lines = [
        f"stage {number + 1}/{len(recipe.stages)} {stage.name}: {recipe.model.name}, teacher {teacher}, "
        f"{images:,} images x {stage.epochs} epochs of {steps_per_epoch} steps, on {device.kind}"
        + (f", {ranks} ranks" if (ranks := learner.world.rank.size) > 1 else "")
    ]
    lines += [f"{name} runs the code of {file} (SHA-256 {digest})" for name, (file, digest) in learner.code().items()]
    if learner.labels is not None:
        lines += describe_labels(learner.labels.store, stage)
    if learner.trunk is None and learner.student.trains_classifier_only:
        lines.append(
            "the classifier alone is trained; what is below it draws at random (dropout), so it computes in every step"
        )
    if learner.trunk is None and device.kind == "cpu":
        slower = f", slower here, because {learner.kernels_problem}" if learner.kernels_problem is not None else ""
        lines.append(f"the student computes with {learner.student.model.kernels.description}{slower}")
    if learner.trunk is not None:
        lines.append(f"the classifier alone is trained; what is below it computes with {learner.trunk.description}")
    if features is not None:
        size = readable_bytes(features.full_bytes)
        lines.append(f"its features are computed once and kept in {features.path.parent}: {size}, exact")
    if learner.teacher is not None:
        lines.append(f"the teacher computes with {' and '.join(dict.fromkeys(learner.teacher.engines))}")
    if stage.amp != learner.amp:
        lines.append(f"amp {stage.amp} is ignored on a {device.kind}: this stage computes in float32")
    if position.step:
        lines.append(f"resumed behind step {position.step}")
    return lines


def note_failures(sitting: Sitting, failures: Sequence[Failure]) -> None:
    """Names every file that could not be decoded in the present step, and stops when they are too many.

    Raises:
        RunError: More than `data.max_undecodable_fraction` of an epoch's samples.
    """
    position, plan = sitting.position, sitting.loader.plan
    for failure in failures:
        sitting.journal.undecodable(position.step + 1, failure)
    position.undecodable += len(failures)
    check_undecodable(
        sitting.learner.stage,
        position.step // plan.steps_per_epoch,
        position.undecodable,
        plan.n,
        failures,
        listed="All are in metrics.jsonl.",
    )


def end_epoch(
    epoch: int, learner: Learner, loader: EvaluationLoader, folder: Path, position: Position, journal: Journal
) -> None:
    """Where epoch number `epoch`, from 1, asks for it: measures the student (and its average) and keeps the best."""
    position.undecodable = 0
    stage = learner.stage
    if epoch % stage.evaluation.every_epochs and epoch != stage.epochs:
        return
    averaged = stage.ema_decay is not None
    evaluation = learner.evaluate(loader)
    journal.evaluation(position.step, evaluation, learner.evaluate(loader, plain=True) if averaged else None)
    position.evaluation = evaluation.as_dict()
    if evaluation.top1 > position.best_top1:
        position.best_top1 = evaluation.top1
        if learner.world.is_first:
            write_weights(folder / "best.safetensors", learner.result_weights())
    journal.throughput.restart()


def leave_weights(learner: Learner, folder: Path) -> None:
    """Ends a finished stage: writes the student, removes what was kept for its steps."""
    if learner.world.is_first:
        write_weights(folder / "student.safetensors", learner.result_weights())
        shutil.rmtree(folder / "features", ignore_errors=True)
    learner.world.wait()
