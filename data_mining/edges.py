"""The pairs of alike images that `duplicates` decides about: where they are searched, and where they are kept.

All images have one row number here, the labelled ones first, then the pool's. Of images with identical pixels only
the first takes part in the searches: a placeholder that occurs a thousand times is one row, not half a million pairs.

Up to the recipe's `exact_up_to_images`, the pairs of near embeddings are found without loss, tile by tile: a tile
is some consecutive shards, joined with themselves and all rows before. New shards make new tiles and leave the old
ones as they are. Above, faiss searches, and its recall is measured. Near perceptual hashes are always found without
loss.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_mining import score
from data_mining.approximate import (
    PORTION_ROWS,
    Recall,
    audit,
    build_index,
    default_factory,
    evenly,
    neighbour_pairs,
    open_index,
)
from data_mining.executors import map_shards, memory_per_worker, threads_per_worker, worker_count
from data_mining.hamming import HashPairs, near_within
from data_mining.index import Reader, index_path, row_count
from data_mining.pixels import bits_apart, sha256_rows
from data_mining.recipe import DuplicatesSection, MiningRecipe, VerificationSection
from data_mining.shards import LABELLED, POOL, Shard, shards_of
from data_mining.similarity import similar_pairs
from data_mining.vectors import Pairs, Rows, Vectors, cosines
from data_mining.verify import FeatureCache, Features, describe, inliers
from data_mining.workspace import (
    ROWS_PER_GROUP,
    Workspace,
    make_key,
    new_table,
    read_array,
    read_table,
    write_array,
)
from distill.display import Display
from distill.files import write_atomically

STAGE = "duplicates"
EDGES = pa.schema([("a", pa.int64()), ("b", pa.int64()), ("cosine", pa.float32()), ("hash_bits", pa.int8())])
"""Row numbers, a > b; see the module. A pair that is near in both ways may be in two parts."""

TILE_ROWS = 2**16
_PAIRS_TO_VERIFY = 2**14  # of a worker at a time
_LOCATION = ("path", "tar", "offset", "bytes")


@dataclass(frozen=True)
class Images:
    """All images that are compared.

    Attributes:
        shards: The labelled images' first, then the pool's.
        starts: The row of each shard's first image, and the number of all rows.
        labelled: How many of the rows are labelled images.
        indices: The part of the index of each shard.
        embeddings: The embeddings of each shard.
        first: A file of int64 [N]: the first row with the same pixels.
        hashes: A file of uint64 [N]: the perceptual hashes.
    """

    shards: tuple[Shard, ...]
    starts: tuple[int, ...]
    labelled: int
    indices: tuple[Path, ...]
    embeddings: tuple[Path, ...]
    first: Path
    hashes: Path

    def __len__(self) -> int:
        return self.starts[-1]

    def vectors(self) -> Vectors:
        """The embeddings of all rows."""
        return Vectors(self.embeddings, STAGE)

    def distinct(self) -> Rows:
        """The rows that take part in the searches."""
        return np.flatnonzero(read_array(self.first) == np.arange(len(self)))


@dataclass(frozen=True)
class Job:
    """A search by a worker.

    Attributes:
        title: What messages call it.
        result: Where the edges go.
        start: The first row of a tile; of a search by hashes 0.
        end: Behind the last.
        by_hash: Near hashes among all rows, instead of near embeddings of the tile.
    """

    title: str
    result: Path
    start: int
    end: int
    by_hash: bool = False


@dataclass(frozen=True)
class VerifyJob:
    """Some edges that SIFT checks.

    Attributes:
        title: What messages call it.
        candidates: The file that they are in.
        first: The first of them.
        result: Where those go that are confirmed.
    """

    title: str
    candidates: Path
    first: int
    result: Path


@dataclass(frozen=True)
class Found:
    """The edges, and how they were searched.

    Attributes:
        parts: Files of EDGES.
        exact: Whether none is missed.
        facts: For the report.
    """

    parts: tuple[Path, ...]
    exact: bool
    facts: dict[str, Any]

    def stream(self) -> Iterator[pa.RecordBatch]:
        """All edges, a portion at a time."""
        for part in self.parts:
            yield from pq.ParquetFile(part, memory_map=True).iter_batches(ROWS_PER_GROUP)


# --- images -------------------------------------------------------------------------------------


def compared_images(workspace: Workspace, recipe: MiningRecipe, section: DuplicatesSection) -> Images:
    """The rows; writes the two files of their fingerprints if they are not there."""
    against = shards_of(workspace, recipe, LABELLED) if section.against_labelled and recipe.labelled else ()
    shards = (*against, *shards_of(workspace, recipe, POOL))
    indices = tuple(index_path(workspace, shard) for shard in shards)
    starts = np.cumsum([0, *(row_count(path) for path in indices)])
    key = make_key("fingerprints", {}, [path.stem for path in indices])
    images = Images(
        shards,
        tuple(starts.tolist()),
        int(starts[len(against)]),
        indices,
        tuple(score.embeddings_path(workspace, recipe, shard) for shard in shards),
        workspace.path(STAGE, "first", key, ".npy"),
        workspace.path(STAGE, "hashes", key, ".npy"),
    )
    if not images.hashes.exists():
        _write_fingerprints(images)
    return images


def first_of_identical(digests: NDArray[np.uint64], whole: Callable[[Rows], NDArray[np.uint8]]) -> Rows:
    """Finds images of identical pixels.

    Args:
        digests: uint64 [N], eight bytes of each hash.
        whole: A function that gives the whole hashes, uint8 [M, 32], of ascending rows; asked for those only whose
            eight bytes are not unique.

    Returns:
        int64 [N]: the smallest row with the same hash.
    """
    first = np.arange(len(digests), dtype=np.int64)
    order = np.argsort(digests, kind="stable")
    same = digests[order[1:]] == digests[order[:-1]]
    repeated = np.zeros(len(digests), np.bool_)
    repeated[order[1:][same]] = repeated[order[:-1][same]] = True
    rows = np.flatnonzero(repeated)
    if len(rows):
        hashes = np.ascontiguousarray(whole(rows)).view("V32")[:, 0]
        _, at, group = np.unique(hashes, return_index=True, return_inverse=True)
        first[rows] = rows[at[group]]
    return first


def _write_fingerprints(images: Images) -> None:
    digests, hashes = np.empty(len(images), np.uint64), np.empty(len(images), np.uint64)
    for path, start, end in zip(images.indices, images.starts, images.starts[1:], strict=False):
        table = read_table(path, ["pixels_sha256", "phash"])
        digests[start:end] = pixel_ties(sha256_rows(table["pixels_sha256"]))
        hashes[start:end] = table["phash"].to_numpy()

    def whole(rows: Rows) -> NDArray[np.uint8]:
        found = np.empty((len(rows), 32), np.uint8)
        shard = np.searchsorted(images.starts, rows, side="right") - 1
        for number in np.unique(shard):
            here = shard == number
            column = read_table(images.indices[number], ["pixels_sha256"])["pixels_sha256"]
            found[here] = sha256_rows(column)[rows[here] - images.starts[number]]
        return found

    write_array(images.first, first_of_identical(digests, whole))
    write_array(images.hashes, hashes)  # the last: it says that both are there


def pixel_ties(sha256: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The first eight bytes of hashes [N, 32], as numbers: what decides between equal scores."""
    return np.ascontiguousarray(sha256[:, :8]).view(">u8")[:, 0].astype(np.uint64)


