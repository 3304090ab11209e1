import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mining.matching import Entries, Matcher
from distill.errors import UserError

CLASSES = 5


def greedy(entries, capacities, min_score):
    """The rule as it is stated, entry by entry."""
    ordered = sorted(
        (-score, tie, image, label)
        for image, tie, labels, scores in zip(entries.image, entries.tie, entries.classes, entries.scores, strict=True)
        for label, score in zip(labels, scores, strict=True)
        if score >= min_score
    )
    taken, accepted = set(), {label: [] for label in range(len(capacities))}
    for score, _, image, label in ordered:
        if image not in taken and len(accepted[label]) < capacities[label]:
            taken.add(image)
            accepted[label].append((image, np.float32(-score)))
    return [(label, *each) for label, group in accepted.items() for each in group]


def as_rows(matching):
    return list(zip(matching.classes, matching.image, matching.scores, strict=True))


@st.composite
def some_entries(draw):
    count, width = draw(st.integers(0, 24)), draw(st.integers(1, CLASSES))
    # few different values: ties in score and in the tie-breaker are the rule here
    values = [0.0, 0.25, 0.5, 0.5, 1.0]
    rows = []
    for _ in range(count):
        labels = draw(st.permutations(range(CLASSES)))[:width]
        scores = draw(st.lists(st.sampled_from(values), min_size=width, max_size=width))
        rows.append(sorted(zip(scores, labels, strict=True), key=lambda e: (-e[0], e[1])))
    images = draw(st.permutations(range(count)))
    ties = draw(st.lists(st.sampled_from([3, 2**63, 7]), min_size=count, max_size=count))
    table = np.array(rows, np.float64).reshape(count, width, 2)
    return Entries(
        np.array(images, np.int64).reshape(count),
        np.array(ties, np.uint64).reshape(count),
        table[..., 1].astype(np.uint16),
        table[..., 0].astype(np.float32),
    )


@settings(deadline=None, max_examples=300)
@given(
    some_entries(),
    st.lists(st.integers(0, 6), min_size=CLASSES, max_size=CLASSES),
    st.sampled_from([0.0, 0.3, 0.5]),
    st.data(),
)
def test_any_partition_gives_the_greedy_list(entries, capacities, min_score, data):
    capacities = np.array(capacities, np.int64)
    matcher = Matcher(capacities, min_score, 2**30)
    order = np.array(data.draw(st.permutations(range(len(entries)))), np.int64)
    for part in np.split(order, sorted(data.draw(st.sets(st.integers(0, len(entries)), max_size=3)))):
        matcher.add(entries.take(part))
        if data.draw(st.booleans()):
            matcher.result()  # an early look changes nothing
    assert as_rows(matcher.result()) == greedy(entries, capacities, np.float32(min_score))


def random_entries(count, width, classes, first=0, seed=0):
    random = np.random.default_rng(seed)
    scores = -np.sort(-random.random((count, width), dtype=np.float32), axis=1)
    labels = random.random((count, classes)).argsort(axis=1)[:, :width].astype(np.uint16)
    ties = random.integers(0, 2**63, count, dtype=np.uint64)
    return Entries(np.arange(first, first + count), ties, labels, scores)


def test_many_images_in_little_memory_against_greedy():
    entries = random_entries(20_000, 4, 10)
    capacities = np.full(10, 300)
    matcher = Matcher(capacities, 0.2, 2**20)  # holds some 3,000 images: reduced about fifty times
    for start in range(0, len(entries), 500):
        matcher.add(entries.take(np.arange(start, start + 500)))
        assert matcher._held_bytes < 2**20
    assert as_rows(matcher.result()) == greedy(entries, capacities, np.float32(0.2))


def test_a_row_may_have_fewer_entries():
    entries = Entries(
        np.array([0, 1]),
        np.array([1, 2], np.uint64),
        np.array([[0, 0], [0, 1]], np.uint16),
        np.array([[0.5, -np.inf], [0.4, -0.2]], np.float32),
    )
    matcher = Matcher(np.array([1, 1]), -1.0, 2**20)
    matcher.add(entries)
    assert as_rows(matcher.result()) == [(0, 0, np.float32(0.5)), (1, 1, np.float32(-0.2))]


def test_no_images_no_places():
    assert len(Matcher(np.array([2, 2]), 0.0, 2**20).result().image) == 0


def test_too_little_memory_for_the_places_is_an_error():
    matcher = Matcher(np.full(10, 10_000), 0.0, 2**20)
    with pytest.raises(UserError, match="--memory"):
        for first in range(0, 100_000, 10_000):
            matcher.add(random_entries(10_000, 2, 10, first, seed=first))
        matcher.result()
