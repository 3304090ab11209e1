"""Leaks: candidates against a loop, the bands, and the whole stage on photographs with known copies."""

import cv2
import numpy as np
import paddle
import pyarrow as pa
import pytest

from data_mining import index, leaks, score
from data_mining.alterations import ALTERATIONS, altered
from data_mining.leaks import (
    CERTAIN,
    DROP,
    FEW_KEYPOINTS,
    HASH,
    IDENTICAL,
    KEEP,
    LEAKS,
    NOT_ASKED,
    PAIRS,
    REVIEW,
    SIFT,
    decide,
    find_candidates,
)
from data_mining.pixels import mirrored
from data_mining.recipe import LeaksSection, MiningRecipe
from data_mining.shards import POOL, shards_of
from data_mining.vectors import Vectors
from data_mining.workspace import Workspace, read_table
from distill.errors import RunError, UserError
from distill.models import create_model
from distill.weights import write_weights

SIDE = 192


class Set:
    """What `find_candidates` needs of a set of images."""

    def __init__(self, seed, count):
        rng = np.random.default_rng(seed)
        self.hashes = rng.integers(0, 8, count, dtype=np.uint64)
        self.labels = rng.integers(-1, 3, count).astype(np.int32)
        self.rows = rng.standard_normal((count, 6)).astype(np.float16)
        self.flipped = rng.standard_normal((count, 6)).astype(np.float16)
        self.forms = rng.standard_normal((count * ALTERATIONS, 6)).astype(np.float16)

    def vectors(self, *, flip=False, altered=False):
        return Vectors([self.forms if altered else self.flipped if flip else self.rows], "set")

    def bound(self, queries, base, min_cosine):
        return None


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("within_label", [False, True])
def test_candidates_are_all_pairs_with_a_near_embedding_or_hash(flip, within_label):
    pool, others = Set(0, 60), Set(1, 25)
    section = LeaksSection(min_cosine=0.8, max_hash_bits=1, within_label=within_label)
    if flip:
        pool.hashes = mirrored(pool.hashes)
    found = find_candidates(pool, others, section, flip=flip, memory_bytes=2**26)
    vectors = (others.flipped if flip else others.rows).astype(float)
    expected = []
    for row, number in np.ndindex(60, 25):
        one, two = pool.rows[row].astype(float), vectors[number]
        cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
        other = mirrored(others.hashes)[number] if flip else others.hashes[number]
        bits = bin(int(pool.hashes[row] ^ other)).count("1")
        same = pool.labels[row] == others.labels[number] >= 0
        if (cosine >= 0.8 or bits <= 1) and (same or not within_label):
            expected.append((row, number, pytest.approx(cosine, abs=1e-6), bits))
    columns = (found.row, found.protected, found.cosine, found.bits)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert len(expected) > 20


def test_candidates_of_altered_images_are_pairs_with_the_image_itself():
    pool, others = Set(0, 60), Set(1, 25)
    pool.hashes = np.zeros_like(pool.hashes)
    others.hashes = np.full_like(others.hashes, 2**64 - 1)  # no pair is near by its hash
    section = LeaksSection(min_cosine=1.0, altered_min_cosine=0.95, max_hash_bits=0)
    found = find_candidates(pool, others, section, flip=False, memory_bytes=2**26)
    one, two = (
        rows.astype(float) / np.linalg.norm(rows.astype(float), axis=1, keepdims=True)
        for rows in (pool.rows, others.forms)
    )
    near = (one @ two.T).reshape(60, 25, ALTERATIONS).max(axis=2) >= 0.95
    assert list(zip(found.row.tolist(), found.protected.tolist(), strict=True)) == list(
        zip(*np.nonzero(near), strict=True)
    )
    assert 20 < near.sum() < 1000


BANDS = {"drop_inliers": 20, "review_inliers": 10}


@pytest.mark.parametrize(
    ("hash_bits", "inliers", "keypoints", "identical", "expected"),
    [
        (0, NOT_ASKED, NOT_ASKED, True, (DROP, IDENTICAL)),
        (0, NOT_ASKED, NOT_ASKED, False, (DROP, CERTAIN)),
        (30, 20, 99, False, (DROP, SIFT)),
        (30, 19, 99, False, (REVIEW, SIFT)),
        (30, 10, 99, False, (REVIEW, SIFT)),
        (30, 9, 99, False, (KEEP, "")),
        (2, 9, 99, False, (REVIEW, HASH)),  # SIFT says no, as it does of blurred copies
        (3, 9, 99, False, (KEEP, "")),
        (8, 0, 9, False, (REVIEW, FEW_KEYPOINTS)),  # too few for SIFT to tell, but the hash says so
        (9, 0, 9, False, (KEEP, "")),
    ],
)
def test_bands(hash_bits, inliers, keypoints, identical, expected):
    section = LeaksSection(min_cosine=0.5, max_hash_bits=8, review_hash_bits=2, verification=BANDS)
    facts = {"row": 0, "protected_set": "test", "protected": 0, "mirrored": False, "cosine": 0.1, "same_label": False}
    pair = {"hash_bits": hash_bits, "inliers": inliers, "keypoints": keypoints, "identical": identical}
    table = pa.Table.from_pylist([facts | pair], PAIRS)
    assert tuple(column.to_pylist()[0] for column in decide(table, section)) == expected


