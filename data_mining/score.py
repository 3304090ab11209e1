"""The stage `score`: one pass of the teacher gives each image's best classes and its embedding.

One part a shard: a Parquet table of SCHEMA and an .npy of embeddings, float16 [n, d], row by row as in the index.
The PCA of the embeddings is fitted once, on a sample spread evenly over the pool as it is when it is first
scored, and kept: shards that come later are projected by the same, so that their scores alone are computed. Delete
the folder `score` to have it fitted anew.

Scores are the same bits on any CPU of a kind, for any number of workers and threads and any batch size. A GPU
computes in another order: its scores differ by some 1e-5.
"""

import contextlib
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_mining.alterations import ALTERATIONS, altered
from data_mining.executors import map_shards, threads_per_worker
from data_mining.index import Reader, index_path, offsets
from data_mining.index import part_key as index_part_key
from data_mining.projection import Projection, fit_projection
from data_mining.ranking import Ranking, rank_classes
from data_mining.recipe import AnyTeacher, MiningRecipe, NetworkTeacher, OnnxTeacher
from data_mining.shards import POOL, Shard, set_names, shards_of, to_do
from data_mining.workspace import (
    StageReport,
    Workspace,
    make_key,
    read_array,
    read_table,
    stopwatch,
    write_array,
    write_table,
)
from distill.data.augment import evaluation_view
from distill.data.types import Image
from distill.errors import RunError, UserError
from distill.weights import sha256_of

if TYPE_CHECKING:
    from distill.engines.engine import Answers, Engine, Precision
    from distill.parallel import DeviceKind

STAGE = "score"
ENGINE_METADATA = b"teacher_engine"

_LOCATION = ("path", "tar", "offset", "bytes")


@dataclass(frozen=True)
class Job:
    """Images of a shard to embed.

    Attributes:
        shard: The shard.
        key: Of what is made.
        rows: Which images, None: all.
        mirrored: Left and right exchanged.
        altered: Each image in all the forms of `alterations`, one after the other, instead of as it is.
    """

    shard: Shard
    key: str
    rows: tuple[int, ...] | None = None
    mirrored: bool = False
    altered: bool = False

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.shard.title


# --- what other stages need ---------------------------------------------------------------------


def schema(top_classes: int) -> pa.Schema:
    """The table of a part, with P = `top_classes`; see `Ranking`."""
    return pa.schema(
        [
            ("classes", pa.list_(pa.uint16(), top_classes)),
            ("probabilities", pa.list_(pa.float32(), top_classes)),
            ("rest", pa.float32()),
        ]
    )


def part_key(workspace: Workspace, recipe: MiningRecipe, shard: Shard) -> str:
    """The key of a shard's scores.

    Raises:
        RunError: The PCA is not yet fitted.
    """
    settings = {"top_classes": recipe.score.top_classes}
    inputs = [_embedding_key(workspace, recipe), _projection_hash(workspace, recipe), index_part_key(shard)]
    return make_key(STAGE, settings, inputs)


def set_key(workspace: Workspace, recipe: MiningRecipe, set_name: str) -> str:
    """The key of all scores and embeddings of a set."""
    return make_key(STAGE, {}, [part_key(workspace, recipe, shard) for shard in shards_of(workspace, recipe, set_name)])


def scores_path(workspace: Workspace, recipe: MiningRecipe, shard: Shard) -> Path:
    """The table of a shard, see `schema`."""
    return workspace.path(STAGE, "classes", part_key(workspace, recipe, shard), ".parquet")


def embeddings_path(
    workspace: Workspace, recipe: MiningRecipe, shard: Shard, *, mirrored: bool = False, altered: bool = False
) -> Path:
    """The embeddings of a shard, float16 [n, d]; mirrored and altered ones for protected sets only.

    Of altered images an array has `ALTERATIONS` rows an image.
    """
    return workspace.path(STAGE, _kind(mirrored, altered), part_key(workspace, recipe, shard), ".npy")


def _kind(mirrored: bool, altered: bool) -> str:
    return "-".join(name for name, holds in (("mirrored", mirrored), ("altered", altered)) if holds) or "embeddings"


def read_embeddings(
    workspace: Workspace, recipe: MiningRecipe, set_name: str, *, mirrored: bool = False
) -> list[NDArray[np.float16]]:
    """The embeddings of a set, an array [n, d] a shard, mapped into memory."""
    shards = shards_of(workspace, recipe, set_name)
    return [read_array(embeddings_path(workspace, recipe, shard, mirrored=mirrored)) for shard in shards]


