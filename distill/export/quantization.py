"""Post-training static quantisation of an ONNX network to 8 bits, by ONNX Runtime."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distill.engines.onnx_engine import import_extra
from distill.export.onnx_graph import INPUT, PREPROCESSING


def quantize(model: Any, path: Path, batches: Iterable[np.ndarray]) -> None:
    """Writes the network with 8-bit weights and values between its layers.

    Values are uint8 with a scale and a zero point from the least and the largest value over all images; weights int8
    with a scale for each output channel, of 7 bits: processors without VNNI add pairs of products in 16 bits, which
    weights of 8 bits would saturate. What turns bytes into normalised images stays in float32.

    Args:
        model: What `onnx_network` returned, in float32.
        path: Of the file.
        batches: Of images, as the network takes them.

    Raises:
        UserError: A package is missing.
    """
    quantization = import_extra("onnxruntime.quantization")
    with _silent_logging():
        quantization.quantize_static(
            model,
            str(path),
            _reader(quantization, iter(batches)),
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[node.name for node in model.graph.node if node.name.startswith(PREPROCESSING)],
        )


def _reader(quantization: Any, batches: Iterator[np.ndarray]) -> Any:
    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


@contextlib.contextmanager
def _silent_logging() -> Iterator[None]:
    """It recommends preparing the network with another tool, for which this one has nothing to do."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
