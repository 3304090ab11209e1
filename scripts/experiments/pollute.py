"""A pool with known dirt: edited copies of protected images, exact duplicates, images of something else.

The edits are pure functions of an image and a generator; `plan_pool` and `write_pool` are the same for the same
arguments. Files are numbered in a random order, so that neither names nor neighbours tell what they are; only
`truth.csv`, beside the folder of images, does.
"""

import csv
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from distill.data.decode import decode_image
from distill.data.types import Image

CLEAN, LEAK, DUPLICATE, OFF_TOPIC = KINDS = ("clean", "leak", "duplicate", "off_topic")
IMAGES_PER_FOLDER = 1_000

Edit = Callable[[Image, np.random.Generator], Image]


@dataclass(frozen=True)
class Picture:
    """An image of a source.

    Attributes:
        name: What `truth.csv` calls it.
        suffix: Of its file format, ".jpg" or ".png".
        encoded: Gives the bytes of the file.
    """

    name: str
    suffix: str
    encoded: Callable[[], bytes]

    @property
    def pixels(self) -> Image:
        """uint8 [H, W, 3], RGB."""
        return decode_image(self.encoded(), self.name)


@dataclass(frozen=True)
class Entry:
    """An image of the pool to be: `picture` as it is, or a leak, after `edit`."""

    kind: str
    picture: Picture
    edit: str = ""


@dataclass(frozen=True)
class Truth:
    """A line of `truth.csv`: `path` is relative to the folder of images, `original` a picture's name."""

    path: str
    kind: str
    edit: str
    original: str


# --- pictures ---------------------------------------------------------------------------------


def file_picture(path: Path, name: str | None = None) -> Picture:
    """A file, taken over byte for byte where it is not edited."""
    return Picture(name or str(path), path.suffix, path.read_bytes)


def array_picture(pixels: Image, name: str) -> Picture:
    """Pixels in memory, uint8 [H, W, 3] RGB or [H, W] grey; its file is a PNG."""
    return Picture(name, ".png", lambda: encode(pixels, ".png"))


def encode(pixels: Image, suffix: str) -> bytes:
    """A JPEG of quality 95, or a PNG, quickly compressed."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix.lower() in (".jpg", ".jpeg") else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    bgr = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(suffix, bgr, flags)[1])


# --- the edits --------------------------------------------------------------------------------


def jpeg_25(image: Image, rng: np.random.Generator) -> Image:
    """Compressed as a JPEG of quality 25."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 25])[1].tobytes()
    return decode_image(data, "jpeg_25")


def resize(image: Image, rng: np.random.Generator) -> Image:
    """To 50-80 % of the width and, independently, of the height."""
    height, width = image.shape[:2]
    scale = rng.uniform(0.5, 0.8, 2)
    return _scaled(image, max(8, round(width * scale[0])), max(8, round(height * scale[1])))


def crop(image: Image, rng: np.random.Generator, area: float) -> Image:
    """A box at a random place, of the image's shape and of `area` of its area."""
    height, width = image.shape[:2]
    h, w = max(8, round(height * area**0.5)), max(8, round(width * area**0.5))
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    return np.ascontiguousarray(image[y : y + h, x : x + w])


def flip(image: Image, rng: np.random.Generator) -> Image:
    """Left and right exchanged."""
    return np.ascontiguousarray(image[:, ::-1])


def rotation(image: Image, rng: np.random.Generator) -> Image:
    """By 5-15 degrees either way; the corners repeat the edge."""
    height, width = image.shape[:2]
    angle = rng.uniform(5, 15) * rng.choice([-1, 1])
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    return cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def colour(image: Image, rng: np.random.Generator) -> Image:
    """Each channel with a gain of 0.7-1.3 of its own, half to twice the saturation, a shift of brightness."""
    values = image.astype(np.float32) * rng.uniform(0.7, 1.3, 3).astype(np.float32)
    grey = values.mean(axis=2, keepdims=True)
    values = grey + (values - grey) * rng.uniform(0.5, 2.0) + rng.uniform(-25, 25)
    return values.round().clip(0, 255).astype(np.uint8)


def blur(image: Image, rng: np.random.Generator) -> Image:
    """Gaussian, sigma 0.4 px and 1 % of the short side."""
    return cv2.GaussianBlur(image, (0, 0), 0.4 + min(image.shape[:2]) / 100)


