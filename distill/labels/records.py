"""One teacher's answer as a record of some bytes, and back to log-probabilities.

A record keeps the K most probable classes with their log-probabilities and the mass of all others. Logarithms
in float16 have a relative error of 2^-11, so that a mass of e^-40 survives, which float16 itself cannot hold.

What the losses see instead of the teacher is p', of which `expand` says how it differs from the teacher's p. At
temperature T let t and t' be the softened p and p', s the student's distribution and

    r    = max(2^-11 |log p_c|, 2^-25) / T over the stored classes and the rest (the rounding),
    tau  = the mass of the classes that are not stored, under t; tau' the same under t',
    e    = 2 (exp(r) - 1 + tau + tau') >= ||t - t'||_1,

because ||a/|a| - b/|b|||_1 <= 2 ||a - b||_1 / |a| for positive vectors a, b: here a stored class differs by a factor
within exp(+-r), and the others together by no more than both their masses. With all classes stored tau = tau' = 0.
With f(e) = e/2 log(C - 1) + h(e/2), h the binary entropy (the largest change of an entropy over C classes; Zhang
2007, "Estimating mutual information via Kolmogorov distance", eq. 4), R = max_c log s_c - min_c log s_c and
D = sum_c s_c |log t_c - log t'_c|, one sample's loss, before the factor T^2, changes by at most

    cross-entropy with soft targets    e/2 R
    kl                                 e/2 R + f(e)
    symmetric_kl                       (e/2 R + f(e) + D) / 2
    jensen_shannon                     f(e/2) + f(e)/2
    dkd                                alpha (e/2 R2 + f2(e)) + beta (e^/2 R^ + f(e^))
    dist                               beta min(2, 2 ||t - t'|| / ||t - mean||), and along the batch gamma times it

where R2 and f2 belong to the two-class distributions, and R^ and e^ to those without the target class (e^ has the
shares of the other classes only). D is the one that top classes cannot make small: it weighs the classes that are
not stored by the student's mass there, so `symmetric_kl` asks for more classes than `kl`. The `gamma` part of dist
is vacuous for a class that is among no image's top classes.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distill.errors import RunError

Rows = NDArray[np.uint16]
FORMAT = 1
MAX_CLASSES = 65536

# The largest magnitude of a finite float16: a class less probable than exp(-65504) is kept as that.
_LEAST_LOG = -65504.0
_NOT_A_NUMBER = np.float16(np.nan).view(np.uint16)
_EXPONENT = np.float16(np.inf).view(np.uint16)  # its bits are all set in what is not finite


class Status(IntEnum):
    """What lies at a position of the store."""

    EMPTY = 0
    RECORD = 1
    UNDECODABLE = 2


@dataclass(frozen=True)
class Layout:
    """How a record lies in memory: a row of little-endian uint16 words.

        with K < C:  check (2 words), log of the rest's mass, K class ids, K log-probabilities
        otherwise:   check (2 words), C log-probabilities by class id

    The check is a 32-bit hash of the record, its position and its view epoch, never 0: a hole in the file, a
    record that was torn, and one that lies at the wrong place are all noticed.

    Attributes:
        num_classes: C, at most 65536.
        top_classes: K; "all", or as many as C: every class is stored.
    """

    num_classes: int
    top_classes: int | Literal["all"]

    @property
    def kept(self) -> int:
        """Classes in a record: K or C."""
        return self.num_classes if self.top_classes == "all" else min(self.top_classes, self.num_classes)

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is left to the rest."""
        return self.kept == self.num_classes

    @property
    def words(self) -> int:
        """uint16 words in a record."""
        return 2 + self.num_classes if self.keeps_all else 3 + 2 * self.kept

    @property
    def record_bytes(self) -> int:
        """Bytes in a record: 46 with K = 10."""
        return 2 * self.words


class NotFiniteAnswers(RunError):
    """A teacher answered NaN or infinity, of which no record is made."""


def encode(logits: NDArray[np.float32], layout: Layout) -> Rows:
    """The records of a teacher's answers; their checks are still 0, see `with_checks`.

    Classes are ordered by logit, equal ones by class id, whatever the machine. log softmax is taken in float64.

    Args:
        logits: float [N, C], finite.
        layout: Of the records.

    Returns:
        uint16 [N, words].

    Raises:
        NotFiniteAnswers: A logit is not finite.
        ValueError: The shape is another.
    """
    if logits.ndim != 2 or logits.shape[1] != layout.num_classes:
        raise ValueError(f"logits must be [N, {layout.num_classes}], received {list(logits.shape)}")
    if not np.isfinite(logits).all():
        bad = int(np.sum(~np.isfinite(logits).all(axis=1)))
        raise NotFiniteAnswers(
            f"the teacher's answer to {bad} of {len(logits)} images is not finite: check its weights, its "
            "normalization and teacher.precision"
        )
    log_probabilities = log_softmax(logits.astype(np.float64))
    rows = np.zeros((len(logits), layout.words), dtype=np.uint16)
    if layout.keeps_all:
        rows[:, 2:] = _as_words(log_probabilities)
        return rows
    classes = _top_classes(logits, layout.kept)
    rows[:, 3 : 3 + layout.kept] = classes
    rows[:, 3 + layout.kept :] = _as_words(np.take_along_axis(log_probabilities, classes, axis=1))
    np.put_along_axis(log_probabilities, classes, -np.inf, axis=1)
    rows[:, 2] = _as_words(_log_sum_exp(log_probabilities)[:, 0])
    return rows


