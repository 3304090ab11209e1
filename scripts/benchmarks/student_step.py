#!/usr/bin/env python3
"""A training step of the student on its labels alone: Paddle as it comes against ours, on oneDNN.

    python scripts/benchmarks/student_step.py [--model ResNet50_vd] [--batch 8] [--px 224] [--json FILE]

All take the same code (`distill.learner`): mixing and normalising, forward, backward, momentum. "Paddle as it comes" is
a process in which nothing of `distill.parallel.setup_process` happened: one thread, MKL's own choice of instructions,
and Paddle's kernels. "Paddle's kernels, our settings" is what training falls back to where oneDNN cannot be used. The
aim: 3 times as fast. With --torch-python the same step in PyTorch takes part, in float32 as ours and, what Paddle
cannot on a CPU, under bfloat16 autocast.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from contenders import (
    AS_IT_COMES,
    checked,
    options_parser,
    take_turns_and_report,
    torch_worker,
    worker,
)
from side_by_side import PADDLE_VARIABLES, Process, serve
from training import CROSS_ENTROPY, noise_batch, training_recipe, training_step

OURS = "ours, on oneDNN"
WORKERS = {AS_IT_COMES: "as-it-comes", "Paddle's kernels, our settings": "paddle", OURS: "onednn"}
AIMS = {OURS: "3x"}


def main() -> None:
    parser = options_parser(__doc__, model="ResNet50_vd")
    parser.add_argument("--worker", choices=WORKERS.values(), help=argparse.SUPPRESS)
    options = checked(parser.parse_args(), parser)
    if options.worker is not None:
        serve(lambda: contender(options))
        return
    print(f"{options.model}, training steps of {options.batch} images of {options.px} px")
    take_turns_and_report(options, started(options), "{parameters:,} parameters, {threads} threads", AIMS)


def started(options: argparse.Namespace) -> Iterator[tuple[str, Process]]:
    """All contenders."""
    for name, which in WORKERS.items():
        yield name, worker(__file__, which, options, without=PADDLE_VARIABLES if which == "as-it-comes" else ())
    for precision in ("float32", "bfloat16") if options.torch_python is not None else ():
        yield f"PyTorch {precision}", torch_worker(options, "student", options.model, precision=precision)


def contender(options: argparse.Namespace) -> tuple[Callable[[], object], dict[str, Any]]:
    """The step of a worker, and what it trains."""
    from distill.parallel import Device, setup_process

    device = Device("cpu", 1) if options.worker == "as-it-comes" else setup_process("cpu")
    from distill.learner import Learner

    recipe = training_recipe(options.model, options.px, options.batch, loss=CROSS_ENTROPY)
    kernels = "onednn" if options.worker == "onednn" else "paddle"
    recipe = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"student_kernels": kernels})})
    learner = Learner(recipe, 0, device, None)
    batch = noise_batch(options.px, options.batch)
    parameters = sum(parameter.size for _, parameter in learner.parameters)
    return training_step(learner, lambda: batch), {"parameters": int(parameters), "threads": device.threads}


if __name__ == "__main__":
    main()
