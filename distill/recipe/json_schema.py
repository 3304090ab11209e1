"""The JSON schema of a recipe's file, which editors complete and check from.

It is laxer than `distill validate`: a key that is missing in a stage may stand at the top or the other
way round, so the sections of a stage require nothing. Lists are never merged: their entries do.
A recipe names it in its first line: `# yaml-language-server: $schema=../recipe.schema.json`.
"""

import json
from typing import Any

from distill.recipe import Recipe, Stage


def json_schema() -> dict[str, Any]:
    """The schema, JSON Schema 2020-12."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    stage = definitions["Stage"]
    for name in _merged_sections("Stage", definitions):
        _make_partial(definitions[name])
    stage["required"] = ["name"]
    stage["properties"]["name"] = Stage.model_json_schema()["properties"]["name"]
    stages = schema["properties"].pop("stages")
    shared = {key: value for key, value in stage["properties"].items() if key != "name"}
    schema["properties"] |= {**shared, "stages": stages}
    schema["required"].remove("stages")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The schema as the file `recipes/recipe.schema.json` holds it."""
    return json.dumps(json_schema(), indent=2) + "\n"


def _merged_sections(name: str, definitions: dict[str, Any]) -> set[str]:
    """The sections that are reached from a section without passing through a list."""
    found: set[str] = set()
    open_names = [name]
    while open_names:
        name = open_names.pop()
        if name not in found:
            found.add(name)
            for value in definitions[name]["properties"].values():
                open_names += [choice["$ref"].rsplit("/", 1)[1] for choice in _choices(value) if "$ref" in choice]
    return found


def _choices(value: dict[str, Any]) -> list[dict[str, Any]]:
    return value.get("anyOf") or value.get("oneOf") or [value]


def _make_partial(section: dict[str, Any]) -> None:
    """Requires nothing, and takes null, which removes a shared key, everywhere."""
    section.pop("required", None)
    for key, value in section["properties"].items():
        choices = _choices(value)
        if {"type": "null"} in choices:
            continue
        about = {name: value[name] for name in ("title", "description", "default") if name in value}
        choices = [{name: part for name, part in choice.items() if name not in about} for choice in choices]
        # Without its required keys a section can match several kinds: anyOf, not oneOf.
        section["properties"][key] = {"anyOf": [*choices, {"type": "null"}], **about}
