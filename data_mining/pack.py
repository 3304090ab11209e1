"""The stage `pack`: the chosen images as JPEGs of a small short side in tar files, and a list of those.

Fewer bytes are what makes decoding fast, and a tar of ten thousand images spares the file system. The tars have
the WebDataset layout (`000000042.jpg`, `000000042.cls`); the list reads their members at random.
"""

import functools
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_mining.executors import map_shards
from data_mining.image_lists import write_image_list
from data_mining.index import Reader, index_path, offsets
from data_mining.recipe import MiningRecipe, PackSection
from data_mining.select import selected_path
from data_mining.shards import POOL, Shard, shards_of, to_do
from data_mining.workspace import StageReport, Workspace, make_key, new_file, read_table, stopwatch, write_table
from distill.data.decode import decode_image
from distill.data.tar_member import member_path
from distill.data.types import Image, UndecodableImage
from distill.errors import RunError, UserError

STAGE = "pack"
_COLUMNS = ("path", "tar", "offset", "bytes", "pixels_sha256")
PLACES = pa.schema([("image", pa.int64()), ("offset", pa.int64()), ("bytes", pa.int64())])


@dataclass(frozen=True)
class TarPlan:
    """A tar that is to be written.

    Attributes:
        key: Of its content.
        title: What messages call it.
        images: Its images in order: image, label, path, tar, offset, bytes.
    """

    key: str
    title: str
    images: pa.Table


def tar_path(workspace: Workspace, plan: TarPlan) -> Path:
    """Where a tar is or will be."""
    return workspace.path(STAGE, plan.title.replace(" ", "-"), plan.key, ".tar")


def places_path(workspace: Workspace, plan: TarPlan) -> Path:
    """Where each image lies in a tar, a table of PLACES; written after the tar."""
    return workspace.path(STAGE, plan.title.replace(" ", "-"), plan.key, ".parquet")


def run(workspace: Workspace, recipe: MiningRecipe) -> StageReport:
    """Writes the tars that are missing, and `packed.parquet` and `packed.txt` in the output folder.

    Raises:
        UserError: The recipe has no section `pack`.
        RunError: A chosen image has changed or vanished, or the disk is full.
    """
    if recipe.pack is None:
        raise UserError("the recipe has no section `pack`: add one, such as `pack: {short_side_px: 256}`")
    with stopwatch() as seconds:
        plans = list(plan_tars(workspace, recipe, recipe.pack))
        missing = [plan for plan in to_do(workspace, plans) if not places_path(workspace, plan).exists()]
        function = functools.partial(write_tar, workspace.root, recipe.pack, shards_of(workspace, recipe, POOL))
        map_shards(function, missing, recipe.runtime, title=STAGE)
        counts = {} if workspace.part is not None else _write_list(workspace, recipe, plans)
    key = make_key(STAGE, {}, [plan.key for plan in plans])
    return StageReport(STAGE, key, counts, seconds=seconds[0])


def plan_tars(workspace: Workspace, recipe: MiningRecipe, section: PackSection) -> Iterator[TarPlan]:
    """Deals the chosen images, each once, in the order of their numbers."""
    selected = read_table(selected_path(workspace, recipe), ["image", "label"])
    numbers, first_rows = np.unique(selected["image"].to_numpy(), return_index=True)
    labels = selected["label"].take(pa.array(first_rows))
    images = _rows_of_index(workspace, recipe, numbers)
    images = images.append_column("image", pa.array(numbers)).append_column("label", labels)
    for count, first in enumerate(range(0, len(images), section.images_per_tar)):
        # taken, not sliced: a slice is sent to a worker together with all that it is a slice of
        some = images.take(pa.array(range(first, min(first + section.images_per_tar, len(images)))))
        hashes = [value.hex() for value in some["pixels_sha256"].to_pylist()]
        content = {"section": section.model_dump(), "images": some["image"].to_pylist(), "hashes": hashes}
        key = make_key(STAGE, content | {"labels": some["label"].to_pylist()})
        yield TarPlan(key, f"images {count:05d}", some)


def _rows_of_index(workspace: Workspace, recipe: MiningRecipe, numbers: NDArray[np.int64]) -> pa.Table:
    """Place and hash of some images of the pool, their numbers ascending; one part in memory at a time."""
    starts = offsets(workspace, recipe, POOL)
    parts = []
    for shard, first, end in zip(shards_of(workspace, recipe, POOL), starts[:-1], starts[1:], strict=True):
        rows = numbers[slice(*np.searchsorted(numbers, [first, end]))] - first
        parts.append(read_table(index_path(workspace, shard), _COLUMNS).take(pa.array(rows)))
    return pa.concat_tables(parts).combine_chunks()


def write_tar(root: Path, section: PackSection, shards: tuple[Shard, ...], plan: TarPlan) -> None:
    """Writes one tar and its table of places."""
    workspace = Workspace(root)
    places: list[tuple[int, int, int]] = []
    columns = plan.images.select(["image", "label", "path", "tar", "offset", "bytes"]).to_pylist()
    with (
        Reader(shards) as reader,
        new_file(tar_path(workspace, plan)) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for row in columns:
            data = reader.encoded(row["path"], row["tar"], row["offset"], row["bytes"])
            small, suffix = repacked(data, row["path"], section)
            offset = _add(tar, f"{row['image']:09d}{suffix}", small)
            _add(tar, f"{row['image']:09d}.cls", str(row["label"]).encode())
            places.append((row["image"], offset, len(small)))
    images, offsets, sizes = zip(*places, strict=True)
    write_table(places_path(workspace, plan), pa.table([images, offsets, sizes], schema=PLACES))


def repacked(data: bytes, path: str, section: PackSection) -> tuple[bytes, str]:
    """An image file with its short side reduced, and its suffix.

    An image that is small enough keeps its bytes: encoding it again would only lose quality.

    Args:
        data: The encoded image.
        path: Of the image, for its suffix and for messages.
        section: Short side and quality.

    Raises:
        RunError: It cannot be decoded.
    """
    try:
        image = decode_image(data, path)
    except UndecodableImage as error:
        raise RunError(f"{error}; it could be decoded when it was indexed. Run again") from error
    if min(image.shape[:2]) <= section.short_side_px:
        return data, os.path.splitext(path)[1].lower()
    return _encode(_short_side(image, section.short_side_px), section.quality), ".jpg"


def _short_side(image: Image, side: int) -> Image:
    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[no-any-return]


def _encode(image: Image, quality: int) -> bytes:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(data)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Adds a member without owner or time, so that equal images give equal tars; returns its data's offset."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    offset = int(tar.offset) + tarfile.BLOCKSIZE  # a USTAR header is one block
    tar.addfile(member, io.BytesIO(data))
    return offset


def _write_list(workspace: Workspace, recipe: MiningRecipe, plans: list[TarPlan]) -> dict[str, int]:
    locations: dict[int, str] = {}
    total = 0
    for plan in plans:
        tar = str(tar_path(workspace, plan))
        for row in read_table(places_path(workspace, plan)).to_pylist():
            locations[row["image"]] = member_path(tar, row["offset"], row["bytes"])
            total += row["bytes"]
    selected = read_table(selected_path(workspace, recipe))
    paths = pa.array([locations[image] for image in selected["image"].to_pylist()], pa.string())
    column = selected.schema.get_field_index("path")
    write_image_list(workspace, "packed", selected.set_column(column, "path", paths))
    return {"packed": len(locations), "packed bytes": total, "tars": len(plans)}
