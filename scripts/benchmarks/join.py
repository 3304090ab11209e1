"""Times the lossless join against faiss `range_search` and against a blocked matrix product, and its growth.

    python scripts/benchmarks/join.py [--rows 100000] [--dimension 512] [--min-cosine 0.9] [--threads 2]
    python scripts/benchmarks/join.py --growth 25000 50000 100000 200000 [--estimate 14200000]

All pairs of made-up vectors with at least the given cosine. The matrix product computes each pair once (a triangle of
blocks); `range_search` computes each twice, as it does not know that queries and base are the same. All three run in
this process, one after the other, with the same number of threads. The truth is what the matrix product finds with
a lower threshold, decided in float64; the join must find exactly that.

The vectors are clusters of about 100 rows and, for one row in ten, a near copy; the variance of the dimensions falls
as that of embeddings does. How much faster the join is depends on that: vectors without structure need more
dimensions for the bound.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from data_mining.similarity import fit_bound, similar_pairs
from data_mining.vectors import Pairs, Rows, Vectors, cosines

ROWS_PER_CLUSTER = 100
BLOCK = 4096  # of the matrix product: 64 MB of scores, large enough for BLAS to be at its best
MEMORY_BYTES = 2 * 2**30
SLACK = 1e-4  # far more than the rounding of a product in float32

Result = TypeVar("Result")


def make_up(count: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    """Vectors of length 1: float32 [count, dimension]."""
    rng = np.random.default_rng(seed)
    spread = (1.0 / np.sqrt(1.0 + np.arange(dimension) / 16)).astype(np.float32)
    centres = rng.standard_normal((max(1, count // ROWS_PER_CLUSTER), dimension), np.float32) * spread
    rows = centres[rng.integers(0, len(centres), count)]
    rows += 0.6 * rng.standard_normal(rows.shape, np.float32) * spread
    copies = rng.choice(count, count // 10, replace=False)
    noise = 0.15 * rng.standard_normal((len(copies), dimension), np.float32) * spread
    rows[copies] = rows[(copies + 1) % count] + noise
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """What a function gives, and the seconds that it took."""
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def join(vectors: Vectors, min_cosine: float, threads: int) -> tuple[Pairs, dict[str, object]]:
    """The join as the stage `duplicates` does it, with the choice of m in its time."""
    started = time.perf_counter()
    bound = fit_bound(vectors, vectors, min_cosine)
    portions = list(
        similar_pairs(
            vectors, vectors, min_cosine, memory_bytes=MEMORY_BYTES, threads=threads, bound=bound, own_rows_from=0
        )
    )
    seconds = time.perf_counter() - started
    pairs = Pairs(
        *(np.concatenate([getattr(each, name) for each in portions]) for name in ("first", "second", "cosine"))
    )
    facts = {"seconds": round(seconds, 2), "m": bound.dimensions, "candidate_rate": bound.candidate_rate}
    return pairs, {**facts, "pairs": len(pairs)}


def matrix_product(rows: NDArray[np.float32], min_cosine: float) -> tuple[Rows, Rows]:
    """All pairs first > second whose product in float32 reaches the threshold."""
    found = []
    for i in range(0, len(rows), BLOCK):
        for j in range(0, i + 1, BLOCK):
            first, second = np.nonzero(rows[i : i + BLOCK] @ rows[j : j + BLOCK].T >= np.float32(min_cosine))
            first, second = first + i, second + j
            below = first > second
            found.append((first[below], second[below]))
    first, second = (np.concatenate([pair[side] for pair in found]) for side in (0, 1))
    order = np.lexsort((second, first))
    return first[order], second[order]


def range_search(rows: NDArray[np.float32], min_cosine: float) -> int:
    """The number of pairs that faiss finds, each once."""
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    limits, _, found = index.range_search(rows, min_cosine)
    query = np.repeat(np.arange(len(rows)), np.diff(limits.astype(np.int64)))
    return int((query > found).sum())


def compare(count: int, dimension: int, min_cosine: float, threads: int) -> dict[str, object]:
    """The three ways on the same vectors."""
    rows = make_up(count, dimension)
    vectors = Vectors([rows], "made-up")
    faiss.omp_set_num_threads(threads)
    pairs, facts = join(vectors, min_cosine, threads)
    with threadpool_limits(threads, "blas"):
        (first, second), product_s = timed(lambda: matrix_product(rows, min_cosine - SLACK))
    by_faiss, faiss_s = timed(lambda: range_search(rows, min_cosine))
    real = cosines(vectors, first, vectors, second) >= np.float32(min_cosine)
    truth, ours = first[real] * count + second[real], pairs.first * count + pairs.second
    hits = len(np.intersect1d(truth, ours))
    return {
        "rows": count,
        "dimension": dimension,
        "min_cosine": min_cosine,
        "threads": threads,
        "join": facts,
        "recall": hits / max(1, len(truth)),
        "false_pairs": len(ours) - hits,
        "matrix_product": {"seconds": round(product_s, 2), "times_the_join": ratio(product_s, facts)},
        "range_search": {"seconds": round(faiss_s, 2), "times_the_join": ratio(faiss_s, facts), "pairs": by_faiss},
    }


def ratio(seconds: float, facts: dict[str, object]) -> float:
    """How many times longer than the join."""
    return round(seconds / max(1e-9, float(str(facts["seconds"]))), 2)


def growth(counts: list[int], dimension: int, min_cosine: float, threads: int, target: int) -> dict[str, object]:
    """The join's time for growing numbers of rows, and what a larger number would take.

    Two estimates: with the exponent fitted to the measured times, and with the square, from the largest measured.
    """
    times = []
    for count in counts:
        _, facts = join(Vectors([make_up(count, dimension)], "made-up"), min_cosine, threads)
        print(json.dumps({"rows": count, **facts}), flush=True)
        times.append(float(str(facts["seconds"])))
    exponent, offset = np.polyfit(np.log(counts), np.log(times), 1) if len(counts) > 1 else (2.0, 0.0)
    fitted = np.exp(offset + exponent * np.log(target)) if len(counts) > 1 else None
    return {
        "threads": threads,
        "exponent": round(float(exponent), 3),
        "estimate_rows": target,
        "estimate_hours_fitted": None if fitted is None else round(float(fitted) / 3600, 2),
        "estimate_hours_squared": round(times[-1] * (target / counts[-1]) ** 2 / 3600, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--min-cosine", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--growth", type=int, nargs="+", metavar="ROWS", help="time the join alone, at these sizes")
    parser.add_argument("--estimate", type=int, default=14_200_000, help="for so many rows, from the growth")
    options = parser.parse_args()
    if options.growth:
        result = growth(options.growth, options.dimension, options.min_cosine, options.threads, options.estimate)
    else:
        result = compare(options.rows, options.dimension, options.min_cosine, options.threads)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
