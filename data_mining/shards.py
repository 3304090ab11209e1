"""The sets of images of a recipe, cut into shards.

A shard is what a worker takes at a time and what the parts of an artefact belong to: a tar file, or some
thousand files. Its key hashes what it holds, so a shard that is new or has changed is a shard that has not
been worked on. Shards keep the order in which they were first seen: new ones only append to the numbering
of the images, which is (images of the shards before) + (row in the shard).
"""

import glob
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from data_mining.recipe import AnySource, FolderSource, ImageListSource, ImageSet, MiningRecipe, TarSource
from data_mining.workspace import Workspace, make_key, write_table
from distill.data.class_folders import IMAGE_SUFFIXES
from distill.data.image_list import check_folder, open_image_list
from distill.errors import RunError, UserError
from distill.files import write_atomically

STAGE = "shards"
POOL = "pool"
LABELLED = "labelled"
MEMBERS = pa.schema([("path", pa.string()), ("label", pa.int32())])

Item = TypeVar("Item")

_ANY_LABEL = 2**31  # the pool's own labels need not be the teacher's classes


@dataclass(frozen=True)
class Shard:
    """Some images that are indexed, scored and packed together.

    Attributes:
        key: 16 hexadecimal digits, of its content.
        kind: "files": its paths are in an artefact of their own; "tar".
        title: What messages call it.
        path: Of the tar, absolute; "" for files.
        size: Of the tar in bytes, when it was listed; 0 for files.
        mtime_ns: Of the tar, when it was listed; 0 for files.
    """

    key: str
    kind: str
    title: str
    path: str = ""
    size: int = 0
    mtime_ns: int = 0


def protected(name: str) -> str:
    """The set's name of the recipe's protected images `name`."""
    return f"protected-{name}"


def set_names(recipe: MiningRecipe) -> list[str]:
    """All sets of images: "pool", "labelled", "protected-<name>"."""
    return list(_sections(recipe))


def shards_of(workspace: Workspace, recipe: MiningRecipe, set_name: str) -> tuple[Shard, ...]:
    """The shards of a set in the order of the images' numbers.

    Lists the sources once a process, and writes the paths of new shards of files.

    Raises:
        UserError: A source is missing or empty, or a tar is compressed.
    """
    cached = f"{STAGE}/{set_name}"
    if cached not in workspace.cache:
        section = _sections(recipe)[set_name]
        found = {shard.key: shard for source in section for shard in _list(workspace, recipe, source)}
        workspace.cache[cached] = tuple(found[key] for key in _in_order(workspace, set_name, list(found)))
    shards: tuple[Shard, ...] = workspace.cache[cached]
    return shards


def set_key(workspace: Workspace, recipe: MiningRecipe, set_name: str) -> str:
    """The key of all images of a set, in their order."""
    return make_key(STAGE, {}, [shard.key for shard in shards_of(workspace, recipe, set_name)])


def to_do(workspace: Workspace, shards: Sequence[Item]) -> list[Item]:
    """The shards, or whatever else is shared by parts, that this job works on: all, or those of its part."""
    if workspace.part is None:
        return list(shards)
    return list(shards)[workspace.part.index :: workspace.part.count]


def members_path(workspace: Workspace, shard: Shard) -> Path:
    """The table (MEMBERS) of the paths of a shard of files."""
    return workspace.path(STAGE, "members", shard.key, ".parquet")


def check_unchanged(shard: Shard) -> None:
    """Raises RunError where a tar is no longer what it was when its key was computed."""
    if shard.kind != "tar":
        return
    try:
        now = os.stat(shard.path)
    except OSError as error:
        reason = error.strerror
        raise RunError(f"{shard.path} has vanished since the run began: {reason}. Put it back, or {_AGAIN}") from error
    if (now.st_size, now.st_mtime_ns) != (shard.size, shard.mtime_ns):
        raise RunError(f"{shard.path} has changed since the run began. When it is complete, {_AGAIN}")


_AGAIN = "run again: what is done is kept, and only changed shards are computed anew"


def _sections(recipe: MiningRecipe) -> dict[str, tuple[AnySource, ...]]:
    sets: list[tuple[str, ImageSet]] = [(protected(each.name), each) for each in recipe.protected]
    if recipe.labelled is not None:
        sets.insert(0, (LABELLED, recipe.labelled))
    return {POOL: recipe.pool.sources, **{name: each.sources for name, each in sets}}


def _in_order(workspace: Workspace, set_name: str, keys: list[str]) -> list[str]:
    """The keys in the order in which they were first seen; remembers the new ones."""
    file = workspace.root / "shards.json"
    with workspace.exclusive("shards"):
        try:
            seen: dict[str, list[str]] = json.loads(file.read_text())
        except FileNotFoundError:
            seen = {}
        before = seen.get(set_name, [])
        known = set(before)
        after = before + [key for key in keys if key not in known]
        if after != before:
            write_atomically(file, json.dumps(seen | {set_name: after}, indent=1) + "\n")
    present = set(keys)
    return [key for key in after if key in present]


