"""The stage `select`: who is on the list, under which class.

What leaks and what is a duplicate is out before the choice begins, so that it takes nobody's place. Then, by the
recipe's section `select`:

- by class: the images compete for K places in each of their best classes, see `matching`; classes that stay short
  can be filled with the nearest neighbours of their labelled images (by the same rule, the cosine being the score),
  and then by repeating their images, the best first.
- by retrieval: the nearest neighbours of each labelled image, each image once, under the class of the labelled
  image that it is nearest to.

Equal scores are decided by the hash of the pixels. So the list depends on the images and the settings: not on the
order of the shards, nor on how many workers there were, nor on the memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_mining import removal, score
from data_mining.image_lists import publish_image_list
from data_mining.index import index_path, offsets, read_index, row_count
from data_mining.index import part_key as index_part_key
from data_mining.matching import Entries, Matcher, Matching
from data_mining.neighbours import Block, Neighbours, nearest
from data_mining.ranking import Ranking
from data_mining.recipe import BackfillSection, ByClass, ByRetrieval, MiningRecipe
from data_mining.shards import LABELLED, POOL, shards_of
from data_mining.vectors import Vectors
from data_mining.workspace import (
    ROWS_PER_GROUP,
    StageReport,
    Workspace,
    make_key,
    new_table,
    read_array,
    read_table,
    stopwatch,
)
from distill.errors import UserError

STAGE = "select"
SOURCES = ("predicted", "neighbour", "repeat")

SELECTED = pa.schema(
    [
        ("path", pa.string()),  # as an image list names it
        ("label", pa.int32()),  # the class under which it was chosen
        ("score", pa.float32()),  # the teacher's probability of that class, or the cosine to a labelled image
        ("predicted", pa.int32()),  # the teacher's best class
        ("confidence", pa.float32()),  # its probability
        ("source", pa.string()),  # of SOURCES
        ("image", pa.int64()),
    ]
)

_ROWS = 2**18  # of the pool at a time: bounds what a large shard takes


@dataclass(frozen=True)
class Choice:
    """The lines of the list, by label and within a label in the order of their being chosen.

    Attributes:
        image: int64 [M].
        label: int32 [M].
        score: float32 [M].
        source: int8 [M], of SOURCES.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int32]
    score: NDArray[np.float32]
    source: NDArray[np.int8]


@dataclass(frozen=True)
class PoolPart:
    """Consecutive images of the pool.

    Attributes:
        first: The number of the first.
        tie: uint64 [n], the first eight bytes of the pixels' hash.
        ranking: Their best classes.
    """

    first: int
    tie: NDArray[np.uint64]
    ranking: Ranking


# --- what other stages need ---------------------------------------------------------------------


def result_key(workspace: Workspace, recipe: MiningRecipe) -> str:
    """The key of the choice."""
    inputs = [score.set_key(workspace, recipe, POOL), removal.result_key(workspace, recipe)]
    if _needs_labelled(recipe):
        inputs += [score.set_key(workspace, recipe, LABELLED)]
        inputs += [index_part_key(shard) for shard in shards_of(workspace, recipe, LABELLED)]
    return make_key(STAGE, recipe.select, inputs)


def selected_path(workspace: Workspace, recipe: MiningRecipe) -> Path:
    """The chosen images, a table of SELECTED."""
    return workspace.path(STAGE, "selected", result_key(workspace, recipe), ".parquet")


def pool_parts(workspace: Workspace, recipe: MiningRecipe) -> Iterator[PoolPart]:
    """The whole pool, in the order of the images' numbers."""
    first = 0
    for shard in shards_of(workspace, recipe, POOL):
        ranking = score.read_ranking(score.scores_path(workspace, recipe, shard))
        ties = pixel_ties(read_table(index_path(workspace, shard), ["pixels_sha256"])["pixels_sha256"])
        for start in range(0, len(ties), _ROWS):
            part = slice(start, start + _ROWS)
            some = Ranking(ranking.classes[part], ranking.probabilities[part], ranking.rest[part])
            yield PoolPart(first + start, ties[part], some)
        first += len(ties)


def pixel_ties(hashes: pa.ChunkedArray) -> NDArray[np.uint64]:
    """What decides between equal scores: the first eight bytes of each hash, as a number."""
    column = hashes.combine_chunks()
    values = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, 32)[column.offset : column.offset + len(column)]
    return np.ascontiguousarray(values[:, :8]).view(">u8")[:, 0].astype(np.uint64)


# --- the stage ----------------------------------------------------------------------------------


