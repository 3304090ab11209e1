#!/usr/bin/env python3
"""An epoch of finetuning at a higher resolution: the whole network against the classifier alone.

    python scripts/benchmarks/fix_stage.py [--model ResNet50_vd] [--px 320] [--batch 8] [--images 64] [--json FILE]

All read the same image files by the loader and update by the code that trains (`distill.learner`). Where the classifier
alone is trained, what is below it computes on the fast engine, and the features of the first epoch are kept; later
epochs read them. So the three are an epoch of full finetuning, the first epoch of the classifier, with an empty store,
and a later one. Evaluation is left out. The aims: the first at least 3 times as fast, the later ones 10 times.

A round is one epoch of each; --images 16, --px 128 or --model ResNet18_vd make it short.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from contenders import NUM_CLASSES, checked, describe, options_parser
from side_by_side import Repeat, Steps, print_rows, summary, take_turns, write_results
from training import CROSS_ENTROPY, training_recipe

FULL, FIRST, LATER = "whole network", "classifier, first epoch", "classifier, later epochs"
AIMS = {FIRST: "3x", LATER: "10x"}
BELOW_CLASSIFIER = ("stem.*", "blocks.*")


def main() -> None:
    parser = options_parser(__doc__, model="ResNet50_vd", px=320, torch=False)
    parser.add_argument("--images", type=int, default=64, help="of an epoch (default: 64)")
    options = checked(parser.parse_args(), parser)
    if options.images < options.batch:
        parser.error(f"--images must be at least --batch {options.batch}, received {options.images}")
    from distill.parallel import setup_process

    device = setup_process("cpu")
    print(f"{options.model}, epochs of {options.images} images of {options.px} px, {options.batch} a step")
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder) / "images", options.px, options.images)
        seconds = take_turns(dict(contenders(options, device, Path(folder))), options.repeats)
    rows = summary(seconds, options.images, reference=FULL, aims=AIMS)
    print_rows(rows, FULL, step="epoch")
    write_results(options.json, rows, describe(options))


def contenders(options: argparse.Namespace, device: Any, folder: Path) -> Iterator[tuple[str, Repeat]]:
    """An epoch of each; every contender trains a network of its own."""
    images = folder / "images"
    yield FULL, Steps(epoch(options, device, images)[0])
    first_epoch, store = epoch(options, device, images, freeze=BELOW_CLASSIFIER, features=folder / "first")

    def from_nothing() -> None:
        store.path.unlink(missing_ok=True)
        first_epoch()

    yield FIRST, Steps(from_nothing)
    yield LATER, Steps(epoch(options, device, images, freeze=BELOW_CLASSIFIER, features=folder / "later")[0])


def epoch(
    options: argparse.Namespace,
    device: Any,
    images: Path,
    *,
    freeze: tuple[str, ...] = (),
    features: Path | None = None,
) -> tuple[Callable[[], None], Any]:
    """A function that trains for an epoch, as `distill.training` does, and the store of features, if there is one."""
    from distill.data.loader import TrainLoader
    from distill.data.sources import open_sources
    from distill.learner import Learner
    from distill.trunk import open_features

    recipe = training_recipe(options.model, options.px, options.batch, loss=CROSS_ENTROPY, images=str(images))
    view = recipe.stages[0].view.model_copy(update={"horizontal_flip": 0.0})
    stage = recipe.stages[0].model_copy(update={"view": view, "freeze": freeze, "epochs": 2})
    recipe = recipe.model_copy(update={"stages": (stage,)})
    source = open_sources(stage.data.sources, NUM_CLASSES)
    learner = Learner(recipe, 0, device, None)
    learner.open_trunk()
    kept = open_features(learner.trunk, recipe, 0, features) if features is not None else None
    store = kept.training(source, stage) if kept is not None else None
    loader = TrainLoader(source, stage, recipe.runtime, seed=0, stage_index=0, features=store)

    def run() -> None:
        terms = {}
        for batch in loader.batches(0, loader.steps_per_epoch):
            terms = learner.accumulate(batch) or terms
            if batch.ends_step:
                learner.update(0.01)
        float(terms["loss"])  # read, as a run does now and then: nothing is left to be computed later

    return run, store


def write_photographs(folder: Path, px: int, count: int) -> None:
    """JPEG files a quarter larger than the view, in one class, about as smooth as photographs."""
    random = np.random.default_rng(0)
    (folder / "class").mkdir(parents=True)
    side = px * 5 // 4
    for number in range(count):
        coarse = random.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "class" / f"{number}.jpg"), cv2.resize(coarse, (side, side)))


if __name__ == "__main__":
    main()
