#!/usr/bin/env python3
"""Forward passes of a frozen network: Paddle as it comes, with our settings, and the engines of `distill.engines`.

    python scripts/benchmarks/teacher_engine.py [--model ResNet50_vd] [--batch 8] [--px 224] [--json FILE]

Every contender turns uint8 images into float32 logits, in a process of its own, on weights drawn at random: their
values change no time. "Paddle as it comes" is a process in which nothing of `distill.parallel.setup_process` happened.
ONNX Runtime takes part where it is installed (pip install 'paddle-distill[export]'), PyTorch with --torch-python.
The aims: the engine in float32 6 times as fast as Paddle as it comes, in bfloat16 10 times.
"""

import argparse
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from contenders import (
    AS_IT_COMES,
    IMAGENET,
    NUM_CLASSES,
    checked,
    options_parser,
    take_turns_and_report,
    torch_worker,
    worker,
)
from side_by_side import PADDLE_VARIABLES, Process, serve

AIMS = {"engine float32": "6x", "engine bfloat16": "10x"}
WORKERS = {
    AS_IT_COMES: "as-it-comes",
    "Paddle with our settings": "eager",
    "engine float32": "float32",
    "engine bfloat16": "bfloat16",
    "ONNX Runtime float32": "onnx",
}


def main() -> None:
    parser = options_parser(__doc__, model="ResNet50_vd")
    parser.add_argument("--worker", choices=WORKERS.values(), help=argparse.SUPPRESS)
    options = checked(parser.parse_args(), parser)
    if options.worker is not None:
        serve(lambda: contender(options))
        return
    print(f"{options.model}, forward passes of {options.batch} images of {options.px} px")
    take_turns_and_report(options, started(options), "{description}", AIMS)


def started(options: argparse.Namespace) -> Iterator[tuple[str, Process]]:
    """All contenders that this machine can run."""
    for name, which in WORKERS.items():
        if which == "onnx" and not (importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx")):
            print(f"  {name}: left out, pip install 'paddle-distill[export]'")
        elif which == "bfloat16" and "avx512bw" not in Path("/proc/cpuinfo").read_text():
            print(f"  {name}: left out, this processor has no AVX-512")
        else:
            yield name, worker(__file__, which, options, without=PADDLE_VARIABLES if which == "as-it-comes" else ())
    for precision in ("float32", "bfloat16") if options.torch_python is not None else ():
        yield f"PyTorch {precision}", torch_worker(options, "teacher", options.model, precision=precision)


def contender(options: argparse.Namespace) -> tuple[Callable[[], object], dict[str, Any]]:
    """The step of a worker, and what computes it."""
    from distill.parallel import Device, setup_process

    device = Device("cpu", 1) if options.worker == "as-it-comes" else setup_process("cpu")
    import paddle

    from distill.engines.engine import open_engine
    from distill.models import create_model

    paddle.seed(0)
    model = create_model(options.model, NUM_CLASSES)
    if options.worker == "onnx":
        engine = onnx_engine(model, options.px, device.threads)
    else:
        fast = options.worker in ("float32", "bfloat16")
        engine = open_engine(
            model,
            IMAGENET,
            device,
            outputs=("logits",),
            kind="predictor" if fast else "eager",
            precision=options.worker if fast else "float32",
            check_px=options.px,
        )
    images = np.random.default_rng(0).integers(0, 256, (options.batch, options.px, options.px, 3), dtype=np.uint8)
    return lambda: engine(images), {"description": engine.description, "threads": device.threads}


def onnx_engine(model: Any, px: int, threads: int) -> Any:
    """The network exported to ONNX, opened as a teacher of `data-mining` is."""
    from distill.engines.onnx_engine import open_onnx_engine
    from distill.export.folding import fold_batch_norm
    from distill.export.onnx_graph import onnx_network

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        path.write_bytes(onnx_network(fold_batch_norm(model), px).SerializeToString())
        return open_onnx_engine(
            path, IMAGENET, threads=threads, size_px=px, num_classes=NUM_CLASSES, embedding_output="embedding"
        )


if __name__ == "__main__":
    main()
