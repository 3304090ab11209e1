"""Damaged, odd and hostile image files, through the training loader and through mining's index.

Each is decoded to the pixels that Pillow reads, or named with a reason; and none costs more memory than the limit says.
"""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_mining import index
from data_mining.index import read_failures, read_index
from data_mining.pixels import pixels_sha256
from data_mining.recipe import MiningRecipe
from data_mining.workspace import Workspace
from distill.data.decode import decode_image
from distill.data.image_header import MAX_PIXELS, announced_size
from distill.data.image_list import MAX_FILE_BYTES, open_image_list
from distill.data.loader import EvaluationLoader
from distill.recipe import EvaluationSection, RuntimeSection

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
ORIENTATION_6 = b"Exif\0\0" + struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)


def encoded(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def animated(kind, **options):
    frames = [Image.fromarray(np.roll(PICTURE, 5 * shift, axis=1)) for shift in range(1, 4)]
    return encoded(kind, save_all=True, append_images=frames, **options)


def sixteen_bits():
    buffer = io.BytesIO()
    Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257).save(buffer, "PNG")
    return buffer.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def black_png(width, height):
    """A whole PNG of one bit a pixel: 16384 x 16384 of them are 33 kB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    data = b"".join(packer.compress(row * min(1024, height - top)) for top in range(0, height, 1024)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def announcing(data, at, code, *values):
    """A file whose header says something else."""
    changed = bytearray(data)
    struct.pack_into(code, changed, at, *values)
    return bytes(changed)


def tiff_of_size(width, height):
    fields = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (279, 4, 1)]
    directory = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in fields)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)


def big_tiff_of_size(width, height):
    fields = struct.pack("<HHQQ", 256, 16, 1, width) + struct.pack("<HHQQ", 257, 16, 1, height)
    return b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 2) + fields + bytes(8)


GOOD = {
    "cmyk.jpg": encoded("JPEG", "CMYK", quality=98),
    "cmyk.tif": encoded("TIFF", "CMYK"),
    "grey.jpg": encoded("JPEG", "L", quality=98),
    "grey.png": encoded("PNG", "L"),
    "bits.png": encoded("PNG", "1"),
    "sixteen.png": sixteen_bits(),
    "alpha.png": encoded("PNG", "RGBA"),
    "alpha.webp": encoded("WEBP", "RGBA", lossless=True),
    "grey-alpha.png": encoded("PNG", "LA"),
    "palette.gif": encoded("GIF"),
    "animated.gif": animated("GIF"),
    "animated.webp": animated("WEBP", lossless=True),
    "animated.png": animated("PNG"),
    "turned.jpg": encoded("JPEG", quality=98, exif=ORIENTATION_6),
    "turned.png": encoded("PNG", exif=ORIENTATION_6),
    "turned.webp": encoded("WEBP", lossless=True, exif=ORIENTATION_6),
    "turned.tif": encoded("TIFF", tiffinfo={0x0112: 6}),
}
BAD = {
    "empty.jpg": (b"", "the file is empty"),
    "truncated.jpg": (encoded("JPEG")[:-200], "damaged"),
    "truncated.png": (encoded("PNG")[:-200], "damaged"),
    "text.jpg": (b"<html>404</html>", "no JPEG, PNG, WebP, BMP, TIFF or GIF"),
    "zeros.png": (bytes(4096), "no JPEG, PNG, WebP, BMP, TIFF or GIF"),
    "other.png": (encoded("JPEG2000"), "no JPEG, PNG, WebP, BMP, TIFF or GIF"),
    "no-pixels.png": (black_png(0, 0), "damaged"),
    "no-pixels.gif": (announcing(encoded("GIF"), 6, "<HH", 0, 0), "damaged"),
    "header.webp": (b"RIFF\x20\0\0\0WEBPVP8X", "the file ends in its header"),
    "sound.webp": (b"RIFF\x20\0\0\0WAVEfmt " + bytes(32), "no WebP"),
    "huge.jpg": (
        announcing(encoded("JPEG"), encoded("JPEG").index(b"\xff\xc0") + 5, ">HH", 60000, 60000),
        "px are more",
    ),
    "huge.png": (announcing(encoded("PNG"), 16, ">II", 60000, 60000), "60000 x 60000 px are more"),
    "huge.gif": (announcing(encoded("GIF"), 6, "<HH", 60000, 60000), "60000 x 60000 px are more"),
    "huge.bmp": (announcing(encoded("BMP"), 18, "<ii", 60000, -60000), "60000 x 60000 px are more"),
    "huge.webp": (announcing(animated("WEBP"), 24, "<HBHB", 59999, 0, 59999, 0), "60000 x 60000 px are more"),
    "huge.tif": (tiff_of_size(60000, 60000), "60000 x 60000 px are more"),
    "huge-big.tif": (big_tiff_of_size(60000, 60000), "60000 x 60000 px are more"),
    "bomb.png": (black_png(30000, 30000), "30000 x 30000 px are more than 178956970"),
}
NO_FILES = {
    "folder.jpg": "Is a directory|not a regular file",
    "pipe.jpg": "not a regular file",
    "sparse.jpg": "bytes are more",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All of these as files."""
    folder = tmp_path_factory.mktemp("images")
    for name, data in GOOD.items():
        (folder / name).write_bytes(data)
    for name, (data, _) in BAD.items():
        (folder / name).write_bytes(data)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "sparse.jpg").touch()
    os.truncate(folder / "sparse.jpg", MAX_FILE_BYTES + 1)
    (folder / "list.txt").write_text("".join(f"{name} 0\n" for name in [*GOOD, *BAD, *NO_FILES]))
    return folder


