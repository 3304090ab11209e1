"""Who enters which class: every image at most once, every class at most K images, the best entries first.

The rule. An entry is (image, class, score). All entries are put in one strict order: higher score first, then the
lower tie-breaker (of the pixels' hash), then the lower image number, then the lower class. Going down this order,
an entry is accepted if its image has no class yet and its class has room.

That is the unique stable matching of images and classes that both rank by this order (Gale and Shapley 1962), which
gives two things. It can be computed by rounds of proposals on whole arrays instead of entry by entry. And it can be
computed in parts: an image that finds no place among a part of the images finds none among all of them, and
without it the others' places are the same; so an image that was refused once is never needed again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.errors import UserError


@dataclass(frozen=True)
class Entries:
    """N images with their P entries each.

    Attributes:
        image: int64 [N], the global image numbers, all different.
        tie: uint64 [N], decides between equal scores.
        classes: uint16 [N, P], different within a row.
        scores: float32 [N, P], descending within a row, equal ones by ascending class; -inf where a row has fewer.
    """

    image: NDArray[np.int64]
    tie: NDArray[np.uint64]
    classes: NDArray[np.uint16]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.image)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return self.image.nbytes + self.tie.nbytes + self.classes.nbytes + self.scores.nbytes

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Entries":
        """Some of the images."""
        return Entries(self.image[rows], self.tie[rows], self.classes[rows], self.scores[rows])


@dataclass(frozen=True)
class Matching:
    """The accepted entries, by class and within a class in the order of acceptance.

    Attributes:
        image: int64 [M].
        classes: uint16 [M].
        scores: float32 [M].
    """

    image: NDArray[np.int64]
    classes: NDArray[np.uint16]
    scores: NDArray[np.float32]


class Matcher:
    """Matches images that come in parts of any size and order; the result does not depend on either.

    It holds the images that have a place now, plus as many new ones as the memory allows.

    Args:
        capacities: int64 [C], K of each class, >= 0.
        min_score: Entries below it do not compete.
        memory_bytes: What the arrays here may take together.
    """

    def __init__(self, capacities: NDArray[np.int64], min_score: float, memory_bytes: int) -> None:
        self._capacities = capacities
        self._min_score = np.float32(min_score)
        self._memory_bytes = memory_bytes
        # what an entry needs to have a chance: rises while images come, and never falls
        self._thresholds = np.full(len(capacities), self._min_score, np.float32)
        self._thresholds[capacities == 0] = np.inf
        self._held: list[Entries] = []
        self._held_bytes = self._placed_bytes = 0

    def add(self, entries: Entries) -> None:
        """Takes more images.

        Raises:
            UserError: The images that have a place do not fit into the memory.
        """
        hopeful = np.flatnonzero((entries.scores >= self._thresholds[entries.classes]).any(axis=1))
        if not len(hopeful):
            return
        kept = entries.take(hopeful)
        self._held.append(kept)
        self._held_bytes += kept.nbytes
        # A matching works on up to three copies. It costs more than the new images do, so let them gather.
        limit = max(min(self._memory_bytes // 8, 4 * self._placed_bytes), min(self._memory_bytes // 16, 2**26))
        if self._held_bytes > self._placed_bytes + limit:
            self._reduce()

    def result(self) -> Matching:
        """The matching of all images so far."""
        entries, place = self._reduce()
        columns = place[:, None]
        classes = np.take_along_axis(entries.classes, columns, axis=1)[:, 0]
        scores = np.take_along_axis(entries.scores, columns, axis=1)[:, 0]
        order = np.lexsort((entries.image, entries.tie, -scores, classes))
        return Matching(entries.image[order], classes[order], scores[order])

    def _reduce(self) -> tuple[Entries, NDArray[np.int16]]:
        """Keeps the images that have a place; returns them and the column of each one's place."""
        entries = _joined(self._held, self._width())
        self._held.clear()
        place, thresholds = match(entries, self._capacities, self._min_score, self._thresholds)
        placed = place < entries.classes.shape[1]
        entries = entries.take(placed)
        if len(entries):
            self._held.append(entries)
        self._held_bytes = self._placed_bytes = entries.nbytes
        self._thresholds = thresholds
        if 3 * self._placed_bytes > self._memory_bytes:
            placed_mib, memory_mib = self._placed_bytes / 2**20, self._memory_bytes / 2**20
            raise UserError(
                f"the {len(entries):,} images that have a place take {placed_mib:,.1f} MiB, and choosing takes three "
                f"times that: more than {memory_mib:,.1f} MiB. Give more --memory, or "
                "choose fewer images_per_class or classes_per_image"
            )
        return entries, place[placed]

    def _width(self) -> int:
        return self._held[0].classes.shape[1] if self._held else 1


