"""A whole run: a recipe's stages in order, each resumable, in one folder that describes itself."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.display import Display
from distill.distributed.agreement import agree_on_run
from distill.distributed.rank import Rank, rank_of_environment
from distill.distributed.world import World, joined
from distill.errors import UserError
from distill.evaluation import Evaluation
from distill.files import owned, write_atomically
from distill.parallel import Device, DeviceKind, setup_process
from distill.recipe import Recipe
from distill.recipe.differences import differences, not_accepted
from distill.recipe.file import load_recipe, resolved_yaml
from distill.report import environment, write_json
from distill.run_report.card import write_card
from distill.training import StageResult, stage_folder, train_stage


@dataclass(frozen=True)
class RunResult:
    """What a finished run reached.

    Attributes:
        folder: The run's folder.
        stages: Result of each stage, by name.
    """

    folder: Path
    stages: dict[str, StageResult]

    @property
    def final(self) -> StageResult:
        """The last stage's result, which is the run's."""
        return list(self.stages.values())[-1]


def run_recipe(
    recipe: Recipe,
    output: Path,
    *,
    resume: bool = False,
    device: DeviceKind = "auto",
    accept_changes: Sequence[str] = (),
) -> RunResult:
    """Trains all stages of a recipe, each from the student that the one before left.

    Where Paddle's launcher started several processes, all of them train together, and rank 0 alone writes.

    Args:
        recipe: What to do.
        output: The run's folder: `recipe.yaml`, `environment.json`, `metrics.jsonl`, `visualdl/`,
            `inputs.json`, `stages/`, and at the end `student.safetensors`, `result.json` and `MODEL_CARD.md`.
        resume: Go on with what `output` holds. A finished stage is skipped.
        device: "cpu", "gpu" or "auto".
        accept_changes: Dotted keys whose change against the resumed run is meant.

    Raises:
        UserError: `output` holds a run and `resume` is false, its recipe differs, or another process trains in it; or
            the ranks do not agree.
        RunError: Training failed; see `train_stage`.
    """
    rank = rank_of_environment()
    check_folder(recipe, output, resume=resume, accept_changes=accept_changes)  # at once, on every rank
    chosen = setup_process(device, seed=recipe.seed, rank=rank)
    with joined(rank, chosen) as world, _alone_in(output, rank):
        agree_on_run(world, recipe, environment(chosen))
        if world.is_first:
            prepare_folder(recipe, output, resume=resume, accept_changes=accept_changes)
            note_environment(output, chosen, rank.size)
        results = {
            stage.name: _finish_stage(recipe, number, output, chosen, world)
            for number, stage in enumerate(recipe.stages)
        }
        if world.is_first:
            last = stage_folder(output, recipe, len(recipe.stages) - 1)
            write_atomically(output / "student.safetensors", (last / "student.safetensors").read_bytes())
            write_json(output / "result.json", {name: asdict(result) for name, result in results.items()})
            note_finish(output)
            _leave_card(output)
    return RunResult(output, results)


@contextmanager
def _alone_in(output: Path, rank: Rank) -> Iterator[None]:
    """Keeps every other run out of the folder while rank 0 writes there."""
    if not rank.is_first:
        yield
        return
    _make_folder(output)
    refusal = f"another process trains in {output}: wait for it, stop it, or name another folder with --output"
    with owned(output / ".lock", refusal):
        yield


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {output}: {error.strerror}. Choose another folder with --output") from error


def _finish_stage(recipe: Recipe, number: int, output: Path, device: Device, world: World) -> StageResult:
    """Trains a stage, from the student that the one before left, unless rank 0 finds it finished."""
    folder = stage_folder(output, recipe, number)
    result = finished_stage(folder) if world.is_first else None
    if finished := world.share(asdict(result) if result is not None else None):
        result = StageResult(**finished | {"evaluation": Evaluation(**finished["evaluation"])})
        if world.is_first:
            Display(folder.name, 0).say(
                f"stage {recipe.stages[number].name} is finished: top-1 {result.evaluation.top1:.4f}"
            )
        return result
    weights = stage_folder(output, recipe, number - 1) / "student.safetensors" if number else None
    result = train_stage(recipe, number, output, device=device, start_from=weights, world=world)
    if world.is_first:
        write_json(folder / "result.json", asdict(result))
    return result


def prepare_folder(recipe: Recipe, output: Path, *, resume: bool, accept_changes: Sequence[str]) -> None:
    """Makes the run's folder, or checks that the one there can be resumed.

    Raises:
        UserError: See `check_folder`; or nothing can be written there.
    """
    check_folder(recipe, output, resume=resume, accept_changes=accept_changes)
    _make_folder(output)
    write_atomically(output / "recipe.yaml", resolved_yaml(recipe))


def check_folder(recipe: Recipe, output: Path, *, resume: bool, accept_changes: Sequence[str]) -> None:
    """Checks that a run can begin in a folder, or go on with the one that it holds.

    Raises:
        UserError: It holds a run and `resume` is false, or that run's recipe differs in a key that is
            neither operational nor accepted.
    """
    kept = output / "recipe.yaml"
    if not kept.exists() or not (resume or has_begun(output)):
        return
    if not resume:
        raise UserError(f"{output} already holds a run: --resume goes on with it, --output names another folder")
    unmeant = not_accepted(differences(load_recipe(kept), recipe), accept_changes)
    if unmeant:
        listed = "\n  ".join(unmeant)
        raise UserError(
            f"the recipe differs from the one that {output} was started with:\n  {listed}\n"
            "Resume with the same recipe, or name each change that is meant with --accept-change KEY"
        )


def has_begun(output: Path) -> bool:
    """Whether a run's folder holds more than a recipe that was refused before its first step."""
    return any(path.is_file() for path in (output / "stages").rglob("*"))


def note_environment(output: Path, device: Device, ranks: int) -> None:
    """Appends this sitting to `environment.json`, and warns where bits may differ from the one before.

    A sum over another number of threads or ranks is rounded differently.
    """
    path = output / "environment.json"
    sittings: list[dict[str, Any]] = json.loads(path.read_text())["sittings"] if path.exists() else []
    now = environment(device) | {"ranks": ranks}
    compared = ("device", "threads", "ranks", "processor", "packages")
    changed = [key for key in compared if sittings and sittings[-1].get(key, now[key]) != now[key]]
    if changed:
        Display("environment", 0).say(
            f"{', '.join(changed)} changed since the last sitting (environment.json): the run goes on, but its weights "
            "will not be bitwise those of an uninterrupted run"
        )
    write_json(path, {"sittings": [*sittings, now]})


def note_finish(output: Path) -> None:
    """Notes in `environment.json` when the run was finished, if it was not before."""
    path = output / "environment.json"
    sittings: list[dict[str, Any]] = json.loads(path.read_text())["sittings"]
    if not any("finished" in sitting for sitting in sittings):
        sittings[-1]["finished"] = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        write_json(path, {"sittings": sittings})


def _leave_card(output: Path) -> None:
    """Writes the model card of a finished run; whatever hinders that, the run has succeeded."""
    try:
        write_card(output)
    except Exception as error:  # a text about the weights must not make the weights look lost
        Display("model card", 0).say(
            f"the model card was not written: {error}. All else is there; `distill card {output}` tries again"
        )


def finished_stage(folder: Path) -> StageResult | None:
    """The result of a stage that is done, else None."""
    path = folder / "result.json"
    if not path.exists() or not (folder / "student.safetensors").exists():
        return None
    content = json.loads(path.read_text())
    return StageResult(**content | {"evaluation": Evaluation(**content["evaluation"])})
