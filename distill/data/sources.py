"""The sources of a recipe, opened and put one after the other."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.data.class_folders import open_class_folders
from distill.data.idx import IdxImages
from distill.data.image_list import ImageFiles, open_image_list
from distill.data.types import Image, ImageRows, ImageSource, IntArray
from distill.errors import UserError
from distill.recipe import AnySource, ClassFoldersSource, IdxSource, ImageListSource

SAMPLED_FILES = 256
"""How many files' sizes tell a source from one of the same names, such as smaller copies."""


@dataclass(frozen=True)
class Part:
    """The samples [first, end) of a source, `repeat` times."""

    source: ImageSource
    first: int
    end: int
    repeat: int

    def __len__(self) -> int:
        return (self.end - self.first) * self.repeat


class Images:
    """Sources one after the other; each occurrence of a repeated sample has an index, and so a view, of its own."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in parts])
        labels = [_repeated(part.source.labels[part.first : part.end], part.repeat) for part in parts]
        self.labels: IntArray = labels[0] if len(labels) == 1 else np.concatenate(labels)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def part_sizes(self) -> list[int]:
        """Samples of each source, repetitions counted."""
        return [len(part) for part in self._parts]

    def read(self, index: int) -> Image:
        """See `ImageSource.read`."""
        source, own_index = self._locate(index)
        return source.read(own_index)

    def open(self, index: int) -> Image | ImageRows:
        """See `ImageSource.open`."""
        source, own_index = self._locate(index)
        return source.open(own_index)

    def encoded(self, index: int) -> bytes | None:
        """The bytes of an image's file; None where it has no file of its own (IDX).

        Raises:
            UndecodableImage: The file is missing or not readable.
        """
        source, own_index = self._locate(index)
        return source.encoded(own_index) if isinstance(source, ImageFiles) else None

    def name(self, index: int) -> str:
        """See `ImageSource.name`."""
        source, own_index = self._locate(index)
        return source.name(own_index)

    def identity(self) -> dict[str, str]:
        """What tells these images from others, cheaply: hashes of what is listed and of the sizes of some files.

        Their order and repetition are part of it, labels and the folders' place are not. Files of equal names and
        sizes are not told apart; images of IDX files are, by their pixels.
        """
        listed, sizes = hashlib.sha256(), hashlib.sha256()
        for part in self._parts:
            source = part.source
            if not isinstance(source, ImageFiles | IdxImages):
                raise TypeError(f"{type(source).__name__} cannot tell its images from others")
            listed.update(f"{part.repeat} {source.content_digest(part.first, part.end)}\n".encode())
            sizes.update(f"{source.sample_sizes(part.first, part.end, SAMPLED_FILES)}\n".encode())
        return {"listed": listed.hexdigest(), "sizes": sizes.hexdigest()}

    def _locate(self, index: int) -> tuple[ImageSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        at = int(np.searchsorted(self._ends, index, side="right"))
        part = self._parts[at]
        offset = index - int(self._ends[at]) + len(part)
        return part.source, part.first + offset % (part.end - part.first)


def open_sources(sources: Sequence[AnySource], num_classes: int) -> Images:
    """Opens the sources of a recipe; the images themselves are not touched.

    Args:
        sources: At least one.
        num_classes: Labels must lie in 0..num_classes-1, unless a source withholds them.

    Raises:
        UserError: A file or folder is missing, empty or not understood, a label is outside the classes,
            or a range exceeds its source.
    """
    return Images([_open_part(source, num_classes) for source in sources])


def _open_part(section: AnySource, num_classes: int) -> Part:
    source = _open(section, num_classes if section.use_labels else None)
    first, end = section.range or (0, len(source))
    if end > len(source):
        where = section.images if isinstance(section, IdxSource) else section.root
        where = section.path if isinstance(section, ImageListSource) else where
        raise UserError(f"{where}: range [{first}, {end}) exceeds its {len(source)} images")
    return Part(source, first, end, section.repeat)


def _open(section: AnySource, num_classes: int | None) -> ImageSource:
    match section:
        case ImageListSource():
            return open_image_list(Path(section.path), Path(section.root), num_classes)
        case ClassFoldersSource():
            return open_class_folders(Path(section.root), num_classes)
        case IdxSource():
            return IdxImages(Path(section.images), Path(section.labels) if section.labels else None, num_classes)


def _repeated(labels: IntArray, times: int) -> IntArray:
    return labels if times == 1 else np.tile(labels, times)