def run(workspace: Workspace, recipe: MiningRecipe) -> StageReport:
    """Chooses, and writes `selected.parquet` and `selected.txt` into the output folder.

    Raises:
        UserError: Nothing is chosen, labels are missing for filling classes, or there is too little memory.
    """
    with stopwatch() as seconds:
        path = selected_path(workspace, recipe)
        if not path.exists():
            kept = removal.kept_images(workspace, recipe)
            _write(workspace, recipe, _choose(workspace, recipe, kept))
        if not row_count(path):
            raise _nothing_chosen(workspace, recipe)
        publish_image_list(workspace, "selected", path)
        counts, facts = _statistics(recipe, read_table(path, ["label", "source"]))
    return StageReport(STAGE, result_key(workspace, recipe), counts, facts, seconds[0])


def _choose(workspace: Workspace, recipe: MiningRecipe, kept: NDArray[np.bool_]) -> Choice:
    section, memory = recipe.select, recipe.runtime.memory_bytes
    classes = recipe.teacher.num_classes
    if isinstance(section, ByRetrieval):
        labels = read_index(workspace, recipe, LABELLED, ["label"])["label"].to_numpy()
        found = _neighbours(workspace, recipe, section.neighbours, section.min_cosine, np.arange(len(labels)), kept)
        return retrieve(found, labels, section.max_images)
    chosen = choose_by_class(pool_parts(workspace, recipe), kept, section, classes, memory)
    if section.backfill is not None:
        filling = _fill(workspace, recipe, section, section.backfill, chosen, kept)
        chosen = joined([chosen, filling])
    return repeated(chosen, section.images_per_class) if section.fill_by_repeating else chosen


def choose_by_class(
    parts: Iterable[PoolPart], kept: NDArray[np.bool_], section: ByClass, num_classes: int, memory_bytes: int
) -> Choice:
    """The best images of each class, see `matching`.

    Args:
        parts: The pool.
        kept: bool [N], who takes part.
        section: K, in how many classes an image competes, the least confidence.
        num_classes: C.
        memory_bytes: What this may take.
    """
    capacities = np.full(num_classes, section.images_per_class, np.int64)
    matcher = Matcher(capacities, section.min_confidence, memory_bytes // 2)
    for part in parts:
        rows = np.flatnonzero(kept[part.first : part.first + len(part.tie)])
        width = min(section.classes_per_image, part.ranking.classes.shape[1])
        matcher.add(
            Entries(
                rows + part.first,
                part.tie[rows],
                part.ranking.classes[rows, :width],
                part.ranking.probabilities[rows, :width],
            )
        )
    return _as_choice(matcher.result(), SOURCES.index("predicted"))


def fill_classes(
    found: Iterable[Neighbours], labels: NDArray[np.int64], chosen: Choice, images_per_class: int, memory_bytes: int
) -> Choice:
    """Fills classes that are short with neighbours of their labelled images.

    By the rule of `matching`; an image's score in a class is its greatest cosine to a labelled image of it.

    Args:
        found: Neighbours of labelled images; none of them chosen.
        labels: int [Q], the labelled images' classes, in 0..C-1.
        chosen: What the classes have.
        images_per_class: K.
        memory_bytes: What this may take.
    """
    capacities = np.full(int(labels.max(initial=-1)) + 1, images_per_class, np.int64)
    have = np.bincount(chosen.label, minlength=len(capacities))[: len(capacities)]
    matcher = Matcher(np.maximum(capacities - have, 0), -1.0, memory_bytes // 2)
    matcher.add(_entries(found, labels))
    return _as_choice(matcher.result(), SOURCES.index("neighbour"))


def retrieve(found: Iterable[Neighbours], labels: NDArray[np.int64], max_images: int | None) -> Choice:
    """All neighbours, each once, under the class of the labelled image that it is nearest to.

    Args:
        found: Neighbours of labelled images.
        labels: int [Q]; -1 where there is none.
        max_images: Only the nearest of all; of equally near ones the lower tie-breaker.
    """
    image, tie, label, cosine = _best_by_image_and_class(found, labels)
    order = np.lexsort((label, -cosine, image))
    order = order[np.flatnonzero(np.diff(image[order], prepend=-1))]  # the first of each image
    order = order[np.lexsort((image[order], tie[order], -cosine[order]))][:max_images]
    order = order[np.argsort(label[order], kind="stable")]
    source = np.full(len(order), SOURCES.index("neighbour"), np.int8)
    return Choice(image[order], label[order].astype(np.int32), cosine[order], source)


def repeated(choice: Choice, images_per_class: int) -> Choice:
    """Repeats the images of short classes, the first chosen first, until each class that has any has K lines."""
    _, starts, counts = np.unique(choice.label, return_index=True, return_counts=True)
    extra = [np.arange(images_per_class - have) % have + start for start, have in zip(starts, counts, strict=True)]
    rows = np.concatenate([np.empty(0, np.int64), *extra])
    again = np.full(len(rows), SOURCES.index("repeat"), np.int8)
    return joined([choice, Choice(choice.image[rows], choice.label[rows], choice.score[rows], again)])


def joined(choices: list[Choice]) -> Choice:
    """Several choices as one; within a label those of the first come first."""
    label = np.concatenate([choice.label for choice in choices])
    order = np.argsort(label, kind="stable")
    image, scores, source = (
        np.concatenate([getattr(choice, name) for choice in choices])[order] for name in ("image", "score", "source")
    )
    return Choice(image, label[order], scores, source)


def _as_choice(matching: Matching, source: int) -> Choice:
    sources = np.full(len(matching.image), source, np.int8)
    return Choice(matching.image, matching.classes.astype(np.int32), matching.scores, sources)


# --- neighbours of labelled images --------------------------------------------------------------


def _fill(
    workspace: Workspace,
    recipe: MiningRecipe,
    section: ByClass,
    backfill: BackfillSection,
    chosen: Choice,
    kept: NDArray[np.bool_],
) -> Choice:
    labels = read_index(workspace, recipe, LABELLED, ["label"])["label"].to_numpy()
    outside = np.flatnonzero((labels < 0) | (labels >= recipe.teacher.num_classes))
    if len(outside):
        raise UserError(
            f"select.backfill: image {outside[0]} of `labelled` has the label {labels[outside[0]]}, expected a class "
            f"in 0..{recipe.teacher.num_classes - 1}. State its class, or remove select.backfill"
        )
    have = np.bincount(chosen.label, minlength=recipe.teacher.num_classes)
    of_short_classes = np.flatnonzero(have[labels] < section.images_per_class)
    free = kept.copy()
    free[chosen.image] = False
    found = _neighbours(workspace, recipe, backfill.neighbours, backfill.min_cosine, of_short_classes, free)
    return fill_classes(found, labels, chosen, section.images_per_class, recipe.runtime.memory_bytes)


def _neighbours(
    workspace: Workspace,
    recipe: MiningRecipe,
    count: int,
    min_cosine: float,
    labelled: NDArray[np.int64],
    free: NDArray[np.bool_],
) -> Iterator[Neighbours]:
    """The nearest of the `free` pool images to some labelled images; `query` is the labelled image's number."""
    queries = Vectors(score.read_embeddings(workspace, recipe, LABELLED), LABELLED).take(labelled)

    def pool() -> Iterator[Block]:
        first = 0
        for shard in shards_of(workspace, recipe, POOL):
            ties = pixel_ties(read_table(index_path(workspace, shard), ["pixels_sha256"])["pixels_sha256"])
            embeddings = read_array(score.embeddings_path(workspace, recipe, shard))
            rows = np.flatnonzero(free[first : first + len(ties)])
            for start in range(0, len(rows), _ROWS):
                some = rows[start : start + _ROWS]
                yield some + first, ties[some], embeddings[some]
            first += len(ties)

    for part in nearest(queries, pool, count, min_cosine=min_cosine, memory_bytes=recipe.runtime.memory_bytes // 2):
        yield Neighbours(labelled[part.query], part.image, part.tie, part.cosine)


def _best_by_image_and_class(
    found: Iterable[Neighbours], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64], NDArray[np.float32]]:
    """(image, tie, label, cosine), each image and label once with the greatest cosine, by image and label."""
    empty = np.empty(0, np.int64)
    image, tie, label, cosine = empty, np.empty(0, np.uint64), empty, np.empty(0, np.float32)
    for part in found:
        image, tie = np.concatenate([image, part.image]), np.concatenate([tie, part.tie])
        label = np.concatenate([label, labels[part.query].astype(np.int64)])
        cosine = np.concatenate([cosine, part.cosine])
        order = np.lexsort((-cosine, label, image))
        first = np.diff(image[order], prepend=-1) | np.diff(label[order], prepend=-2)
        order = order[np.flatnonzero(first)]
        image, tie, label, cosine = image[order], tie[order], label[order], cosine[order]
    return image, tie, label, cosine


def _entries(found: Iterable[Neighbours], labels: NDArray[np.int64]) -> Entries:
    image, tie, label, cosine = _best_by_image_and_class(found, labels)
    order = np.lexsort((label, -cosine, image))
    image, tie, label, cosine = image[order], tie[order], label[order], cosine[order]
    images, starts, counts = np.unique(image, return_index=True, return_counts=True)
    column = np.arange(len(image)) - np.repeat(starts, counts)
    row = np.repeat(np.arange(len(images)), counts)
    shape = (len(images), int(counts.max(initial=1)))
    classes, scores = np.zeros(shape, np.uint16), np.full(shape, -np.inf, np.float32)
    classes[row, column], scores[row, column] = label, cosine
    return Entries(images, tie[starts], classes, scores)


# --- the table ----------------------------------------------------------------------------------


def _write(workspace: Workspace, recipe: MiningRecipe, choice: Choice) -> None:
    """Writes the choice with paths and the teacher's predictions, some lines at a time."""
    numbers, lines = np.unique(choice.image, return_inverse=True)
    paths, predicted, confidence = _facts_of(workspace, recipe, numbers)
    # an image that was retrieved by an unlabelled one gets the predicted class
    label = np.where(choice.label >= 0, choice.label, predicted[lines])
    sources = pa.array(SOURCES)
    with new_table(selected_path(workspace, recipe), SELECTED) as writer:
        for first in range(0, len(lines), ROWS_PER_GROUP):
            part = slice(first, first + ROWS_PER_GROUP)
            here = lines[part]
            columns = [label[part], choice.score[part], predicted[here], confidence[here]]
            texts = paths.take(pa.array(here)).cast(pa.string()), sources.take(pa.array(choice.source[part]))
            writer.write_table(pa.table([texts[0], *columns, texts[1], choice.image[part]], schema=SELECTED))


def _facts_of(
    workspace: Workspace, recipe: MiningRecipe, numbers: NDArray[np.int64]
) -> tuple[pa.Array, NDArray[np.int32], NDArray[np.float32]]:
    """Location, best class and its probability of some pool images, their numbers ascending."""
    starts = offsets(workspace, recipe, POOL)
    text, lengths = bytearray(), [np.empty(0, np.int64)]  # appending grows it in place: no second copy of all paths
    predicted, confidence = np.empty(len(numbers), np.int32), np.empty(len(numbers), np.float32)
    for shard, first, end in zip(shards_of(workspace, recipe, POOL), starts[:-1], starts[1:], strict=True):
        here = slice(*np.searchsorted(numbers, [first, end]))
        rows = numbers[here] - first
        if len(rows):
            ranking = score.read_ranking(score.scores_path(workspace, recipe, shard))
            predicted[here], confidence[here] = ranking.classes[rows, 0], ranking.probabilities[rows, 0]
            places = read_table(index_path(workspace, shard), ["path", "tar", "offset", "bytes"])
            lengths.append(_append(text, locations(places.take(pa.array(rows)))))
    ends = np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64)
    paths = pa.LargeStringArray.from_buffers(len(numbers), pa.py_buffer(ends), pa.py_buffer(text))
    return paths, predicted, confidence


def _append(text: bytearray, strings: pa.Array) -> NDArray[np.int64]:
    """Appends an Arrow array of strings to `text`; returns their lengths."""
    strings = strings.cast(pa.large_string())
    ends = np.frombuffer(strings.buffers()[1], np.int64)[strings.offset : strings.offset + len(strings) + 1]
    text += memoryview(strings.buffers()[2])[ends[0] : ends[-1]]
    return np.diff(ends)


def locations(places: pa.Table) -> pa.Array:
    """How an image list names images of the index: `data_mining.index.location`, for a whole table."""
    path, tar, offset, size = (places[name].combine_chunks() for name in ("path", "tar", "offset", "bytes"))
    offset, size = pc.cast(offset, pa.string()), pc.cast(size, pa.string())
    members = pc.binary_join_element_wise(tar, "@", offset, "+", size, "")  # the last one separates
    return pc.if_else(pc.is_null(tar), path, members)


def _statistics(recipe: MiningRecipe, selected: pa.Table) -> tuple[dict[str, int], dict[str, Any]]:
    lines = {name: pc.equal(selected["source"], name) for name in SOURCES}
    distinct = selected["label"].filter(pc.invert(lines["repeat"])).to_numpy()
    per_class = np.bincount(distinct, minlength=recipe.teacher.num_classes)
    counts = {"images": len(distinct), "lines": len(selected)}
    counts |= {f"by {name}": int(pc.sum(chosen).as_py() or 0) for name, chosen in lines.items()}
    facts: dict[str, Any] = {"classes": len(per_class), "empty_classes": int((per_class == 0).sum())}
    if isinstance(recipe.select, ByClass):
        facts["short_classes"] = int((per_class < recipe.select.images_per_class).sum())
    return counts, facts


def _nothing_chosen(workspace: Workspace, recipe: MiningRecipe) -> UserError:
    kept = int(removal.kept_images(workspace, recipe).sum())
    least = "min_confidence" if isinstance(recipe.select, ByClass) else "min_cosine"
    return UserError(
        f"no image is chosen: {kept} images are left of the pool after leaks and duplicates, and none of them reaches "
        f"select.{least}. Lower it, or look at what the stages before removed"
    )


def _needs_labelled(recipe: MiningRecipe) -> bool:
    return isinstance(recipe.select, ByRetrieval) or recipe.select.backfill is not None
