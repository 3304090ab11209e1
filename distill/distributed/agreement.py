"""Whether all ranks train the same: found out before the first step, since nothing that differs would show later."""

import hashlib
import logging
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from distill.data.sources import Images
from distill.distributed.world import World
from distill.errors import UserError
from distill.recipe import Recipe

LOG = logging.getLogger(__name__)

_ENVIRONMENT = ("project", "git_commit", "python", "device")
_SHOWN_LINES = 20


def agree_on_run(world: World, recipe: Recipe, environment: Mapping[str, Any]) -> None:
    """Compares recipe, code, packages and kind of device; warns where the numbers of CPU threads differ.

    Args:
        world: All ranks.
        recipe: The whole one.
        environment: What `distill.report.environment` found.

    Raises:
        UserError: See `agree`.
    """
    if world.rank.size == 1:
        return
    facts = {key: environment[key] for key in _ENVIRONMENT}
    facts |= {f"package {name}": version for name, version in environment["packages"].items()}
    facts |= dict(_leaves(recipe.model_dump(mode="json", exclude_none=True), "recipe"))
    agree(world, facts)
    threads = world.gather(environment["threads"])
    if world.is_first and len(set(threads)) > 1:
        LOG.warning(
            "The ranks compute with %s threads: the run goes on, but sums are rounded differently, and the slowest "
            "rank sets the pace.",
            ", ".join(map(str, threads)),
        )


def agree_on_stage(
    world: World, stage: str, facts: Mapping[str, Any], tensors: Mapping[str, np.ndarray], images: Mapping[str, Images]
) -> None:
    """Compares what a stage begins with.

    Args:
        world: All ranks.
        stage: Its name.
        facts: By name.
        tensors: Of the learner: weights, statistics, optimiser.
        images: The sources, by what a message calls them.

    Raises:
        UserError: See `agree`.
    """
    found = {f"{name}, {what}": value for name, each in images.items() for what, value in _identity(each).items()}
    agree(world, {f"stages.{stage}: {name}": value for name, value in {**facts, **found, **_digests(tensors)}.items()})


def agree(world: World, facts: Mapping[str, Any]) -> None:
    """Compares facts by name with those of rank 0; all ranks come to the same result.

    Raises:
        UserError: Some differ; names the rank, its host and both values of each.
    """
    answers = world.gather((socket.gethostname(), dict(facts)))
    host, expected = answers[0]
    lines = []
    for number, (other, found) in enumerate(answers[1:], 1):
        lines += [
            f"  {name}: {expected.get(name, 'absent')} on rank 0 ({host}), "
            f"{found.get(name, 'absent')} on rank {number} ({other})"
            for name in {**expected, **found}
            if expected.get(name) != found.get(name)
        ]
    if lines:
        shown = lines[:_SHOWN_LINES] + (
            [f"  ... and {len(lines) - _SHOWN_LINES} more"] if len(lines) > _SHOWN_LINES else []
        )
        raise UserError(
            "the ranks would not train the same:\n"
            + "\n".join(shown)
            + "\nGive all of them the same files and packages"
        )


def _identity(images: Images) -> dict[str, Any]:
    return {"count": len(images), **images.identity(), "labels": hashlib.sha256(images.labels.tobytes()).hexdigest()}


def _digests(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """SHA-256 by group: the text before the first dot of a name ("student", "ema", "optimizer", ...)."""
    digests: dict[str, Any] = {}
    for name in sorted(tensors):
        digest = digests.setdefault(name.partition(".")[0], hashlib.sha256())
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return {f"tensors of {group}": digest.hexdigest() for group, digest in digests.items()}


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts and lists by dotted key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{key}.{index}")
    else:
        yield key, value
