"""A program of Paddle Inference as a frozen network, on a CPU with oneDNN; see `distill.engines.engine.Engine`."""

from pathlib import Path

import numpy as np

from distill.engines.engine import open_predictor, quiet, run_predictor
from distill.engines.file_engine import TRIED, FileEngine, NetworkInput, check_logits
from distill.engines.paddle_program import check_program, check_program_weights
from distill.errors import UserError
from distill.recipe import NormalizationSection


def program_files(program: Path) -> tuple[Path, Path]:
    """A program, .json or .pdmodel, and the .pdiparams with its weights beside it.

    Raises:
        UserError: The weights are not there.
    """
    weights = program.with_suffix(".pdiparams")
    if not weights.is_file():
        raise UserError(f"{program} has its weights in {weights.name}, which is not beside it")
    return program, weights


def open_paddle_engine(
    program: Path, normalization: NormalizationSection | None, *, threads: int, size_px: int, view_px: int
) -> FileEngine:
    """Opens a program with one input, [N, 3, H, W] or [N, H, W, 3], by its shape; logits are its first output.

    Args:
        program: A .json or .pdmodel file; its weights lie beside it.
        normalization: Applied before the network; None: it takes bytes.
        threads: Of the CPU.
        size_px: Side of the images that the engine will be given; tried at once.
        view_px: Side of the view that they are made of; for errors.

    Raises:
        UserError: It is damaged or refused (see `distill.engines.paddle_program`), takes or answers something else.
    """
    program, weights = program_files(program)
    inputs = check_program(program)
    check_program_weights(weights)
    if len(inputs) != 1:
        names = ", ".join(repr(each.name) for each in inputs)
        raise UserError(f"{program} has {len(inputs)} inputs, {names:.200}, expected one: images")
    takes = NetworkInput.of(program, inputs[0].name, inputs[0].shape, inputs[0].type)
    takes.check_side(program, size_px, view_px)
    takes.check_normalization(program, normalization)
    try:
        with quiet():  # Paddle prints on stdout while it optimises the graph, at the first call too
            predictor = open_predictor(program, weights, "float32", threads)
            engine = FileEngine(
                lambda values: run_predictor(predictor, values)[:1],
                takes,
                ("logits",),
                normalization,
                "Paddle Inference, oneDNN, float32",
            )
            answers = engine(np.zeros((TRIED, size_px, size_px, 3), np.uint8))
    except (RuntimeError, ValueError, OSError, MemoryError, IndexError) as error:
        reason = " ".join(str(error).split())[-300:]
        raise UserError(f"{program}: Paddle cannot use it with images of {size_px} px: {reason}") from error
    name = predictor.get_output_names()[0]
    check_logits(program, name, answers["logits"].shape, None, "Export it with the logits as first output")
    return engine
