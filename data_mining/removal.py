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
    for stage in stages_of(recipe):
        kept[removed_by(workspace, recipe, stage)] = False
    return kept


def removed_by(workspace: Workspace, recipe: MiningRecipe, stage: str) -> NDArray[np.int64]:
    """The numbers of the images that a stage removes."""
    numbers: NDArray[np.int64] = importlib.import_module(f"data_mining.{stage}").removed_images(workspace, recipe)
    return numbers


def result_key(workspace: Workspace, recipe: MiningRecipe) -> str:
    """The key of what is removed."""
    stages = stages_of(recipe)
    keys = [importlib.import_module(f"data_mining.{stage}").result_key(workspace, recipe) for stage in stages]
    return make_key("removal", {"stages": stages}, keys)


def stages_of(recipe: MiningRecipe) -> list[str]:
    """The stages of the recipe that remove images, in their order."""
    return [stage for stage in REMOVING if getattr(recipe, stage) is not None]