# --- searches -----------------------------------------------------------------------------------


def find_edges(workspace: Workspace, recipe: MiningRecipe, section: DuplicatesSection, images: Images) -> Found:
    """Does the searches that are not yet done.

    Raises:
        RunError: Embeddings are not finite, an image has vanished, or too much is alike.
    """
    exact = is_exact(images, section)
    jobs = [_hash_job(workspace, recipe, section, images)]
    if exact:
        jobs += _tile_jobs(workspace, recipe, section, images)
    _map(functools.partial(search, recipe, section, images), jobs, recipe, "duplicates: search")
    parts = [job.result for job in jobs]
    facts: dict[str, Any] = {"search": "lossless join" if exact else "faiss", "images_compared": len(images.distinct())}
    if not exact:
        portions, recall, factory = _search_by_faiss(workspace, recipe, section, images)
        parts += portions
        facts |= {"factory": factory, "recall": asdict(recall) | {"recall": recall.recall}}
    facts["pairs_found"] = sum(row_count(part) for part in parts)
    if section.verify is not None:
        parts = _verified(workspace, recipe, section.verify, images, parts)
        facts["pairs_confirmed_by_sift"] = sum(row_count(part) for part in parts)
    return Found(tuple(parts), exact, facts)


def is_exact(images: Images, section: DuplicatesSection) -> bool:
    """Whether so many images are joined without loss."""
    return len(images) <= section.search.exact_up_to_images


