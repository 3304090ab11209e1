#!/usr/bin/env python3
"""How well a recipe's teacher knows the student's classes: its accuracy on the images that the student is judged on.

    python scripts/examples/teacher_accuracy.py recipes/cifar10/efficientnet_lite0.yaml

The teacher is the one of the last stage, resized images, mapped classes and all. `--set` changes values of the recipe.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from distill.display import Display
from distill.errors import DistillError, UserError
from distill.parallel import setup_process
from distill.recipe.file import load_recipe


def main() -> int:
    options = parse_arguments()
    try:
        top1, images = measure_teacher(options.recipe, options.set)
    except DistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    print(f"the teacher of {options.recipe}: {top1:.2%} top-1 on {images} images")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of distill train")
    return parser.parse_args()


def measure_teacher(path: Path, overrides: Sequence[str] = ()) -> tuple[float, int]:
    """The share of evaluation images whose most probable class is the label, and their number.

    Raises:
        UserError: The recipe is wrong, its last stage has no teacher, or a file is missing.
        RunError: Too many images cannot be decoded.
    """
    recipe = load_recipe(path, overrides)
    stage = recipe.stages[-1]
    if stage.teacher is None:
        raise UserError(f"{path}: its last stage, {stage.name}, has no teacher")
    device = setup_process()  # before anything imports Paddle

    from distill.evaluation import count_hits, open_evaluation, shown
    from distill.normalization import to_unit_range
    from distill.teachers.teacher import open_teacher

    teacher = open_teacher(recipe, len(recipe.stages) - 1, device)
    loader = open_evaluation(stage, recipe)
    with Display("teacher", len(loader), unit="batch") as display:
        found = count_hits(
            lambda batch: teacher(to_unit_range(batch.images))["logits"].numpy(),
            shown(loader, display),
            stage.evaluation,
        )
    return found.top1, found.images


if __name__ == "__main__":
    sys.exit(main())
