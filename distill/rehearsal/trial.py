"""The rehearsal of a run: a few real steps of each stage in a temporary folder, and what the whole will need.

A rehearsed stage is the recipe's own, made short: fewer images, one micro-batch a step, soft labels and features in the
temporary folder. `train_stage` itself runs it, so that whatever would fail there fails here.
"""

import contextlib
import io
import itertools
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import paddle

from distill import checkpoint
from distill.display import Display
from distill.errors import RunError
from distill.evaluation import measure, open_evaluation
from distill.metrics import read_metrics
from distill.models import build_model
from distill.models.kernels import compute_with
from distill.parallel import Device
from distill.recipe import AnySource, Recipe, Stage
from distill.rehearsal.checks import StageCheck, needs_no_teacher, teacher_bytes
from distill.rehearsal.scale_down import stand_in
from distill.rehearsal.small_inputs import random_weights
from distill.signals import Interrupted
from distill.training import stage_folder, train_stage
from distill.weights import write_weights

SECONDS = 15.0
"""How long the measured steps of a stage take, about; a few steps at least, whatever they take."""

_WARM_UP_STEPS = 2  # the first builds kernels, the second still finds the loader's queue full
_MOST_STEPS = 200
_EVALUATION_BATCHES = 3
_GROUPS = ("student", "ema", "optimizer")  # of a checkpoint's tensors


@dataclass(frozen=True)
class Speed:
    """What the steps of a rehearsed stage took.

    Attributes:
        images_per_second: Training images.
        data_wait: Share of the time in [0, 1] spent waiting for them.
        steps: Micro-batches that were measured.
        step_seconds: What one of them takes.
    """

    images_per_second: float
    data_wait: float
    steps: int
    step_seconds: float


@dataclass(frozen=True)
class Memory:
    """What a stage needs while it trains, in bytes.

    Attributes:
        student: Parameters, buffers, and their moving average.
        optimizer: Velocities, and as much for the gradients.
        teacher: The teachers' weights.
        peak: The largest amount that the process (on a GPU: the device) held.
        baseline: What it held before the first stage.
        available: What the machine (the GPU) has.
    """

    student: int
    optimizer: int
    teacher: int
    peak: int
    baseline: int
    available: int

    @property
    def rest(self) -> int:
        """Activations of a micro-batch above all, and the batches that wait in memory."""
        return max(0, self.peak - self.baseline - self.student - self.optimizer - self.teacher)


@dataclass(frozen=True)
class StageRehearsal:
    """What was measured of a stage.

    Attributes:
        computing: Steps in which teacher and student compute everything.
        reading: Steps that read what earlier epochs kept, soft labels or features; None where nothing is kept.
        keeps_features: Whether the features below the classifier are kept from the first epoch on.
        evaluated_per_second: Images that the student alone is measured on.
        memory: While it trained.
        checkpoint_bytes: On the disk, of one checkpoint.
        student_bytes: Of one file of the student's weights.
    """

    computing: Speed
    reading: Speed | None
    keeps_features: bool
    evaluated_per_second: float
    memory: Memory
    checkpoint_bytes: int
    student_bytes: int


def rehearse(recipe: Recipe, checks: Sequence[StageCheck], device: Device) -> list[StageRehearsal]:
    """Trains some steps of each stage, each from the student that the one before left; keeps nothing.

    Args:
        recipe: What would be run.
        checks: What `check_run` found.
        device: What `setup_process` returned.

    Raises:
        UserError, RunError: What would end the run itself.
        Interrupted: A signal asked to stop.
    """
    found: list[StageRehearsal] = []
    student: Path | None = None
    baseline = _memory_now(device)
    display = Display("dry run", len(recipe.stages), unit="stage")
    with display, _leaves_nothing_behind() as folder:
        for number, check in enumerate(checks):
            display.advance(number, {"stage": recipe.stages[number].name})
            result, student = _rehearse_stage(
                recipe, number, check, device, folder / str(number), student, baseline, display
            )
            found.append(result)
        display.advance(len(checks), {})
    return found


