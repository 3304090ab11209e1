"""From a recipe's file, and `--set` options, to a validated Recipe, and back.

The steps: read nodes that know their lines, apply the options, give each stage the keys that all stages
share, validate. Every step keeps the nodes, so that a value is reported where it was written.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from distill.errors import UserError, did_you_mean
from distill.recipe import Recipe, Stage
from distill.recipe.errors import problems_of
from distill.recipe.yaml_nodes import (
    MAX_BYTES,
    NOT_PLAIN_TEXT,
    Node,
    Place,
    Problem,
    RecipeError,
    child_of,
    describe,
    join_key,
    plain,
    problems_error,
    read_yaml,
)

SHARED_KEYS = frozenset(Stage.model_fields) - {"name"}
ONLY_STAGE = "train"

Schema = TypeVar("Schema", bound=BaseModel)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and validates a recipe.

    Args:
        path: The YAML file.
        overrides: `--set` options, "optimizer.learning_rate=0.1" or "stages.NAME.epochs=3"; the value is YAML.

    Raises:
        UserError: States everything that is wrong: dotted key, expected, received, file and line, nearest name.
    """
    return parse_recipe(read_recipe_text(Path(path)), str(path), overrides)


def parse_recipe(text: str, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """`load_recipe` for a text; messages call it `source`."""
    return parse_sections(text, source, Recipe, overrides, _with_full_stages)


def parse_sections(
    text: str,
    source: str,
    schema: type[Schema],
    overrides: Sequence[str] = (),
    complete: Callable[[Node], Node] = lambda root: root,
) -> Schema:
    """Validates a text against any schema of frozen sections; raises as `load_recipe`.

    Args:
        text: YAML.
        source: What messages call it.
        schema: Of the whole text.
        overrides: `--set` options.
        complete: Brings what was written into the schema's form.
    """
    root, problems = read_yaml(text, source)
    if not isinstance(root.value, dict):
        raise UserError(f"a recipe is a mapping of keys to values, received {describe(root)} ({root.place})")
    root = replace(root, place=Place(source, 1))
    for override in overrides:
        try:
            root = _with_override(root, override, complete)
        except RecipeError as error:
            problems.append(error.problem)
        except UserError as error:
            problems.append(Problem(Place(f"--set {override}", 0), str(error)))
    full = complete(root)
    recipe: Schema | None
    try:
        recipe = schema.model_validate(plain(full), strict=True)
    except ValidationError as error:
        problems += problems_of(error, full, schema)
        recipe = None
    if recipe is None or problems:
        names = _stage_names(full)
        raise problems_error([replace(p, text=_with_stage_name(p.text, names)) for p in problems], source)
    return recipe


def read_recipe_text(path: Path) -> str:
    """The text of a recipe's file.

    Raises:
        UserError: It cannot be read, is far too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"the recipe {path} cannot be read: {reason}. `distill recipes` lists those there are"
        ) from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is too large for a recipe: expected at most {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"not UTF-8 text ({path}, line {line})") from error


# --- stages -------------------------------------------------------------------------------------


def _with_full_stages(root: Node) -> Node:
    """The recipe with every shared key inside each of its stages, and none at the top."""
    values = dict(root.value) if isinstance(root.value, dict) else {}
    shared = replace(root, value={key: values.pop(key) for key in list(values) if key in SHARED_KEYS})
    stages = values.get("stages")
    if stages is None or stages.value is None:
        only = Node({"name": Node(ONLY_STAGE, "name", root.place)}, "", root.place)
        values["stages"] = Node([merged(shared, only)], "stages", root.place)
    elif isinstance(stages.value, list):
        full = [merged(shared, stage) if isinstance(stage.value, dict) else stage for stage in stages.value]
        values["stages"] = replace(stages, value=full)
    return replace(root, value=values)


def merged(shared: Node, own: Node) -> Node:
    """What a stage has where `shared` holds for all stages and the stage states `own`.

    Sections are merged key by key; anything else that the stage states, null too, replaces what is
    shared, and so does a section of another `kind`: the two kinds' keys differ.
    """
    if not isinstance(shared.value, dict) or not isinstance(own.value, dict) or _other_kind(shared, own):
        return own
    values = dict(shared.value)
    for key, node in own.value.items():
        values[key] = merged(values[key], node) if key in values else node
    return replace(own, value=values)


def _other_kind(shared: Node, own: Node) -> bool:
    first, second = child_of(shared, "kind"), child_of(own, "kind")
    return first is not None and second is not None and first.value != second.value


def _stage_names(root: Node) -> list[str]:
    """The stages' names, "" where one has none; empty for a file without stages."""
    stages = child_of(root, "stages")
    if stages is None or not isinstance(stages.value, list):
        return []
    names = [child_of(stage, "name") for stage in stages.value]
    return [name.value if name and isinstance(name.value, str) else "" for name in names]


def _with_stage_name(text: str, names: list[str]) -> str:
    """A message about `stages.0.loss` says `stages.NAME.loss`, the key that --set takes."""
    match = re.match(r"stages\.([0-9]{1,6})\b", text)
    if match is None or int(match[1]) >= len(names) or not names[int(match[1])]:
        return text
    return f"stages.{names[int(match[1])]}{text[match.end() :]}"


# --- overrides ----------------------------------------------------------------------------------


def _with_override(root: Node, override: str, complete: Callable[[Node], Node]) -> Node:
    """The recipe with one `--set` option applied; the new value's place is the option.

    Raises:
        UserError: The option has no KEY=VALUE, its key leads nowhere, or it would have no effect.
    """
    key, separator, text = override.partition("=")
    path: list[str | int] = [*key.strip().split(".")]
    if not separator or not all(path):
        raise UserError("expected KEY=VALUE such as optimizer.learning_rate=0.1")
    value, problems = read_yaml(text, f"--set {override}", key=key.strip(), line_numbers=False)
    if problems:
        raise RecipeError(problems[0])
    names = _stage_names(root)
    if path[0] == "stages" and len(path) > 1:
        path = _stage_path(path, names)
    root = _placed(root, path, value)
    if not _has_value_from(complete(root), value.place):
        own = [join_key("stages", name or index, *path) for index, name in enumerate(names)]
        raise UserError(f"{key} would change nothing, every stage states its own. Set instead {' or '.join(own)}")
    return root


def _stage_path(path: list[str | int], names: list[str]) -> list[str | int]:
    """A path with the stage's index for its name; a file without stages keeps its only stage at the top."""
    name = str(path[1])
    if not names and name == ONLY_STAGE and len(path) > 2 and path[2] in SHARED_KEYS:
        return path[2:]
    if name in names:
        return ["stages", names.index(name), *path[2:]]
    if name.isdecimal() and int(name) < len(names):
        return ["stages", int(name), *path[2:]]
    valid = names or [ONLY_STAGE]
    raise UserError(f"there is no stage {name!r}, expected one of {', '.join(valid)}.{did_you_mean(name, valid)}")


def _has_value_from(node: Node, place: Place) -> bool:
    """Whether `node` or something in it was written at `place`."""
    inner = node.value.values() if isinstance(node.value, dict) else node.value if isinstance(node.value, list) else ()
    return node.place == place or any(_has_value_from(child, place) for child in inner)


def _placed(node: Node, path: list[str | int], value: Node) -> Node:
    """A copy of `node` with `value` at `path`; sections that are not there are made."""
    if not path:
        return value
    part, rest = path[0], path[1:]
    if isinstance(node.value, list):
        if not str(part).isdecimal() or int(part) >= len(node.value):
            raise UserError(f"{node.key} is a list of {len(node.value)}, expected a number from 0, received {part!r}")
        entries = list(node.value)
        entries[int(part)] = _placed(entries[int(part)], rest, value)
        return replace(node, value=entries)
    if not isinstance(node.value, dict | None):
        raise UserError(f"{node.key} is not a section, it is {describe(node)}")
    section = node.value or {}
    child = section.get(str(part)) or Node(None, join_key(node.key, part), value.place)
    return replace(node, value={**section, str(part): _placed(child, rest, value)})


# --- writing ------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Writes YAML that both versions, 1.1 and 1.2, read back as the same values."""


# A text that YAML 1.2 would read as a number ("1e-4") gets quotes, as 1.1's already do.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{NOT_PLAIN_TEXT.pattern})$"), None)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """A text with one of YAML 1.1's rare line breaks is escaped: written as it is, it is read as a space."""
    style = '"' if any(c in text for c in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def resolved_yaml(recipe: BaseModel) -> str:
    """The recipe in full: every stage with all its keys, defaults included.

    `parse_recipe` reads it back as an equal recipe.
    """
    values = recipe.model_dump(mode="json", exclude_none=True)
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
