"""A folder with one sub-folder a class."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from distill.data.image_list import ImageFiles, check_folder
from distill.data.types import UNLABELLED
from distill.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def open_class_folders(root: Path, num_classes: int | None) -> ImageFiles:
    """Lists the images below each class folder, at any depth; classes and files in sorted order of their bytes.

    Args:
        root: The folder of the class folders. Hidden files and folders are skipped.
        num_classes: The number of class folders must not exceed it; None withholds the labels.

    Raises:
        UserError: Missing root, no class folder, too many of them, or no image at all.
    """
    check_folder(root, "root")
    folders = sorted(os.fsencode(entry.name) for entry in os.scandir(root) if entry.is_dir() and _is_visible(entry))
    if num_classes is not None and len(folders) > num_classes:
        raise UserError(f"{root}: {len(folders)} class folders, but num_classes is {num_classes}")
    paths: list[bytes] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(_image_paths(os.fsencode(root), folder))
        paths += found
        labels += [label if num_classes is not None else UNLABELLED] * len(found)
    if not paths:
        raise UserError(
            f"{root}: no images found in its {len(folders)} sub-folder(s); expected <class>/<file> with one of "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    lengths = np.array([len(path) for path in paths], dtype=np.int32)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    text = np.frombuffer(b"".join(paths), np.uint8)
    return ImageFiles(root, text, starts, lengths, np.array(labels, dtype=np.int64))


def _image_paths(root: bytes, folder: bytes) -> Iterator[bytes]:
    """Paths below root/folder, relative to root."""
    for parent, folders, files in os.walk(os.path.join(root, folder)):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        for file in files:
            if not file.startswith(b".") and os.fsdecode(file).lower().endswith(IMAGE_SUFFIXES):
                yield os.path.relpath(os.path.join(parent, file), root)


def _is_visible(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".")