def read_ranking(path: Path) -> Ranking:
    """The scores of a shard."""
    table = read_table(path)
    width = table.schema.field("classes").type.list_size
    columns = (table[name].combine_chunks().flatten().to_numpy() for name in ("classes", "probabilities"))
    classes, probabilities = (column.reshape(-1, width) for column in columns)
    return Ranking(classes, probabilities, table["rest"].to_numpy())


def scored_sets(recipe: MiningRecipe) -> list[str]:
    """The sets that are scored: protected ones only where leaks are looked for."""
    return [name for name in set_names(recipe) if recipe.leaks is not None or not name.startswith("protected-")]


# --- the stage ----------------------------------------------------------------------------------


def run(workspace: Workspace, recipe: MiningRecipe) -> StageReport:
    """Scores the shards of all sets that are not yet scored.

    Raises:
        UserError: The teacher's weights are missing or do not fit.
        RunError: An image has vanished, or the teacher's answer to one is not finite.
    """
    with stopwatch() as seconds:
        recipe = _with_workers(recipe)
        projection = _fitted(workspace, recipe)
        # all sets in one go: every start of the workers opens the teacher anew
        jobs = [job for set_name in scored_sets(recipe) for job in _missing(workspace, recipe, set_name)]
        function = functools.partial(score_shard, workspace.root, recipe)
        map_shards(function, jobs, recipe.runtime, title=STAGE)
        facts = {
            "teacher": recipe.teacher.name if isinstance(recipe.teacher, NetworkTeacher) else recipe.teacher.path,
            "teacher_sha256": _weights_hash(workspace, recipe),
            "embedding_dim": projection.components.shape[1],
            "explained_variance": round(projection.explained, 4),
            "engine": _engine_of_first_part(workspace, recipe),
        }
        counts = {} if workspace.part else {"images": int(offsets(workspace, recipe, POOL)[-1])}
        keys = [set_key(workspace, recipe, set_name) for set_name in scored_sets(recipe)]
    return StageReport(STAGE, make_key(STAGE, {}, keys), counts, facts, seconds[0])


def score_shard(root: Path, recipe: MiningRecipe, job: Job) -> None:
    """Writes the scores and embeddings of a shard, the scores last: they mean that both are there."""
    workspace = Workspace(root)
    projection = Projection.from_array(read_array(_projection_path(workspace, recipe)))
    engine = _engine(recipe)
    ranked = not (job.mirrored or job.altered)
    rankings, embeddings = [], []
    for answers in _answers(workspace, recipe, engine, job):
        embeddings.append(projection.apply(answers["embedding"]))
        if ranked:
            rankings.append(rank_classes(answers["logits"], recipe.score.top_classes))
    dimension = projection.components.shape[1]
    write_array(
        workspace.path(STAGE, _kind(job.mirrored, job.altered), job.key, ".npy"),
        np.concatenate([np.empty((0, dimension), np.float16), *embeddings]),
    )
    if ranked:
        width = min(recipe.score.top_classes, recipe.teacher.num_classes)
        table = _table(rankings, width).replace_schema_metadata({ENGINE_METADATA: engine.description.encode()})
        write_table(workspace.path(STAGE, "classes", job.key, ".parquet"), table)


def _missing(workspace: Workspace, recipe: MiningRecipe, set_name: str) -> Iterator[Job]:
    leaks = recipe.leaks if set_name.startswith("protected-") else None
    mirrored = (False, True) if leaks is not None and leaks.mirrored else (False,)
    altered = (False, True) if leaks is not None and leaks.altered_min_cosine is not None else (False,)
    for shard in to_do(workspace, shards_of(workspace, recipe, set_name)):
        key = part_key(workspace, recipe, shard)
        for flip, alter in itertools.product(mirrored, altered):
            path = embeddings_path(workspace, recipe, shard, mirrored=flip, altered=alter)
            if not (path if flip or alter else scores_path(workspace, recipe, shard)).exists():
                yield Job(shard, key, mirrored=flip, altered=alter)


