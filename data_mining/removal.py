"""What the stages `leaks` and `duplicates` leave of the pool."""

import importlib

import numpy as np
from numpy.typing import NDArray

from data_mining.index import offsets
from data_mining.recipe import MiningRecipe
from data_mining.shards import POOL
from data_mining.workspace import Workspace, make_key

REMOVING = ("leaks", "duplicates")
"""Stages with `removed_images(workspace, recipe) -> int64` numbers and `result_key(workspace, recipe)`."""


def kept_images(workspace: Workspace, recipe: MiningRecipe) -> NDArray[np.bool_]:
    """Bool [N] over the pool: neither a leak nor a duplicate of a kept or labelled image."""
    kept = np.ones(int(offsets(workspace, recipe, POOL)[-1]), np.bool_)
    for stage in _stages(recipe):
        kept[importlib.import_module(f"data_mining.{stage}").removed_images(workspace, recipe)] = False
    return kept


def result_key(workspace: Workspace, recipe: MiningRecipe) -> str:
    """The key of what is removed."""
    keys = [importlib.import_module(f"data_mining.{stage}").result_key(workspace, recipe) for stage in _stages(recipe)]
    return make_key("removal", {"stages": _stages(recipe)}, keys)


def _stages(recipe: MiningRecipe) -> list[str]:
    return [stage for stage in REMOVING if getattr(recipe, stage) is not None]
