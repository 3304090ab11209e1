"""What a stage of training changes, and one forward and backward pass of it."""

import hashlib
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from distill.checkpoint import Checkpoint
from distill.data.types import Batch
from distill.distributed.batch_norm import MovingStatistics
from distill.distributed.gradients import GradientSum, sum_over_ranks
from distill.distributed.sync_batch_norm import synchronize
from distill.distributed.world import ALONE, World
from distill.errors import RunError, UserError
from distill.evaluation import Evaluation, count_hits, measure
from distill.labels.inventory import take_inventory
from distill.labels.records import NotFiniteAnswers
from distill.labels.store import LabelStore
from distill.labels.teacher import StoredTeacher
from distill.losses.pipeline import DistillationLoss, Targets
from distill.models import build_model
from distill.models.factory import imported_code
from distill.models.kernels import compute_with
from distill.normalization import normalize, seen_images, to_unit_range
from distill.optim import build_optimizer, optimizer_tensors, restore_optimizer
from distill.parallel import Device
from distill.recipe import Recipe
from distill.student import Student
from distill.teachers.teacher import Teacher, open_teacher
from distill.trunk import Trunk
from distill.weights import load_into


class Learner:
    """Everything that changes while training: student, projections of the loss, optimiser, average, scaler."""

    def __init__(
        self,
        recipe: Recipe,
        number: int,
        device: Device,
        start_from: Path | None,
        labels: LabelStore | None = None,
        world: World = ALONE,
    ) -> None:
        stage = recipe.stages[number]
        self.stage, self.model_section = stage, recipe.model
        self.world = world
        self._seed = (recipe.seed, number)
        paddle.seed((recipe.seed + number) % 2**63)  # of the weights' initialisation
        model = build_model(
            recipe.model,
            recipe.num_classes,
            stage_lr_multipliers=stage.stage_lr_multipliers,
            size_px=stage.view.size_px,
        )
        source = start_from or recipe.model.weights
        if source is not None:
            load_into(model, Path(source))
        synchronize(model, stage, device, world)
        # Paddle's mixed precision has no CPU kernels.
        self.amp = stage.amp if device.kind == "gpu" else "O0"
        self.student = Student(model, freeze=stage.freeze, ema_decay=stage.ema_decay)
        check_freezing(recipe, number, self.student, self.amp)
        self._device = device
        self.kernels_problem: str | None = None  # why the student does not compute on oneDNN though it might
        if not self.student.trains_classifier_only:  # what is below it computes with an engine of its own
            self.kernels_problem = compute_with(model, recipe.runtime.student_kernels)
        self.trunk: Trunk | None = None
        terms = {name: term.model_dump() for name, term in stage.loss.terms.items()}
        # The live networks: none where there is no teacher, or the store has all its answers.
        self.teacher: Teacher | None = None
        self.labels: StoredTeacher | None = None
        if labels is not None:
            compute = not stage.waits_for_labels
            self.labels = StoredTeacher(labels, partial(open_teacher, recipe, number, device), compute=compute)
            if compute and take_inventory(labels, stage).missing:
                self.teacher = self.labels.live
        elif stage.teacher is not None:
            self.teacher = open_teacher(recipe, number, device)
        self.loss = DistillationLoss(
            terms,
            student_channels=model.tap_channels,
            teacher_channels=self.teacher.tap_channels if self.teacher is not None else {},
            student_vectors=model.vector_taps,
            teacher_vectors=self.teacher.vector_taps if self.teacher is not None else frozenset(),
            data_format=recipe.model.data_format,
        )
        if self.amp == "O2":
            paddle.amp.decorate(models=model, level="O2")
        self.parameters = [
            *self.student.parameters_to_train(),
            *((f"loss.{name}", parameter) for name, parameter in self.loss.named_parameters()),
        ]
        self.optimizer = build_optimizer(self.parameters, stage.optimizer, multi_precision=self.amp == "O2")
        self.scaler = paddle.amp.GradScaler(enable=self.amp != "O0")
        self.student.train_mode()
        self._statistics = MovingStatistics(model, world.rank)
        trained = [parameter for _, parameter in self.parameters]
        self._gradient_sum = GradientSum(world, trained, during_backward=device.kind == "gpu")

    def open_trunk(self) -> None:
        """Where the classifier alone is trained, computes what is below it fast; call it when the weights are there.

        Not where dropout below the classifier makes an image's features new in every step.
        """
        if self.student.trains_classifier_only and self.student.features_stay(self.stage.view.size_px):
            self.trunk = Trunk(
                self.student.model, self.stage.normalization, self._device, self.stage.view.size_px, amp=self.amp
            )

    def _seed_dropout(self, batch: Batch) -> None:
        """What the student draws is a function of (seed, stage, step, samples): of no other state, and of no rank."""
        if self.student.model.draws_at_random:
            key = f"{self._seed} {batch.step} {batch.indices.tolist()}"
            digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
            paddle.seed(int.from_bytes(digest, "big") >> 1)

    def accumulate(self, batch: Batch) -> dict[str, paddle.Tensor]:
        """Adds the gradient of a micro-batch, weighted by its share of the global batch.

        Returns:
            The weighted share of each term, and of their sum under "loss": scalar float32 tensors.
        """
        if len(batch.labels) == 0:
            if self.labels is not None and batch.slot is not None:
                self.labels.note_undecodable(batch.slot)
            self._statistics.after_micro_batch(computed=False)
            self._check_none_waits()
            return {}
        self.student.train_mode()
        self._statistics.before_forward()
        self._seed_dropout(batch)
        images = seen_images(batch)
        with paddle.amp.auto_cast(enable=self.amp != "O0", level=self.amp if self.amp != "O0" else "O1"):
            answers = self._answers(batch, images)
            outputs = self._outputs(batch, images)
        self._statistics.after_micro_batch(computed=True)
        terms = self.loss(outputs, answers, Targets.of_batch(batch.labels, batch.partner, batch.lam))
        share = len(batch.labels) / batch.global_count
        total = self.loss.total(terms) * share
        if batch.ends_step:
            self._gradient_sum.before_last_backward()
        self.scaler.scale(total).backward()
        return {name: term.detach() * share for name, term in terms.items()} | {"loss": total.detach()}

    def _check_none_waits(self) -> None:
        """An empty micro-batch would leave the others waiting for its share of their statistics.

        Raises:
            RunError: With `sync_batch_norm`.
        """
        if self.stage.sync_batch_norm and self.world.rank.size > 1:
            raise RunError(
                f"stages.{self.stage.name}.sync_batch_norm: none of the images of a micro-batch can be decoded, and "
                "all ranks wait for its statistics. Remove these images, or sync_batch_norm. The last checkpoint is "
                "intact"
            )

    def _outputs(self, batch: Batch, images: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """The student's logits, and the taps that the loss compares."""
        if self.trunk is not None:
            return self.student.classify(self.trunk.of_batch(batch, images))
        inputs = normalize(images, self.stage.normalization, self.model_section.data_format)
        return self.student.outputs(inputs, self.loss.student_taps)

    def _answers(self, batch: Batch, images: paddle.Tensor) -> dict[str, paddle.Tensor] | None:
        """The teacher's answers, live or from the store; None without a teacher."""
        if self.labels is not None and batch.slot is not None:
            try:
                return self.labels(images, batch.slot)
            except NotFiniteAnswers as error:
                raise RunError(
                    f"stage {self.stage.name}, step {batch.step + 1}: {error}. The last checkpoint is intact"
                ) from None
        return self.teacher(images) if self.teacher is not None else None

    def combine(self, samples: int) -> None:
        """Behind a step's micro-batches: takes up what the other ranks computed of it, gradients and BN statistics.

        Args:
            samples: Of the step, over all ranks. Without any, nothing changes.
        """
        if self.world.rank.size == 1:
            return
        rows = self._statistics.rows() if samples else []
        if samples:
            self._gradient_sum.finish()
            sum_over_ranks(self.world, rows)
        self._statistics.replay(rows)

    def update(self, rate: float) -> None:
        """Makes one step of the optimiser and forgets the gradients."""
        self.optimizer.set_lr(rate)
        # The first step names the velocities; in a fresh name scope they get the names that `optimizer_tensors` reads,
        # whatever was trained before in this process.
        with paddle.utils.unique_name.guard():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.clear_grad()
        self.student.update_ema()

    def take_unsound_answers(self) -> dict[str, paddle.Tensor]:
        """By live teacher: how many of its answers since the last call were not finite, as scalar tensors."""
        return self.teacher.take_unsound_answers() if self.teacher is not None else {}

    def evaluate(self, loader: Iterable[Batch], *, plain: bool = False) -> Evaluation:
        """Measures the student: its moving average where there is one, unless the `plain` one is wanted."""
        average = self.student.with_ema_weights() if self.stage.ema_decay is not None and not plain else nullcontext()
        with average:
            if self.trunk is not None:
                return count_hits(self._logits, loader, self.stage.evaluation, self.world)
            return measure(
                self.student.model,
                loader,
                section=self.stage.evaluation,
                normalization=self.stage.normalization,
                data_format=self.model_section.data_format,
                world=self.world,
            )

    def _logits(self, batch: Batch) -> np.ndarray:
        """Of a batch of the evaluation, where there is a trunk: float32 [N, C]."""
        with paddle.no_grad():
            outputs = self._outputs(batch, to_unit_range(batch.images))
        return np.asarray(outputs["logits"].astype("float32").numpy())

    def teacher_identity(self) -> list[tuple[str, str]] | None:
        """Name and SHA-256 of the weights of each teacher whose answers are learnt."""
        if self.labels is not None:
            return [*self.labels.store.teachers]
        return self.teacher.identity if self.teacher is not None else None

    def facts(self) -> dict[str, str]:
        """What ranks that train together must have in common besides tensors: what computes, and whose answers."""
        identity = self.teacher_identity() or []
        teachers = {f"weights of teacher {number} {name}": digest for number, (name, digest) in enumerate(identity)}
        code = {f"code of {name}": digest for name, (_, digest) in self.code().items()}
        return {"student's kernels": self.student.model.kernels.description, **teachers, **code}

    def code(self) -> dict[str, tuple[str, str]]:
        """File and SHA-256 of the module of each factory that made one of the networks, by the factory's name."""
        teacher = self.stage.teacher.models if self.stage.teacher is not None else ()
        return imported_code([self.model_section.name, *(model.name for model in teacher)])

    def result_weights(self) -> dict[str, np.ndarray]:
        """The student's weights as they leave the stage: the moving average where there is one."""
        weights = {name: value.numpy() for name, value in self.student.model.state_dict().items()}
        return weights | {name: value.numpy() for name, value in self.student.ema_state().items()}

    def tensors(self) -> dict[str, np.ndarray]:
        """All that a checkpoint holds of the learner; never the teacher."""
        groups: dict[str, dict[str, Any]] = {
            "student": self.student.model.state_dict(),
            "ema": self.student.ema_state(),
            "loss": self.loss.state_dict(),
        }
        arrays = {f"{group}.{name}": t.numpy() for group, state in groups.items() for name, t in state.items()}
        return arrays | {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer, self.parameters).items()}

    def restore(self, saved: Checkpoint) -> None:
        """Takes up the tensors of a checkpoint that `tensors` and `scaler_state` filled."""
        groups: dict[str, dict[str, np.ndarray]] = {"student": {}, "ema": {}, "loss": {}, "optimizer": {}}
        for key, array in saved.tensors.items():
            group, name = key.split(".", 1)
            groups[group][name] = array
        set_state(self.student.model, groups["student"])
        set_state(self.loss, groups["loss"])
        self.student.restore_ema(groups["ema"])
        restore_optimizer(self.optimizer, self.parameters, groups["optimizer"])
        self.scaler.load_state_dict(saved.state["scaler"])

    def scaler_state(self) -> dict[str, Any]:
        """The loss scaler's state, as JSON can hold it; empty on a CPU."""
        return {name: np.asarray(value).tolist() for name, value in self.scaler.state_dict().items()}


