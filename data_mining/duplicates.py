"""The stage `duplicates`: of pool images that show the same, the best scored one stays.

An image leaves for one that it is alike itself: with identical pixels, a near embedding or a near hash (and, if the
recipe says so, confirmed by SIFT). Labelled images stay and are better than all others, so what they show leaves the
pool. What `leaks` left out takes no part: it represents nobody. Groups, and the guard against chains: see
`components`; how the pairs are found: see `edges`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_mining import leaks, score
from data_mining.components import Components, Edges, choose_representatives, rank_of
from data_mining.edges import Found, Images, compared_images, find_edges, pixel_ties
from data_mining.index import offsets
from data_mining.pixels import bits_apart, sha256_rows
from data_mining.recipe import DuplicatesSection, MiningRecipe
from data_mining.shards import LABELLED, POOL
from data_mining.vectors import Rows, cosines
from data_mining.workspace import StageReport, Workspace, make_key, read_array, read_table, stopwatch, write_table
from distill.errors import UserError

STAGE = "duplicates"

GROUPS = pa.schema(
    [
        ("image", pa.int64()),  # of the pool
        ("representative", pa.int64()),  # the image itself where it stays; its number in its set
        ("representative_set", pa.string()),  # "pool" or "labelled"
        ("component", pa.int64()),  # images that are connected by pairs have the same number
        ("cosine", pa.float32()),  # to the representative
        ("hash_bits", pa.int8()),
        ("identical", pa.bool_()),  # the pixels
    ]
)
"""Every image of the pool that is alike another one, by image."""

_LARGEST_REPORTED = 20


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Resolved:
    """Who stays.

    Attributes:
        representative: int64 [N]: the row that stays for each row, itself if it stays; -1 for rows out of the game.
        component: int64 [N]: the smallest row that each row is connected to.
    """

    representative: Rows
    component: Rows


# --- what other stages need ---------------------------------------------------------------------


def result_key(workspace: Workspace, recipe: MiningRecipe) -> str:
    """The key of the decisions."""
    section = _section(recipe)
    inputs = [score.set_key(workspace, recipe, POOL)]
    count = int(offsets(workspace, recipe, POOL)[-1])
    if _against_labelled(recipe):
        inputs.append(score.set_key(workspace, recipe, LABELLED))
        count += int(offsets(workspace, recipe, LABELLED)[-1])
    if recipe.leaks is not None:
        inputs.append(leaks.result_key(workspace, recipe))
    exact = count <= section.search.exact_up_to_images
    # How faiss searches is no setting of a search that is exact.
    settings = section.model_dump(mode="json", exclude={"large_component"} | ({"search"} if exact else set()))
    return make_key(STAGE, settings | {"exact": exact}, inputs)


def groups_path(workspace: Workspace, recipe: MiningRecipe) -> Path:
    """The groups, a table of GROUPS."""
    return workspace.path(STAGE, "groups", result_key(workspace, recipe), ".parquet")


def removed_images(workspace: Workspace, recipe: MiningRecipe) -> Rows:
    """The numbers of the pool's images that leave, ascending."""
    table = read_table(groups_path(workspace, recipe), ["image", "representative", "representative_set"])
    removed: Rows = table["image"].to_numpy()[_leaves(table)]
    return removed


# --- the stage ----------------------------------------------------------------------------------


def run(workspace: Workspace, recipe: MiningRecipe) -> StageReport:
    """Searches what is not yet searched, and decides who stays.

    Raises:
        UserError: The recipe has no section `duplicates`, or its index does not suit the images.
        RunError: Embeddings are not finite, or too much is alike.
    """
    with stopwatch() as seconds:
        section = _section(recipe)
        images = compared_images(workspace, recipe, section)
        alive = _alive(workspace, recipe, images)
        found = find_edges(workspace, recipe, section, images)
        path = groups_path(workspace, recipe)
        if not path.exists():
            rank = _rank(workspace, recipe, images)
            extra = None if found.exact or section.verify else _checker(images, section)
            resolved = resolve(read_array(images.first), alive, rank, _streams(found, section), extra)
            write_table(path, _groups(images, resolved))
        counts, facts = _summary(read_table(path), int(alive[images.labelled :].sum()), section)
    return StageReport(STAGE, result_key(workspace, recipe), counts, found.facts | facts, seconds[0])


