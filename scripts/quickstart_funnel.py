"""What mining left of the quick start's pool, step by step: what each stage removed beside the truth of the pool."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from experiments.pollute import CLEAN, DUPLICATE, LEAK, OFF_TOPIC, Truth, read_truth

from data_mining import removal
from data_mining.index import read_index
from data_mining.recipe_file import load_mining_recipe
from data_mining.shards import POOL
from data_mining.workspace import Workspace

TITLE = "The pool, mined (leaks: edited test images; twins: equal files)"
HEADINGS = ("", "images", "of the topic", "leaks", "twins", "off topic", "pollution")


@dataclass(frozen=True)
class Step:
    """What is there after a stage.

    Attributes:
        name: The stage, in a few words.
        topic: Images that belong there, each once.
        leaks: Edited copies of test images.
        twins: Equal files beyond the first.
        off_topic: Images of something else.
    """

    name: str
    topic: int
    leaks: int
    twins: int
    off_topic: int

    @property
    def images(self) -> int:
        """All of them."""
        return self.topic + self.polluted

    @property
    def polluted(self) -> int:
        """Those that do not belong there."""
        return self.leaks + self.twins + self.off_topic

    @property
    def cells(self) -> tuple[str, ...]:
        """Under HEADINGS."""
        numbers = (self.images, self.topic, self.leaks, self.twins, self.off_topic)
        return self.name, *(f"{number:,}" for number in numbers), f"{100 * self.polluted / max(1, self.images):.1f} %"


def read_funnel(output: Path, pool: Path) -> list[Step]:
    """The steps from the pool to the list.

    Args:
        output: Of `data-mining run`.
        pool: The folder with `images` and `truth.csv`.
    """
    recipe = load_mining_recipe(output / "recipe.yaml")
    with Workspace(output) as workspace:
        paths = read_index(workspace, recipe, POOL, ["path"])["path"].to_pylist()
        removed = {stage: removal.removed_by(workspace, recipe, stage) for stage in removal.stages_of(recipe)}
    root = (pool / "images").absolute()
    truth = {str(root / line.path): line for line in read_truth(pool)}
    lines = [truth[path] for path in paths]
    names = {"leaks": "leaks out", "duplicates": "duplicates out"}
    steps, left = [count("the pool", lines)], np.ones(len(lines), np.bool_)
    for stage, numbers in removed.items():
        left[numbers] = False
        steps.append(count(names[stage], [lines[number] for number in np.flatnonzero(left)]))
    chosen = pq.read_table(output / "selected.parquet", columns=["image"])["image"].to_pylist()
    return [*steps, count("the list", [lines[number] for number in chosen])]


def count(name: str, lines: Collection[Truth]) -> Step:
    """Counts what is there; of equal files the first belongs there, whichever it is."""
    kinds = [line.kind for line in lines]
    different = len({line.original for line in lines if line.kind in (CLEAN, DUPLICATE)})
    twins = kinds.count(CLEAN) + kinds.count(DUPLICATE) - different
    return Step(name, different, kinds.count(LEAK), twins, kinds.count(OFF_TOPIC))
