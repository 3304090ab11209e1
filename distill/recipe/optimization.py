"""How a recipe trains: optimizer, schedule, recalibration, and operational settings."""

from typing import Annotated, Literal

from pydantic import Field

from distill.recipe.fields import Count, NonNegative, Positive, Section


class OptimizerSection(Section):
    """Stochastic gradient descent with momentum; L2 is added to the gradient."""

    kind: Literal["momentum"]
    learning_rate: Annotated[float, Field(gt=0.0, description="The peak, for the stage's global_batch_size.")]
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)]
    nesterov: bool
    weight_decay: NonNegative
    decay_bias_and_norm: Annotated[bool, Field(description="Whether biases and BN parameters decay too.")]
    clip_norm: Annotated[float | None, Field(gt=0.0, description="Largest global norm of the gradient.")] = None


class Schedule(Section):
    """Every schedule warms up linearly, a step at a time."""

    warmup_epochs: NonNegative


class ConstantSchedule(Schedule):
    """The peak, all the way."""

    kind: Literal["constant"]


class CosineSchedule(Schedule):
    """From the peak down to end_learning_rate along half a cosine."""

    kind: Literal["cosine"]
    end_learning_rate: NonNegative


class StepSchedule(Schedule):
    """Multiplied by factor at each of the boundaries."""

    kind: Literal["step"]
    boundaries_epochs: Annotated[tuple[Positive, ...], Field(min_length=1)]
    factor: Annotated[float, Field(gt=0.0, lt=1.0)]


class PolynomialSchedule(Schedule):
    """From the peak down to end_learning_rate as (1 - progress) ** power."""

    kind: Literal["polynomial"]
    power: Positive
    end_learning_rate: NonNegative


AnySchedule = Annotated[
    ConstantSchedule | CosineSchedule | StepSchedule | PolynomialSchedule, Field(discriminator="kind")
]


class RecalibrationSection(Section):
    """Batch normalisation at the stage's own size: objects look larger or smaller than in the training before."""

    images: Annotated[
        int, Field(ge=1, description="Training images whose mean and variance become the stored ones; at most all.")
    ]


class RuntimeSection(Section):
    """Operational settings: they change speed and safety, never the result.

    Threads come first: decoding, resizing and copying release Python's global lock. An image holds it for at most some
    40 microseconds, for all that an image of 28 x 28 px costs is 41. So threads share one process well as long as
    `loader_threads` x 40 us is well below what one image costs one core: by that reckoning about 12 threads for
    photographs of 110 kB (1 ms), 5 for packed ones of 30 kB, one for images of a few kB. `loader_processes` pay beyond
    that, or where the training loop itself holds the lock; each runs `loader_threads`, takes seconds to start, and
    hands its batches over by a copy. `distill benchmark data RECIPE` tells which of them it is.
    """

    loader_threads: Annotated[int, Field(ge=1, description="In each process: as many as cores are free.")] = 2
    loader_processes: Annotated[
        int, Field(ge=0, description="0: threads only; more where `distill benchmark data` names Python's lock.")
    ] = 0
    prefetch_batches: Count = 4
    student_kernels: Annotated[
        Literal["auto", "onednn", "paddle"],
        Field(
            description="What computes the student on a CPU: oneDNN where it answers as Paddle's kernels do, found out "
            "at the start (auto), that or an error (onednn), or Paddle's kernels. They differ by rounding."
        ),
    ] = "auto"
    read_timeout_seconds: Annotated[
        float, Field(gt=0.0, description="A batch that takes longer stops the run and names the file being read.")
    ] = 600.0
    log_every_steps: Count = 20
    checkpoint_every_minutes: Annotated[float, Field(gt=0.0)] = 15.0
    checkpoint_every_steps: Annotated[int | None, Field(ge=1)] = None
    keep_checkpoints: Annotated[int, Field(ge=2, description="A damaged last one falls back to the one before.")] = 2
    reuse_features: Annotated[
        bool,
        Field(
            description="Where the classifier alone is trained and views do not change, the features below it are "
            "computed in the first epoch, kept on the disk (8 kB an image with 2048 channels), and read afterwards."
        ),
    ] = True
    features_folder: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Keeps these features, for other runs too; absent: in the run's folder, while it trains.",
        ),
    ] = None
