import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mining.neighbours import nearest


def unit(random, count, dimension, values=None):
    vectors = random.normal(size=(count, dimension)) if values is None else random.choice(values, (count, dimension))
    vectors[~vectors.any(axis=1), 0] = 1
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def brute_force(queries, images, ties, pool, count, min_cosine):
    cosines = queries.astype(np.float64) @ pool.astype(np.float64).T
    pairs = []
    for query, row in enumerate(cosines):
        order = sorted(range(len(pool)), key=lambda i: (-row[i].round(12), ties[i], images[i]))
        pairs += [(query, images[i]) for i in order[:count] if row[i] >= min_cosine - 1e-12]
    return pairs


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 30), st.integers(1, 5), st.sampled_from([-1.0, 0.5]))
def test_any_blocks_give_the_nearest(seed, query_count, pool_count, count, min_cosine):
    random = np.random.default_rng(seed)
    # coarse vectors: many equal cosines
    queries, pool = unit(random, query_count, 3, [-1, 0, 1]), unit(random, pool_count, 3, [-1, 0, 1])
    images, ties = random.permutation(pool_count), random.integers(0, 3, pool_count).astype(np.uint64)
    cuts = np.sort(random.integers(0, pool_count + 1, 2))

    def blocks():
        parts = np.split(random.permutation(pool_count), cuts)
        yield from ((images[part], ties[part], pool[part]) for part in parts)

    parts = list(nearest(queries, blocks, count, min_cosine=min_cosine, memory_bytes=600))
    found = [pair for part in parts for pair in zip(part.query, part.image, strict=True)]
    assert found == brute_force(queries, images, ties, pool, count, min_cosine)
    for part in parts:
        exact = (queries[part.query].astype(np.float64) * pool[np.argsort(images)][part.image]).sum(axis=1)
        np.testing.assert_allclose(part.cosine, exact, atol=1e-6)


@pytest.mark.parametrize("order", [1, -1], ids=["as it comes", "better and better"])
def test_many_images(order):
    random = np.random.default_rng(0)
    queries, pool = unit(random, 50, 16), unit(random, 3000, 16)
    pool = pool[np.argsort(pool.astype(np.float32) @ queries[0].astype(np.float32))][::order]
    ties = random.integers(0, 2**60, 3000).astype(np.uint64)
    images = np.arange(3000)

    def blocks():
        for part in np.split(images, 7 * np.arange(1, 40)):
            yield part, ties[part], pool[part]

    parts = nearest(queries, blocks, 4, min_cosine=-1.0, memory_bytes=2**18)
    found = [pair for part in parts for pair in zip(part.query, part.image, strict=True)]
    assert found == brute_force(queries, images, ties, pool, 4, -1.0)


def test_nobody_is_near_enough():
    vectors = np.eye(4, dtype=np.float16)
    blocks = [(np.arange(3), np.zeros(3, np.uint64), vectors[1:])]
    parts = list(nearest(vectors[:1], lambda: iter(blocks), 2, min_cosine=0.5, memory_bytes=2**20))
    assert [len(part.query) for part in parts] == [0]