def test_a_hash_alone_decides_nothing_where_the_recipe_says_so():
    table = pa.Table.from_pylist([{"hash_bits": 0, "inliers": 9, "keypoints": 99, "identical": False}], PAIRS)
    section = LeaksSection(min_cosine=0.5, max_hash_bits=8, review_hash_bits=-1, verification=BANDS)
    assert decide(table, section)[0].to_pylist() == [KEEP]


def decided(rows):
    """Rows (image, protected_set, protected, mirrored, cosine, inliers, decision)."""
    names = ("image", "protected_set", "protected", "mirrored", "cosine", "inliers", "decision")
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], LEAKS)


def test_the_stronger_of_original_and_mirrored_counts():
    table = decided(
        [
            (1, "a", 5, False, 0.9, 4, KEEP),
            (1, "a", 7, False, 0.7, 4, KEEP),
            (0, "a", 5, False, 0.5, NOT_ASKED, DROP),
            (1, "b", 5, False, 0.5, 4, KEEP),
            (2, "a", 5, False, 0.5, 3, REVIEW),  # by its hash
            (1, "a", 5, True, 0.1, 40, DROP),
            (0, "a", 5, True, 0.6, 300, DROP),
            (1, "a", 7, True, 0.8, 4, KEEP),
            (2, "a", 5, True, 0.9, 5, KEEP),
        ]
    )
    kept = leaks._stronger(table).select(["image", "protected_set", "protected", "mirrored"]).to_pylist()
    expected = [(0, "a", 5, False), (1, "a", 5, True), (1, "a", 7, True), (1, "b", 5, False), (2, "a", 5, False)]
    assert [tuple(row.values()) for row in kept] == expected


# --- the stage --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(photos, tmp_path_factory):
    """Protected photographs, and a pool: copies of some of them in one folder, others' and innocent ones in another.

    The network is random: its embeddings tell little, so that nearly all pairs are candidates and SIFT decides.
    """
    root = tmp_path_factory.mktemp("leaks")
    protected = photos.names[:4]
    for number, name in enumerate(protected):
        save(root / f"test/{number}/{name}.png", photos.load(name, SIDE))
    for edit, function in photos.edits.items():
        save(root / f"pool/0/astronaut {edit}.jpg", function(photos.load("astronaut", SIDE)))
    save(root / "pool/1/chelsea.png", photos.load("chelsea", SIDE))
    save(root / "pool/1/coffee mirrored.jpg", photos.mirrored(photos.load("coffee", SIDE)))
    for name in photos.names[4:]:
        save(root / f"pool/1/{name}.jpg", photos.load(name, SIDE))
    cv2.imwrite(str(root / "pool/1/white.png"), np.full((50, 60, 3), 255, np.uint8))
    paddle.seed(1)
    model = create_model("ResNet18_vd", 5, width=0.0625, stem_stride=4)
    write_weights(root / "t.safetensors", {key: value.numpy() for key, value in model.state_dict().items()}, {})
    return root


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def make_recipe(world, **section):
    def folder(name):
        return {"sources": [{"kind": "folder", "root": str(world / name), "labels": "sub_folders"}]}

    verification = {"side_px": SIDE, "drop_inliers": 12, "review_inliers": 6}
    return MiningRecipe.model_validate(
        {
            "name": "t",
            "description": "",
            "pool": folder("pool"),
            "protected": [{"name": "test", **folder("test")}],
            "leaks": {"min_cosine": -1.0, "max_hash_bits": 8, "verification": verification, **section},
            "teacher": {
                "kind": "network",
                "name": "ResNet18_vd",
                "width": 0.0625,
                "weights": str(world / "t.safetensors"),
                "num_classes": 5,
                "resize_short_px": 32,
                "crop_px": 32,
                "normalization": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
            },
            "score": {"top_classes": 2, "embedding_dim": 8},
            "select": {"kind": "by_class", "images_per_class": 2},
            "runtime": {"device": "cpu", "workers": 1},
        }
    )