def _rehearse_stage(
    recipe: Recipe,
    number: int,
    check: StageCheck,
    device: Device,
    folder: Path,
    student: Path | None,
    baseline: int,
    display: Display,
) -> tuple[StageRehearsal, Path]:
    """Trains twice: some steps that tell how many to measure, then these. Returns where the student is, too."""
    folder.mkdir()
    _forget_memory_peak()
    stage = recipe.stages[number]
    recipe = _with_any_teacher(recipe, number, check, folder)
    display.say(f"{stage.name}: the first micro-batches of {stage.device_batch_size} images")
    short, run = shortened(recipe, number, check, _WARM_UP_STEPS, folder / "first"), folder / "first"
    _train(short, number, run, device, student)
    seconds = _speeds(run, short.stages[number])[0].step_seconds
    steps = _WARM_UP_STEPS + min(_MOST_STEPS, max(2, round(SECONDS / seconds)))
    display.say(f"{stage.name}: one took {seconds:.2g} s; {steps} to measure what they take")
    short, run = shortened(recipe, number, check, steps, folder / "second"), folder / "second"
    _train(short, number, run, device, student)
    peak = _memory_peak(device)

    own = stage_folder(run, short, number)
    saved = checkpoint.latest(own / "checkpoints")
    if saved is None:
        raise RuntimeError(f"stage {stage.name} left no checkpoint")
    speeds = _speeds(run, short.stages[number])
    keeps_features = stage.repeats_views and any((run / "features").glob("*.features"))
    sizes = {group: sum(a.nbytes for n, a in saved.tensors.items() if n.startswith(f"{group}.")) for group in _GROUPS}
    result = StageRehearsal(
        computing=speeds[0],
        reading=speeds[1] if keeps_features or stage.labels is not None else None,
        keeps_features=keeps_features,
        evaluated_per_second=_evaluation_speed(short, number),
        memory=Memory(
            student=sizes["student"] + sizes["ema"],
            optimizer=2 * sizes["optimizer"],
            teacher=teacher_bytes(stage, recipe.num_classes),
            peak=peak,
            baseline=baseline,
            available=_memory_of(device),
        ),
        checkpoint_bytes=sum(path.stat().st_size for path in saved.path.iterdir()),
        student_bytes=(own / "student.safetensors").stat().st_size,
    )
    return result, own / "student.safetensors"


def shortened(recipe: Recipe, number: int, check: StageCheck, steps: int, folder: Path) -> Recipe:
    """The recipe with stage `number` cut down to some micro-batches, each a step of its own.

    The learning rate shrinks with the batch. Nothing of the user's is written to: soft labels and features lie in
    `folder`. With either of them a second epoch reads what the first one kept.

    Args:
        recipe: The whole recipe.
        number: Of the stage.
        check: How many images its sources have.
        steps: Micro-batches in an epoch, at most.
        folder: Of the rehearsed run.
    """
    stage = recipe.stages[number]
    batch = stage.device_batch_size
    evaluation = min(stage.evaluation.batch_size, batch)
    teacher = stage.teacher
    if teacher is not None and teacher.labels is not None:
        labels = teacher.labels.model_copy(update={"folder": str(folder / "labels"), "views": 1, "missing": "compute"})
        teacher = teacher.model_copy(update={"labels": labels, "devices": ()})
    peak = stage.optimizer.learning_rate * batch / stage.global_batch_size
    short = stage.model_copy(
        update={
            "epochs": 2 if stage.labels is not None or stage.repeats_views else 1,
            "global_batch_size": batch,
            "data": stage.data.model_copy(
                update={
                    "sources": _parts(stage.data.sources, check.source_images, steps * batch),
                    "max_undecodable_fraction": 1.0,
                }
            ),
            "evaluation": stage.evaluation.model_copy(
                update={
                    "sources": _parts(
                        stage.evaluation.sources, check.evaluation_source_images, _EVALUATION_BATCHES * evaluation
                    ),
                    "batch_size": evaluation,
                    "max_undecodable_fraction": 1.0,
                }
            ),
            "teacher": teacher,
            "optimizer": stage.optimizer.model_copy(update={"learning_rate": peak}),
        }
    )
    runtime = recipe.runtime.model_copy(
        update={
            "log_every_steps": 1,
            "checkpoint_every_minutes": 1e9,
            "checkpoint_every_steps": None,
            "features_folder": str(folder / "features"),
        }
    )
    return recipe.with_stage(number, short).model_copy(update={"runtime": runtime})


