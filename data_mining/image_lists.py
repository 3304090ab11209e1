"""The result of mining: an image list in the format of `distill.data.image_list`, as Parquet and as text."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_mining.workspace import ROWS_PER_GROUP, Workspace, new_file, write_table

_COLUMNS = ["path", "label"]


def write_image_list(workspace: Workspace, name: str, table: pa.Table) -> None:
    """Writes `<output>/<name>.parquet` and `<output>/<name>.txt`, whose lines are `path label`.

    Args:
        workspace: The output folder.
        name: "selected" or "packed".
        table: `path` (see `data_mining.index.location`), `label` (the predicted class), and anything else.
    """
    write_table(workspace.root / f"{name}.parquet", table)
    _write_text(workspace.root / f"{name}.txt", table.select(_COLUMNS).to_batches(max_chunksize=ROWS_PER_GROUP))


def publish_image_list(workspace: Workspace, name: str, artefact: Path) -> None:
    """Writes the same two files from a Parquet artefact that may be larger than the memory."""
    with new_file(workspace.root / f"{name}.parquet") as temporary:
        shutil.copyfile(artefact, temporary)
    with pq.ParquetFile(artefact) as file:
        _write_text(workspace.root / f"{name}.txt", file.iter_batches(ROWS_PER_GROUP, columns=_COLUMNS))


def _write_text(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    with new_file(path) as temporary, open(temporary, "wb") as file:
        for batch in batches:
            labels = pc.binary_join_element_wise(batch["label"].cast(pa.string()), "\n", "")
            lines = pc.binary_join_element_wise(batch["path"], labels, " ")
            _, offsets, text = lines.buffers()  # the strings lie one after the other: the text is there
            first, end = np.frombuffer(offsets, np.int32)[[lines.offset, lines.offset + len(lines)]]
            file.write(memoryview(text)[first:end])