@dataclass(frozen=True)
class Streams:
    """The edges, twice.

    Attributes:
        all: What connects: gives the stream of (a, b) from its start.
        strong: What an image may leave for.
    """

    all: Callable[[], Iterable[Edges]]
    strong: Callable[[], Iterable[Edges]]


def resolve(
    first: Rows,
    alive: NDArray[np.bool_],
    rank: Rows,
    edges: Streams,
    alike: Callable[[Rows, Rows], NDArray[np.bool_]] | None,
) -> Resolved:
    """Decides who stays.

    Args:
        first: int64 [N]: the first row with the same pixels; edges are between such rows only.
        alive: bool [N]: who takes part.
        rank: int64 [N], all different, the smallest is the best. Rows with identical pixels should have neighbouring
            ranks; the first of them that is alive stands for all.
        edges: Between first rows.
        alike: Where the edges may have gaps: says whether first rows are alike. Every member of a component is
            checked against its best.
    """
    count = len(first)
    rows = np.flatnonzero(alive)
    holder = np.full(count, -1, np.int64)  # of the rows with the same pixels, the first that is alive
    holder[first[rows[::-1]]] = rows[::-1]

    def living(stream: Callable[[], Iterable[Edges]]) -> Iterator[Edges]:
        for a, b in stream():
            both = (holder[a] >= 0) & (holder[b] >= 0)
            yield a[both], b[both]

    components = Components(count)
    components.merge(rows, first[rows])
    for a, b in living(edges.all):
        components.merge(a, b)
    component = components.roots()
    found = [] if alike is None else _gaps(component, rank, holder, alike)
    stands = choose_representatives(count, rank, lambda: _chained(living(edges.strong), found))
    representative = np.full(count, -1, np.int64)
    representative[rows] = holder[stands[first[rows]]]
    return Resolved(representative, component)


def _gaps(component: Rows, rank: Rows, holder: Rows, alike: Callable[[Rows, Rows], NDArray[np.bool_]]) -> list[Edges]:
    """The edges from each component's best row to those of its rows that are alike it, found or not."""
    nodes = np.flatnonzero(holder >= 0)
    order = nodes[np.lexsort((rank[nodes], component[nodes]))]
    names, starts, sizes = np.unique(component[order], return_index=True, return_counts=True)
    best, member = np.repeat(order[starts], sizes), order
    others = best != member
    best, member = best[others], member[others]
    checked = alike(best, member)
    return [(best[checked], member[checked])] if len(names) else []


def _chained(stream: Iterable[Edges], more: Iterable[Edges]) -> Iterator[Edges]:
    yield from stream
    yield from more


def _streams(found: Found, section: DuplicatesSection) -> Streams:
    def all_edges() -> Iterator[Edges]:
        for batch in found.stream():
            yield batch["a"].to_numpy(), batch["b"].to_numpy()

    def strong_edges() -> Iterator[Edges]:
        for batch in found.stream():
            strong = _is_strong(batch["cosine"].to_numpy(), batch["hash_bits"].to_numpy(), section)
            yield batch["a"].to_numpy()[strong], batch["b"].to_numpy()[strong]

    return Streams(all_edges, strong_edges)


def _is_strong(
    cosine: NDArray[np.float32], bits: NDArray[np.integer[Any]], section: DuplicatesSection
) -> NDArray[np.bool_]:
    """Whether pairs are alike enough for one to leave for the other."""
    guard = section.min_cosine_to_representative
    least = np.float32(section.min_cosine if guard is None else guard)
    strong: NDArray[np.bool_] = (cosine >= least) | (bits <= section.max_hash_bits)
    return strong


