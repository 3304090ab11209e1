"""One run of the ablation: its full recipe, its soft labels' folder, and `distill` in a process of its own."""

import hashlib
import json
from pathlib import Path

from ablation_images import count_lines
from ablation_process import call
from ablation_rows import START, Run

from distill.data.sources import open_sources
from distill.files import write_atomically
from distill.labels.manifest import store_key
from distill.recipe import ImageListSource, Recipe, Stage
from distill.recipe.file import parse_recipe, read_recipe_text, resolved_yaml

RECIPES = Path(__file__).parents[2] / "recipes" / "cifar10"
OUTPUT = "runs/ablation/"
"""Where the recipes expect everything; another output folder takes its place in their text."""
QUICK_EPOCHS_DIVISOR = 40
QUICK_BATCH = 32


def full_recipe(run: Run, seed: int, output: Path, *, quick: bool) -> Recipe:
    """The recipe of a run, with the differences of its row, its seed, and `output` for `OUTPUT`."""
    settings = [*run.settings, f"seed={seed}"]
    if run.student_of is not None:
        settings.append(f"model.weights={OUTPUT}runs/{run.student_of}-seed{seed}/student.safetensors")
    path = RECIPES / f"{run.recipe}.yaml"
    text = read_recipe_text(path).replace(OUTPUT, f"{output}/")
    recipe = parse_recipe(text, str(path), [setting.replace(OUTPUT, f"{output}/") for setting in settings])
    if quick:
        recipe = recipe.model_copy(update={"stages": tuple(_quick_stage(stage) for stage in recipe.stages)})
    return recipe


def _quick_stage(stage: Stage) -> Stage:
    epochs = max(1, stage.epochs // QUICK_EPOCHS_DIVISOR)
    batch = {"global_batch_size": QUICK_BATCH, "device_batch_size": QUICK_BATCH}
    return stage.model_copy(update={"epochs": epochs, **batch})


def with_shared_labels(recipe: Recipe, output: Path) -> Recipe:
    """The recipe with a folder of soft labels that all runs share to which the same store fits.

    The folder's name is the seed, and the beginning of a SHA-256 of all that the answers depend on: teacher, images,
    views, stage and seed, as `distill.labels.manifest.store_key` states them and the store's own labels.json keeps
    them. The teacher's weights must be there.
    """
    stages = []
    for number, stage in enumerate(recipe.stages):
        if stage.teacher is not None and stage.labels is not None:
            images = open_sources(stage.data.sources, recipe.num_classes)
            key = json.dumps(store_key(recipe, number, images), sort_keys=True)
            name = f"seed{recipe.seed}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
            labels = stage.labels.model_copy(update={"folder": str(output / "labels" / name)})
            stage = stage.model_copy(update={"teacher": stage.teacher.model_copy(update={"labels": labels})})
        stages.append(stage)
    return recipe.model_copy(update={"stages": tuple(stages)})


def work(recipe: Recipe) -> int:
    """What a run's time is about proportional to: the images that its student sees."""
    return sum(_passes(stage) * _images(stage) for stage in recipe.stages)


def _passes(stage: Stage) -> int:
    """Once where the classifier alone learns: later epochs read its features, see `runtime.reuse_features`."""
    return 1 if stage.freeze and not stage.view.is_random else stage.epochs


def _images(stage: Stage) -> int:
    """Of a list that mining has yet to write, none: the estimate grows when it is there."""
    paths = [Path(source.path) for source in stage.data.sources if isinstance(source, ImageListSource)]
    return sum(count_lines(path) for path in paths if path.exists())


class RunFolder:
    """What the ablation keeps of a run with a seed.

    Args:
        output: Of the whole ablation.
        name: Of the run, its seed included.
    """

    def __init__(self, output: Path, name: str) -> None:
        self.name = name
        self._folder = output / "runs" / name
        self._recipe = output / "recipes" / f"{name}.yaml"
        self._log = output / "logs" / f"{name}.log"
        self._start = output / "starts" / f"{name}.json"

    @property
    def student(self) -> Path:
        """The weights that the finished run leaves."""
        return self._folder / "student.safetensors"

    def is_finished(self) -> bool:
        """Whether its last stage is done."""
        return (self._folder / "result.json").exists()

    def seconds(self) -> float:
        """That its stages took."""
        return sum(float(stage["seconds"]) for stage in self._results().values())

    def top1(self, stage: str) -> float | None:
        """A stage's accuracy in [0, 1]; None where it is not finished."""
        if stage == START:
            return float(json.loads(self._start.read_text())["top1"]) if self._start.exists() else None
        return float(self._results()[stage]["evaluation"]["top1"]) if self.is_finished() else None

    def _results(self) -> dict[str, dict[str, object]]:
        return dict(json.loads((self._folder / "result.json").read_text()))

    def train(self, recipe: Recipe) -> None:
        """Trains, or goes on where it was interrupted.

        Raises:
            RunError: `distill train` failed; its output is in the log.
        """
        self._write(recipe)
        call("distill", ["train", str(self._recipe), "--output", str(self._folder), "--resume"], self._log)

    def evaluate_start(self, recipe: Recipe) -> None:
        """Evaluates the student that the run starts from, as the run's own is evaluated.

        Raises:
            RunError: `distill evaluate` failed.
        """
        self._write(recipe)
        arguments = ["evaluate", str(self._recipe), "--weights", str(recipe.model.weights), "--json"]
        said = call("distill", arguments, self._log, keep_output=True)
        self._start.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._start, said)

    def _write(self, recipe: Recipe) -> None:
        self._recipe.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._recipe, resolved_yaml(recipe))