def undecodable(count: int, layout: Layout) -> Rows:
    """The records of images that cannot be decoded, without checks: uint16 [count, words]."""
    rows = np.zeros((count, layout.words), dtype=np.uint16)
    rows[:, 2] = _NOT_A_NUMBER
    return rows


def expand(rows: Rows, layout: Layout) -> NDArray[np.float32]:
    """Log-probabilities of every class: the one form in which training sees a teacher's stored answer.

    A stored class has its stored log-probability, within a factor 1 +- 2^-11 of the teacher's (and 2^-25); the
    rest's mass is spread evenly over all other classes. The sum of the probabilities is 1 within
    exp(r) - 1, r = 2^-11 max |log p| as in the module's text, and is not mended: losses normalise.

    Args:
        rows: uint16 [N, words] of decodable images.
        layout: Of the records.

    Returns:
        float32 [N, C], finite, >= -65504 - log C.
    """
    if layout.keeps_all:
        return _as_floats(rows[:, 2:])
    spread = _as_floats(rows[:, 2:3]) - np.float32(np.log(layout.num_classes - layout.kept))
    dense = np.repeat(spread, layout.num_classes, axis=1)
    classes = rows[:, 3 : 3 + layout.kept].astype(np.int64)
    np.put_along_axis(dense, classes, _as_floats(rows[:, 3 + layout.kept :]), axis=1)
    return dense


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the classes, float64 [N, C]."""
    difference: NDArray[np.float64] = logits - _log_sum_exp(logits)
    return difference


def with_checks(rows: Rows, view_epoch: int, first: int) -> Rows:
    """The records of the positions first, first + 1, ... of a view epoch with their checks set."""
    checked = rows.copy()
    checked[:, :2] = _checks(rows, view_epoch, first).astype("<u4").view(np.uint16).reshape(-1, 2)
    return checked


def status_of(rows: Rows, layout: Layout, view_epoch: int, first: int) -> NDArray[np.uint8]:
    """What the records of the positions first, first + 1, ... are: a `Status` each; damaged ones count as empty.

    So do those that no `encode` writes, though their check is right: not a number, infinite, or of no class.
    """
    found = np.ascontiguousarray(rows[:, :2]).view("<u4")[:, 0]
    sound = (found != 0) & (found == _checks(rows, view_epoch, first))
    kind = np.where(rows[:, 2] == _NOT_A_NUMBER, Status.UNDECODABLE, Status.RECORD)
    kind[~_is_answer(rows, layout) & (kind == Status.RECORD)] = Status.EMPTY
    return np.where(sound, kind, Status.EMPTY).astype(np.uint8)


def _is_answer(rows: Rows, layout: Layout) -> NDArray[np.bool_]:
    """Whether the log-probabilities of each record are finite, and its classes among the layout's."""
    kept = 0 if layout.keeps_all else layout.kept
    finite = (rows[:, 3 + kept :] & _EXPONENT != _EXPONENT).all(axis=1) & (rows[:, 2] & _EXPONENT != _EXPONENT)
    known = (rows[:, 3 : 3 + kept] < layout.num_classes).all(axis=1)
    answers: NDArray[np.bool_] = finite & known
    return answers


def _checks(rows: Rows, view_epoch: int, first: int) -> NDArray[np.uint32]:
    """Multilinear hashing: the upper half of a sum of products mod 2^64 with random odd factors.

    Lemire and Kaser 2014, "Strongly universal string hashing is fast", eq. 1: two different records agree with a
    probability of 2^-32. NumPy computes it for all rows at once, which it cannot do for a CRC.
    """
    factors = np.random.Philox(key=FORMAT).random_raw(rows.shape[1] + 1) | np.uint64(1)
    positions = np.arange(first, first + len(rows), dtype=np.uint64)
    sums = rows[:, 2:].astype(np.uint64) @ factors[3:]
    sums += factors[0] * positions + factors[1] * np.array([view_epoch], dtype=np.uint64) + factors[2]
    checks: NDArray[np.uint32] = np.maximum((sums >> np.uint64(32)).astype(np.uint32), np.uint32(1))
    return checks


def _top_classes(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The ids of the `count` largest logits of each row, int64 [N, count]; of equal ones the lowest ids."""
    threshold = -np.partition(-logits, count - 1, axis=1)[:, count - 1 : count]
    above = logits > threshold
    equal = logits == threshold
    wanted = count - above.sum(axis=1, keepdims=True)
    chosen = above | (equal & (np.cumsum(equal, axis=1) <= wanted))
    classes = np.nonzero(chosen)[1].reshape(len(logits), count)  # by class id
    order = np.argsort(-np.take_along_axis(logits, classes, axis=1), axis=1, kind="stable")
    return np.take_along_axis(classes, order, axis=1)


def _log_sum_exp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the classes: [N, 1]. Entries may be -inf, not all of a row."""
    largest = values.max(axis=1, keepdims=True)
    total: NDArray[np.float64] = largest + np.log(np.exp(values - largest).sum(axis=1, keepdims=True))
    return total


def _as_words(values: NDArray[np.float64]) -> Rows:
    return np.maximum(values, _LEAST_LOG).astype(np.float16).view(np.uint16)


def _as_floats(words: Rows) -> NDArray[np.float32]:
    return np.ascontiguousarray(words).view(np.float16).astype(np.float32)
