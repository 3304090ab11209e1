"""Sums of gradients by two real processes, over gloo."""

from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).with_name("sum_gradients.py")


@pytest.fixture(scope="module")
def sums(start_ranks, tmp_path_factory):
    """What both ranks hold, by how they summed."""
    folder = tmp_path_factory.mktemp("sums")
    found = {}
    for mode in ("behind", "during"):
        arguments = [mode, str(folder / mode)]
        ranks = start_ranks(arguments, arguments, program=[str(PROGRAM)]).ended()
        assert [rank.status for rank in ranks] == [0, 0], ranks
        found[mode] = [dict(np.load(folder / f"{mode}-{number}.npz")) for number in range(2)]
    return found


def test_during_the_backward_pass_they_are_summed_to_the_same_bits(sums):
    behind, during = (sums[mode] for mode in ("behind", "during"))
    names = [name for name in behind[0] if "." in name]
    assert len(names) > 100
    for name in names:
        for other in (behind[1], *during):
            np.testing.assert_array_equal(behind[0][name], other[name])


def test_a_gradient_of_one_rank_alone_counts(sums):
    for rank in sums["during"]:
        np.testing.assert_array_equal(rank["0.0"], np.full(7, 2 * 2 * 2.0))  # of both turns of rank 0
        np.testing.assert_array_equal(rank["1.0"], np.zeros(7))


def test_buckets_begin_while_the_pass_runs(sums):
    """All but the last in the second step, for its first parameter gets no gradient."""
    buckets = int(sums["during"][0]["buckets"])
    assert buckets > 5
    assert [list(rank["begun"]) for rank in sums["during"]] == [[buckets, buckets - 1], [0, buckets - 1]]
    assert [list(rank["begun"]) for rank in sums["behind"]] == [[0, 0], [0, 0]]
