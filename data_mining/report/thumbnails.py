"""Images as they stand in a page: small, encoded, in the page itself."""

import base64
from collections import OrderedDict
from typing import Any

import cv2
import numpy as np

from data_mining.index import Reader, index_path, offsets
from data_mining.recipe import MiningRecipe
from data_mining.report.summary import ImageRef
from data_mining.shards import shards_of
from data_mining.workspace import Workspace, read_table
from distill.data.types import Image
from distill.data.watch import StuckReading
from distill.errors import RunError

SIDE_PX = 144
_LOSSLESS_UP_TO_PX = 64
_PLACES = ("path", "tar", "offset", "bytes")
_KEPT_PARTS = 32

MISSING = (
    "data:image/svg+xml;utf8,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 10 10'>"
    "<path d='M2 2l6 6M8 2l-6 6' stroke='gray'/></svg>"
)
"""In place of an image that has vanished since: a report must not fail for it."""


class Thumbnails:
    """Small pictures of images by set and number, as data URLs. Use it in a `with` block.

    Args:
        workspace: Of the index.
        recipe: What was mined.
    """

    def __init__(self, workspace: Workspace, recipe: MiningRecipe) -> None:
        self._workspace = workspace
        self._recipe = recipe
        self._reader = Reader()
        self._starts: dict[str, Any] = {}
        self._parts: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def __enter__(self) -> "Thumbnails":
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.__exit__(*error)

    def url(self, image: ImageRef) -> str:
        """A data URL of the image, at most SIDE_PX wide and high.

        Raises:
            StuckReading: Its reading hangs.
        """
        try:
            return encode_thumbnail(self._reader.image(**_renamed(self.place(image.set_name, image.image))))
        except StuckReading:
            raise
        except RunError:
            return MISSING

    def place(self, set_name: str, number: int) -> dict[str, Any]:
        """Path, tar, offset and bytes of an image of the index."""
        if set_name not in self._starts:
            self._starts[set_name] = offsets(self._workspace, self._recipe, set_name)
        starts = self._starts[set_name]
        shard = int(np.searchsorted(starts, number, side="right")) - 1
        if (set_name, shard) not in self._parts:
            path = index_path(self._workspace, shards_of(self._workspace, self._recipe, set_name)[shard])
            self._parts[set_name, shard] = read_table(path, _PLACES)
            if len(self._parts) > _KEPT_PARTS:
                self._parts.popitem(last=False)
        row: dict[str, Any] = self._parts[set_name, shard].slice(number - int(starts[shard]), 1).to_pylist()[0]
        return row


def encode_thumbnail(image: Image) -> str:
    """A data URL; small images keep every pixel, larger ones become JPEGs.

    Args:
        image: uint8 [H, W, 3], RGB.
    """
    height, width = image.shape[:2]
    scale = SIDE_PX / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    lossless = max(height, width) <= _LOSSLESS_UP_TO_PX
    suffix, options, kind = (".png", [], "png") if lossless else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 82], "jpeg")
    _, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


def _renamed(place: dict[str, Any]) -> dict[str, Any]:
    return {"path": place["path"], "tar": place["tar"], "offset": place["offset"], "size": place["bytes"]}