def _parts(sources: Sequence[AnySource], counts: Sequence[int], wanted: int) -> tuple[AnySource, ...]:
    """About `wanted` images from the middle of the sources, of each as much as its share; few ones are repeated."""
    repeat = -(-wanted // sum(counts))
    parts = []
    for source, count in zip(sources, counts, strict=True):
        share = min(count, max(1, round(wanted / repeat * count / sum(counts))))
        first = (source.range[0] if source.range is not None else 0) + (count - share) // 2
        parts.append(source.model_copy(update={"range": (first, first + share), "repeat": repeat}))
    return tuple(parts)


def _with_any_teacher(recipe: Recipe, number: int, check: StageCheck, folder: Path) -> Recipe:
    """Where all answers are stored and a teacher's weights are absent: random ones stand for them."""
    stage = recipe.stages[number]
    if stage.teacher is None or not needs_no_teacher(check):
        return recipe
    models = []
    for place, model in enumerate(stage.teacher.models):
        if not all(Path(path).exists() for path in (model.file, model.classes) if path is not None):
            model = stand_in(model, str(folder / f"teacher-{place}.safetensors"))
            write_weights(
                model.weights,
                random_weights(model, recipe.num_classes, seed=place, size_px=model.resize_px or stage.view.size_px),
            )
        models.append(model)
    teacher = stage.teacher.model_copy(update={"models": tuple(models)})
    return recipe.with_stage(number, stage.model_copy(update={"teacher": teacher}))


def _train(recipe: Recipe, number: int, run: Path, device: Device, student: Path | None) -> None:
    """`train_stage`, whose lines about accuracies after a few steps would mean nothing."""
    run.mkdir()
    with contextlib.redirect_stderr(io.StringIO()):
        train_stage(recipe, number, run, device=device, start_from=student)


def _speeds(run: Path, stage: Stage) -> list[Speed]:
    """The speed in each epoch of a rehearsed stage, without the first steps."""
    entries = [entry for entry in read_metrics(run / "metrics.jsonl") if entry["kind"] == "train"]
    seen = [0, *(entry["images"] for entry in entries)]
    steps: list[tuple[int, float, float]] = []  # images, seconds, seconds of waiting for data
    for entry, (before, after) in zip(entries, itertools.pairwise(seen), strict=True):
        seconds = (after - before) / entry["images_per_second"] if after > before else 0.0
        steps.append((after - before, seconds, seconds * entry["data_wait_share"]))
    length = len(steps) // stage.epochs
    epochs = [steps[start : start + length] for start in range(0, len(steps), length)]
    return [_speed(epoch[min(_WARM_UP_STEPS, length - 1) :]) for epoch in epochs]


def _speed(steps: Sequence[tuple[int, float, float]]) -> Speed:
    images, seconds, waiting = (sum(step[part] for step in steps) for part in range(3))
    if not images:
        raise RunError("none of the images of the measured steps can be decoded")
    return Speed(images / seconds, waiting / seconds, len(steps), seconds / len(steps))


def _evaluation_speed(recipe: Recipe, number: int) -> float:
    """Images a second of the student, by the network that training evaluates with."""
    stage = recipe.stages[number]
    loader = open_evaluation(stage, recipe)
    model = build_model(recipe.model, recipe.num_classes, size_px=stage.evaluation.crop_px)
    compute_with(model, recipe.runtime.student_kernels)
    for _ in range(2):  # the first time kernels are built
        started = time.monotonic()
        found = measure(
            model,
            loader,
            section=stage.evaluation,
            normalization=stage.normalization,
            data_format=recipe.model.data_format,
        )
    return found.images / (time.monotonic() - started)


@contextlib.contextmanager
def _leaves_nothing_behind() -> Iterator[Path]:
    """A temporary folder that is removed also where SIGTERM ends the process."""

    def stop(number: int, _frame: object) -> None:
        raise Interrupted("", number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with tempfile.TemporaryDirectory(prefix="distill-dry-run-") as folder:
            yield Path(folder)
    except Interrupted as error:
        raise Interrupted("the dry run was stopped; it leaves nothing behind", error.exit_status - 128) from None
    finally:
        signal.signal(signal.SIGTERM, before)


# --- memory -------------------------------------------------------------------------------------


def _memory_now(device: Device) -> int:
    return int(paddle.device.cuda.memory_allocated()) if device.kind == "gpu" else _proc_bytes("self/status", "VmRSS")


def _memory_peak(device: Device) -> int:
    if device.kind == "gpu":
        return int(paddle.device.cuda.max_memory_allocated())
    return _proc_bytes("self/status", "VmHWM")


def _memory_of(device: Device) -> int:
    if device.kind == "gpu":
        return int(paddle.device.cuda.get_device_properties().total_memory)
    return _proc_bytes("meminfo", "MemTotal")


def _forget_memory_peak() -> None:
    """Lets the kernel measure the largest resident size anew; where it does not, an earlier stage's may show."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _proc_bytes(file: str, key: str) -> int:
    """A value of a file below /proc whose lines are like `VmRSS:  1234 kB`."""
    lines = Path("/proc", file).read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))
