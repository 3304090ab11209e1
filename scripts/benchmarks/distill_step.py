#!/usr/bin/env python3
"""What a teacher costs: steps of one student on its labels, on stored soft labels, and with a live teacher.

    python scripts/benchmarks/distill_step.py [--model ResNet50_vd] [--teacher ResNeXt101_32x16d_wsl] [--json FILE]

All in one process with our settings, by the code that trains (`distill.learner`); weights are drawn at random, images
are noise. The stored step takes its records from the store itself, top 10 of 1000 classes, as its loader would: looked
up and checked in the memory map, expanded to log-probabilities. The live teacher computes on the engine in float32 and
bfloat16, and as plain eager Paddle. The aims: a stored step at most 1.05 times a supervised one, and the step with a
live eager teacher at least 3 times a stored one.

Estimated with the defaults: half a minute a round on two cores, and 8 GB; --px 112 makes the time a quarter.
With --torch-python PyTorch takes part, with labels and with a live teacher; under bfloat16 autocast the student too.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from contenders import NUM_CLASSES, checked, describe, options_parser, torch_worker
from side_by_side import Process, Repeat, Steps, print_rows, summary, take_turns, write_results
from training import CROSS_ENTROPY, KL, noise_batch, training_recipe, training_step

SUPERVISED, STORED, EAGER = "labels alone", "stored soft labels", "live teacher, eager"


def main() -> None:
    parser = options_parser(__doc__, model="ResNet50_vd")
    parser.add_argument("--teacher", default="ResNeXt101_32x16d_wsl", metavar="NAME")
    options = checked(parser.parse_args(), parser)
    from distill.parallel import setup_process

    device = setup_process("cpu")
    print(f"{options.model} taught by {options.teacher}, steps of {options.batch} images of {options.px} px")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as processes:
        contenders: dict[str, Repeat] = dict(ours(options, device, Path(folder)))
        for name, process in in_torch(options):
            contenders[name] = processes.enter_context(process)
        seconds = take_turns(contenders, options.repeats)
    rows = summary(seconds, options.batch, reference=SUPERVISED)
    print_rows(rows, SUPERVISED)
    costs = {row["name"]: 1 / row["faster"] for row in rows}
    print(f"stored / labels alone: {costs[STORED]:.3f} (aim: at most 1.05)")
    print(f"live, eager / stored:  {costs[EAGER] / costs[STORED]:.2f} (aim: at least 3)")
    write_results(options.json, rows, describe(options))


def ours(options: argparse.Namespace, device: Any, folder: Path) -> Iterator[tuple[str, Repeat]]:
    """The contenders in this process; each trains a student of its own."""
    batch = noise_batch(options.px, options.batch)
    yield SUPERVISED, steps(options, device, "", lambda: batch, loss=CROSS_ENTROPY)
    weights = teacher_weights(options.teacher, folder)

    def teacher(**more: object) -> dict[str, Any]:
        return {"batch_norm": "stored", "models": [{"name": options.teacher, "weights": weights}], **more}

    yield STORED, stored_steps(options, device, folder, teacher(labels={"folder": str(folder / "store")}))
    live = {f"live teacher, engine {precision}": teacher(precision=precision) for precision in precisions()}
    for name, section in (live | {EAGER: teacher(engine="eager")}).items():
        yield name, steps(options, device, name, lambda: batch, loss=KL, teacher=section)


def precisions() -> tuple[str, ...]:
    """What the engine computes in on this machine."""
    return ("float32", "bfloat16") if "avx512bw" in Path("/proc/cpuinfo").read_text() else ("float32",)


def steps(options: argparse.Namespace, device: Any, name: str, next_batch: Callable[[], Any], **recipe: Any) -> Steps:
    """Steps of a student whose recipe has this loss and this teacher."""
    from distill.learner import Learner

    learner = Learner(training_recipe(options.model, options.px, options.batch, **recipe), 0, device, None)
    if learner.teacher is not None:
        print(f"  {name}: {learner.teacher.engines[0]}")
    return Steps(training_step(learner, next_batch))


def teacher_weights(name: str, folder: Path) -> str:
    """Writes weights drawn at random, as a recipe names them."""
    import paddle

    from distill.models import create_model
    from distill.weights import write_weights

    paddle.seed(0)
    path = folder / "teacher.safetensors"
    write_weights(path, {key: value.numpy() for key, value in create_model(name, NUM_CLASSES).state_dict().items()})
    return str(path)


def stored_steps(options: argparse.Namespace, device: Any, folder: Path, teacher: dict[str, Any]) -> Steps:
    """Builds a store over one batch of images; the steps then look every record up anew."""
    from distill.data.loader import TrainLoader
    from distill.data.sources import open_sources
    from distill.labels.build import build_labels
    from distill.labels.manifest import open_labels
    from distill.learner import Learner

    write_images(folder / "images", options.px, options.batch)
    recipe = training_recipe(
        options.model, options.px, options.batch, loss=KL, images=str(folder / "images"), teacher=teacher
    )
    build_labels(recipe, 0, device)
    source = open_sources(recipe.stages[0].data.sources, NUM_CLASSES)
    store = open_labels(recipe, 0, source)
    learner = Learner(recipe, 0, device, None, store)
    if store is None or learner.teacher is not None:
        raise RuntimeError("the store does not hold all answers")
    loader = TrainLoader(source, recipe.stages[0], recipe.runtime, seed=recipe.seed, stage_index=0, labels=store)
    batch = next(loader.batches(0, 1))
    places = np.arange(len(batch.labels), dtype=np.int64)
    return Steps(training_step(learner, lambda: replace(batch, slot=store.slot(0, 0, len(batch.labels), places))))


def write_images(folder: Path, px: int, count: int) -> None:
    """PNG files of noise in one class."""
    random = np.random.default_rng(0)
    (folder / "class").mkdir(parents=True)
    for number in range(count):
        cv2.imwrite(str(folder / "class" / f"{number}.png"), random.integers(0, 256, (px, px, 3), dtype=np.uint8))


def in_torch(options: argparse.Namespace) -> Iterator[tuple[str, Process]]:
    """The contenders in PyTorch, if they are wanted."""
    if options.torch_python is None:
        return
    live = {"teacher": options.teacher, "teacher_precision": "bfloat16"}
    yield "PyTorch, labels alone", torch_worker(options, "student", options.model)
    yield "PyTorch, live teacher bfloat16", torch_worker(options, "student", options.model, **live)
    yield (
        "PyTorch, live teacher and student bfloat16",
        torch_worker(options, "student", options.model, precision="bfloat16", **live),
    )


if __name__ == "__main__":
    main()