def by_pillow(data):
    """What Pillow reads: the first picture, upright, RGB; of 16 bits the upper 8."""
    image = Image.open(io.BytesIO(data))
    orientation = image.getexif().get(0x0112, 1)
    if image.mode == "I;16":
        image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    pixels = np.array(image.convert("RGB"))
    turned = orientation == 6 and pixels.shape == PICTURE.shape  # of a TIFF it has turned it already
    return np.rot90(pixels, -1) if turned else pixels


@pytest.mark.parametrize("name", GOOD)
def test_every_usual_kind_gives_the_pixels_that_pillow_reads(name):
    received = decode_image(GOOD[name], name)
    expected = by_pillow(GOOD[name])
    assert received.dtype == np.uint8 and received.shape == expected.shape and received.flags.c_contiguous
    assert np.abs(received.astype(int) - expected).max() <= (2 if name.endswith("jpg") else 0)


@pytest.mark.parametrize("name", [name for name in GOOD if not name.endswith(".jpg")])
def test_the_announced_size_is_that_of_the_pixels(name):
    size = announced_size(GOOD[name])
    assert sorted(size) == sorted(decode_image(GOOD[name], name).shape[:2])


def named_reasons(reasons):
    assert reasons.keys() == BAD.keys() | NO_FILES.keys()
    for name, pattern in ({name: reason for name, (_, reason) in BAD.items()} | NO_FILES).items():
        assert any(part in reasons[name] for part in pattern.split("|")), (name, reasons[name])


@pytest.mark.timeout(60)
def test_the_loader_decodes_the_good_ones_and_names_the_others(folder):
    images = open_image_list(folder / "list.txt", folder, 1)
    section = EvaluationSection.model_validate(
        {
            "sources": [{"kind": "class_folders", "root": "unused"}],
            "resize_short_px": 28,
            "crop_px": 28,
            "batch_size": 7,
        }
    )
    batches = list(EvaluationLoader(images, section, RuntimeSection()))
    named_reasons({Path(each.name).name: each.reason for batch in batches for each in batch.failures})
    assert sum(len(batch.labels) for batch in batches) == len(GOOD)


@pytest.mark.timeout(60)
def test_the_index_lists_the_good_ones_and_names_the_others(folder, tmp_path, recipe_of):
    recipe = recipe_of(folder)
    with Workspace(tmp_path) as workspace:
        index.run(workspace, recipe)
        rows = read_index(workspace, recipe, "pool").to_pylist()
        failures = read_failures(workspace, recipe, "pool").to_pylist()
    reasons = {Path(row["path"]).name: row["reason"] for row in failures}
    named_reasons(reasons | {"folder.jpg": "Is a directory"})  # a folder is searched, not read
    assert {Path(row["path"]).name: row["pixels_sha256"] for row in rows} == {
        name: pixels_sha256(decode_image(data, name)) for name, data in GOOD.items()
    }


@pytest.fixture
def recipe_of():
    def recipe(folder):
        return MiningRecipe.model_validate(
            {
                "name": "hostile",
                "description": "",
                "pool": {"sources": [{"kind": "folder", "root": str(folder)}], "max_undecodable_fraction": 1.0},
                "teacher": {
                    "kind": "network",
                    "name": "ResNet18_vd",
                    "weights": "unused",
                    "num_classes": 10,
                    "resize_short_px": 8,
                    "crop_px": 8,
                    "normalization": {"mean": [0, 0, 0], "std": [1, 1, 1]},
                },
                "select": {"kind": "by_class", "images_per_class": 3},
                "runtime": {"device": "cpu", "workers": 1},
            }
        )

    return recipe


READ_ALL = """
import resource, sys
from pathlib import Path
from distill.data.image_list import open_image_list
from distill.data.types import UndecodableImage
peak_bytes = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
images = open_image_list(Path(sys.argv[1]) / "list.txt", Path(sys.argv[1]), 1)
before, decoded = peak_bytes(), 0
for index in range(len(images)):
    try:
        decoded += images.read(index).size > 0
    except UndecodableImage:
        pass
print(decoded, peak_bytes() - before)
"""


def test_no_file_takes_more_memory_than_the_largest_image_may(folder):
    done = subprocess.run([sys.executable, "-c", READ_ALL, str(folder)], capture_output=True, text=True, check=True)
    decoded, grown_bytes = map(int, done.stdout.split())
    assert decoded == len(GOOD)
    assert grown_bytes < 100 * 2**20 < 3 * MAX_PIXELS  # the bomb alone would be 2.7 GB
