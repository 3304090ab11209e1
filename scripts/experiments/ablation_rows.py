"""The ablation's table: what is trained, what each row changes, and what is published of that change.

A run is a recipe of recipes/cifar10 with the changes that are listed; a row is the accuracy of one of a run's stages.
"""

from dataclasses import dataclass

START = "start"
"""Stands for a stage: the student that a run starts from, evaluated as the run is."""

LABELLED = "{kind: image_list, path: runs/ablation/lists/labelled.txt, root: .}"
RANDOM = "{kind: image_list, path: runs/ablation/lists/random.txt, root: ., use_labels: false}"


@dataclass(frozen=True)
class Run:
    """One call of `distill train` a seed.

    Attributes:
        recipe: File in recipes/cifar10, without its suffix.
        settings: `--set` options, the difference to that recipe.
        student_of: The run whose student of the same seed it starts from.
        needs_pool: Whether it reads a list that mining wrote.
    """

    recipe: str
    settings: tuple[str, ...] = ()
    student_of: str | None = None
    needs_pool: bool = False


@dataclass(frozen=True)
class Comparison:
    """Against another row; `before` and `after` are published accuracies in %, `network` says of what."""

    other: str
    before: float | None = None
    after: float | None = None
    network: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the table: `changes` is said of the row that the first comparison names."""

    changes: str
    run: str
    stage: str = "train"
    comparisons: tuple[Comparison, ...] = ()


def _at(size_px: int) -> tuple[str, ...]:
    """Trained and evaluated at a size."""
    view = (f"view.size_px={size_px}", f"view.crop.resize_short_px={size_px}")
    return (*view, f"evaluation.resize_short_px={size_px}", f"evaluation.crop_px={size_px}")


RUNS = {
    "labels": Run("twin_vd", ("mixup=null", "loss.cross_entropy.label_smoothing=0.0")),
    "labels_vd": Run("twin_vd"),
    "kl": Run("twin_vd_v2", ("loss={kl: {weight: 1.0, temperature: 1.0}}",)),
    "symmetric_kl": Run("twin_vd_v2"),
    "jensen_shannon": Run("twin_vd_v2", ("loss={jensen_shannon: {weight: 1.0, temperature: 1.0}}",)),
    "batch_statistics": Run("twin_vd_v2", ("teacher.batch_norm=batch", "teacher.labels=null")),
    "epochs_2x": Run("twin_vd_v2", ("epochs=80",)),
    "pool_random": Run("twin_vd_v2", ("epochs=20", f"data.sources=[{LABELLED}, {RANDOM}]"), needs_pool=True),
    "ssld": Run("twin_ssld", needs_pool=True),
    "ssld_v2": Run("twin_ssld_v2", needs_pool=True),
    "fix_115": Run("twin_fix", _at(37), student_of="ssld_v2"),
    "fix_143": Run("twin_fix", student_of="ssld_v2"),
}

MOBILE, RESNET = "MobileNetV3-large", "ResNet50_vd"
ROWS = {
    "labels": Row("5,120 labels alone", "labels"),
    "labels_vd": Row("label smoothing 0.1, mixup 0.2", "labels_vd", comparisons=(Comparison("labels"),)),
    "kl": Row(
        # KL(teacher || student) is the cross-entropy with the teacher's answers less their entropy, a constant
        "a teacher instead of labels; KL, whose gradient is that of CE with soft labels",
        "kl",
        comparisons=(Comparison("labels"),),
    ),
    "symmetric_kl": Row(
        "SSLD's loss, the symmetric KL, published as JS",
        "symmetric_kl",
        comparisons=(Comparison("kl", 76.0, 76.2, MOBILE), Comparison("labels_vd", 79.12, 79.84, RESNET)),
    ),
    "jensen_shannon": Row(
        "the Jensen-Shannon divergence proper", "jensen_shannon", comparisons=(Comparison("symmetric_kl"),)
    ),
    "batch_statistics": Row(
        "the teacher normalises by each batch's statistics",
        "batch_statistics",
        comparisons=(Comparison("symmetric_kl", 75.84, 76.0, MOBILE),),
    ),
    "epochs_2x": Row(
        "twice the epochs (published: 360)",
        "epochs_2x",
        comparisons=(Comparison("symmetric_kl", 76.2, 77.1, MOBILE),),
    ),
    "pool_random": Row(
        "images of the pool at random, as many as mining chose, in as many updates",
        "pool_random",
        comparisons=(Comparison("epochs_2x"),),
    ),
    "pool_mined": Row(
        "images that mining chose, at most 15,360, in as many updates (published: 4 M, in four times as many)",
        "ssld",
        "pool",
        comparisons=(Comparison("epochs_2x", 77.1, 78.5, MOBILE), Comparison("pool_random")),
    ),
    "finetune": Row(
        "then the 5,120 images alone, at a hundredth of the rate",
        "ssld",
        "finetune",
        comparisons=(Comparison("pool_mined", 82.07, 82.39, RESNET),),
    ),
    "autoaugment": Row(
        "AutoAugment and 2/7 of the L2, in both stages (SSLD v2)",
        "ssld_v2",
        "finetune",
        comparisons=(Comparison("finetune", 82.39, 82.99, RESNET),),
    ),
    "tested_115": Row("tested at 1.15 times the size", "fix_115", START, comparisons=(Comparison("autoaugment"),)),
    "fix_115": Row("the classifier finetuned at that size", "fix_115", comparisons=(Comparison("tested_115"),)),
    "tested_143": Row(
        "tested at 1.43 times the size",
        "fix_143",
        START,
        comparisons=(Comparison("autoaugment", 82.99, 83.7, RESNET),),
    ),
    "fix_143": Row(
        "the classifier finetuned at that size",
        "fix_143",
        comparisons=(Comparison("tested_143", 83.7, 84.0, RESNET),),
    ),
}


def runs_of(rows: list[str]) -> list[str]:
    """The runs that rows need, in the order of RUNS, those included that others start from."""
    wanted = {ROWS[row].run for row in rows}
    wanted |= {other for name in wanted if (other := RUNS[name].student_of) is not None}
    return [name for name in RUNS if name in wanted]


def shares_weights(row: str, other: str) -> bool:
    """Whether both rows' students of a seed come from one training: they are compared seed by seed."""
    return _origin(row) == _origin(other)


def _origin(row: str) -> str:
    run = ROWS[row].run
    return RUNS[run].student_of or run
