"""A teacher with another class set: a text file that says which of its classes make one of the student's.

```text
# CIFAR-10 of ImageNet-1k: a line a class of the student, then the teacher's classes
0  404,895          # aeroplane: airliner, warplane
3  281-285          # cat: tabby ... Egyptian cat
```
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.errors import UserError
from distill.files import check_regular

MAX_BYTES = 2**24
MOST_CLASSES = 2**20
"""A number beyond it is a slip of the pen, and a range up to it would fill the memory."""
_SHOWN = 20
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)


@dataclass(frozen=True)
class ClassMap:
    """Which classes of a teacher make each of the student's.

    Attributes:
        teacher_classes: int64 [M], those of class 0, then those of class 1, ...; no class twice.
        starts: int64 [C]: where those of each class begin; each has at least one.
    """

    teacher_classes: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def sha256(self) -> str:
        """A hash of the mapping, whatever its comments, spaces and order of lines."""
        digest = hashlib.sha256(np.int64(len(self.starts)).tobytes())
        for part in (self.starts, self.teacher_classes):
            digest.update(np.ascontiguousarray(part, "<i8").tobytes())
        return digest.hexdigest()

    def logits(self, teacher_logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The teacher's answer over the student's classes: logit_c = log(sum over its classes t of exp(logit_t)).

        A softmax of it is the teacher's distribution over the classes that are mapped, renormalised, the probabilities
        of several added; those of the others are left out. With a temperature T the added logits are divided by T, so
        that it softens the student's classes, not the teacher's.

        Args:
            teacher_logits: float32 [N, T], T above every class of the mapping.

        Returns:
            float32 [N, C], computed in float64: the bits of a row do not depend on the other rows. What is not finite
            makes its class NaN.
        """
        chosen = teacher_logits.astype(np.float64)[:, self.teacher_classes]
        counts = np.diff(self.starts, append=len(self.teacher_classes))
        largest = np.maximum.reduceat(chosen, self.starts, axis=1)
        with np.errstate(invalid="ignore"):
            shares = np.exp(chosen - np.repeat(largest, counts, axis=1))
        summed: NDArray[np.float32] = (largest + np.log(np.add.reduceat(shares, self.starts, axis=1))).astype(
            np.float32
        )
        return summed


def read_class_map(path: Path | str, students: int, teachers: int | None = None) -> ClassMap:
    """Reads a file of lines `STUDENT TEACHER[,TEACHER...]`: class numbers from 0, `281-285` a range with both ends.

    Every student class has one line, in any order; a teacher class belongs to one student class or to none. What
    follows a # is a comment; blank lines, CRLF and a byte order mark are passed over.

    Args:
        path: The file.
        students: C, the student's number of classes.
        teachers: T, the teacher's; None: not known yet, any class below `MOST_CLASSES` is taken.

    Raises:
        UserError: It cannot be read, or states all that is wrong with line numbers.
    """
    problems: list[str] = []
    classes: dict[int, list[int]] = {}
    lines: dict[int, int] = {}  # of each student class
    owners: dict[int, tuple[int, int]] = {}  # of each teacher class: line, student class
    for number, text in _lines(path):
        words = text.split(None, 1)
        if len(words) < 2 or not _is_number(words[0]):
            problems.append(f"line {number}: expected STUDENT TEACHER[,TEACHER...], received {text!r:.60}")
            continue
        student = int(words[0])
        if student >= students:
            problems.append(f"line {number}: class {student} is outside the student's 0..{students - 1}")
        elif student in lines:
            problems.append(f"line {number}: class {student} has a line already, {lines[student]}")
        lines.setdefault(student, number)
        found = classes.setdefault(student, [])
        for problem in _take(words[1], student, number, teachers or MOST_CLASSES, found, owners):
            problems.append(f"line {number}: {problem}")
    missing = [student for student in range(students) if student not in lines]
    if missing:
        shown = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
        problems.append(f"{len(missing)} of the student's {students} classes have no line: {shown}")
    if problems:
        shown = "\n  ".join(problems[:_SHOWN] + ([f"and {len(problems) - _SHOWN} more"] if problems[_SHOWN:] else []))
        raise UserError(f"{path} is no map of the teacher's classes to the student's:\n  {shown}")
    counts = [len(classes[student]) for student in range(students)]
    flat = [each for student in range(students) for each in sorted(classes[student])]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    return ClassMap(np.array(flat, np.int64), starts)


def _lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """The lines that hold something, numbered from 1."""
    try:
        check_regular(path)
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES} bytes: is this a map of classes?")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"Cannot read the map of classes {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = 1 + content[: error.start].count(b"\n")
        raise UserError(f"{path}, line {line}: not UTF-8 text") from error
    for number, written in enumerate(text.split("\n"), 1):
        if stripped := written.partition("#")[0].strip():
            yield number, stripped


def _take(
    text: str, student: int, line: int, teachers: int, found: list[int], owners: dict[int, tuple[int, int]]
) -> Iterator[str]:
    """Adds the teacher classes of a line to `found` and `owners`; yields what is wrong."""
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            yield f"expected numbers and ranges such as 7,281-285, received {part.strip()!r:.60}"
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            yield f"expected a range from low to high, received {first}-{last}"
        elif last >= teachers:
            yield f"class {last} is outside the teacher's 0..{teachers - 1}"
        else:
            for each in range(first, last + 1):
                if each in owners:
                    place = "this line" if owners[each][0] == line else f"line {owners[each][0]}"
                    yield f"the teacher's class {each} is taken already, by class {owners[each][1]} in {place}"
                    break  # a range that overlaps says so once
                owners[each] = (line, student)
                found.append(each)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 9
