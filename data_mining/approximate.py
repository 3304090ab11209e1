"""Pairs of alike vectors among many millions: an inverted-file index of faiss, and its recall, measured.

The index cuts space into cells; a query looks into the `nprobe` cells nearest to it and so may miss a neighbour.
How many are missed is not assumed but measured, on images whose pairs are searched exactly as well.

Nothing larger than the memory is held: the index is filled in blocks and its lists are merged on the disk; queries
come in portions. (The operating system keeps pages of the mapped lists in its cache; it can drop them any time.)
"""

import io
import math
import os
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_mining.similarity import similar_pairs
from data_mining.vectors import Pairs, Rows, Vectors, cosines
from data_mining.workspace import new_file
from distill.errors import RunError, UserError

PORTION_ROWS = 2**17
"""Queries searched together; faiss handles all queries of a cell at once, so that fewer would be slower."""

_MARGIN = 0.01  # of a cosine: faiss computes it from float16 codes, what is left is computed anew
_TRAINING_ROWS_PER_CELL = 64
_MOST_TRAINING_ROWS = 2**20  # unless that were fewer than the next line asks for
_LEAST_ROWS_PER_CELL = 40  # faiss warns below 39


@dataclass(frozen=True)
class Recall:
    """How many of the pairs that there are were found, on a sample.

    Attributes:
        images: In the sample.
        pairs: That those images have, found by exact search.
        found: Of these.
        low: Lower end of Wilson's 95 % interval of found / pairs.
        high: Its upper end. Both suppose that pairs are missed independently of each other.
    """

    images: int
    pairs: int
    found: int
    low: float
    high: float

    @property
    def recall(self) -> float | None:
        """Found / pairs; None where there are no pairs."""
        return self.found / self.pairs if self.pairs else None


