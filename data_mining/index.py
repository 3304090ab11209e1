"""The stage `index`: every image's place, size in pixels, label, hash of its pixels, and perceptual hash.

One part a shard. An image that cannot be decoded is in the part's table of failures, with the reason, and
nowhere else: the rows of the index are the images that the other stages number.
"""

import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_mining.executors import map_shards
from data_mining.pixels import perceptual_hash, pixels_sha256
from data_mining.reading import Requests, in_time, read_noted
from data_mining.recipe import MiningRecipe
from data_mining.shards import POOL, Shard, check_unchanged, members_path, set_names, shards_of, to_do
from data_mining.tars import Member, tar_members
from data_mining.workspace import StageReport, Workspace, make_key, read_table, stopwatch, write_table
from distill.data.decode import decode_image
from distill.data.image_list import read_encoded
from distill.data.tar_member import member_path
from distill.data.types import Image, IntArray, UndecodableImage
from distill.errors import RunError, UserError

STAGE = "index"

SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # absolute; in a tar the member's name
        ("tar", pa.string()),  # absolute; null for a file
        ("offset", pa.int64()),  # of the encoded image
        ("bytes", pa.int64()),
        ("label", pa.int32()),  # -1: unlabelled
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("pixels_sha256", pa.binary(32)),
        ("phash", pa.uint64()),
    ]
)
FAILURES = pa.schema([("path", pa.string()), ("tar", pa.string()), ("reason", pa.string())])

_OPEN_TARS = 64


# --- what other stages need ---------------------------------------------------------------------


def index_path(workspace: Workspace, shard: Shard) -> Path:
    """The part of a shard, a table of SCHEMA."""
    return workspace.path(STAGE, "images", part_key(shard), ".parquet")


def failures_path(workspace: Workspace, shard: Shard) -> Path:
    """What could not be decoded of a shard, a table of FAILURES."""
    return workspace.path(STAGE, "failures", part_key(shard), ".parquet")


def part_key(shard: Shard) -> str:
    """The key of a shard's part."""
    return make_key(STAGE, {}, [shard.key])


def read_index(
    workspace: Workspace, recipe: MiningRecipe, set_name: str, columns: Sequence[str] | None = None
) -> pa.Table:
    """The index of a whole set: row i is image number i."""
    parts = [read_table(index_path(workspace, shard), columns) for shard in shards_of(workspace, recipe, set_name)]
    return pa.concat_tables(parts)


def read_failures(workspace: Workspace, recipe: MiningRecipe, set_name: str) -> pa.Table:
    """What could not be decoded of a set."""
    return pa.concat_tables(read_table(failures_path(workspace, s)) for s in shards_of(workspace, recipe, set_name))


def offsets(workspace: Workspace, recipe: MiningRecipe, set_name: str) -> IntArray:
    """int64 [S + 1]: the number of each shard's first image, and the number of all images."""
    rows = [row_count(index_path(workspace, shard)) for shard in shards_of(workspace, recipe, set_name)]
    return np.cumsum([0, *rows], dtype=np.int64)


def row_count(path: Path) -> int:
    """The number of rows of a Parquet artefact, from its footer alone."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException):
        return len(read_table(path))  # which explains what is wrong


def location(path: str, tar: str | None, offset: int, size: int) -> str:
    """How an image list names an image of the index."""
    return path if tar is None else member_path(tar, offset, size)


class Reader:
    """Reads images of the index at random, in any thread; keeps some tars open. Use it in a `with` block.

    Args:
        shards: Where given, a tar among them that has changed since the run began is an error.
    """

    def __init__(self, shards: Iterable[Shard] = ()) -> None:
        self._shards = {shard.path: shard for shard in shards if shard.kind == "tar"}
        self._open: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()
        self._requests = Requests()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def encoded(self, path: str, tar: str | None, offset: int, size: int) -> bytes:
        """The image file's bytes.

        Raises:
            RunError: It has vanished, or is shorter than when it was indexed.
            StuckReading: Its reading hangs.
        """
        name = path if tar is None else f"{tar}: {path}"
        try:
            data = self._requests.read(name, functools.partial(self._read, path, tar, offset, size))
        except OSError as error:
            raise RunError(f"{name} was indexed but cannot be read now: {error.strerror}. Put it back") from error
        if len(data) != size:
            raise RunError(f"{name} has changed: {size} bytes were indexed, there are {len(data)}. Run again")
        return data

    def image(self, path: str, tar: str | None, offset: int, size: int) -> Image:
        """The decoded image, uint8 [H, W, 3], RGB.

        Raises:
            RunError: It is no longer what was indexed.
        """
        try:
            return decode_image(self.encoded(path, tar, offset, size), path if tar is None else f"{tar}: {path}")
        except UndecodableImage as error:
            raise RunError(f"{error}; it could be decoded when it was indexed. Run again") from error

    def _read(self, path: str, tar: str | None, offset: int, size: int) -> bytes:
        return read_encoded(os.fsencode(path)) if tar is None else self._read_tar(tar, size, offset)

    def _read_tar(self, tar: str, size: int, offset: int) -> bytes:
        with self._lock:  # or another thread could close the tar that we are about to read
            return os.pread(self._descriptor(tar), size, offset)

    def _descriptor(self, tar: str) -> int:
        if tar in self._open:
            self._open.move_to_end(tar)
            return self._open[tar]
        if tar in self._shards:
            check_unchanged(self._shards[tar])
        if len(self._open) >= _OPEN_TARS:
            os.close(self._open.popitem(last=False)[1])
        self._open[tar] = os.open(tar, os.O_RDONLY)
        return self._open[tar]


# --- the stage ----------------------------------------------------------------------------------


def run(workspace: Workspace, recipe: MiningRecipe) -> StageReport:
    """Indexes the shards of all sets that are not yet indexed.

    Raises:
        UserError: A source is missing or empty, no image can be decoded, or too few can.
    """
    with stopwatch() as seconds:
        counts: dict[str, int] = {}
        keys = []
        for set_name in set_names(recipe):
            shards = shards_of(workspace, recipe, set_name)
            keys += [part_key(shard) for shard in shards]
            index_missing(workspace, recipe, to_do(workspace, shards), title=f"index {set_name}")
            if workspace.part is None:
                counts |= _checked_counts(workspace, recipe, set_name)
    return StageReport(STAGE, make_key(STAGE, {}, keys), counts, seconds=seconds[0])


def index_missing(workspace: Workspace, recipe: MiningRecipe, shards: Sequence[Shard], *, title: str = STAGE) -> None:
    """Indexes those of the shards that are not yet."""
    missing = [shard for shard in shards if not index_path(workspace, shard).exists()]
    map_shards(functools.partial(index_shard, workspace.root), missing, recipe.runtime, title=title)


def index_shard(root: Path, shard: Shard) -> None:
    """Writes a shard's index and failures; the index last, because its being there means that both are.

    Raises:
        RunError: The shard is not what it was when the run began, or the reading of a file hangs.
    """
    workspace = Workspace(root)
    check_unchanged(shard)
    failures: list[tuple[str, str | None, str]] = []
    members = list(_members(workspace, shard, failures))
    encoded = in_time(map(_read_listed, members))
    rows = [row for row in map(functools.partial(_row, failures), members, encoded) if row]
    check_unchanged(shard)  # it may have been cut off while we read it
    write_table(failures_path(workspace, shard), _table(failures, FAILURES))
    write_table(index_path(workspace, shard), _table(rows, SCHEMA))


def _read_listed(member: Member) -> bytes | UndecodableImage:
    """A member's bytes, or the reason why there are none."""
    name = member.path if member.tar is None else f"{member.tar}: {member.path}"
    try:
        _check_name(member)
        return read_noted(name, functools.partial(_read_member, member))
    except UndecodableImage as error:
        return error


def _row(
    failures: list[tuple[str, str | None, str]], member: Member, data: bytes | UndecodableImage
) -> tuple[Any, ...] | None:
    try:
        if isinstance(data, UndecodableImage):
            raise data
        image = decode_image(data, member.path)
    except UndecodableImage as error:
        failures.append((member.path, member.tar, error.reason))
        return None
    height, width = image.shape[:2]
    fingerprints = pixels_sha256(image), int(perceptual_hash(image))
    return (member.path, member.tar, member.offset, len(data), member.label, width, height, *fingerprints)


def _check_name(member: Member) -> None:
    """A list of lines `path label` cannot state every file name."""
    name = member.tar or member.path
    if any(character in name for character in "\n\r\0") or name != name.strip():
        raise UndecodableImage(member.path, "its name has a line break or ends with a space: no list can hold it")


def _members(workspace: Workspace, shard: Shard, failures: list[tuple[str, str | None, str]]) -> Iterator[Member]:
    if shard.kind == "tar":
        yield from tar_members(shard.path, failures)
        return
    table = read_table(members_path(workspace, shard))
    for path, label in zip(table["path"].to_pylist(), table["label"].to_pylist(), strict=True):
        yield Member(path, None, 0, -1, label)


def _read_member(member: Member) -> bytes:
    try:
        if member.tar is None:
            return read_encoded(os.fsencode(member.path))
        return read_encoded(os.fsencode(member_path(member.tar, member.offset, member.size)))
    except OSError as error:
        raise UndecodableImage(member.path, f"cannot be read: {error.strerror}") from error


def _table(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)


def _checked_counts(workspace: Workspace, recipe: MiningRecipe, set_name: str) -> dict[str, int]:
    images = int(offsets(workspace, recipe, set_name)[-1])
    shards = shards_of(workspace, recipe, set_name)
    failures = sum(row_count(failures_path(workspace, shard)) for shard in shards)
    allowed = recipe.pool.max_undecodable_fraction
    if images == 0 or failures > allowed * (images + failures):
        first = read_failures(workspace, recipe, set_name).slice(0, 3).to_pylist()
        examples = "; ".join(f"{row['path'] or row['tar']}: {row['reason']}" for row in first)
        raise UserError(
            f"{set_name}: {failures} of {images + failures} images cannot be decoded, expected at most "
            f"pool.max_undecodable_fraction {allowed:g} and at least one image. The first: {examples or 'none'}. "
            f"All: {workspace.root / STAGE}/failures-*.parquet"
        )
    names = ("images", "undecodable") if set_name == POOL else (f"{set_name} images", f"{set_name} undecodable")
    return dict(zip(names, (images, failures), strict=True))
