"""Components against SciPy, the choice of representatives against a loop, and chains."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_mining.components import Components, choose_representatives, rank_of

graphs = st.integers(1, 40).flatmap(
    lambda count: st.tuples(
        st.just(count),
        st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=120),
        st.permutations(range(count)),
        st.integers(1, 7),
    )
)


def portions(edges, size):
    array = np.array(edges, np.int64).reshape(-1, 2)
    return [(part[:, 0], part[:, 1]) for at in range(0, len(array), size) if len(part := array[at : at + size])]


def by_a_loop(count, order, edges):
    """The definition, node by node."""
    alike = {node: set() for node in range(count)}
    for a, b in edges:
        if a != b:
            alike[a].add(b)
            alike[b].add(a)
    stays, represents = [], {}
    for node in order:
        better = [other for other in stays if other in alike[node]]
        if better:
            represents[node] = better[0]
        else:
            stays.append(node)
            represents[node] = node
    return [represents[node] for node in range(count)]


@settings(max_examples=150, deadline=None)
@given(graphs)
def test_components_are_scipys(graph):
    count, edges, _, size = graph
    components = Components(count)
    for first, second in portions(edges, size):
        components.merge(first, second)
    found = components.roots()
    array = np.array(edges, np.int64).reshape(-1, 2)
    _, labels = connected_components(coo_array((np.ones(len(array)), (array[:, 0], array[:, 1])), (count, count)))
    smallest = {label: int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)}
    assert found.tolist() == [smallest[label] for label in labels]


@settings(max_examples=150, deadline=None)
@given(graphs)
def test_representatives_are_those_of_the_loop(graph):
    count, edges, order, size = graph
    rank = rank_of(np.array(order), count)
    found = choose_representatives(count, rank, lambda: portions(edges, size))
    assert found.tolist() == by_a_loop(count, order, edges)


def test_the_order_of_the_edges_does_not_matter():
    rng = np.random.default_rng(0)
    edges = rng.integers(0, 3_000, (6_000, 2))
    rank = rank_of(rng.permutation(3_000), 3_000)
    one = choose_representatives(3_000, rank, lambda: portions(edges, 1_000))
    other = choose_representatives(3_000, rank, lambda: portions(rng.permutation(edges)[:, ::-1], 77))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("count", [2, 3, 500])
def test_a_chain_is_not_one_picture(count):
    """A film: each frame is like the next only. One of two stays, not one of all."""
    edges = [(node, node + 1) for node in range(count - 1)]
    found = choose_representatives(count, np.arange(count), lambda: portions(edges, 100))
    assert found.tolist() == [node - node % 2 for node in range(count)]


def test_a_long_path_has_one_component():
    count = 50_000
    nodes = np.random.default_rng(0).permutation(count)
    components = Components(count)
    components.merge(nodes[:-1], nodes[1:])
    assert (components.roots() == 0).all()


def test_a_star_keeps_its_centre_or_all_but_it():
    edges = [(0, node) for node in range(1, 10)]
    best, worst = np.arange(10), np.arange(10)[::-1].copy()
    assert choose_representatives(10, best, lambda: portions(edges, 3)).tolist() == [0] * 10
    assert choose_representatives(10, worst, lambda: portions(edges, 3)).tolist() == [9, *range(1, 10)]


def test_no_edges():
    assert choose_representatives(3, np.arange(3), lambda: []).tolist() == [0, 1, 2]
