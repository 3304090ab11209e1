"""Image lists: text lines `path label` or `path`, or Parquet with the columns `path` and `label`.

A path may also be a member of a tar file, see `distill.data.tar_member`. A list is held as one block of bytes
with offsets, never as Python strings: 5 million lines are about 300 MB.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from distill.data.decode import decode_image, open_image
from distill.data.tar_member import parse_member_path
from distill.data.types import UNLABELLED, Image, ImageRows, IntArray, UndecodableImage
from distill.errors import UserError
from distill.files import check_regular

Text = NDArray[np.uint8]

# What a line of text is parsed in; also the longest line. Bounds the temporary arrays to some ten times this.
_CHUNK_BYTES = 2**22
_SPACE_BYTES = b" \t\r\n"
_IS_WORD = ~np.isin(np.arange(256), list(_SPACE_BYTES))
_CHUNK_PATHS = 2**16  # what is hashed at once
_MAX_LABEL_DIGITS = 18  # what fits into int64
# Of a Parquet list, whose compression knows no bounds. Linux opens no path beyond 4096 bytes.
_LONGEST_PATH_BYTES = 2**13
_MOST_EXPANSION = 1000
_LEAST_LIMIT_BYTES = 2**26

# Errors that belong to the file; any other (a full table of descriptors, a lost disk) belongs to the machine.
_FAULT_OF_THE_FILE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENXIO,
    errno.EFBIG,
}

MAX_FILE_BYTES = 2**30
"""The largest file that is read as an image: a sparse file of any size costs its maker nothing."""


class ImageFiles:
    """Image files below a folder.

    Args:
        root: The folder; absolute paths in the list stand for themselves.
        text: uint8 [bytes]: contains every path.
        starts: int64 [N]: where each path starts in `text`.
        lengths: int32 [N]: its length.
        labels: int64 [N]; -1 is unlabelled.
    """

    def __init__(self, root: Path, text: Text, starts: IntArray, lengths: NDArray[np.int32], labels: IntArray) -> None:
        self._root = os.fsencode(root)
        self._text = text
        self._starts = starts
        self._lengths = lengths
        self.labels = labels

    def __len__(self) -> int:
        return len(self._starts)

    def path(self, index: int) -> bytes:
        """The whole path, as bytes: file names need not be UTF-8."""
        start = self._starts[index]
        return os.path.join(self._root, self._text[start : start + self._lengths[index]].tobytes())

    def name(self, index: int) -> str:
        """The path, printable."""
        return self.path(index).decode("utf-8", "backslashreplace")

    def read(self, index: int) -> Image:
        """Reads and decodes one file.

        Raises:
            UndecodableImage: Missing, forbidden, not a regular file, or not an image.
        """
        return decode_image(self.encoded(index), self.name(index))

    def open(self, index: int) -> Image | ImageRows:
        """Reads one file and decodes no more of it than is asked for; raises as `read`."""
        return open_image(self.encoded(index), self.name(index))

    def encoded(self, index: int) -> bytes:
        """The bytes of one file.

        Raises:
            UndecodableImage: Missing, forbidden, or not a regular file.
        """
        try:
            return read_encoded(self.path(index))
        except OSError as error:
            if error.errno in _FAULT_OF_THE_FILE:
                raise UndecodableImage(self.name(index), f"cannot be read: {error.strerror}") from None
            raise

    def content_digest(self, first: int, end: int) -> str:
        """A hash of the paths of [first, end), as they are listed; root and labels have no part in it.

        Together with `sample_sizes` it tells whether two lists are of the same images.
        """
        digest = hashlib.sha256(np.ascontiguousarray(self._lengths[first:end]).data)
        for begin in range(first, end, _CHUNK_PATHS):
            part = slice(begin, min(begin + _CHUNK_PATHS, end))
            ends = self._starts[part] + self._lengths[part]
            origin = int(self._starts[begin])
            edges = np.zeros(int(ends[-1]) - origin + 1, dtype=np.int8)
            edges[self._starts[part] - origin] += 1
            edges[ends - origin] -= 1
            is_path = np.cumsum(edges[:-1], dtype=np.int8) > 0
            digest.update(self._text[origin : int(ends[-1])][is_path].data)
        return digest.hexdigest()

    def sample_sizes(self, first: int, end: int, count: int) -> list[int]:
        """Bytes of at most `count` files spread evenly over [first, end); -1 where one cannot be found.

        Of a tar's member the tar's bytes: offset and size are parts of its path.
        """
        places = np.unique(np.linspace(first, end - 1, min(count, end - first)).astype(np.int64))
        return [_file_bytes(self.path(place)) for place in places.tolist()]

    def digest(self, first: int, end: int) -> str:
        """A hash of the root and of the paths and labels of [first, end): equal for equal entries."""
        lengths = self._lengths[first:end]
        size = int(self._starts[end - 1]) + int(lengths[-1]) if end > first else 0
        text = self._text[int(self._starts[first]) : size] if end > first else self._text[:0]
        digest = hashlib.sha256(self._root + b"\0")
        for part in (text, lengths, self.labels[first:end]):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()


def open_image_list(path: Path, root: Path, num_classes: int | None) -> ImageFiles:
    """Opens a list; the images themselves are not touched.

    A text line is `path label` or `path`, separated by spaces or tabs; a path may contain spaces where a label
    follows. Blank lines are skipped. In Parquet a null or absent label is unlabelled.

    Args:
        path: Parquet (recognised by its content) or text.
        root: The folder that relative paths are relative to.
        num_classes: Labels must be below it; None withholds the labels and checks their form only.

    Raises:
        UserError: Missing or empty list, missing root, a line that is none, a label outside the classes.
    """
    check_folder(root, "root")
    try:
        check_regular(path)
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        columns = _read_parquet(path, num_classes) if is_parquet else _read_text(path, num_classes)
    except OSError as error:
        hint = (
            ". If it is made by a command, the head of the recipe says by which" if error.errno == errno.ENOENT else ""
        )
        raise UserError(f"{path}: the image list cannot be read: {error.strerror or error}{hint}") from None
    if len(columns[1]) == 0:
        raise UserError(f"{path}: the image list is empty")
    return ImageFiles(root, *columns)


def check_folder(path: Path, what: str) -> None:
    """Raises UserError where `path` is not a folder."""
    if not path.is_dir():
        state = "it is not a folder" if path.exists() else "it does not exist"
        raise UserError(f"{what} must be an existing folder, received {str(path)!r}: {state}")


def read_encoded(path: bytes) -> bytes:
    """The bytes of a file, or of a tar's member.

    Raises:
        OSError: It is missing, forbidden, not a regular file, larger than MAX_FILE_BYTES, or the tar is shorter than
            the member's place.
    """
    member = parse_member_path(path)
    if member is None:
        return _read_regular_file(path)
    tar, offset, size = member
    data = _read_regular_file(tar, offset, size)
    if len(data) < size:
        raise OSError(errno.ENXIO, f"the tar ends before byte {offset + size}")
    return data


def _file_bytes(path: bytes) -> int:
    member = parse_member_path(path)
    try:
        return os.stat(path if member is None else member[0]).st_size
    except OSError:
        return -1


def _read_regular_file(path: bytes, offset: int = 0, size: int = -1) -> bytes:
    # O_NONBLOCK: a pipe that a list names must not wait for a writer
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.ENXIO, "not a regular file")
        there = max(0, status.st_size - offset)
        wanted = there if size < 0 else min(size, there)
        if wanted > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"{wanted} bytes are more than {MAX_FILE_BYTES}")
        return _read_part(descriptor, offset, wanted)
    finally:
        os.close(descriptor)


def _read_part(descriptor: int, offset: int, size: int) -> bytes:
    """Up to `size` bytes; fewer only where the file ends. Half the time of a file object: no buffer, no second stat."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size:  # the system may hand over less at once
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


