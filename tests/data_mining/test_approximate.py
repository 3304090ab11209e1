"""The inverted file: its pairs are pairs, its recall is what it claims, and it is built in any memory."""

import numpy as np
import pytest
from scipy.stats import binomtest

from data_mining import approximate
from data_mining.approximate import audit, build_index, default_factory, evenly, neighbour_pairs, open_index, wilson
from data_mining.similarity import similar_pairs
from data_mining.vectors import Pairs, Vectors
from distill.errors import UserError

COUNT, DIMENSION = 4_000, 24
MEMORY = 2**28


@pytest.fixture(scope="module")
def vectors():
    """Clusters, and copies of a tenth of the rows."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((COUNT // 20, DIMENSION))[rng.integers(0, COUNT // 20, COUNT)]
    rows += 0.7 * rng.standard_normal(rows.shape)
    rows[: COUNT // 10] = rows[COUNT // 2 : COUNT // 2 + COUNT // 10] + 0.1 * rng.standard_normal((400, DIMENSION))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    half = rows.astype(np.float16)
    return Vectors([half[:1_500], half[1_500:]], "pool")


@pytest.fixture(scope="module")
def exact(vectors):
    return {
        (a, b): c
        for pairs in similar_pairs(vectors, vectors, 0.9, memory_bytes=MEMORY, own_rows_from=0)
        for a, b, c in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.cosine.tolist(), strict=True)
    }


def found_by(path, vectors, nprobe, portion=1_000, neighbours=16):
    index = open_index(path, nprobe=nprobe, threads=1)
    return [
        neighbour_pairs(index, vectors, at, min(at + portion, COUNT), neighbours=neighbours, min_cosine=0.9)
        for at in range(0, COUNT, portion)
    ]


def as_dict(found):
    return {
        (a, b): c
        for pairs in found
        for a, b, c in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.cosine.tolist(), strict=True)
    }


@pytest.mark.parametrize("factory", ["IVF64,SQfp16", "IVF64,Flat", "IVF64_HNSW16,SQfp16"])
def test_all_cells_find_all_pairs(vectors, exact, tmp_path, factory):
    build_index(tmp_path / "index", vectors, factory, memory_bytes=MEMORY, threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert as_dict(found_by(tmp_path / "index", vectors, nprobe=64)) == exact


def test_few_cells_find_fewer_and_the_audit_says_how_many(vectors, exact, tmp_path):
    build_index(tmp_path / "index", vectors, "IVF64,SQfp16", memory_bytes=MEMORY, threads=1)
    found = found_by(tmp_path / "index", vectors, nprobe=1)
    hits = as_dict(found)
    assert set(hits) < set(exact)
    assert hits == {pair: exact[pair] for pair in hits}
    measured = audit(vectors, found, 0.9, evenly(0, COUNT, COUNT), memory_bytes=MEMORY)  # a sample that is everything
    assert (measured.pairs, measured.found) == (len(exact), len(hits))
    some = audit(vectors, found, 0.9, evenly(0, COUNT, 500), memory_bytes=MEMORY)
    sample = {row * COUNT // 500 for row in range(500)}
    touched = {pair for pair in exact if sample & set(pair)}
    assert (some.images, some.pairs, some.found) == (500, len(touched), len(touched & set(hits)))
    assert some.low <= some.recall <= some.high


def test_an_index_larger_than_the_memory_lies_on_the_disk(monkeypatch, vectors, exact, tmp_path):
    build_index(tmp_path / "whole", vectors, "IVF64,SQfp16", memory_bytes=MEMORY, threads=1)
    monkeypatch.setattr(approximate, "_rows_per_block", lambda *_: 900)
    build_index(tmp_path / "parts", vectors, "IVF64,SQfp16", memory_bytes=MEMORY, threads=1)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "parts.lists", "whole"]
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("parts", "parts.lists"):
        (tmp_path / name).rename(moved / name)
    for nprobe in (3, 64):
        one, other = (as_dict(found_by(path, vectors, nprobe)) for path in (tmp_path / "whole", moved / "parts"))
        assert one == other
    assert other == exact


def test_building_goes_on_where_it_was(monkeypatch, vectors, tmp_path):
    written = []
    write = approximate._write

    def broken(path, index):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, index)

    monkeypatch.setattr(approximate, "_rows_per_block", lambda *_: 1_500)
    monkeypatch.setattr(approximate, "_write", broken)
    with pytest.raises(KeyboardInterrupt):
        build_index(tmp_path / "index", vectors, "IVF32,SQfp16", memory_bytes=MEMORY, threads=1)
    assert written == ["index.trained", "index.0-1500"]
    monkeypatch.setattr(approximate, "_write", lambda path, index: (written.append(path.name), write(path, index)))
    monkeypatch.setattr(approximate, "_train", None)
    build_index(tmp_path / "index", vectors, "IVF32,SQfp16", memory_bytes=MEMORY, threads=1)
    assert written[2:] == ["index.1500-3000", "index.3000-4000", "index"]


def test_more_like_an_image_than_neighbours_are_asked_for(tmp_path):
    rows = np.ones((200, 4), np.float16)
    vectors = Vectors([rows], "pool")
    build_index(tmp_path / "index", vectors, "IVF2,Flat", memory_bytes=MEMORY, threads=1)
    index = open_index(tmp_path / "index", nprobe=2, threads=1)
    pairs = neighbour_pairs(index, vectors, 0, 200, neighbours=5, min_cosine=0.9)
    assert 200 <= len(pairs) <= 1_200
    measured = audit(vectors, [pairs], 0.9, evenly(0, 200, 200), memory_bytes=MEMORY)
    assert measured.pairs == 200 * 199 // 2
    assert measured.recall < 0.1


@pytest.mark.parametrize(("hits", "trials"), [(0, 1), (5, 5), (998, 1_000), (1, 3), (0, 40)])
def test_wilson_is_scipys(hits, trials):
    expected = binomtest(hits, trials).proportion_ci(method="wilson")
    assert wilson(hits, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_to_audit():
    vectors = Vectors([np.eye(8, dtype=np.float16)], "pool")
    none = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    measured = audit(vectors, [none], 0.9, evenly(0, 8, 100), memory_bytes=MEMORY)
    assert (measured.images, measured.pairs, measured.recall) == (8, 0, None)
    assert (measured.low, measured.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nonsense", "not understood"),
        ("Flat", "expected IVF"),
        ("PCA4,IVF8,Flat", "expected IVF"),
        ("IVF9999,Flat", "more cells"),
    ],
)
def test_indexes_that_are_none(vectors, tmp_path, factory, message):
    with pytest.raises(UserError, match=message):
        build_index(tmp_path / "index", vectors, factory, memory_bytes=MEMORY, threads=1)
    assert list(tmp_path.iterdir()) == []


def test_training_that_does_not_fit_is_told(vectors, tmp_path):
    with pytest.raises(UserError, match="give more --memory"):
        build_index(tmp_path / "index", vectors, "IVF64,SQfp16", memory_bytes=2**16, threads=1)


def test_default_factory_grows_with_the_pool():
    assert default_factory(10) == "IVF1,SQfp16"
    assert default_factory(1_000_000) == "IVF4096,SQfp16"
    assert default_factory(14_200_000) == "IVF16384_HNSW32,SQfp16"
    assert default_factory(10**9) == "IVF131072_HNSW32,SQfp16"