def match(
    entries: Entries, capacities: NDArray[np.int64], min_score: np.float32, thresholds: NDArray[np.float32]
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """The matching of some images, by deferred acceptance.

    In each round the images without a place propose to the best class that has not refused them; a class keeps
    its K best and refuses the others.

    Args:
        entries: The images.
        capacities: int64 [C].
        min_score: Entries below it do not compete.
        thresholds: float32 [C], lower bounds of the score that an entry of each class needs, known from before.

    Returns:
        int16 [N], the column of each image's place, P where it has none; and float32 [C], the new thresholds: the last
        accepted score of full classes, `min_score` of others.
    """
    count, width = entries.classes.shape
    place = np.zeros(count, np.int16)
    thresholds = thresholds.copy()
    members = _Members(len(capacities))
    free = np.arange(count)
    while len(free):
        _advance(place, free, entries, thresholds)
        free = free[place[free] < width]
        asked = entries.classes[free, place[free]]
        refused = []
        for number, proposing in members.group(asked, free):
            rivals = np.concatenate([members.of(number), proposing])
            scores = entries.scores[rivals, place[rivals]]
            best, others = _split(scores, entries.tie[rivals], entries.image[rivals], int(capacities[number]))
            members.set(number, rivals[best])
            if len(best) == capacities[number] and len(best):
                thresholds[number] = max(thresholds[number], scores[best].min())
            refused.append(rivals[others])
        free = np.concatenate(refused) if refused else np.empty(0, np.int64)
        place[free] += 1
    return place, thresholds


class _Members:
    """The rows that each class holds."""

    def __init__(self, classes: int) -> None:
        self._rows: dict[int, NDArray[np.int64]] = {}

    def of(self, number: int) -> NDArray[np.int64]:
        return self._rows.get(number, np.empty(0, np.int64))

    def set(self, number: int, rows: NDArray[np.int64]) -> None:
        self._rows[number] = rows

    @staticmethod
    def group(asked: NDArray[np.uint16], rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """The rows by the class that they ask: (class, rows)."""
        order = np.argsort(asked, kind="stable")  # a radix sort of 16 bits
        numbers, starts = np.unique(asked[order], return_index=True)
        ordered = rows[order]
        yield from zip(numbers.tolist(), np.split(ordered, starts[1:]), strict=False)


def _advance(
    place: NDArray[np.int16], free: NDArray[np.int64], entries: Entries, thresholds: NDArray[np.float32]
) -> None:
    """Moves images that have no place past the classes that would refuse them for their score alone."""
    width = entries.classes.shape[1]
    while True:
        free = free[place[free] < width]
        columns = place[free]
        free = free[entries.scores[free, columns] < thresholds[entries.classes[free, columns]]]
        if not len(free):
            return
        place[free] += 1


def _split(
    scores: NDArray[np.float32], tie: NDArray[np.uint64], image: NDArray[np.int64], capacity: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the `capacity` best in the order of the rule (module docstring), and of the others."""
    if len(scores) <= capacity:
        return np.arange(len(scores)), np.empty(0, np.int64)
    if capacity == 0:
        return np.empty(0, np.int64), np.arange(len(scores))
    last = np.partition(scores, len(scores) - capacity)[len(scores) - capacity]
    above, equal = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
    equal = equal[np.lexsort((image[equal], tie[equal]))]
    room = capacity - len(above)
    return np.concatenate([above, equal[:room]]), np.concatenate([np.flatnonzero(scores < last), equal[room:]])


def _joined(parts: list[Entries], width: int) -> Entries:
    if not parts:
        return Entries(
            np.empty(0, np.int64),
            np.empty(0, np.uint64),
            np.empty((0, width), np.uint16),
            np.empty((0, width), np.float32),
        )
    return Entries(
        np.concatenate([part.image for part in parts]),
        np.concatenate([part.tie for part in parts]),
        np.concatenate([part.classes for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )
