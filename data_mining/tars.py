"""The images inside a tar, found by its headers alone; a tar that somebody else made may be damaged or hostile."""

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from data_mining.reading import in_time, noted
from data_mining.shards import printable
from distill.data.class_folders import IMAGE_SUFFIXES
from distill.data.types import UNLABELLED

_MOST_HEADER_BYTES = 2**20  # of an extended header, which holds names


@dataclass(frozen=True)
class Member:
    """An image of a shard that is yet to be read.

    Attributes:
        path: Absolute; in a tar the member's name.
        tar: Absolute, None for a file.
        offset: In bytes, 0 for a file.
        size: In bytes, -1 for a file: to its end.
        label: -1 is unlabelled.
    """

    path: str
    tar: str | None
    offset: int
    size: int
    label: int


def tar_members(path: str, failures: list[tuple[str, str | None, str]]) -> list[Member]:
    """The images of a tar in its order; WebDataset's `stem.cls`, a whole number, is the label of `stem.*`.

    Args:
        path: The tar.
        failures: Gets a row for each member that is no plain file, and for a damaged or truncated tar: what
            lies after the damage is lost, what lies before it is used.

    Raises:
        StuckReading: Its reading hangs.
    """
    found: list[Member] = []
    labels: dict[str, int] = {}
    try:
        for name, member, label in in_time(noted(path, _entries(path))):
            if label is not None:
                labels[_stem(name)] = label
            elif member.isreg() and not member.issparse():
                found.append(Member(name, path, member.offset_data, member.size, UNLABELLED))
            else:
                failures.append((name, path, "a link, or a sparse file, inside a tar"))
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        failures.append(("", path, f"the tar is damaged or truncated, members are lost: {error}"))
        found = [member for member in found if member.offset + member.size <= os.path.getsize(path)]
    return [Member(m.path, m.tar, m.offset, m.size, labels.get(_stem(m.path), UNLABELLED)) for m in found]


def _entries(path: str) -> Iterator[tuple[str, tarfile.TarInfo, int | None]]:
    """Name and header of each image and each label, with what the label says."""
    with _TarFile(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in _forwards(tar, os.path.getsize(path)):
            name = printable(os.fsencode(member.name))
            suffix = os.path.splitext(name)[1].lower()
            if suffix == ".cls" and member.isreg():
                yield name, member, _label(tar, member)
            elif suffix in IMAGE_SUFFIXES and not member.isdir():
                yield name, member, None
        _check_end(path, tar.offset)


class _TarFile(io.FileIO):
    """A tar as `tarfile` reads it, but for headers of a hostile size: it would read them into memory at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _forwards(tar: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    """The members; a negative size leads back to where the reader has been, and so round for ever."""
    for member in tar:
        if member.size < 0 or tar.offset > size:
            raise tarfile.ReadError("unexpected end of data")
        yield member


def _check_end(path: str, offset: int) -> None:
    """A tar that was cut between two members lacks the zeros that end a tar, and tarfile says nothing."""
    with open(path, "rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("it has no end mark")


def _stem(name: str) -> str:
    folder, base = os.path.split(name)
    return os.path.join(folder, base.split(".", 1)[0])


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = tar.extractfile(member)
    text = file.read(32) if file else b""
    try:
        label = int(text)
    except ValueError:
        return UNLABELLED
    return label if 0 <= label < 2**31 else UNLABELLED