def default_factory(count: int) -> str:
    """The index for so many vectors: about 4 sqrt(N) cells, a graph to find them where they are many."""
    cells = 2 ** round(math.log2(4 * math.sqrt(max(1, count))))
    cells = max(1, min(cells, 2**20, count // _LEAST_ROWS_PER_CELL))
    return f"IVF{cells}_HNSW32,SQfp16" if cells >= 2**14 else f"IVF{cells},SQfp16"


def build_index(path: Path, vectors: Vectors, factory: str, *, memory_bytes: int, threads: int) -> None:
    """Writes an index of the vectors, whose ids are the rows, to `path`; what was built before a crash is used.

    Args:
        path: Of the index. Files beside it begin with its name; `<path>.lists` belongs to it where it is larger
            than the memory.
        vectors: At least one.
        factory: faiss's description of an index, IVF<cells>,<code>.
        memory_bytes: What building may take.
        threads: Of faiss.

    Raises:
        UserError: `factory` is not understood, or no such index.
        RunError: It cannot be written.
    """
    import faiss

    faiss.omp_set_num_threads(threads)
    trained = _beside(path, "trained")
    if not trained.exists():
        _write(trained, _train(vectors, factory, memory_bytes))
    per_block = _rows_per_block(vectors.dimension, memory_bytes)
    blocks = [(first, min(first + per_block, len(vectors))) for first in range(0, len(vectors), per_block)]
    files = [_beside(path, f"{first}-{end}") for first, end in blocks]
    for (first, end), file in zip(blocks, files, strict=True):
        if not file.exists():
            index = faiss.read_index(str(trained))
            index.add_with_ids(vectors.unit(first, end), np.arange(first, end, dtype=np.int64))
            _write(file, index)
    if len(files) == 1:
        os.replace(files[0], path)
    else:
        _merge(path, trained, files)
    for file in (trained, *files):
        file.unlink(missing_ok=True)


def open_index(path: Path, *, nprobe: int, threads: int) -> Any:
    """Opens what `build_index` wrote; lists that lie in a file of their own stay there."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index: Any = faiss.read_index(str(path), faiss.IO_FLAG_ONDISK_SAME_DIR)
    index.nprobe = min(nprobe, index.nlist)
    if hasattr(index.quantizer, "hnsw"):
        index.quantizer.hnsw.efSearch = 2 * index.nprobe
    return index


def neighbour_pairs(index: Any, vectors: Vectors, first: int, end: int, *, neighbours: int, min_cosine: float) -> Pairs:
    """The pairs of the rows [first, end) with their nearest neighbours, so far as the index finds them.

    Args:
        index: Of the vectors.
        vectors: All of them.
        first: The first query.
        end: Behind the last.
        neighbours: Of each query, itself not counted.
        min_cosine: Their cosine, computed exactly, at least.

    Returns:
        Each pair once, sorted, the larger row first. A pair of which this portion holds one row may come again with
        the other's portion.
    """
    from faiss.contrib.big_batch_search import big_batch_search

    with redirect_stdout(io.StringIO()):  # it prints each cell
        near, rows = big_batch_search(index, vectors.unit(first, end), neighbours + 1, verbose=1)
    query = np.repeat(np.arange(first, end, dtype=np.int64), rows.shape[1])
    row = rows.ravel().astype(np.int64)
    kept = (near.ravel() >= min_cosine - _MARGIN) & (row >= 0) & (row != query)
    one, other = query[kept], row[kept]
    high, low = np.divmod(np.unique(np.maximum(one, other) * len(vectors) + np.minimum(one, other)), len(vectors))
    cosine = cosines(vectors, high, vectors, low)
    return Pairs(high, low, cosine).take(cosine >= np.float32(min_cosine))


def audit(vectors: Vectors, found: Iterable[Pairs], min_cosine: float, sample: Rows, *, memory_bytes: int) -> Recall:
    """Measures which share of the pairs was found.

    Args:
        vectors: All of them.
        found: The stream of found pairs of rows; a pair may come more than once.
        min_cosine: Of the pairs.
        sample: The rows whose pairs are searched exactly, ascending.
        memory_bytes: What the exact search may take.
    """
    true = np.empty(0, np.int64)
    for pairs in similar_pairs(vectors.only(sample), vectors, min_cosine, memory_bytes=memory_bytes):
        true = np.union1d(true, _codes(sample[pairs.first], pairs.second, len(vectors)))
    seen = np.empty(0, np.int64)
    for pairs in found:
        touches = np.isin(pairs.first, sample) | np.isin(pairs.second, sample)
        seen = np.union1d(seen, _codes(pairs.first[touches], pairs.second[touches], len(vectors)))
    hits = len(np.intersect1d(true, seen))
    return Recall(len(sample), len(true), hits, *wilson(hits, len(true)))


def evenly(first: int, end: int, count: int) -> Rows:
    """At most `count` of the rows [first, end), evenly spread."""
    size = min(count, end - first)
    return first + np.arange(size, dtype=np.int64) * (end - first) // max(1, size)


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share (Wilson 1927); [0, 1] where nothing was tried."""
    if trials == 0:
        return 0.0, 1.0
    z = 1.959963984540054  # of the normal distribution, 97.5 %
    share, spread = hits / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _codes(first: Rows, second: Rows, count: int) -> Rows:
    """A number for each pair of different rows, whichever comes first."""
    different = first != second
    high, low = np.maximum(first, second)[different], np.minimum(first, second)[different]
    return np.unique(high * count + low)


def _train(vectors: Vectors, factory: str, memory_bytes: int) -> Any:
    import faiss

    try:
        index = faiss.index_factory(vectors.dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(f"duplicates.search.factory {factory!r} is not understood by faiss: {error}") from error
    if not isinstance(index, faiss.IndexIVFFlat | faiss.IndexIVFScalarQuantizer | faiss.IndexIVFPQ):
        raise UserError(
            f"duplicates.search.factory {factory!r}: expected IVF<cells>,<code> with the code Flat, SQfp16, SQ8 or PQ; "
            "the embeddings need no PCA any more"
        )
    if index.nlist > len(vectors):
        raise UserError(
            f"duplicates.search.factory {factory!r} has more cells than there are images, {len(vectors)}. "
            f"Leave it out: {default_factory(len(vectors))!r} suits them"
        )
    index.by_residual = False  # the codes are the vectors themselves, as big_batch_search expects for products
    index.cp.spherical = True
    sample = vectors.sample(_training_rows(index.nlist, vectors.dimension, factory, memory_bytes))
    index.train(Vectors([sample], vectors.title).unit(0, len(sample)))
    return index


def _training_rows(cells: int, dimension: int, factory: str, memory_bytes: int) -> int:
    """Not a function of the memory: another sample would make other cells, and so other misses."""
    rows = max(min(cells * _TRAINING_ROWS_PER_CELL, _MOST_TRAINING_ROWS), cells * _LEAST_ROWS_PER_CELL)
    needed = 2 * rows * dimension * 4
    if needed > memory_bytes:
        raise UserError(
            f"training {factory} on {rows:,} images takes {needed / 2**30:.1f} GiB, there are "
            f"{memory_bytes / 2**30:.1f}: give more --memory, or choose a duplicates.search.factory with fewer cells"
        )
    return rows


def _rows_per_block(dimension: int, memory_bytes: int) -> int:
    return max(2**12, memory_bytes // (4 * dimension * (4 + 4)))


def _merge(path: Path, trained: Path, files: list[Path]) -> None:
    """Joins the lists of the blocks in one file on the disk. The index, written last, says that it is complete."""
    import faiss
    from faiss.contrib.ondisk import merge_ondisk

    lists = path.with_name(f"{path.name}.lists")
    index = faiss.read_index(str(trained))
    try:
        with redirect_stdout(io.StringIO()):
            merge_ondisk(index, [str(file) for file in files], str(lists))
    except (RuntimeError, AssertionError) as error:
        raise _cannot_build(lists, error) from error
    _sync(lists)
    _write(path, index)


def _write(path: Path, index: Any) -> None:
    import faiss

    with new_file(path) as temporary:
        try:
            faiss.write_index(index, str(temporary))
        except RuntimeError as error:
            raise _cannot_build(path, error) from error


def _cannot_build(path: Path, error: Exception) -> RunError:
    reason = " ".join(str(error).split())
    return RunError(f"Cannot write the index {path}: {reason}. Free some space; what is done is kept")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}")