Columns = tuple[Text, IntArray, NDArray[np.int32], IntArray]


def _read_text(path: Path, num_classes: int | None) -> Columns:
    text = np.fromfile(path, dtype=np.uint8)
    first = 3 if text[:3].tobytes() == b"\xef\xbb\xbf" else 0  # a byte order mark is no part of a path
    parts = [_parse_lines(text, begin, end, path, num_classes) for begin, end in _chunks(text, first, path)]
    if not parts:
        return text, np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int64)
    starts, lengths, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return text, starts, lengths, labels


def _chunks(text: Text, first: int, path: Path) -> Iterator[tuple[int, int]]:
    """Parts of about _CHUNK_BYTES that end with a line."""
    begin = first
    while begin < len(text):
        end = min(begin + _CHUNK_BYTES, len(text))
        if end < len(text):
            newline = text[begin:end].tobytes().rfind(b"\n")
            if newline < 0:
                _refuse(text, begin, path, f"the line is longer than {_CHUNK_BYTES} bytes: is this an image list?")
            end = begin + newline + 1
        yield begin, end
        begin = end


def _parse_lines(
    text: Text, begin: int, end: int, path: Path, num_classes: int | None
) -> tuple[IntArray, NDArray[np.int32], IntArray]:
    """Parses the lines in text[begin:end], all at once: (starts, lengths, labels)."""
    chunk = text[begin:end]
    zero = np.flatnonzero(chunk == 0)
    if len(zero):
        _refuse(text, begin + zero[0], path, "a zero byte: the list must be UTF-8 text (not UTF-16) or Parquet")
    edges = np.diff(_IS_WORD[chunk].astype(np.int8), prepend=np.int8(0), append=np.int8(0))
    word_starts, word_ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    line_ends = np.append(np.flatnonzero(chunk == ord("\n")), len(chunk))
    # words before the end of each line; lines without a word drop out
    words_so_far = np.searchsorted(word_starts, line_ends)
    word_counts = np.diff(words_so_far, prepend=0)
    last = words_so_far[word_counts > 0] - 1
    word_counts = word_counts[word_counts > 0]

    starts = word_starts[last - word_counts + 1]
    labelled = word_counts > 1
    path_ends = word_ends[last - labelled]
    labels = np.full(len(last), UNLABELLED, dtype=np.int64)
    labels[labelled] = _parse_labels(
        chunk, word_starts[last[labelled]], word_ends[last[labelled]], (text, begin, path), num_classes
    )
    return starts + begin, (path_ends - starts).astype(np.int32), labels


def _parse_labels(
    chunk: Text, starts: IntArray, ends: IntArray, where: tuple[Text, int, Path], num_classes: int | None
) -> IntArray:
    """Decimal numbers at chunk[starts:ends], all at once: int64."""
    text, begin, path = where
    lengths = ends - starts
    wrong = lengths > _MAX_LABEL_DIGITS
    values = np.zeros(len(starts), dtype=np.int64)
    for place in range(min(int(lengths.max(initial=0)), _MAX_LABEL_DIGITS)):
        more = lengths > place
        digits = chunk[starts[more] + place].astype(np.int64) - ord("0")
        values[more] = values[more] * 10 + digits
        wrong[more] |= (digits < 0) | (digits > 9)
    if wrong.any():
        at = int(wrong.argmax())
        received = chunk[starts[at] : min(ends[at], starts[at] + 40)].tobytes().decode("utf-8", "backslashreplace")
        _refuse(
            text,
            begin + starts[at],
            path,
            f"expected `path label` or `path`, the label a whole number; received the label {received!r}. "
            "A path with spaces and no label needs a Parquet list.",
        )
    if num_classes is None:
        return np.full(len(starts), UNLABELLED, dtype=np.int64)
    outside = np.flatnonzero(values >= num_classes)
    if len(outside):
        at = int(outside[0])
        _refuse(text, begin + starts[at], path, _outside(int(values[at]), num_classes))
    return values


def _outside(label: int, num_classes: int) -> str:
    return f"label {label} is outside the classes 0..{num_classes - 1}; an unlabelled image has no label"


def _refuse(text: Text, at: int, path: Path, problem: str) -> NoReturn:
    line = 1 + np.count_nonzero(text[:at] == ord("\n"))
    raise UserError(f"{path}, line {line}: {problem}")


def _read_parquet(path: Path, num_classes: int | None) -> Columns:
    import pyarrow as pa  # 60 MB and 0.2 s that text lists do not need
    import pyarrow.parquet as pq

    text = bytearray()
    lengths: list[NDArray[np.int32]] = []
    labels: list[IntArray] = []
    rows = 0
    try:
        columns = _check_columns(pq.read_schema(path), path)
        # Paths that repeat stay one: a list of some kB can otherwise ask for any memory.
        file = pq.ParquetFile(path, pre_buffer=False, read_dictionary=["path"])
        most_bytes = _LEAST_LIMIT_BYTES + _MOST_EXPANSION * path.stat().st_size
        for batch in file.iter_batches(batch_size=2**16, columns=columns, use_threads=False):
            encoded = batch.column(batch.schema.get_field_index("path"))
            _check_expansion(encoded, most_bytes - len(text), path, rows)
            paths = encoded.cast(pa.large_binary())
            lengths.append(_append_paths(paths, text, path, rows))
            labels.append(_batch_labels(batch, path, rows, num_classes))
            rows += len(batch)
    except (pa.ArrowException, ValueError, LookupError, MemoryError) as error:  # a damaged name is no UTF-8
        raise UserError(f"{path}: cannot be read as Parquet: {error}") from None
    if not rows:
        return np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int64)
    all_lengths = np.concatenate(lengths)
    starts = np.cumsum(all_lengths, dtype=np.int64)
    starts -= all_lengths
    return np.frombuffer(text, np.uint8), starts, all_lengths, np.concatenate(labels)


def _check_columns(schema: Any, path: Path) -> list[str]:
    import pyarrow.types as types

    columns = [name for name in ("path", "label") if name in schema.names]
    if "path" not in columns:
        raise UserError(f"{path}: expected a column `path`, received the columns {', '.join(schema.names)}")
    if "label" in columns and not types.is_integer(schema.field("label").type):
        raise UserError(f"{path}: column `label` must hold integers, received {schema.field('label').type}")
    return columns


def _check_expansion(encoded: Any, most_bytes: int, path: Path, first_row: int) -> None:
    """Refuses what would take much more memory than the file takes on the disk, before it does."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    if not types.is_dictionary(encoded.type):
        return
    lengths = pc.binary_length(encoded.dictionary)
    longest = pc.max(lengths).as_py() or 0
    if longest > _LONGEST_PATH_BYTES:
        raise UserError(f"{path}: a path of {longest} bytes, expected at most {_LONGEST_PATH_BYTES}")
    if (pc.sum(lengths.take(encoded.indices)).as_py() or 0) > most_bytes:
        raise UserError(
            f"{path}, row {first_row}: the paths take more than {_MOST_EXPANSION} times the file, for they repeat. "
            "A source's `repeat` does that without memory"
        )


def _append_paths(paths: Any, text: bytearray, path: Path, first_row: int) -> NDArray[np.int32]:
    """Appends an Arrow array of binary strings to `text`; returns their lengths."""
    _, offsets_buffer, data = paths.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[paths.offset : paths.offset + len(paths) + 1]
    lengths = np.diff(offsets).astype(np.int32)
    empty = np.flatnonzero(lengths == 0)  # a null has no length either
    if len(empty):
        raise UserError(f"{path}, row {first_row + empty[0]}: the path is empty")
    added = memoryview(data)[offsets[0] : offsets[-1]]
    zero = bytes(added).find(0)
    if zero >= 0:
        row = first_row + int(np.searchsorted(offsets - offsets[0], zero, side="right")) - 1
        raise UserError(f"{path}, row {row}: the path contains a zero byte")
    text += added
    return lengths


def _batch_labels(batch: Any, path: Path, first_row: int, num_classes: int | None) -> IntArray:
    column = batch.schema.get_field_index("label")
    if column < 0 or num_classes is None:
        return np.full(len(batch), UNLABELLED, dtype=np.int64)
    given = batch.column(column).cast("int64")
    labels: IntArray = given.fill_null(UNLABELLED).to_numpy()
    outside = np.flatnonzero(((labels < 0) & given.is_valid().to_numpy(zero_copy_only=False)) | (labels >= num_classes))
    if len(outside):
        at = int(outside[0])
        raise UserError(f"{path}, row {first_row + at}: {_outside(int(labels[at]), num_classes)}")
    return labels
