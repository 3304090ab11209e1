"""The stage `leaks`: pool images that show a protected image, as it is or mirrored.

Candidates are all pairs with a near embedding or a near perceptual hash, found exactly: an approximate search
that misses one in a hundred would leave a validation set that is not one. SIFT with a geometric check says what is
dropped, see `verify`. What it is not sure of is the review band, for a person to look at. A very near hash belongs
there too: SIFT fails where a copy is blurred, or smaller than the original, and there the hash does not. Crops and
framed copies are near to the protected image in the same form, see `alterations`.

One part a shard of the pool, which does not depend on the thresholds of the decision: those can be changed at
no cost.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_mining import score
from data_mining.alterations import ALTERATIONS
from data_mining.executors import map_shards, memory_per_worker, threads_per_worker
from data_mining.hamming import near_across
from data_mining.index import Reader, index_path, offsets
from data_mining.index import part_key as index_part_key
from data_mining.pixels import bits_apart, mirrored, sha256_rows
from data_mining.recipe import LeaksSection, MiningRecipe
from data_mining.shards import POOL, Shard, protected, shards_of
from data_mining.similarity import Bound, fit_bound, similar_pairs
from data_mining.vectors import Rows, Vectors, cosines
from data_mining.verify import FeatureCache, Features, describe, inliers
from data_mining.workspace import (
    StageReport,
    Workspace,
    make_key,
    read_table,
    stopwatch,
    write_table,
)
from distill.errors import UserError

STAGE = "leaks"
DROP, REVIEW, KEEP = "drop", "review", "keep"
IDENTICAL, CERTAIN, SIFT, HASH, FEW_KEYPOINTS = REASONS = (
    "identical pixels",
    "hash and embedding",
    "SIFT",
    "hash",
    "near hash, few keypoints",
)
"""Of the decisions "drop" and "review", the strongest first."""
NOT_ASKED = -1
"""In place of inliers: the pixels are identical, or hash and embedding are so close that SIFT was not asked."""

PAIRS = pa.schema(
    [
        ("row", pa.int64()),  # of the shard
        ("protected_set", pa.string()),
        ("protected", pa.int64()),  # the image's number in that set
        ("mirrored", pa.bool_()),
        ("cosine", pa.float32()),
        ("hash_bits", pa.int8()),
        ("identical", pa.bool_()),  # the pixels
        ("same_label", pa.bool_()),
        ("inliers", pa.int32()),
        ("keypoints", pa.int32()),  # of the image that has fewer
    ]
)
LEAKS = pa.schema([("image", pa.int64()), *list(PAIRS)[1:], ("decision", pa.string()), ("reason", pa.string())])

_Cache = FeatureCache[tuple[int, bool]]
_See = Callable[[tuple[int, bool]], Features]

_COLUMNS = ("path", "tar", "offset", "bytes", "label", "pixels_sha256", "phash")


@dataclass(frozen=True)
class SetFiles:
    """The artefacts of a set of images, or of a shard.

    Attributes:
        name: What messages and tables call it.
        index: The parts of its index.
        embeddings: The parts of its embeddings.
        mirrored: The same of the mirrored images; empty if they are not looked for.
        altered: The same of the images in the forms of `alterations`; empty if those are not looked for.
        altered_mirrored: And mirrored.
        shards: Its shards, to notice a changed tar.
    """

    name: str
    index: tuple[Path, ...]
    embeddings: tuple[Path, ...]
    mirrored: tuple[Path, ...]
    altered: tuple[Path, ...]
    altered_mirrored: tuple[Path, ...]
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Job:
    """A shard of the pool.

    Attributes:
        files: Its artefacts.
        result: Where its pairs go.
    """

    files: SetFiles
    result: Path

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.files.name


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Candidates:
    """M pairs of an image of a shard and a protected one.

    Attributes:
        row: int64 [M], of the shard.
        protected: int64 [M].
        cosine: float32 [M].
        bits: uint8 [M], of the hashes.
    """

    row: Rows
    protected: Rows
    cosine: NDArray[np.float32]
    bits: NDArray[np.uint8]


# --- what other stages need ---------------------------------------------------------------------


def result_key(workspace: Workspace, recipe: MiningRecipe) -> str:
    """The key of the decisions."""
    keys = [job.result.stem for job in _jobs(workspace, recipe)]
    return make_key(STAGE, _section(recipe), keys)


def leaks_path(workspace: Workspace, recipe: MiningRecipe) -> Path:
    """All candidates with their decisions, a table of LEAKS, by image; see `run`."""
    return workspace.path(STAGE, "leaks", result_key(workspace, recipe), ".parquet")


def removed_images(workspace: Workspace, recipe: MiningRecipe) -> Rows:
    """The numbers of the pool's images that are left out, ascending: leaks, and the review band if the recipe says."""
    table = read_table(leaks_path(workspace, recipe), ["image", "decision"])
    out = [DROP, REVIEW] if _section(recipe).drop_review_band else [DROP]
    chosen = table.filter(pc.is_in(table["decision"], pa.array(out)))
    return np.unique(chosen["image"].to_numpy()).astype(np.int64)


