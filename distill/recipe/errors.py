"""Turns pydantic's errors about a recipe into ours: the key as written, what was expected and received, the line."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from distill.errors import did_you_mean
from distill.recipe import Recipe, Section, Stage
from distill.recipe.yaml_nodes import Node, Problem, child_of, describe, join_key

# Hostile files only; each problem searches for a nearest name.
MAX_PROBLEMS = 100

_EXPECTED = {
    "greater_than": "> {gt}",
    "greater_than_equal": ">= {ge}",
    "less_than": "< {lt}",
    "less_than_equal": "<= {le}",
    "int_type": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "text that matches {pattern}",
    "bool_type": "true or false",
    "literal_error": "{expected}",
    "dict_type": "a section, lines of `key: value`",
    "tuple_type": "a list, [...] or lines that begin with '- '",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of {max_length}",
    "model_type": "a section, lines of `key: value`",
    "model_attributes_type": "a section, lines of `key: value`",
}


@dataclass(frozen=True)
class _Spot:
    """What an error's location leads to, in the file and in the schema.

    Attributes:
        node: What the file has there, None where it has nothing.
        parent: The section or list around it.
        name: Its key or index in the parent.
        section: The schema of the parent, where that is a section.
        kind: The type it should have; None where the schema knows no such key.
        hint: The description of the nearest field around it.
    """

    node: Node | None
    parent: Node
    name: str | int
    section: type[BaseModel] | None
    kind: Any
    hint: str

    @property
    def key(self) -> str:
        return self.node.key if self.node else join_key(self.parent.key, self.name)


def problems_of(error: ValidationError, root: Node, schema: type[BaseModel] = Recipe) -> Iterator[Problem]:
    """The problems that a recipe's validation found.

    Args:
        error: What pydantic raised for the values of `root`.
        root: The recipe in its full form, `stages` with every key.
        schema: What it was validated against.
    """
    for details in error.errors(include_url=False)[:MAX_PROBLEMS]:
        # pydantic calls a list too short, too, when only its entries are wrong
        if details["type"] != "too_short" or details["ctx"]["min_length"] > len(_entries(root, details["loc"], schema)):
            yield _problem(details, root, schema)


def _problem(details: ErrorDetails, root: Node, schema: type[BaseModel]) -> Problem:
    context = details.get("ctx", {})
    spot = _find(root, (*details["loc"], *getattr(context.get("error"), "path", ())), schema)
    match details["type"]:
        case "extra_forbidden":
            return _unknown_key(spot)
        case "missing" if isinstance(spot.name, int):
            spot = _find(root, details["loc"][:-1], schema)
            return _wrong(spot, spot.node, f"must be a list of {len(get_args(_bare(spot.kind)))}")
        case "missing":
            reason = "must be there, received null" if spot.node else "is missing"
            return Problem((spot.node or spot.parent).place, f"{spot.key} {reason}", spot.hint)
        case "union_tag_not_found" | "union_tag_invalid":
            return _unknown_kind(spot)
        case "value_error":
            reason = str(context["error"])
            place = (spot.node or spot.parent).place
            joint = " " if reason.startswith(("must ", "compares ", "does ")) else ": "
            return Problem(place, f"{spot.key or 'recipe'}{joint}{reason}")
        case kind if kind in _EXPECTED:
            expected = _EXPECTED[kind].format(**{k: _number(v) for k, v in context.items()})
            return _wrong(spot, spot.node, f"must be {expected}")
        case _:
            return _wrong(spot, spot.node, details["msg"][:1].lower() + details["msg"][1:])


def _wrong(spot: _Spot, node: Node | None, reason: str) -> Problem:
    node = node or spot.parent
    if isinstance(node.value, list) and reason.startswith("must be a list of"):
        received = f"{len(node.value)}: {describe(node)}"
    else:
        received = describe(node)
    valid = [str(choice) for choice in get_args(_bare(spot.kind))] if get_origin(_bare(spot.kind)) is Literal else []
    nearest = did_you_mean(str(node.value), valid).strip()
    return Problem(node.place, f"{node.key or 'recipe'} {reason}, received {received}", join_hints(nearest, spot.hint))


def _unknown_key(spot: _Spot) -> Problem:
    name, section = str(spot.name), spot.section or Section
    valid = list(section.model_fields)
    if section is Recipe:
        valid += [key for key in Stage.model_fields if key not in valid]
    place = (spot.node or spot.parent).place
    if section is Stage and name in Recipe.model_fields:
        return Problem(
            place, f"{spot.key} is not a key of a stage", "It holds for the whole recipe: put it at the top."
        )
    nearest = did_you_mean(name, valid).strip()
    return Problem(place, f"{spot.key} is an unknown key", join_hints(nearest, f"Valid here: {', '.join(valid)}."))


def _unknown_kind(spot: _Spot) -> Problem:
    valid = list(_kinds(spot.kind))
    section = spot.node or spot.parent
    kind = child_of(section, "kind")
    key = join_key(section.key, "kind")
    if kind is None or kind.value is None:
        return Problem((kind or section).place, f"{key} is missing", f"Valid: {', '.join(valid)}.")
    nearest = did_you_mean(str(kind.value), valid).strip()
    text = f"{key} must be one of {', '.join(valid)}, received {describe(kind)}"
    return Problem(kind.place, text, nearest)


def join_hints(*hints: str) -> str:
    """The hints that are there, as one text."""
    return " ".join(hint for hint in hints if hint)


def _number(value: object) -> object:
    return f"{value:g}" if isinstance(value, float) else value


# --- from a location to the file and the schema -------------------------------------------------


def _find(root: Node, location: tuple[int | str, ...], schema: type[BaseModel]) -> _Spot:
    """Follows an error's location through the file and the schema at once.

    pydantic names the member of a union in the location ("schedule", "cosine", "warmup_epochs"): such a
    part is a step in the schema and none in the file.
    """
    spot = _Spot(root, root, "", None, schema, "")
    for part in location:
        if len(_kinds(spot.kind)) > 1:
            spot = _Spot(spot.node, spot.parent, spot.name, spot.section, _kinds(spot.kind).get(str(part)), spot.hint)
            continue
        parent = spot.node or spot.parent
        section, field = _field(spot.kind, part)
        kind = field.annotation if field else _entry(spot.kind, part)
        hint = (field and field.description) or ("" if section else spot.hint)
        spot = _Spot(child_of(spot.node, part), parent, part, section, kind, hint)
    return spot


def _entries(root: Node, location: tuple[int | str, ...], schema: type[BaseModel]) -> list[Node]:
    node = _find(root, location, schema).node
    return node.value if node is not None and isinstance(node.value, list) else []


def _bare(kind: Any) -> Any:
    """A type without Annotated and without None."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        others = [member for member in get_args(kind) if member is not NoneType]
        return _bare(others[0]) if len(others) == 1 else Union[tuple(others)]  # noqa: UP007, built from a tuple
    return kind


def _kinds(kind: Any) -> dict[str, type[BaseModel]]:
    """The members of a union of sections by their `kind`; empty for every other type."""
    kind = _bare(kind)
    if get_origin(kind) is not Union:
        return {}
    members = [_bare(member) for member in get_args(kind)]  # each may bear a tag
    return {get_args(member.model_fields["kind"].annotation)[0]: member for member in members}


def _field(kind: Any, part: int | str) -> tuple[type[BaseModel] | None, FieldInfo | None]:
    """The section that a type is, and its field of this name."""
    kind = _bare(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind, kind.model_fields.get(str(part))
    return None, None


def _entry(kind: Any, part: int | str) -> Any:
    """The type of a list's entry."""
    kind = _bare(kind)
    if get_origin(kind) is not tuple or not isinstance(part, int):
        return None
    entries = get_args(kind)
    return entries[0] if entries[-1] is Ellipsis else entries[min(part, len(entries) - 1)]
