"""Reads YAML 1.2 into nodes that remember where they were written; executes and resolves nothing else.

PyYAML's own loader follows YAML 1.1 (there `1e-4` is text and `no` a truth value), keeps the last of
two equal keys in silence, and forgets the lines. Here its parser's events are read directly: plain
values follow YAML 1.2's core schema, and tags, equal keys, deep nesting and alias bombs are errors.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from distill.errors import UserError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 10_000

# Longer integers stay text (and are then refused as text): converting them takes quadratic time.
_INTEGER = re.compile(r"[-+]?[0-9]{1,40}")
_BASED_INTEGER = re.compile(r"0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# A plain text that would be read as something else; whoever writes YAML must put it in quotes.
NOT_PLAIN_TEXT = re.compile(
    "|".join(f"(?:{p.pattern})" for p in (_INTEGER, _BASED_INTEGER, _FLOAT, _SPECIAL_FLOAT))
    + "|"
    + "|".join(re.escape(word) for word in _WORDS if word)
)

Scalar: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, order=True)
class Place:
    """Where something was written: a line of a file, or, with line 0, a command-line option."""

    source: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}" if self.line else self.source


@dataclass(frozen=True)
class Node:
    """A value, the dotted key under which it was written, and where.

    The place of a mapping's value is its key's line, that of a list's entry its own first line.
    """

    value: "Scalar | dict[str, Node] | list[Node]"
    key: str
    place: Place


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong with a recipe."""

    place: Place
    text: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.text} ({self.place}).{' ' if self.hint else ''}{self.hint}"
        # A key may hold escape sequences that a terminal would obey.
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class RecipeError(UserError):
    """A problem that ends the reading of a recipe."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def problems_error(problems: Iterable[Problem], title: str) -> UserError:
    """One error that states every problem once, in the order of the lines."""
    lines = [str(problem) for problem in sorted(set(problems))]
    if len(lines) == 1:
        return UserError(lines[0])
    return UserError("\n  ".join([f"{len(lines)} errors in {title}:", *lines]))


def read_yaml(text: str, source: str, *, key: str = "", line_numbers: bool = True) -> tuple[Node, list[Problem]]:
    """Reads one YAML document.

    Args:
        text: The document.
        source: What messages call it: a file's path, or a command-line option.
        key: The dotted key of the document's root.
        line_numbers: Whether places carry a line; an option has none.

    Returns:
        The root, null for an empty document, and the problems that leave the rest readable.

    Raises:
        RecipeError: The text is not YAML, or nests or repeats without measure.
    """
    reader = _Reader(source, line_numbers)
    try:
        root = reader.document(yaml.parse(text, Loader=yaml.SafeLoader), key)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = reader.place(mark) if mark else Place(source, 0)
        raise RecipeError(Problem(place, f"not valid YAML: {error.problem or error.context}")) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets chr() and int() fail on escapes and directives with absurd numbers.
        reason = " ".join(str(error).split())
        raise RecipeError(Problem(Place(source, 0), f"not valid YAML: {reason}")) from error
    return root, reader.problems


def plain_value(text: str) -> Scalar:
    """The value of an unquoted scalar in YAML 1.2's core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED_INTEGER.fullmatch(text):
        return int(text, base=0)
    if _FLOAT.fullmatch(text) and not text.lstrip("+-").isdigit():
        return float(text)
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.replace(".", ""))
    return text


