"""`MODEL_CARD.md` of a finished run: what the student is, where it comes from, how to use it; from its files alone."""

import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from distill.benchmark.count import multiply_accumulates, parameters
from distill.display import readable_time
from distill.errors import UserError
from distill.files import write_atomically
from distill.models.factory_names import is_factory
from distill.models.plan import plan_network
from distill.models.specs import SPECS
from distill.recipe import Recipe, Stage
from distill.run_inputs import read_inputs
from distill.run_report.collect import CARD, RunFacts, collect
from distill.run_report.templates import environment
from distill.weights import sha256_of
from distill.weights.licences import is_non_commercial, licence_of

_COMMANDS = ("distill", "__main__.py")


def write_card(run: Path, output: Path | None = None) -> Path:
    """Writes the model card of a finished run, the same text whenever it is asked for.

    Args:
        run: The run's folder.
        output: The file; default: `MODEL_CARD.md` in it.

    Returns:
        The file.

    Raises:
        UserError: The folder is no run, the run has not finished, or one of its files is damaged.
        RunError: It cannot be written.
    """
    target = output or run / CARD
    write_atomically(target, render_card(run))
    return target


def render_card(run: Path) -> str:
    """The card's text; raises as `write_card`."""
    facts = collect(run)
    student = run / "student.safetensors"
    if facts.result is None or not student.is_file():
        raise UserError(f"{run} has not finished: expected result.json and student.safetensors in it. Finish it first")
    recipe, inputs = facts.recipe, read_inputs(run)
    templates = environment(autoescape=False)
    templates.filters |= {"text": text, "code": code, "flow": _flow, "literal": json.dumps, "quoted": shlex.quote}
    templates.filters["duration"] = readable_time
    weights = _weights_used(recipe, inputs)
    rendered = templates.get_template("card.md.j2").render(
        front_matter=_front_matter(recipe),
        run=os.path.relpath(run),
        recipe=recipe,
        last=recipe.stages[-1],
        student_sha256=sha256_of(student),
        recipe_sha256=sha256_of(run / "recipe.yaml"),
        size=_size(recipe),
        factory=_factory(recipe),
        results=list(facts.result.items()),
        average={stage.name: stage.ema_decay for stage in recipe.stages},
        data=_data(recipe, inputs),
        undecodable=len({file for file, _ in facts.undecodable}),
        taught=[stage for stage in recipe.stages if stage.teacher is not None],
        weights=weights,
        non_commercial=[each for each in weights if each["licence"] is None and is_non_commercial(each["network"])],
        details={stage.name: _details(stage) for stage in recipe.stages},
        machine=_machine(facts),
    )
    return f"{rendered}\n"


def text(value: object) -> str:
    """Data as Markdown that shows it as it is, on one line; never at the beginning of one."""
    return re.sub(r"([\\`*_{}\[\]<>#|&~!$])", r"\\\1", " ".join(str(value).split()))


def code(value: object) -> str:
    """Data as a code span, which stands in a table too."""
    shown = " ".join(str(value).split()) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    padding = " " if "`" in shown else ""
    return f"{fence}{padding}{shown}{padding}{fence}".replace("|", "\\|")


def _flow(value: Any) -> str:
    """A part of a recipe on one line."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10**9).split("\n")[
        0
    ]


def _front_matter(recipe: Recipe) -> str:
    """The head that the Hugging Face Hub reads (hub-docs, modelcard.md)."""
    tags = ["image-classification", "paddlepaddle"]
    tags += ["knowledge-distillation"] if any(stage.teacher for stage in recipe.stages) else []
    tags += [recipe.model.name] if recipe.model.name in SPECS else []
    content = {
        "license": "other",
        "license_name": "see-licence-notes",
        "pipeline_tag": "image-classification",
        "tags": tags,
        "metrics": ["accuracy"],
    }
    return yaml.safe_dump(content, sort_keys=False)


def _size(recipe: Recipe) -> tuple[int, int] | None:
    """Parameters and multiply-accumulates at the evaluation's size; None of a network that is not of the series."""
    model = recipe.model
    if model.name not in SPECS:
        return None
    plan = plan_network(SPECS[model.name], recipe.num_classes, width=model.width, stem_stride=model.stem_stride)
    return parameters(plan), multiply_accumulates(plan, recipe.stages[-1].evaluation.crop_px)