def check_freezing(recipe: Recipe, number: int, student: Student, amp: str) -> None:
    """Refuses what does not go with what is frozen.

    Raises:
        UserError: The classifier alone is trained, and the loss compares features below it or `amp` is "O2"; or it is
            not, and statistics are to be estimated anew.
    """
    stage = recipe.stages[number]
    where = f"stages.{stage.name}"
    if not student.trains_classifier_only:
        if stage.recalibrate_bn is not None:
            trained = student.parameters_to_train()[0][0]
            raise UserError(
                f"{where}.recalibrate_bn needs all but the classifier frozen, but {trained} is trained. Freeze it too, "
                "or remove recalibrate_bn"
            )
        return
    if stage.loss.feature_mse is not None:
        raise UserError(
            f"{where}.loss.feature_mse compares the student's {stage.loss.feature_mse.student_layer!r}, but freeze "
            "leaves the classifier alone to train, and no gradient of this term reaches it. Remove the term, or freeze "
            "less"
        )
    if amp == "O2":
        raise UserError(
            f"{where}.amp: 'O2' would round the frozen weights to float16, and they must not change. Use 'O1' where "
            "freeze leaves the classifier alone to train"
        )


def set_state(layer: paddle.nn.Layer, arrays: dict[str, np.ndarray]) -> None:
    """Copies arrays into a layer that must want exactly these.

    Raises:
        RunError: A key is missing, left over or of another shape (Paddle alone would only warn).
    """
    state = layer.state_dict()
    wrong = set(state) ^ set(arrays) | {
        k for k in set(state) & set(arrays) if list(state[k].shape) != [*arrays[k].shape]
    }
    if wrong:
        raise RunError(f"the checkpoint does not fit the network: {', '.join(sorted(wrong)[:10])}")
    layer.set_state_dict({name: paddle.to_tensor(array) for name, array in arrays.items()})