def decide(pairs: pa.Table, section: LeaksSection) -> tuple[pa.Array, pa.Array]:
    """The decision about each pair ("drop", "review" or "keep") and its reason (of REASONS; "" where it is kept).

    Dropped: identical pixels, a pair that needs no SIFT, and as many inliers as the recipe asks for. To review: fewer
    of them; a very near hash, whatever SIFT and the embedding say; a near hash where one image has so few keypoints
    that SIFT could not have said yes.

    Why the hash alone is enough for a review: of the 10^9 pairs of CIFAR-10's 50,000 training and 10,000 test images,
    as they are and mirrored, 110 have hashes at most 4 bits apart, and of those 96 a correlation of their pixels
    above 0.9. Silhouettes and icons differ less: `recipes/mining/fashion_mnist_pool.yaml` allows 2 bits.
    """
    rule = section.verification
    count, keypoints = pairs["inliers"].to_numpy(), pairs["keypoints"].to_numpy()
    bits = pairs["hash_bits"].to_numpy()
    rules = (
        (DROP, IDENTICAL, pairs["identical"].to_numpy()),
        (DROP, CERTAIN, count == NOT_ASKED),
        (DROP, SIFT, count >= rule.drop_inliers),
        (REVIEW, SIFT, count >= rule.review_inliers),
        (REVIEW, HASH, bits <= section.review_hash_bits),
        (REVIEW, FEW_KEYPOINTS, (keypoints < rule.review_inliers) & (bits <= section.max_hash_bits)),
    )
    first = pa.array(np.select([holds for *_, holds in rules], list(range(len(rules))), len(rules)))
    decisions = pa.array([*(decision for decision, *_ in rules), KEEP])
    reasons = pa.array([*(reason for _, reason, _ in rules), ""])
    return decisions.take(first), reasons.take(first)


# --- the stage ----------------------------------------------------------------------------------


def run(workspace: Workspace, recipe: MiningRecipe) -> StageReport:
    """Compares the pool's shards that are not yet compared, and decides about all candidates.

    Raises:
        UserError: The recipe protects nothing.
        RunError: An image has vanished, or the thresholds let nearly everything through.
    """
    with stopwatch() as seconds:
        section = _section(recipe)
        jobs = _jobs(workspace, recipe)
        missing = [job for job in jobs if not job.result.exists()]
        function = functools.partial(find_in_shard, recipe, _protected_files(workspace, recipe))
        map_shards(function, missing, recipe.runtime, title=STAGE)
        path = leaks_path(workspace, recipe)
        if not path.exists():
            write_table(path, _all_decisions(workspace, recipe, jobs))
        table = read_table(path)
        counts, facts = _summary(table, int(offsets(workspace, recipe, POOL)[-1]), section)
        left_out = len(removed_images(workspace, recipe))
        counts["images left"] = counts["images"] - left_out
    return StageReport(STAGE, result_key(workspace, recipe), counts, facts, seconds[0])


def find_in_shard(recipe: MiningRecipe, sets: Sequence[SetFiles], job: Job) -> None:
    """Finds and verifies a shard's candidates, and writes its part."""
    memory_bytes = memory_per_worker(recipe.runtime)
    pool = _Images(job.files)
    with Reader(job.files.shards) as reader, Reader(shard for each in sets for shard in each.shards) as other_reader:
        compare = functools.partial(_find_against, recipe, pool, reader, memory_bytes=memory_bytes, sets=len(sets))
        tables = [compare(_images(each), other_reader) for each in sets]
    write_table(job.result, pa.concat_tables(tables))


def find_candidates(
    pool: "_Images",
    others: "_Images",
    section: LeaksSection,
    *,
    flip: bool,
    memory_bytes: int,
    threads: int = 1,
) -> Candidates:
    """All pairs with a near embedding, of the protected image as it is or altered, or a near hash.

    Args:
        pool: Of a shard.
        others: The protected images.
        section: The thresholds; whether labels must agree.
        flip: Compare with the mirrored protected images.
        memory_bytes: What the search may take.
        threads: Of the search.
    """
    hashes = mirrored(others.hashes) if flip else others.hashes
    near = [
        (pairs.first, pairs.second)
        for pairs in near_across(pool.hashes, hashes, section.max_hash_bits, memory_bytes=memory_bytes // 4)
    ]
    vectors = others.vectors(flip=flip)
    searches = [(vectors, section.min_cosine, 1)]
    if section.altered_min_cosine is not None:
        searches.append((others.vectors(flip=flip, altered=True), section.altered_min_cosine, ALTERATIONS))
    for base, min_cosine, forms in searches:
        bound = others.bound(pool.vectors(), base, min_cosine)
        alike = similar_pairs(
            pool.vectors(), base, min_cosine, memory_bytes=memory_bytes // 2, threads=threads, bound=bound
        )
        near += [(pairs.first, pairs.second // forms) for pairs in alike]
    both = [first * len(others.hashes) + second for first, second in near]
    row, number = np.divmod(np.unique(np.concatenate([np.empty(0, np.int64), *both])), max(1, len(others.hashes)))
    if section.within_label:
        same = _same_label(pool.labels[row], others.labels[number])
        row, number = row[same], number[same]
    cosine = cosines(pool.vectors(), row, vectors, number)
    return Candidates(row, number, cosine, bits_apart(pool.hashes[row], hashes[number]))


def _find_against(
    recipe: MiningRecipe,
    pool: "_Images",
    reader: Reader,
    others: "_Images",
    other_reader: Reader,
    *,
    memory_bytes: int,
    sets: int,
) -> pa.Table:
    """The pairs of a shard with one protected set; an image that is near the mirrored one too has two."""
    section = _section(recipe)
    side = section.verification.side_px
    see = functools.partial(pool.describe, reader, side), functools.partial(others.describe, other_reader, side)
    caches = FeatureCache[tuple[int, bool]](memory_bytes // 16), others.features(side, memory_bytes // 4 // sets)
    tables = []
    for flip in (False, True) if section.mirrored else (False,):
        found = find_candidates(
            pool, others, section, flip=flip, memory_bytes=memory_bytes, threads=threads_per_worker(recipe.runtime)
        )
        identical = (pool.sha256[found.row] == others.sha256[found.protected]).all(axis=1) & (not flip)
        certain = (found.bits.astype(int) <= section.certain_hash_bits) & (found.cosine >= section.min_cosine)
        counts, keypoints = _verified(found, identical | certain, caches, see, section, flip=flip)
        columns = (
            found.row,
            [others.name] * len(found.row),
            found.protected,
            np.full(len(found.row), flip),
            found.cosine,
            found.bits.astype(np.int8),
            identical,
            _same_label(pool.labels[found.row], others.labels[found.protected]),
            counts,
            keypoints,
        )
        tables.append(pa.table([pa.array(c, f.type) for c, f in zip(columns, PAIRS, strict=True)], PAIRS))
    return pa.concat_tables(tables)


def _verified(
    found: Candidates,
    obvious: NDArray[np.bool_],
    caches: tuple[_Cache, _Cache],
    see: tuple[_See, _See],
    section: LeaksSection,
    *,
    flip: bool,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The inliers of each pair, `NOT_ASKED` where it is obvious; and the keypoints of the poorer image."""
    rule = section.verification
    counts = np.full(len(found.row), NOT_ASKED, np.int32)
    keypoints = np.full(len(found.row), NOT_ASKED, np.int32)
    for at in np.flatnonzero(~obvious).tolist():  # by row: each image of the shard is described once
        one = caches[0].get((int(found.row[at]), False), see[0])
        other = caches[1].get((int(found.protected[at]), flip), see[1])
        counts[at] = inliers(one, other, ratio=rule.ratio, ransac_px=rule.ransac_px)
        keypoints[at] = min(len(one.points), len(other.points))
    return counts, keypoints


def _same_label(first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Whether both images have a label, and the same."""
    same: NDArray[np.bool_] = (first == second) & (first >= 0)
    return same


class _Images:
    """The fingerprints of a set, in memory; its embeddings and images, read when they are needed."""

    def __init__(self, files: SetFiles) -> None:
        table = pa.concat_tables(read_table(path, _COLUMNS) for path in files.index)
        self.name = files.name
        self.hashes: NDArray[np.uint64] = table["phash"].to_numpy()
        self.labels: NDArray[np.int32] = table["label"].to_numpy()
        self.sha256 = sha256_rows(table["pixels_sha256"])
        self._vectors = {
            (False, False): Vectors(files.embeddings, files.name),
            (True, False): Vectors(files.mirrored, f"{files.name}, mirrored"),
            (False, True): Vectors(files.altered, f"{files.name}, altered"),
            (True, True): Vectors(files.altered_mirrored, f"{files.name}, altered and mirrored"),
        }
        self._places = table.select(["path", "tar", "offset", "bytes"])
        self._bounds: dict[str, Bound] = {}
        self._features: dict[tuple[int, int], _Cache] = {}

    def vectors(self, *, flip: bool = False, altered: bool = False) -> Vectors:
        """The embeddings, of altered images `ALTERATIONS` rows an image."""
        return self._vectors[flip, altered]

    def bound(self, queries: Vectors, base: Vectors, min_cosine: float) -> Bound:
        """Fitted to the first shard that a process meets; another one would change the speed only."""
        if base.title not in self._bounds:
            self._bounds[base.title] = fit_bound(queries, base, min_cosine)
        return self._bounds[base.title]

    def features(self, side_px: int, memory_bytes: int) -> _Cache:
        """What SIFT saw in the images, by (number, mirrored); held for the next shards too."""
        if (side_px, memory_bytes) not in self._features:
            self._features[side_px, memory_bytes] = FeatureCache(memory_bytes)
        return self._features[side_px, memory_bytes]

    def describe(self, reader: Reader, side_px: int, key: tuple[int, bool]) -> Features:
        """The features of an image, by (number, mirrored)."""
        number, flip = key
        place = self._places.slice(number, 1).to_pylist()[0]
        image = reader.image(place["path"], place["tar"], place["offset"], place["bytes"])
        return describe(np.ascontiguousarray(image[:, ::-1]) if flip else image, side_px)


@functools.lru_cache(maxsize=16)
def _images(files: SetFiles) -> _Images:
    return _Images(files)


def _section(recipe: MiningRecipe) -> LeaksSection:
    if recipe.leaks is None:
        raise UserError("the recipe has no section `leaks`")
    return recipe.leaks


_DECIDING: dict[str, Any] = {
    "drop_review_band": True,
    "review_hash_bits": True,
    "verification": {"drop_inliers", "review_inliers"},
}


def _jobs(workspace: Workspace, recipe: MiningRecipe) -> list[Job]:
    section = _section(recipe)
    # What decides is not asked for yet.
    settings = section.model_dump(mode="json", exclude=_DECIDING)
    against = [score.set_key(workspace, recipe, protected(each.name)) for each in recipe.protected]
    against += [each.name for each in recipe.protected]
    jobs = []
    for shard in shards_of(workspace, recipe, POOL):
        inputs = [score.part_key(workspace, recipe, shard), index_part_key(shard), *against]
        result = workspace.path(STAGE, "pairs", make_key("leak-candidates", settings, inputs), ".parquet")
        jobs.append(Job(_files(workspace, recipe, shard.title, [shard]), result))
    return jobs


def _protected_files(workspace: Workspace, recipe: MiningRecipe) -> tuple[SetFiles, ...]:
    return tuple(
        _files(workspace, recipe, each.name, shards_of(workspace, recipe, protected(each.name)), _section(recipe))
        for each in recipe.protected
    )


def _files(
    workspace: Workspace, recipe: MiningRecipe, name: str, shards: Sequence[Shard], section: LeaksSection | None = None
) -> SetFiles:
    """The files of a protected set where a section is given, with the forms that it looks for; else of the pool."""
    flip = section is not None and section.mirrored
    alter = section is not None and section.altered_min_cosine is not None

    def embeddings(**forms: bool) -> tuple[Path, ...]:
        return tuple(score.embeddings_path(workspace, recipe, shard, **forms) for shard in shards)

    return SetFiles(
        name,
        index=tuple(index_path(workspace, shard) for shard in shards),
        embeddings=embeddings(),
        mirrored=embeddings(mirrored=True) if flip else (),
        altered=embeddings(altered=True) if alter else (),
        altered_mirrored=embeddings(mirrored=True, altered=True) if flip and alter else (),
        shards=tuple(shards),
    )


def _all_decisions(workspace: Workspace, recipe: MiningRecipe, jobs: Sequence[Job]) -> pa.Table:
    parts = []
    for first, job in zip(offsets(workspace, recipe, POOL)[:-1], jobs, strict=True):
        pairs = read_table(job.result)
        image = pa.array(pairs["row"].to_numpy() + first, pa.int64())
        columns = [image, *pairs.columns[1:], *decide(pairs, _section(recipe))]
        parts.append(_stronger(pa.table(columns, schema=LEAKS)))
    return pa.concat_tables(parts)


def _stronger(table: pa.Table) -> pa.Table:
    """Of an original and a mirrored match of the same two images, the better one; by image, set, protected image."""
    image, number = table["image"].to_numpy(), table["protected"].to_numpy()
    names = table["protected_set"].combine_chunks().dictionary_encode().indices.to_numpy()
    decision = pc.index_in(table["decision"], pa.array([DROP, REVIEW, KEEP])).to_numpy()
    asked = table["inliers"].to_numpy()
    evidence = np.where(asked == NOT_ASKED, np.iinfo(np.int32).max, asked)
    better = (table["mirrored"].to_numpy(), -table["cosine"].to_numpy(), -evidence, decision)
    order = np.lexsort((*better, number, names, image))
    new = np.ones(len(order), np.bool_)
    new[1:] = np.diff(np.stack([image, names, number])[:, order]).any(axis=0)
    return table.take(pa.array(order[new]))


def _summary(table: pa.Table, images: int, section: LeaksSection) -> tuple[dict[str, int], dict[str, Any]]:
    decision = np.array(table["decision"].to_pylist(), object)
    image = table["image"].to_numpy()
    same_label = table["same_label"].to_numpy()
    dropped = np.unique(image[decision == DROP])
    review = np.setdiff1d(image[decision == REVIEW], dropped)
    counts = {
        "images": images,
        "candidate pairs": len(table),
        "leaks": len(dropped),
        "to review": len(review),
    }
    facts = {
        "leaks_within_label": len(np.unique(image[(decision == DROP) & same_label])),
        "leaks_by_reason": _by_reason(table, dropped),
        "review_by_reason": _by_reason(table, review),
        "leaks_mirrored": len(np.unique(image[(decision == DROP) & table["mirrored"].to_numpy()])),
        "thresholds": section.model_dump(mode="json"),
    }
    return counts, facts


def _by_reason(table: pa.Table, images: Rows) -> dict[str, int]:
    """How many of the images have left or shall be reviewed for each reason; each counts for its strongest one."""
    reason = pc.index_in(table["reason"], pa.array(REASONS)).fill_null(len(REASONS)).to_numpy()
    strongest = np.full(len(images), len(REASONS), np.int64)
    rows = np.flatnonzero(np.isin(table["image"].to_numpy(), images))
    np.minimum.at(strongest, np.searchsorted(images, table["image"].to_numpy()[rows]), reason[rows])
    counts = np.bincount(strongest, minlength=len(REASONS))
    return {name: int(count) for name, count in zip(REASONS, counts, strict=False) if count}