@dataclass
class _Reader:
    """Builds nodes from the events of one document."""

    source: str
    line_numbers: bool
    problems: list[Problem] = field(default_factory=list)
    _anchors: dict[str, Node] = field(default_factory=dict)
    _nodes: int = 0

    def place(self, mark: yaml.Mark | Any) -> Place:
        return Place(self.source, mark.line + 1 if self.line_numbers else 0)

    def document(self, events: Iterator[yaml.Event], key: str) -> Node:
        next(events)  # the stream's start
        event = next(events)
        if isinstance(event, yaml.StreamEndEvent):
            return Node(None, key, self.place(event.start_mark))
        root = self._node(events, next(events), key, depth=0)
        next(events)  # the document's end
        event = next(events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._stop(event, "one document expected, a second one begins here")
        return root

    def _node(self, events: Iterator[yaml.Event], event: yaml.Event, key: str, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self._stop(event, f"nested deeper than {MAX_DEPTH} levels")
        place = self.place(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._stop(event, f"the alias *{event.anchor} has no anchor before it")
            return self._copy(self._anchors[event.anchor], key, event, depth)
        self._count(event)
        # Every event that is left here has both.
        tag, anchor = getattr(event, "tag", None), getattr(event, "anchor", None)
        if tag is not None:
            self.problems.append(Problem(place, f"{key or 'recipe'} has the tag {tag!r}: tags are not allowed"))
        if isinstance(event, yaml.ScalarEvent):
            self._check_text(event)
            node = Node(plain_value(event.value) if event.implicit[0] else event.value, key, place)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Node(self._sequence(events, key, depth), key, place)
        else:
            node = Node(self._mapping(events, key, depth), key, place)
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _sequence(self, events: Iterator[yaml.Event], key: str, depth: int) -> list[Node]:
        entries: list[Node] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            entries.append(self._node(events, event, join_key(key, len(entries)), depth + 1))
        return entries

    def _mapping(self, events: Iterator[yaml.Event], key: str, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        inherited: dict[str, Node] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._stop(event, f"a key of {key or 'the recipe'} is not plain text")
            self._check_text(event)
            name, place = event.value, self.place(event.start_mark)
            child = self._node(events, next(events), join_key(key, name), depth + 1)
            if name == "<<" and event.implicit[0]:
                inherited |= self._inherited(child, key, event, depth)
            elif name in entries:
                text = f"{join_key(key, name)} is there twice, first on line {entries[name].place.line}"
                self.problems.append(Problem(place, text))
            else:
                entries[name] = Node(child.value, child.key, place)
        return inherited | entries

    def _inherited(self, node: Node, key: str, event: yaml.Event, depth: int) -> dict[str, Node]:
        """What a merge key `<<` brings in; of several mappings an earlier one wins."""
        inherited: dict[str, Node] = {}
        for parent in node.value if isinstance(node.value, list) else [node]:
            if not isinstance(parent.value, dict):
                raise self._stop(event, "<< needs a mapping, or a list of mappings")
            for name, child in parent.value.items():
                if name not in inherited:
                    inherited[name] = self._copy(child, join_key(key, name), event, depth + 1)
        return inherited

    def _copy(self, node: Node, key: str, event: yaml.Event, depth: int) -> Node:
        """An alias's own copy, under its own key; counted, so that aliases of aliases are bounded."""
        self._count(event)
        if depth > MAX_DEPTH:
            raise self._stop(event, f"nested deeper than {MAX_DEPTH} levels")
        value = node.value
        if isinstance(value, dict):
            value = {k: self._copy(child, join_key(key, k), event, depth + 1) for k, child in value.items()}
        elif isinstance(value, list):
            value = [self._copy(child, join_key(key, i), event, depth + 1) for i, child in enumerate(value)]
        return Node(value, key, node.place)

    def _count(self, event: yaml.Event) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._stop(event, f"more than {MAX_NODES} values, aliases counted as often as they are used")

    def _check_text(self, event: yaml.ScalarEvent) -> None:
        if any("\ud800" <= character <= "\udfff" for character in event.value):
            raise self._stop(event, "an escape stands for half a character (a surrogate)")

    def _stop(self, event: yaml.Event, reason: str) -> RecipeError:
        return RecipeError(Problem(self.place(event.start_mark), reason))


def join_key(*parts: str | int) -> str:
    """The dotted key of nested keys and list indices, numbered from 0."""
    return ".".join(str(part) for part in parts if part != "")


def child_of(node: Node | None, part: str | int) -> Node | None:
    """The value under a key or an index; None where there is none."""
    if node is not None and isinstance(node.value, dict) and isinstance(part, str):
        return node.value.get(part)
    if node is not None and isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
        return node.value[part]
    return None


def plain(node: Node) -> object:
    """The bare values: dict, tuple (for a list), str, int, float, bool. Keys whose value is null are left out."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items() if child.value is not None}
    if isinstance(node.value, list):
        return tuple(plain(child) for child in node.value)
    return node.value


def describe(value: object) -> str:
    """How a message shows a value, in at most 100 characters."""
    text = _flow(plain(value) if isinstance(value, Node) else value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _flow(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(inner) for inner in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)