# --- sources ------------------------------------------------------------------------------------


def _list(workspace: Workspace, recipe: MiningRecipe, source: AnySource) -> Iterator[Shard]:
    size = recipe.pool.images_per_shard
    match source:
        case TarSource():
            return _list_tars(source)
        case ImageListSource():
            return _list_image_list(workspace, source, size)
        case FolderSource():
            return _list_folder(workspace, source, size)


def _list_tars(source: TarSource) -> Iterator[Shard]:
    paths = sorted(path for path in glob.glob(source.path, recursive=True) if os.path.isfile(path))
    if not paths:
        raise UserError(f"{source.path}: there is no such tar file")
    for path in map(os.path.abspath, paths):
        if printable(os.fsencode(path)) != path:
            raise UserError(f"{printable(os.fsencode(path))}: expected a name in UTF-8: rename the file")
        if not path.endswith(".tar"):
            raise UserError(f"{path}: expected a file *.tar. A compressed tar has no random access: unpack it first")
        status = os.stat(path)
        key = make_key("tar", {"path": path, "size": status.st_size, "mtime_ns": status.st_mtime_ns})
        yield Shard(key, "tar", path, path, status.st_size, status.st_mtime_ns)


def _list_image_list(workspace: Workspace, source: ImageListSource, size: int) -> Iterator[Shard]:
    images = open_image_list(Path(source.path), Path(os.path.abspath(source.root)), _ANY_LABEL)
    for first in range(0, len(images), size):
        end = min(first + size, len(images))
        key = make_key("list", {"digest": images.digest(first, end)})
        shard = Shard(key, "files", f"{source.path}, images {first + 1}-{end}")
        if not (path := members_path(workspace, shard)).exists():
            rows = range(first, end)
            _write_members(path, [images.path(row) for row in rows], images.labels[first:end].tolist())
        yield shard


def _list_folder(workspace: Workspace, source: FolderSource, size: int) -> Iterator[Shard]:
    """The images right inside each folder are shards of their own: a new folder changes no other shard."""
    root = os.fsencode(os.path.abspath(source.root))
    check_folder(Path(source.root), "root")
    classes: dict[bytes, int] = {}
    if source.labels == "sub_folders":
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(b"."))
        classes = {name: label for label, name in enumerate(names)}
    empty = True
    for folder, files in _walk(root, set()):
        top = os.path.relpath(folder, root).split(b"/")[0]
        label = classes.get(top, -1)
        for first in range(0, len(files), size):
            some = files[first : first + size]
            listing = [[name.decode(errors="surrogateescape"), *identity] for name, *identity in some]
            folder_name = os.fsdecode(folder)
            key = make_key("folder", {"folder": folder_name, "label": label, "files": listing})
            shard = Shard(key, "files", f"{printable(folder)}, images {first + 1}-{first + len(some)}")
            if not (path := members_path(workspace, shard)).exists():
                _write_members(path, [os.path.join(folder, name) for name, *_ in some], [label] * len(some))
            empty = False
            yield shard
    if empty:
        raise UserError(f"{source.root}: there is no image below it; expected files {', '.join(IMAGE_SUFFIXES)}")


_File = tuple[bytes, int, int]  # name, size, mtime in ns


def _walk(folder: bytes, visited: set[tuple[int, int]]) -> Iterator[tuple[bytes, list[_File]]]:
    """Folders with the images right inside them, both in the order of their bytes; links are followed once."""
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in visited:
        return
    visited.add((status.st_dev, status.st_ino))
    try:
        with os.scandir(folder) as scan:
            entries = sorted((entry for entry in scan if not entry.name.startswith(b".")), key=lambda each: each.name)
    except OSError as error:
        raise UserError(f"{printable(folder)}: the folder cannot be read: {error.strerror}") from error
    images = (entry for entry in entries if os.fsdecode(entry.name).lower().endswith(IMAGE_SUFFIXES))
    files = [file for file in map(_file, images) if file is not None]
    if files:
        yield folder, files
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path, visited)


def _file(entry: "os.DirEntry[bytes]") -> _File | None:
    """None for a folder; a link that leads nowhere counts as a file, so that it is reported as undecodable."""
    try:
        status = entry.stat()
    except OSError:
        return entry.name, -1, 0
    return None if entry.is_dir() else (entry.name, status.st_size, status.st_mtime_ns)


def _write_members(path: Path, paths: list[bytes], labels: list[int]) -> None:
    # A name that is not UTF-8 gets its escaped form, which is not found on the disk and so is reported.
    write_table(path, pa.table([list(map(printable, paths)), labels], schema=MEMBERS))


def printable(path: bytes) -> str:
    """A file's name as text; what of it is no UTF-8 is escaped."""
    return path.decode("utf-8", "backslashreplace")