def search(recipe: MiningRecipe, section: DuplicatesSection, images: Images, job: Job) -> None:
    """Writes the edges of a job."""
    memory_bytes = memory_per_worker(recipe.runtime)
    distinct, hashes, vectors = images.distinct(), read_array(images.hashes), images.vectors()
    if job.by_hash:
        near = near_within(hashes[distinct], section.max_hash_bits, memory_bytes=memory_bytes // 4)
        found = _with_cosines(near, distinct, vectors, images.labelled)
        found = (
            Pairs(pairs.first, pairs.second, cosines(vectors, pairs.first, vectors, pairs.second)) for pairs in found
        )
    else:
        found = _tile(distinct, vectors, job, section.min_cosine, memory_bytes, threads_per_worker(recipe.runtime))
    write_edges(job.result, (edges_of(pairs, hashes) for pairs in found))


def write_edges(path: Path, tables: Iterable[pa.Table]) -> None:
    """Writes a stream of edges in row groups whose sizes do not depend on the portions that it came in."""
    held: list[pa.Table] = []
    with new_table(path, EDGES) as writer:
        for table in tables:
            held.append(table)
            if sum(map(len, held)) >= ROWS_PER_GROUP:
                whole = pa.concat_tables(held).combine_chunks()
                full = len(whole) // ROWS_PER_GROUP * ROWS_PER_GROUP
                writer.write_table(whole.slice(0, full), row_group_size=ROWS_PER_GROUP)
                held = [whole.slice(full)]
        writer.write_table(pa.concat_tables([EDGES.empty_table(), *held]).combine_chunks())


def edges_of(pairs: Pairs, hashes: NDArray[np.uint64]) -> pa.Table:
    """A table of EDGES."""
    bits = bits_apart(hashes[pairs.first], hashes[pairs.second]).astype(np.int8)
    return pa.table([pairs.first, pairs.second, pairs.cosine, bits], schema=EDGES)


def _tile(
    distinct: Rows, vectors: Vectors, job: Job, min_cosine: float, memory_bytes: int, threads: int
) -> Iterator[Pairs]:
    low, high = np.searchsorted(distinct, [job.start, job.end])
    queries, base = vectors.only(distinct[low:high]), vectors.only(distinct[:high])
    for pairs in similar_pairs(
        queries, base, min_cosine, memory_bytes=memory_bytes, threads=threads, own_rows_from=int(low)
    ):
        yield Pairs(distinct[pairs.first + low], distinct[pairs.second], pairs.cosine)


def _with_cosines(near: Iterable[HashPairs], distinct: Rows, vectors: Vectors, labelled: int) -> Iterator[Pairs]:
    """The pairs as rows, but none of two labelled images."""
    for pairs in near:
        first, second = distinct[pairs.first], distinct[pairs.second]
        kept = first >= labelled
        first, second = first[kept], second[kept]
        yield Pairs(first, second, cosines(vectors, first, vectors, second))


def _hash_job(workspace: Workspace, recipe: MiningRecipe, section: DuplicatesSection, images: Images) -> Job:
    settings = {"max_hash_bits": section.max_hash_bits, "labelled": images.labelled}
    key = make_key("near-hashes", settings, [images.first.stem, *(path.stem for path in images.embeddings)])
    return Job("near hashes", workspace.path(STAGE, "hash-edges", key, ".parquet"), 0, len(images), by_hash=True)


def _tile_jobs(workspace: Workspace, recipe: MiningRecipe, section: DuplicatesSection, images: Images) -> list[Job]:
    """Tiles of the pool. Their keys hold the shards up to their end, so that later shards do not change them."""
    jobs, inputs = [], []
    start = images.labelled
    for number, (begin, end) in enumerate(zip(images.starts, images.starts[1:], strict=False)):
        inputs += [images.indices[number].stem, images.embeddings[number].stem]
        last = number + 1 == len(images.shards)
        if begin >= images.labelled and (end - start >= TILE_ROWS or last):
            key = make_key("tile", {"min_cosine": section.min_cosine, "start": start}, inputs)
            result = workspace.path(STAGE, "edges", key, ".parquet")
            jobs.append(Job(f"images {start - images.labelled + 1}-{end - images.labelled}", result, start, end))
            start = end
    return jobs


def _search_by_faiss(
    workspace: Workspace, recipe: MiningRecipe, section: DuplicatesSection, images: Images
) -> tuple[list[Path], Recall, str]:
    """The pairs that faiss finds, a file for each portion of queries; its threads share this process's memory."""
    settings, memory_bytes = section.search, recipe.runtime.memory_bytes
    distinct = images.distinct()
    vectors = images.vectors().only(distinct)
    factory = settings.factory or default_factory(len(distinct))
    inputs = [images.first.stem, *(path.stem for path in images.embeddings)]
    index_key = make_key("faiss", {"factory": factory}, inputs)
    values = {"nprobe": settings.nprobe, "neighbours": settings.neighbours, "min_cosine": section.min_cosine}
    key = make_key("faiss-edges", values | {"labelled": images.labelled}, [index_key])
    starts = range(0, len(vectors), PORTION_ROWS)
    parts = [workspace.path(STAGE, f"edges-{start}", key, ".parquet") for start in starts]
    path = workspace.path(STAGE, "index", index_key, ".faiss")
    threads = worker_count(recipe.runtime) * threads_per_worker(recipe.runtime)
    if not path.exists():
        build_index(path, vectors, factory, memory_bytes=memory_bytes, threads=threads)
    index = open_index(path, nprobe=settings.nprobe, threads=threads)
    with Display("duplicates: faiss", len(parts), unit="portion") as display:
        for number, (start, part) in enumerate(zip(starts, parts, strict=True), start=1):
            if not part.exists():
                pairs = neighbour_pairs(
                    index,
                    vectors,
                    start,
                    min(start + PORTION_ROWS, len(vectors)),
                    neighbours=settings.neighbours,
                    min_cosine=section.min_cosine,
                )
                rows = Pairs(distinct[pairs.first], distinct[pairs.second], pairs.cosine)
                write_edges(part, [edges_of(rows.take(rows.first >= images.labelled), read_array(images.hashes))])
            display.advance(number, {})
    return parts, _audited(workspace, section, images, parts, key, memory_bytes), factory


def _audited(
    workspace: Workspace, section: DuplicatesSection, images: Images, parts: Sequence[Path], key: str, memory_bytes: int
) -> Recall:
    """The recall of the pairs that are not of two labelled images; measured once."""
    path = workspace.path(STAGE, "recall", make_key("recall", {"images": section.search.audit_images}, [key]), ".json")
    if not path.exists():
        distinct = images.distinct()
        found = (
            Pairs(
                np.searchsorted(distinct, batch["a"]), np.searchsorted(distinct, batch["b"]), batch["cosine"].to_numpy()
            )
            for batch in Found(tuple(parts), False, {}).stream()
        )
        first = int(np.searchsorted(distinct, images.labelled))
        sample = evenly(first, len(distinct), section.search.audit_images)
        vectors = images.vectors().only(distinct)
        measured = audit(vectors, found, section.min_cosine, sample, memory_bytes=memory_bytes)
        write_atomically(path, json.dumps(asdict(measured)) + "\n")
    return Recall(**json.loads(path.read_text()))


# --- verification -------------------------------------------------------------------------------


def _verified(
    workspace: Workspace, recipe: MiningRecipe, rule: VerificationSection, images: Images, parts: Sequence[Path]
) -> list[Path]:
    """The edges that SIFT confirms."""
    jobs = []
    settings = rule.model_dump(mode="json", exclude={"review_inliers"})
    for part in parts:
        for first in range(0, row_count(part), _PAIRS_TO_VERIFY):
            key = make_key("verified", settings | {"first": first}, [part.name])
            result = workspace.path(STAGE, "verified", key, ".parquet")
            jobs.append(VerifyJob(f"pairs {first + 1}-{first + _PAIRS_TO_VERIFY} of {part.name}", part, first, result))
    _map(functools.partial(verify, recipe, rule, images), jobs, recipe, "duplicates: verify")
    return [job.result for job in jobs]


def verify(recipe: MiningRecipe, rule: VerificationSection, images: Images, job: VerifyJob) -> None:
    """Writes those of a job's edges that SIFT confirms."""
    table = read_table(job.candidates).slice(job.first, _PAIRS_TO_VERIFY)
    with Reader(images.shards) as reader:
        cache: FeatureCache[int] = FeatureCache(memory_per_worker(recipe.runtime) // 2)
        see = functools.partial(_describe, images, reader, rule.side_px)
        confirmed = [
            inliers(cache.get(a, see), cache.get(b, see), ratio=rule.ratio, ransac_px=rule.ransac_px)
            >= rule.drop_inliers
            for a, b in zip(table["a"].to_pylist(), table["b"].to_pylist(), strict=True)
        ]
    write_edges(job.result, [table.filter(pa.array(confirmed, pa.bool_()))])


def _describe(images: Images, reader: Reader, side_px: int, row: int) -> Features:
    shard = int(np.searchsorted(images.starts, row, side="right")) - 1
    place = _places(images.indices[shard]).slice(row - images.starts[shard], 1).to_pylist()[0]
    return describe(reader.image(place["path"], place["tar"], place["offset"], place["bytes"]), side_px)


@functools.lru_cache(maxsize=32)
def _places(index: Path) -> pa.Table:
    return read_table(index, _LOCATION)


def _map(function: Any, jobs: Sequence[Any], recipe: MiningRecipe, title: str) -> None:
    map_shards(function, [job for job in jobs if not job.result.exists()], recipe.runtime, title=title)