def _checker(images: Images, section: DuplicatesSection) -> Callable[[Rows, Rows], NDArray[np.bool_]]:
    vectors, hashes = images.vectors(), read_array(images.hashes)

    def alike(a: Rows, b: Rows) -> NDArray[np.bool_]:
        return _is_strong(cosines(vectors, a, vectors, b), bits_apart(hashes[a], hashes[b]), section)

    return alike


def _alive(workspace: Workspace, recipe: MiningRecipe, images: Images) -> NDArray[np.bool_]:
    alive = np.ones(len(images), np.bool_)
    if recipe.leaks is not None:
        alive[images.labelled + leaks.removed_images(workspace, recipe)] = False
    return alive


def _rank(workspace: Workspace, recipe: MiningRecipe, images: Images) -> Rows:
    """Labelled images first; then the highest probability, the lowest hash of the pixels, the lowest number."""
    scores = np.full(len(images), np.inf, np.float32)
    ties = np.arange(len(images), dtype=np.uint64)
    for number, (start, end) in enumerate(zip(images.starts, images.starts[1:], strict=False)):
        if start < images.labelled:
            continue
        shard = images.shards[number]
        scores[start:end] = score.read_ranking(score.scores_path(workspace, recipe, shard)).probabilities[:, 0]
        table = read_table(images.indices[number], ["pixels_sha256"])
        ties[start:end] = pixel_ties(sha256_rows(table["pixels_sha256"]))
    return rank_of(np.lexsort((ties, -scores)), len(images))


def _groups(images: Images, resolved: Resolved) -> pa.Table:
    """The table of those who are not alone."""
    rows = np.flatnonzero(resolved.representative >= 0)
    component = resolved.component[rows]
    together = np.bincount(component, minlength=len(images))[component] > 1
    rows = rows[together & (rows >= images.labelled)]
    stays = resolved.representative[rows]
    vectors, hashes, first = images.vectors(), read_array(images.hashes), read_array(images.first)
    labelled = stays < images.labelled
    columns = [
        rows - images.labelled,
        np.where(labelled, stays, stays - images.labelled),
        np.where(labelled, LABELLED, POOL).tolist(),
        resolved.component[rows],
        cosines(vectors, rows, vectors, stays),
        bits_apart(hashes[rows], hashes[stays]).astype(np.int8),
        first[rows] == first[stays],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, GROUPS, strict=True)]
    return pa.table(arrays, schema=GROUPS)


def _leaves(table: pa.Table) -> NDArray[np.bool_]:
    elsewhere = pc.not_equal(table["representative_set"], POOL).to_numpy()
    leaves: NDArray[np.bool_] = elsewhere | (table["image"].to_numpy() != table["representative"].to_numpy())
    return leaves


def _summary(table: pa.Table, images: int, section: DuplicatesSection) -> tuple[dict[str, int], dict[str, Any]]:
    leaves, identical = _leaves(table), table["identical"].to_numpy()
    labelled = pc.equal(table["representative_set"], LABELLED).to_numpy()
    names, sizes = np.unique(table["component"].to_numpy(), return_counts=True)
    stay = np.bincount(np.searchsorted(names, table["component"].to_numpy()[~leaves]), minlength=len(names))
    counts = {
        "images": images,
        "identical pixels": int((leaves & identical & ~labelled).sum()),
        "alike": int((leaves & ~identical & ~labelled).sum()),
        "labelled already": int((leaves & labelled).sum()),
        "images left": images - int(leaves.sum()),
    }
    facts = {
        "components": len(names),
        "largest_components": np.sort(sizes)[::-1][:_LARGEST_REPORTED].tolist(),
        "large_components": int((sizes > section.large_component).sum()),
        "stay_in_a_chain": int(np.maximum(stay - 1, 0).sum()),
    }
    return counts, facts


def _against_labelled(recipe: MiningRecipe) -> bool:
    return _section(recipe).against_labelled and recipe.labelled is not None


def _section(recipe: MiningRecipe) -> DuplicatesSection:
    if recipe.duplicates is None:
        raise UserError("the recipe has no section `duplicates`")
    return recipe.duplicates
