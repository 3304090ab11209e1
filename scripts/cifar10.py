#!/usr/bin/env python3
"""Puts CIFAR-10 into a folder: 60,000 colour images of 32 px in 10 classes, and the lists that recipes read.

    python scripts/cifar10.py                                      # PaddlePaddle's copy, 170 MB; goes on when cut
    python scripts/cifar10.py --archive cifar-10-python.tar.gz     # an archive at hand; nothing in it is executed
    python scripts/cifar10.py --images FOLDER                      # images at hand, with train_list.txt, test_list.txt

Writes train_list.txt and test_list.txt, lines `path label`, into the folder, and from an archive PNG files beside
them, train/airplane/00000.png and so on. Of images at hand only the lists are written; they name the files' places.
"""

import argparse
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from distill.download import download, progress_bar
from distill.errors import DistillError, RunError, UserError
from distill.files import cannot_write, write_atomically
from distill.weights.files import sha256_of
from distill.weights.pdparams import read_plain_pickle
from distill.weights.pickles import RefusedPickle

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PARTS = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
DEFAULT = Path(__file__).resolve().parent.parent / "data" / "cifar10"
URL = "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
"""Of the archive as its authors published it: the MD5 that PaddlePaddle compares is of the same file."""
MOST_BYTES = 64 << 20
"""Of a member of the archive; the real ones have 31 MB."""


def main() -> int:
    options = parse_arguments()
    folder: Path = options.folder
    if is_complete(folder):
        print(f"CIFAR-10 is in {folder} already")
        return 0
    try:
        if options.images is not None:
            from_images(options.images, folder)
        else:
            from_archive(options.archive or fetch_archive(folder), folder)
    except DistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    print(f"CIFAR-10 is in {folder}")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT, help="default: data/cifar10 in the checkout")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--archive", type=Path, help="cifar-10-python.tar.gz")
    source.add_argument("--images", type=Path, help="a folder with images, train_list.txt and test_list.txt")
    return parser.parse_args()


def is_complete(folder: Path) -> bool:
    """Whether both lists are there; they are written last."""
    return all((folder / f"{part}_list.txt").is_file() for part in PARTS)


def fetch_archive(folder: Path) -> Path:
    """The archive that PaddlePaddle's own download fetches, put into the folder.

    Raises:
        RunError: It could not be had.
    """
    archive = folder / URL.rpartition("/")[2]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not archive.is_file() or sha256_of(archive) != SHA256:
            with progress_bar(archive.name) as progress:
                download(URL, archive, sha256=SHA256, progress=progress)
    except RunError as error:
        raise RunError(f"{error}. Or name an archive at hand with --archive") from error
    except OSError as error:
        raise cannot_write(archive, error) from error
    return archive


# --- an archive -----------------------------------------------------------------------------------


def from_archive(archive: Path, folder: Path) -> None:
    """Writes the images of a cifar-10-python.tar.gz as PNG files, and the lists.

    Raises:
        UserError: It is not such an archive.
    """
    lists: dict[str, list[str]] = {part: [] for part in PARTS}
    try:
        with tarfile.open(archive) as tar:
            members = {Path(member.name).name: member for member in tar if member.isfile()}
            for part, names in PARTS.items():
                for name in names:
                    for pixels, label in read_batch(_member(tar, members, name, archive), f"{archive}, {name}"):
                        lists[part].append(_write(folder, part, len(lists[part]), pixels, label))
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"cannot read {archive}: {error}. Expected cifar-10-python.tar.gz") from error
    _write_lists(folder, lists)


def _member(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str, archive: Path) -> bytes:
    member = members.get(name)
    opened = tar.extractfile(member) if member is not None and member.size <= MOST_BYTES else None
    if opened is None:
        raise UserError(f"{archive} has no {name} of a usual size: expected cifar-10-python.tar.gz")
    return opened.read()


def read_batch(data: bytes, name: str) -> Iterator[tuple[np.ndarray, int]]:
    """The images, uint8 [32, 32, 3] RGB, and labels, 0-9, of one file of the archive, a pickle that is not executed.

    Raises:
        UserError: It holds something else.
    """
    try:
        content = read_plain_pickle(data)
    except RefusedPickle as error:
        raise UserError(f"{name} is not read: {error}") from error
    pixels, labels = content.get("data"), content.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3 * 32 * 32,):
        raise UserError(f"{name}: expected `data`, uint8 [N, 3072]")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(label in range(10) for label in labels):
        raise UserError(f"{name}: expected `labels`, a whole number of 0-9 for each of {len(pixels)} images")
    return zip(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels, strict=True)


def _write(folder: Path, part: str, number: int, pixels: np.ndarray, label: int) -> str:
    """Writes one PNG; returns its line of the list."""
    name = f"{part}/{CLASSES[label]}/{number:05d}.png"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes())
    return f"{name} {label}\n"


# --- images at hand -------------------------------------------------------------------------------


def from_images(images: Path, folder: Path) -> None:
    """Writes the lists of a folder of images with the files' absolute places.

    Raises:
        UserError: A list is missing, a line is not `path label`, a label is outside 0-9, or the first file is missing.
    """
    lists = {}
    for part in PARTS:
        path = images / f"{part}_list.txt"
        try:
            lines = path.read_text().splitlines()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}. Expected lines `path label`") from error
        lists[part] = [_absolute(images, line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    _write_lists(folder, lists)


def _absolute(images: Path, line: str, place: str) -> str:
    name, _, label = line.rpartition(" ")
    if not name or label not in map(str, range(len(CLASSES))):
        raise UserError(f"expected `path label` with a label of 0-9, received {line!r} ({place})")
    path = (images / name).absolute()
    if not path.is_file():
        raise UserError(f"there is no file {path} ({place})")
    return f"{path} {label}\n"


def _write_lists(folder: Path, lists: dict[str, list[str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, lines in lists.items():
        write_atomically(folder / f"{part}_list.txt", "".join(lines))


if __name__ == "__main__":
    sys.exit(main())