@pytest.fixture(scope="module")
def scored(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("out")
    with Workspace(root) as workspace:
        index.run(workspace, make_recipe(world))
        score.run(workspace, make_recipe(world))
    return root


def run(scored, recipe):
    """The report, the names of the images that were removed, and the table."""
    with Workspace(scored) as workspace:
        report = leaks.run(workspace, recipe)
        names = index.read_index(workspace, recipe, POOL, ["path"])["path"].to_pylist()
        removed = {names[number].split("/")[-1] for number in leaks.removed_images(workspace, recipe)}
        table = read_table(leaks.leaks_path(workspace, recipe))
    return report, removed, table


def test_copies_leave_and_others_stay(scored, world, photos):
    report, removed, table = run(scored, make_recipe(world))
    copies = {f"astronaut {edit}.jpg" for edit in photos.edits} | {"chelsea.png", "coffee mirrored.jpg"}
    assert removed == copies
    assert report.counts["leaks"] == len(copies)
    assert report.counts["images left"] == report.counts["images"] - len(copies) == 4
    rows = [row for row in table.to_pylist() if row["decision"] == DROP]
    assert {row["protected"] for row in rows} == {0, 1, 2}
    assert [row["mirrored"] for row in rows if row["protected"] == 2] == [True]
    (identical,) = [row for row in rows if row["identical"]]
    assert (identical["inliers"], identical["hash_bits"]) == (NOT_ASKED, 0)
    assert report.facts["leaks_within_label"] == len(photos.edits) + 1
    assert report.facts["leaks_by_reason"] == {IDENTICAL: 1, SIFT: len(copies) - 1}
    assert report.facts["review_by_reason"] == {}


def test_without_the_mirrored_pass_mirrored_copies_stay(scored, world):
    _, removed, _ = run(scored, make_recipe(world, mirrored=False))
    assert "coffee mirrored.jpg" not in removed
    assert "chelsea.png" in removed


def test_crops_and_framed_copies_are_near_to_the_image_altered_alike(world, photos, tmp_path):
    """The embedding of a network that knows nothing: what it says of two images that look alike is alike."""
    image = photos.load("astronaut", SIDE)
    forms = list(altered(image))
    pool = tmp_path / "pool/0"
    for name, form in (("half.png", forms[4]), ("quarter.png", forms[14]), ("framed.png", forms[-1])):
        save(pool / name, form)
    for name in photos.names[4:]:
        save(pool / f"{name}.png", photos.load(name, SIDE))
    sources = [{"kind": "folder", "root": str(tmp_path / "pool")}]
    found = {}
    for altered_min_cosine in (None, 0.999):
        recipe = make_recipe(world, min_cosine=0.999, max_hash_bits=0, altered_min_cosine=altered_min_cosine)
        recipe = MiningRecipe.model_validate(recipe.model_dump() | {"pool": {"sources": sources}})
        with Workspace(tmp_path / str(altered_min_cosine)) as workspace:
            index.run(workspace, recipe)
            score.run(workspace, recipe)
        found[altered_min_cosine] = run(tmp_path / str(altered_min_cosine), recipe)[1]
    assert found == {None: set(), 0.999: {"half.png", "quarter.png", "framed.png"}}


def test_hashes_alone_miss_crops(scored, world):
    _, removed, _ = run(scored, make_recipe(world, min_cosine=1.0))
    assert "astronaut crop 25.jpg" not in removed
    assert {"astronaut jpeg.jpg", "astronaut blur.jpg", "coffee mirrored.jpg", "chelsea.png"} <= removed


def test_within_one_label_only_as_ssld_did(scored, world, photos):
    _, removed, _ = run(scored, make_recipe(world, within_label=True))
    assert removed == {f"astronaut {edit}.jpg" for edit in photos.edits} | {"chelsea.png"}


def test_a_threshold_of_the_decision_verifies_nothing_again(scored, world, monkeypatch):
    run(scored, make_recipe(world))
    monkeypatch.setattr(leaks, "find_in_shard", lambda *_: pytest.fail("a shard is compared again"))
    rule = {"side_px": SIDE, "drop_inliers": 100_000, "review_inliers": 12}
    report, removed, table = run(scored, make_recipe(world, verification=rule, drop_review_band=False))
    assert removed == {"chelsea.png"}  # identical pixels need no inliers
    assert report.counts["to review"] >= 12
    assert sum(report.facts["review_by_reason"].values()) == report.counts["to review"]
    assert set(table["decision"].to_pylist()) == {DROP, REVIEW, KEEP}


def test_parts_are_the_same_however_they_come_about(scored, world, tmp_path):
    """One worker or two, much memory or little."""
    recipe = make_recipe(world)
    run(scored, recipe)
    with Workspace(scored) as workspace:
        results = [job.result for job in leaks._jobs(workspace, recipe)]
        assert len(results) == len(shards_of(workspace, recipe, POOL)) == 2
    before = [path.read_bytes() for path in results]
    for path in results:
        path.unlink()
    small = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"workers": 2, "memory": "20MiB"})})
    run(scored, small)
    assert [path.read_bytes() for path in results] == before


def test_an_image_that_vanishes_meanwhile_is_named(scored, world):
    path = world / "test/0/astronaut.png"
    recipe = make_recipe(world, certain_hash_bits=0)
    with Workspace(scored) as workspace:
        shards_of(workspace, recipe, "protected-test")
        leaks._images.cache_clear()  # what this process has seen already
        away = path.rename(world / "away.png")
        try:
            with pytest.raises(RunError, match=r"astronaut\.png"):
                leaks.run(workspace, recipe)
        finally:
            away.rename(path)


def test_a_recipe_without_the_section_is_told(scored, world):
    recipe = make_recipe(world).model_copy(update={"leaks": None})
    with Workspace(scored) as workspace, pytest.raises(UserError, match="section `leaks`"):
        leaks.run(workspace, recipe)
