"""What a rehearsal says: the checks, and time, memory and disk of the whole run."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.display import readable_bytes, readable_time
from distill.errors import UserError
from distill.models import build_model
from distill.models.factory_names import is_factory
from distill.models.plan import plan_network
from distill.models.specs import SPECS
from distill.parallel import Device, DeviceKind, setup_process
from distill.recipe import Recipe, Stage
from distill.rehearsal.checks import StageCheck, check_run
from distill.rehearsal.trial import Speed, StageRehearsal, rehearse


@dataclass(frozen=True)
class Needs:
    """What a stage will take.

    Attributes:
        steps: Updates.
        images: Training samples, over all epochs.
        training_seconds: Estimated.
        evaluation_seconds: Estimated, with the new estimate of BN statistics where the stage asks for one.
        run_bytes: Disk in the run's folder, at most.
        labels_bytes: Disk for the soft labels that are missing.
    """

    steps: int
    images: int
    training_seconds: float
    evaluation_seconds: float
    run_bytes: int
    labels_bytes: int

    @property
    def seconds(self) -> float:
        """All of them."""
        return self.training_seconds + self.evaluation_seconds


def needs(recipe: Recipe, number: int, check: StageCheck, found: StageRehearsal) -> Needs:
    """What stage `number` will take, from what a few steps took.

    Training images that the teacher, or the frozen part of the student, must compute count at the speed of computing,
    the others at that of reading.
    """
    stage = recipe.stages[number]
    images = stage.epochs * check.images
    computed = images
    if found.reading is not None:
        computed = check.images if stage.labels is None else _answers_to_compute(stage, check)
    training = computed / found.computing.images_per_second
    if found.reading is not None:
        training += (images - computed) / found.reading.images_per_second
    evaluations = -(-stage.epochs // stage.evaluation.every_epochs) * (1 if stage.ema_decay is None else 2)
    evaluated = evaluations * check.evaluation_images
    if stage.recalibrate_bn is not None:
        evaluated += min(stage.recalibrate_bn.images, check.images)
    kept = recipe.runtime.keep_checkpoints + 1  # a new one is written before an old one goes
    run_bytes = kept * found.checkpoint_bytes + 2 * found.student_bytes
    if found.keeps_features:
        run_bytes += (check.images + check.evaluation_images) * _feature_bytes(recipe)
    return Needs(
        steps=stage.epochs * -(-check.images // stage.global_batch_size),
        images=images,
        training_seconds=training,
        evaluation_seconds=evaluated / found.evaluated_per_second,
        run_bytes=run_bytes,
        labels_bytes=check.labels.missing * check.labels.record_bytes if check.labels is not None else 0,
    )


def _answers_to_compute(stage: Stage, check: StageCheck) -> int:
    """Answers that this run must compute itself."""
    return 0 if stage.waits_for_labels or check.labels is None else check.labels.missing


def _feature_bytes(recipe: Recipe) -> int:
    if is_factory(recipe.model.name):
        network = build_model(recipe.model, recipe.num_classes, size_px=recipe.stages[0].view.size_px)
        return 4 + 4 * network.tap_channels["embedding"]
    plan = plan_network(SPECS[recipe.model.name], recipe.num_classes, width=recipe.model.width)
    return 4 + 4 * plan.tap_channels["embedding"]


def dry_run(
    recipe: Recipe,
    output: Path,
    *,
    resume: bool = False,
    device: DeviceKind = "auto",
    accept_changes: Sequence[str] = (),
) -> list[str]:
    """Checks and rehearses a run, which is not started; leaves nothing behind.

    Args:
        recipe: What would be run.
        output: As `run_recipe` takes it.
        resume: Likewise.
        device: Likewise.
        accept_changes: Likewise.

    Returns:
        What to tell a person.

    Raises:
        UserError: What is wrong, all of it as far as it can be known without training.
        RunError: A rehearsed stage failed.
    """
    chosen = setup_process(device, seed=recipe.seed)
    checks = check_run(recipe, output, resume=resume, accept_changes=accept_changes)
    return report(recipe, checks, rehearse(recipe, checks, chosen), output, chosen)


def report(
    recipe: Recipe, checks: Sequence[StageCheck], found: Sequence[StageRehearsal], output: Path, device: Device
) -> list[str]:
    """The rehearsal in lines.

    Raises:
        UserError: There is not enough room on a disk.
    """
    wanted = [needs(recipe, n, check, each) for n, (check, each) in enumerate(zip(checks, found, strict=True))]
    lines: list[str] = []
    for number, (check, each, need) in enumerate(zip(checks, found, wanted, strict=True)):
        lines += _stage_lines(recipe, number, check, each, need, device)
    disk = sum(need.run_bytes for need in wanted) + found[-1].student_bytes
    labels = sum(need.labels_bytes for need in wanted)
    free = _free_bytes(output)
    lines.append(
        f"in all: {sum(need.steps for need in wanted):,} steps, {readable_time(sum(need.seconds for need in wanted))} "
        f"on this machine; disk {readable_bytes(disk)} of {readable_bytes(free)} that are free for {output}"
        + (f", and {readable_bytes(labels)} for soft labels" if labels else "")
    )
    short = [(disk, output)] if disk > free else []
    for stage, need in zip(recipe.stages, wanted, strict=True):
        if stage.labels is not None and need.labels_bytes > _free_bytes(Path(stage.labels.folder)):
            short.append((need.labels_bytes, Path(stage.labels.folder)))
    if short:
        listed = "; ".join(f"{readable_bytes(size)} are needed for {path}" for size, path in short)
        raise UserError(
            "\n".join([*lines, f"the disk is too small: {listed}. Free some space or choose another folder"])
        )
    return lines


def _stage_lines(
    recipe: Recipe, number: int, check: StageCheck, found: StageRehearsal, need: Needs, device: Device
) -> Iterator[str]:
    stage = recipe.stages[number]
    teacher = " + ".join(model.name for model in stage.teacher.models) if stage.teacher is not None else "none"
    yield f"stage {number + 1}/{len(recipe.stages)} {stage.name}: {recipe.model.name}, teacher {teacher}"
    yield f"  data      {check.images:,} images an epoch ({check.sampled[0]})"
    yield f"            {check.evaluation_images:,} to evaluate on ({check.sampled[1]})"
    for line in check.weights:
        yield f"  weights   {line}"
    yield (
        f"  steps     {need.steps:,}: {stage.epochs:,} epochs of {need.steps // stage.epochs:,}, {need.images:,} images"
    )
    memory = found.memory
    yield (
        f"  memory    {readable_bytes(memory.peak)} of {readable_bytes(memory.available)} at most: student "
        f"{readable_bytes(memory.student)}, optimiser and gradients {readable_bytes(memory.optimizer)}, teacher "
        f"{readable_bytes(memory.teacher)}, activations of {stage.device_batch_size} images and waiting batches "
        f"{readable_bytes(memory.rest)}"
    )
    yield f"  speed     {_speed_line(found.computing, stage, device)}"
    if found.reading is not None:
        kept = "soft labels" if stage.labels is not None else "features"
        yield f"            with stored {kept} {_speed_line(found.reading, stage, device)}"
    yield (
        f"  time      {readable_time(need.seconds)}: training {readable_time(need.training_seconds)}, evaluation "
        f"{readable_time(need.evaluation_seconds)}"
    )
    if stage.waits_for_labels:
        yield "            without the time that the teacher takes elsewhere: `distill labels info` tells it"
    checkpoints = f"{recipe.runtime.keep_checkpoints + 1} checkpoints of {readable_bytes(found.checkpoint_bytes)}"
    features = ", and the features below the classifier" if found.keeps_features else ""
    yield f"  disk      {readable_bytes(need.run_bytes)}: {checkpoints}, weights{features}"
    if check.labels is not None:
        labels = check.labels
        yield (
            f"            soft labels: {labels.stored:,} of {labels.needed:,} answers are stored, the others take "
            f"{readable_bytes(need.labels_bytes)}"
        )


def _speed_line(speed: Speed, stage: Stage, device: Device) -> str:
    rate = f"{speed.images_per_second:,.0f}" if speed.images_per_second >= 10 else f"{speed.images_per_second:.2g}"
    return (
        f"{rate} images/s, of that {speed.data_wait:.0%} waiting for data "
        f"({speed.steps} micro-batches of {stage.device_batch_size} on this {device.kind})"
    )


def _free_bytes(path: Path) -> int:
    """Free bytes of the disk that a path lies on, or will."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free