def overlay(image: Image, rng: np.random.Generator) -> Image:
    """An opaque band with letters over 18 % of the height, in the upper or the lower third."""
    result = image.copy()
    height, width = image.shape[:2]
    band = max(4, round(0.18 * height))
    top = round(rng.uniform(0.0, 0.15) * height) if rng.random() < 0.5 else round(rng.uniform(0.65, 0.8) * height)
    result[top : top + band] = rng.integers(0, 256, 3)
    letters = "".join(chr(65 + letter) for letter in rng.integers(0, 26, 8))
    ink = tuple(int(value) for value in rng.integers(0, 256, 3))
    place = (round(0.05 * width), top + round(0.8 * band))
    cv2.putText(result, letters, place, cv2.FONT_HERSHEY_SIMPLEX, band / 30, ink, max(1, band // 12), cv2.LINE_AA)
    return result


def border(image: Image, rng: np.random.Generator) -> Image:
    """A frame of one colour around the image, 12 % of its sides wide."""
    height, width = image.shape[:2]
    y, x = max(1, round(0.12 * height)), max(1, round(0.12 * width))
    shade = [int(value) for value in rng.integers(0, 256, 3)]
    return cv2.copyMakeBorder(image, y, y, x, x, cv2.BORDER_CONSTANT, value=shade)


EDITS: dict[str, Edit] = {
    "jpeg_25": jpeg_25,
    "resize": resize,
    "crop_80": lambda image, rng: crop(image, rng, 0.80),
    "crop_50": lambda image, rng: crop(image, rng, 0.50),
    "crop_25": lambda image, rng: crop(image, rng, 0.25),
    "flip": flip,
    "rotation": rotation,
    "colour": colour,
    "blur": blur,
    "overlay": overlay,
    "border": border,
}
"""By name. "crop_80" keeps 80 % of the area: one kind of edit in three strengths."""


# --- the pool ---------------------------------------------------------------------------------


def plan_pool(
    clean: Sequence[Picture],
    protected: Sequence[Picture],
    off_topic: Sequence[Picture],
    *,
    duplicates: int,
    copies_per_edit: int,
    edits: Sequence[str] = tuple(EDITS),
    seed: int,
) -> list[Entry]:
    """What is in the pool, in the order of the files.

    Args:
        clean: Each once.
        protected: What leaks; each edit takes `copies_per_edit` of them in turn, so that they are used alike.
        off_topic: Each once.
        duplicates: So many of the clean ones, drawn without replacement, occur a second time.
        copies_per_edit: Leaks that each edit makes.
        edits: Names in EDITS.
        seed: Of the order, and of the duplicates.

    Raises:
        ValueError: More duplicates than clean images, or leaks of nothing.
    """
    if duplicates > len(clean):
        raise ValueError(f"duplicates must be at most the {len(clean)} clean pictures, received {duplicates}")
    if copies_per_edit and not protected:
        raise ValueError("copies_per_edit needs protected pictures, received none")
    rng = np.random.Generator(np.random.Philox([seed, 0]))
    entries = [Entry(CLEAN, picture) for picture in clean]
    twice = rng.choice(len(clean), duplicates, replace=False) if duplicates else ()
    entries += [Entry(DUPLICATE, clean[number]) for number in twice]
    turn = itertools.cycle(rng.permutation(len(protected)))
    entries += [Entry(LEAK, protected[next(turn)], edit) for edit in edits for _ in range(copies_per_edit)]
    entries += [Entry(OFF_TOPIC, picture) for picture in off_topic]
    return [entries[number] for number in rng.permutation(len(entries))]


def write_pool(folder: Path, entries: Sequence[Entry], *, seed: int) -> list[Truth]:
    """Writes `<folder>/images/<thousands>/<number>.<suffix>` and `<folder>/truth.csv`; the latter last.

    Args:
        folder: Made if it is not there.
        entries: As `plan_pool` gives them.
        seed: Of the edits; each image has a generator of its own.

    Returns:
        The lines of the truth, one for each of the entries in their order.
    """
    truth = []
    for number, entry in enumerate(entries):
        name = f"{number // IMAGES_PER_FOLDER:03d}/{number:06d}{entry.picture.suffix.lower()}"
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_content(entry, np.random.Generator(np.random.Philox([seed, 1 + number]))))
        truth.append(Truth(name, entry.kind, entry.edit, entry.picture.name))
    temporary = folder / "truth.csv.part"
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "kind", "edit", "original"))
        writer.writerows((line.path, line.kind, line.edit, line.original) for line in truth)
    temporary.replace(folder / "truth.csv")
    return truth


def read_truth(folder: Path) -> list[Truth]:
    """The lines of `<folder>/truth.csv`."""
    with open(folder / "truth.csv", newline="", encoding="utf-8") as file:
        return [Truth(**row) for row in csv.DictReader(file)]


def _content(entry: Entry, rng: np.random.Generator) -> bytes:
    if not entry.edit:
        return entry.picture.encoded()
    return encode(EDITS[entry.edit](entry.picture.pixels, rng), entry.picture.suffix)


def _scaled(image: Image, width: int, height: int) -> Image:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