def _table(rankings: Sequence[Ranking], width: int) -> pa.Table:
    names = schema(width)
    classes = np.concatenate([np.empty((0, width), np.uint16), *(each.classes for each in rankings)])
    probabilities = np.concatenate([np.empty((0, width), np.float32), *(each.probabilities for each in rankings)])
    rest = np.concatenate([np.empty(0, np.float32), *(each.rest for each in rankings)])
    lists = (pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width) for values in (classes, probabilities))
    return pa.Table.from_arrays([*lists, pa.array(rest)], schema=names)


def _engine_of_first_part(workspace: Workspace, recipe: MiningRecipe) -> str | None:
    for shard in shards_of(workspace, recipe, POOL):
        path = scores_path(workspace, recipe, shard)
        if path.exists():
            metadata = pq.read_schema(path).metadata or {}
            return bytes(metadata.get(ENGINE_METADATA, b"")).decode() or None
    return None


# --- the projection -----------------------------------------------------------------------------


def _fitted(workspace: Workspace, recipe: MiningRecipe) -> Projection:
    """The projection; fits it if there is none yet."""
    path = _projection_path(workspace, recipe)
    if not path.exists():
        with workspace.exclusive("projection"):  # several jobs may come here at a time
            if not path.exists():
                _fit(workspace, recipe, path)
    return Projection.from_array(read_array(path))


def _fit(workspace: Workspace, recipe: MiningRecipe, path: Path) -> None:
    jobs = list(_sample_jobs(workspace, recipe))
    parts = [workspace.path(STAGE, "sample", job.key, ".npy") for job in jobs]
    missing = [job for job, part in zip(jobs, parts, strict=True) if not part.exists()]
    function = functools.partial(embed_sample, workspace.root, recipe)
    map_shards(function, missing, recipe.runtime, title="score: sample for the PCA")
    sample = np.concatenate([read_array(part) for part in parts])
    projection = fit_projection(sample, recipe.score.embedding_dim, whiten=recipe.score.whiten)
    write_array(path, projection.to_array())
    for part in parts:
        part.unlink()


def _sample_jobs(workspace: Workspace, recipe: MiningRecipe) -> Iterator[Job]:
    starts = offsets(workspace, recipe, POOL)
    total = int(starts[-1])
    if total == 0:
        raise UserError("the pool has no images: see the stage `index` for what could not be decoded")
    count = min(total, recipe.score.pca_images)
    numbers = np.arange(count, dtype=np.int64) * total // count
    for shard, first, end in zip(shards_of(workspace, recipe, POOL), starts[:-1], starts[1:], strict=True):
        rows = tuple((numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, end)] - first).tolist())
        if rows:
            digest = hashlib.sha256(repr(rows).encode()).hexdigest()
            key = make_key("sample", {"rows": digest}, [_embedding_key(workspace, recipe), index_part_key(shard)])
            yield Job(shard, key, rows)


def embed_sample(root: Path, recipe: MiningRecipe, job: Job) -> None:
    """Writes the raw embeddings of some images of a shard, float32 [n, D]."""
    workspace = Workspace(root)
    answers = list(_answers(workspace, recipe, _engine(recipe), job))
    write_array(
        workspace.path(STAGE, "sample", job.key, ".npy"), np.concatenate([answer["embedding"] for answer in answers])
    )


def _projection_path(workspace: Workspace, recipe: MiningRecipe) -> Path:
    settings = recipe.score.model_dump(mode="json", include={"embedding_dim", "pca_images", "whiten"})
    return workspace.path(
        STAGE, "projection", make_key("projection", settings, [_embedding_key(workspace, recipe)]), ".npy"
    )


def _projection_hash(workspace: Workspace, recipe: MiningRecipe) -> str:
    path = _projection_path(workspace, recipe)
    cached = f"hash of {path}"
    if cached not in workspace.cache:
        read_array(path)  # explains what to do where it is missing or damaged
        workspace.cache[cached] = hashlib.sha256(path.read_bytes()).hexdigest()
    return str(workspace.cache[cached])


def _embedding_key(workspace: Workspace, recipe: MiningRecipe) -> str:
    """The key of what the teacher answers: its weights by their hash, wherever they lie."""
    settings = recipe.teacher.model_dump(mode="json", exclude={"weights", "path"})
    settings |= {"precision": recipe.score.precision, "sha256": _weights_hash(workspace, recipe)}
    return make_key("teacher", settings)