def _factory(recipe: Recipe) -> dict[str, str] | None:
    """How to call the function that makes the network; None of a network of the series."""
    if not is_factory(recipe.model.name):
        return None
    module, function = recipe.model.name.split(":")
    arguments = {"num_classes": recipe.num_classes, **(recipe.model.arguments or {})}
    call = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return {"module": module, "function": function, "call": call}


def _data(recipe: Recipe, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The images of each stage; stages with the same ones stand together."""
    groups: list[dict[str, Any]] = []
    for stage in recipe.stages:
        noted = inputs.get(stage.name)
        for what, key, section in (
            ("trains on", "images", stage.data),
            ("is measured on", "evaluation_images", stage.evaluation),
        ):
            sources = [source.model_dump(mode="json", exclude_defaults=True) for source in section.sources]
            group = {"what": what, "sources": sources, "facts": noted[key] if noted else None}
            same = next((each for each in groups if {**each, **group} == each), None)
            if same is not None:
                same["stages"].append(stage.name)
            else:
                groups.append(group | {"stages": [stage.name]})
    return groups


def _weights_used(recipe: Recipe, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files of weights that went into the student, each once, with what they were for."""
    found: list[dict[str, Any]] = []
    for number, stage in enumerate(recipe.stages):
        noted = inputs.get(stage.name) or _unnoted(recipe, number)
        used = [("starting point", noted["started_from"])] if noted["started_from"] else []
        used += [("teacher", each) for each in noted["teachers"]]
        for purpose, each in used:
            if (each | {"purpose": purpose}) not in found:
                found.append(each | {"purpose": purpose})
    return found


def _unnoted(recipe: Recipe, number: int) -> dict[str, Any]:
    """What a run of before `inputs.json` still tells: the files' names in the recipe."""

    def unnoted(model: Any) -> dict[str, Any]:
        file = getattr(model, "weights", None) or getattr(model, "file", None) or getattr(model, "path", None)
        licence = licence_of(Path(file), None) if file else None
        return {"network": getattr(model, "name", "unknown"), "file": file, "sha256": None, "licence": licence}

    section = recipe.stages[number].teacher
    starts = number == 0 and recipe.model.weights is not None
    return {
        "started_from": unnoted(recipe.model) if starts else None,
        "teachers": [unnoted(model) for model in section.models] if section is not None else [],
    }


def _details(stage: Stage) -> dict[str, Any]:
    """The parts of a stage that a reader looks for first, as the recipe states them."""
    content = stage.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    wanted = ("loss", "optimizer", "schedule", "view", "mixup", "cutmix", "freeze", "recalibrate_bn", "ema_decay")
    return {key: content[key] for key in wanted if content.get(key)}


def _machine(facts: RunFacts) -> dict[str, Any]:
    """When, on what and with what the run was trained: of the sittings up to the one that finished it."""
    ends = [number for number, sitting in enumerate(facts.sittings) if "finished" in sitting]
    sittings = facts.sittings[: ends[0] + 1] if ends else facts.sittings
    hardware = [
        f"{each.get('processor', 'unknown')}; device {each.get('device', 'unknown')}, "
        f"processes: {each.get('ranks', 1)}, threads in each: {each.get('threads', 'unknown')}"
        for each in sittings
    ]
    versions = [
        ", ".join(
            f"{name} {version}"
            for name, version in {
                "paddle-distill": each.get("project", "unknown"),
                "Python": each.get("python", "unknown"),
                **each.get("packages", {}),
            }.items()
        )
        for each in sittings
    ]
    command = sittings[0].get("command", []) if sittings else []
    known = bool(command) and Path(command[0]).name in _COMMANDS
    paddle = next((v for each in sittings for k, v in each.get("packages", {}).items() if k.startswith("paddle")), "3")
    return {
        "finished": sittings[-1].get("finished") if ends else None,
        "sittings": len(sittings),
        "hardware": list(dict.fromkeys(hardware)),
        "versions": list(dict.fromkeys(versions)),
        "commits": list(dict.fromkeys(each.get("git_commit") or "unknown" for each in sittings)),
        "command": shlex.join(["distill", *command[1:]]) if known else None,
        "program": "inference.pdmodel" if paddle.startswith("2.") else "inference.json",
    }
