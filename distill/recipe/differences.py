"""What differs between two recipes: a run is resumed with the recipe that it was started with."""

from collections.abc import Iterator, Sequence
from typing import Any

from distill.recipe import Recipe
from distill.recipe.yaml_nodes import describe, join_key

# They describe the experiment or change its speed, never its result.
WITHOUT_EFFECT = (
    "description",
    "expected",
    "measured",
    "runtime",
    "evaluation.batch_size",
    "teacher.labels.folder",
    "teacher.labels.missing",
    "teacher.devices",
)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What differs and matters: "optimizer.learning_rate: 0.1 -> 0.2".

    A change that all stages share is stated once, without the stage; what is there in one recipe only is
    "absent" in the other. Keys that never change a result (`WITHOUT_EFFECT`) are left out.
    """
    before, after = old.model_dump(mode="json", exclude_none=True), new.model_dump(mode="json", exclude_none=True)
    old_stages = {stage.pop("name"): stage for stage in before.pop("stages")}
    new_stages = {stage.pop("name"): stage for stage in after.pop("stages")}
    found = list(_changes(before, after, ""))
    if list(old_stages) == list(new_stages):
        by_stage = {name: list(_changes(old_stages[name], new_stages[name], "")) for name in old_stages}
        first = next(iter(by_stage.values()))
        common = [change for change in first if all(change in changes for changes in by_stage.values())]
        found += common
        for name, changes in by_stage.items():
            found += [(f"stages.{name}.{key}", text) for key, text in changes if (key, text) not in common]
    else:
        found.append(("stages", f"{describe(list(old_stages))} -> {describe(list(new_stages))}"))
        for name in (name for name in old_stages if name in new_stages):
            found += _changes(old_stages[name], new_stages[name], f"stages.{name}")
    return [f"{key}: {text}" for key, text in found if not _is_under(_without_stage(key), WITHOUT_EFFECT)]


def not_accepted(found: Sequence[str], accepted: Sequence[str]) -> list[str]:
    """The differences that nobody said are meant.

    Args:
        found: What `differences` returned.
        accepted: Keys; a section's key accepts all that is in it, a key without a stage every stage's.
    """
    keys = [line.partition(": ")[0] for line in found]
    return [
        line
        for line, key in zip(found, keys, strict=True)
        if not _is_under(key, accepted) and not _is_under(_without_stage(key), accepted)
    ]


def _is_under(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _without_stage(key: str) -> str:
    return key.split(".", 2)[2] if key.startswith("stages.") and key.count(".") > 1 else key


def _changes(old: Any, new: Any, key: str) -> Iterator[tuple[str, str]]:
    """Pairs of a dotted key and "old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            inner = join_key(key, name)
            if name not in new:
                yield inner, f"{describe(old[name])} -> absent"
            elif name not in old:
                yield inner, f"absent -> {describe(new[name])}"
            else:
                yield from _changes(old[name], new[name], inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and _is_deep(old + new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from _changes(*pair, join_key(key, index))
    elif old != new:
        yield key, f"{describe(old)} -> {describe(new)}"


def _is_deep(values: list[Any]) -> bool:
    return all(isinstance(value, dict | list) for value in values)
