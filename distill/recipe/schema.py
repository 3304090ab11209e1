"""The schema of a recipe: frozen, unknown keys forbidden, no Paddle import.

A recipe states every value that affects accuracy. A key that may be left out means either "this
technique is not used", "the architecture as published", or an operational setting that changes
speed and never the result. `distill.recipe.file` reads the YAML and reports errors by line.

A rule between keys is a validator of the later key (through `info.data`, which holds the earlier
ones), so that it is reported on that key's line and beside every other error. Its message continues
the key's name: "must divide ...". A field's description ends every error about it.
"""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from distill.models.factory_names import is_factory
from distill.recipe.fields import Count, Fraction, NonNegative, PlacedError, Section, check_tap
from distill.recipe.images import CutMixSection, DataSection, EvaluationSection, MixSection, MixupSection, ViewSection
from distill.recipe.losses import LossSection
from distill.recipe.networks import LabelsSection, ModelSection, NormalizationSection, TeacherSection
from distill.recipe.optimization import AnySchedule, OptimizerSection, RecalibrationSection, RuntimeSection, Schedule


def _or_none(number: float | None) -> str:
    return "none" if number is None else f"{number:g}"


class Stage(Section):
    """One training run; it starts from the student that the stage before it left."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    epochs: Count
    global_batch_size: Annotated[int, Field(ge=1, description="Samples an update, over all devices.")]
    device_batch_size: Annotated[
        int, Field(ge=1, description="Samples a forward pass, and so a BN batch; divides global_batch_size.")
    ]
    data: DataSection
    view: ViewSection
    mixup: MixupSection | None = None
    cutmix: CutMixSection | None = None
    normalization: NormalizationSection
    evaluation: EvaluationSection
    teacher: TeacherSection | None = None
    loss: LossSection
    optimizer: OptimizerSection
    schedule: AnySchedule
    freeze: Annotated[
        tuple[str, ...], Field(description="Glob patterns of parameter names; frozen BN layers keep their statistics.")
    ] = ()
    recalibrate_bn: Annotated[
        RecalibrationSection | None,
        Field(description="Estimate the statistics of the frozen BN layers anew before training, then keep them."),
    ] = None
    stage_lr_multipliers: Annotated[
        tuple[NonNegative, NonNegative, NonNegative, NonNegative, NonNegative] | None,
        Field(description="Of the stem and stages 1-4, as the published finetuning; the FC learns at the full rate."),
    ] = None
    ema_decay: Annotated[float | None, Field(gt=0.0, lt=1.0, description="Moving average of the weights.")] = None
    amp: Annotated[Literal["O0", "O1", "O2"], Field(description="Mixed precision on GPUs.")] = "O0"
    sync_batch_norm: Annotated[
        bool,
        Field(
            description="On several GPUs a BN batch is that of all of them, device_batch_size each, so that the result "
            "depends on their number. Untested so far."
        ),
    ] = False

    @property
    def labels(self) -> LabelsSection | None:
        """Where the teacher's answers are stored, if they are."""
        return self.teacher.labels if self.teacher is not None else None

    @property
    def mix_group_size(self) -> int:
        """How many consecutive samples are mixed with each other; 1 without mixup and CutMix."""
        section = self.mixup or self.cutmix
        return section.group_size if section is not None else 1

    @property
    def repeats_views(self) -> bool:
        """Whether an image looks the same in every epoch, so that what was computed of it may be kept."""
        return not self.view.is_random and self.mix_group_size == 1

    @property
    def waits_for_labels(self) -> bool:
        """Whether other processes compute the teacher's answers."""
        labels = self.labels
        return labels is not None and (labels.missing == "wait" or bool(self.teacher and self.teacher.devices))

    def view_epoch(self, epoch: int) -> int:
        """The epoch whose random choices this one makes: itself, unless `teacher.labels.views` lets them recur."""
        views = self.labels.views if self.labels is not None else None
        return epoch if views is None else epoch % views

    @property
    def view_epochs(self) -> range:
        """The epochs whose random choices the stage makes: as many as it has views."""
        views = self.labels.views if self.labels is not None else None
        return range(self.epochs if views is None else min(views, self.epochs))

    @field_validator("device_batch_size")
    @classmethod
    def _device_batch_divides(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("global_batch_size", value) % value:
            raise ValueError(f"must divide global_batch_size {info.data['global_batch_size']}, received {value}")
        return value

    @field_validator("mixup", "cutmix")
    @classmethod
    def _groups_fill_the_batch(cls, value: MixSection | None, info: ValidationInfo) -> MixSection | None:
        if value is not None and info.data.get("device_batch_size", 0) % value.group_size:
            raise ValueError(
                f"must have a group_size that divides device_batch_size {info.data['device_batch_size']}, "
                f"received {value.group_size}"
            )
        return value

    @field_validator("cutmix")
    @classmethod
    def _mixup_and_cutmix_share_groups(cls, value: CutMixSection | None, info: ValidationInfo) -> CutMixSection | None:
        mixup = info.data.get("mixup")
        if value is None or mixup is None:
            return value
        if value.group_size != mixup.group_size:
            raise ValueError(f"must have the group_size of mixup, {mixup.group_size}, received {value.group_size}")
        if value.probability is None or mixup.probability is None or value.probability + mixup.probability > 1:
            raise ValueError(
                "must have a probability, and so must mixup, together at most 1, for a group is mixed in one way; "
                f"received {_or_none(value.probability)} and {_or_none(mixup.probability)}. Usual: 0.5 and 0.5"
            )
        return value

    @field_validator("loss")
    @classmethod
    def _loss_suits_the_teacher(cls, value: LossSection, info: ValidationInfo) -> LossSection:
        if "teacher" not in info.data:  # the section is there but wrong, and is reported itself
            return value
        terms = sorted(set(value.terms) - {"cross_entropy"})
        if terms and info.data["teacher"] is None:
            raise ValueError(f"compares with a teacher ({', '.join(terms)}): add the section `teacher`")
        if info.data["teacher"] is not None and not terms:
            raise ValueError("does not use the section `teacher`: add a term such as kl, or remove the section")
        if value.feature_mse is not None and info.data["teacher"].labels is not None:
            raise ValueError(
                "must have no feature_mse beside teacher.labels: the store keeps the teacher's classes, not its maps"
            )
        if value.feature_mse is not None and info.data["teacher"].files:
            raise ValueError(
                "must have no feature_mse beside a teacher that is a file: it answers with classes alone. Use the kind "
                "network, or remove feature_mse"
            )
        if value.feature_mse is not None and len(info.data["teacher"].models) == 1:
            name = getattr(info.data["teacher"].models[0], "name", None)
            check_tap(name, value.feature_mse.teacher_layer, "feature_mse", "teacher_layer")
        return value

    @field_validator("recalibrate_bn")
    @classmethod
    def _something_is_frozen(
        cls, value: RecalibrationSection | None, info: ValidationInfo
    ) -> RecalibrationSection | None:
        if value is not None and not info.data.get("freeze", True):
            raise ValueError("must come with freeze: training itself moves the statistics of what is not frozen")
        return value

    @field_validator("sync_batch_norm")
    @classmethod
    def _statistics_are_not_estimated(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("recalibrate_bn") is not None:
            raise ValueError("must be false beside recalibrate_bn, which keeps the statistics of frozen BN layers")
        return value

    @field_validator("schedule")
    @classmethod
    def _warmup_fits(cls, value: Schedule, info: ValidationInfo) -> Schedule:
        if value.warmup_epochs > info.data.get("epochs", value.warmup_epochs):
            raise ValueError(
                f"must not warm up for longer than the stage's {info.data['epochs']} epochs, "
                f"received warmup_epochs {value.warmup_epochs:g}"
            )
        return value


class Result(Section):
    """An accuracy in [0, 1] and where it comes from."""

    top1: Fraction
    top5: Fraction | None = None
    source: Annotated[str, Field(min_length=1, description="'published', or command, date and hardware.")]


class Recipe(Section):
    """A whole experiment.

    In the file, every key of a stage may also stand at the top: there it holds for all stages, and a
    stage states only what differs: sections are merged key by key, a list or a section of another
    `kind` replaces the shared one, `null` removes a key. A file without `stages` has one stage, "train".
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    description: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    num_classes: Annotated[int, Field(ge=2, le=65536)]
    model: ModelSection
    expected: Annotated[Result | None, Field(description="What the recipe should reach.")] = None
    measured: Annotated[Result | None, Field(description="What it did reach here; absent: not yet run.")] = None
    runtime: RuntimeSection = RuntimeSection()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]

    def with_stage(self, number: int, stage: Stage) -> "Recipe":
        """The recipe with another stage in place of stage `number`."""
        return self.model_copy(update={"stages": (*self.stages[:number], stage, *self.stages[number + 1 :])})

    @field_validator("stages")
    @classmethod
    def _stage_names_differ(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        names = [stage.name for stage in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"must have names that differ, received twice: {', '.join(twice)}")
        return value

    @field_validator("stages")
    @classmethod
    def _stages_suit_the_model(cls, value: tuple[Stage, ...], info: ValidationInfo) -> tuple[Stage, ...]:
        if "model" not in info.data:  # it is wrong, and is reported itself
            return value
        name = info.data["model"].name
        for number, stage in enumerate(value):
            if stage.stage_lr_multipliers is not None and is_factory(name):
                raise PlacedError(
                    f"must be left out beside the factory {name}: only networks of the series have these stages",
                    number,
                    "stage_lr_multipliers",
                )
            if stage.loss.feature_mse is not None:
                check_tap(name, stage.loss.feature_mse.student_layer, number, "loss", "feature_mse", "student_layer")
        return value