def _weights_hash(workspace: Workspace, recipe: MiningRecipe) -> str:
    teacher = recipe.teacher
    path = Path(teacher.weights if isinstance(teacher, NetworkTeacher) else teacher.path)
    cached = f"hash of {path}"
    if cached not in workspace.cache:
        if not path.is_file():
            raise UserError(f"teacher: {path} does not exist")
        workspace.cache[cached] = sha256_of(path)
    return str(workspace.cache[cached])


# --- the teacher's answers ----------------------------------------------------------------------


def _answers(workspace: Workspace, recipe: MiningRecipe, engine: "Engine", job: Job) -> "Iterator[Answers]":
    """The teacher's answers to a job's images, in batches, in order; the next batch is read meanwhile.

    Raises:
        RunError: An answer is not finite.
    """
    table = read_table(index_path(workspace, job.shard), _LOCATION)
    if job.rows is not None:
        table = table.take(pa.array(job.rows, pa.int64()))
    forms = ALTERATIONS if job.altered else 1
    size = max(1, recipe.runtime.batch_size // forms)
    batches = [table.slice(first, size).to_pylist() for first in range(0, len(table), size)]
    with Reader([job.shard]) as reader, _threads(threads_per_worker(recipe.runtime)) as pool:
        views = functools.partial(_views, reader, recipe, job)
        reading: list[Future[list[Image]]] = []
        for number in range(len(batches) + 1):
            images = [image for future in reading for image in future.result()]
            reading = [pool.submit(views, row) for row in batches[number]] if number < len(batches) else []
            if images:
                answers = engine(np.stack(images))
                _check_finite(answers, [row for row in batches[number - 1] for _ in range(forms)])
                yield answers


@contextlib.contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that an error does not wait for: what is still to be read may lie on the same dead disk."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _views(reader: Reader, recipe: MiningRecipe, job: Job, row: dict[str, Any]) -> list[Image]:
    """What the teacher sees of an image, each uint8 [crop_px, crop_px, 3]."""
    image = reader.image(row["path"], row["tar"], row["offset"], row["bytes"])
    forms = altered(image) if job.altered else [image]
    views = (evaluation_view(form, recipe.teacher.resize_short_px, recipe.teacher.crop_px) for form in forms)
    return [np.ascontiguousarray(view[:, ::-1]) if job.mirrored else view for view in views]


def _check_finite(answers: "Answers", rows: Sequence[dict[str, Any]]) -> None:
    finite = np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in answers.values()])
    if not finite.all():
        bad = [rows[at] for at in np.flatnonzero(~finite)]
        names = ", ".join(row["path"] if row["tar"] is None else f"{row['tar']}: {row['path']}" for row in bad[:5])
        raise RunError(
            f"the teacher's answer is NaN or infinite for {len(bad)} of {len(rows)} images of a batch: {names}. "
            "Check the teacher's weights and normalization; try score.precision float32"
        )


def _engine(recipe: MiningRecipe) -> "Engine":
    return _open_engine(
        recipe.teacher, recipe.score.precision, recipe.runtime.device, threads_per_worker(recipe.runtime)
    )


@functools.cache  # a worker opens its engine once, for all its shards
def _open_engine(teacher: AnyTeacher, precision: "Precision", device: "DeviceKind", threads: int) -> "Engine":
    if isinstance(teacher, OnnxTeacher):
        from distill.engines.onnx_engine import open_onnx_engine

        return open_onnx_engine(
            teacher.path,
            teacher.normalization,
            threads=threads,
            size_px=teacher.crop_px,
            num_classes=teacher.num_classes,
            logits_output=teacher.logits_output,
            embedding_output=teacher.embedding_output,
        )
    from distill.parallel import Device, setup_process

    kind = setup_process(device).kind  # before anything imports Paddle

    from distill.engines.engine import open_teacher_engine
    from distill.recipe import TeacherModel

    network = TeacherModel(
        name=teacher.name, width=teacher.width, stem_stride=teacher.stem_stride, weights=teacher.weights
    )
    return open_teacher_engine(
        network,
        teacher.num_classes,
        teacher.normalization,
        Device(kind, threads),
        precision=precision,
        check_px=teacher.crop_px,
    )


def _with_workers(recipe: MiningRecipe) -> MiningRecipe:
    """The recipe with one worker where there is a GPU and nothing was said: it needs one process and many threads."""
    runtime = recipe.runtime
    if runtime.workers is None and runtime.device != "cpu" and Path("/dev/nvidia0").exists():
        return recipe.model_copy(update={"runtime": runtime.model_copy(update={"workers": 1})})
    return recipe
