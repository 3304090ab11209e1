"""Decoding the upper rows of a JPEG: the same pixels as decoding all of it, and the same files refused."""

import struct

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.data.augment import train_view
from distill.data.decode import JpegRows, decode_image, open_image
from distill.data.image_list import open_image_list
from distill.data.types import UndecodableImage
from distill.recipe import ViewSection

SUBSAMPLINGS = {
    name: getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}") for name in ("411", "420", "422", "440", "444")
}
HEIGHT, WIDTH = 203, 157


def noise(height=HEIGHT, width=WIDTH):
    """Every row unlike every other, so that none can be mistaken."""
    small = np.random.default_rng(3).integers(0, 256, (height // 2, width // 2, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(image=None, *options):
    return cv2.imencode(".jpg", noise() if image is None else image, options)[1].tobytes()


FILES = {
    f"subsampling {name}": jpeg(None, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, code) for name, code in SUBSAMPLINGS.items()
}
FILES |= {
    "grey": jpeg(noise()[:, :, 0]),
    "optimised": jpeg(None, cv2.IMWRITE_JPEG_OPTIMIZE, 1),
    "low quality": jpeg(None, cv2.IMWRITE_JPEG_QUALITY, 8),
}


@pytest.mark.parametrize("name", FILES)
@given(end=st.integers(1, HEIGHT))
def test_the_upper_rows_are_those_of_the_whole_image(name, end):
    image = open_image(FILES[name], "x")
    assert isinstance(image, JpegRows) and image.shape == (HEIGHT, WIDTH, 3)
    rows = image.rows(end)
    assert len(rows) >= end and rows.dtype == np.uint8
    np.testing.assert_array_equal(rows[:end], decode_image(FILES[name], "x")[:end])


@pytest.mark.parametrize(
    "crop",
    [
        {"kind": "random_area", "scale": [0.08, 1.0], "ratio": [0.75, 1.3333], "sampling": "published"},
        {"kind": "random_area", "scale": [0.08, 0.3], "ratio": [0.75, 1.3333], "sampling": "usual"},
        {"kind": "padded", "padding_px": 4},
        {"kind": "center", "resize_short_px": 64},
    ],
)
def test_views_are_the_same(crop):
    view = ViewSection.model_validate({"size_px": 56, "crop": crop, "horizontal_flip": 0.5})
    for data in FILES.values():
        for seed in range(8):
            whole = train_view(decode_image(data, "x"), view, np.random.default_rng(seed))
            received = train_view(open_image(data, "x"), view, np.random.default_rng(seed))
            np.testing.assert_array_equal(received, whole)


def test_others_are_decoded_whole():
    progressive = jpeg(None, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    png = cv2.imencode(".png", noise())[1].tobytes()
    exif = b"Exif\0\0" + struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)
    plain = jpeg()
    turned = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    restarts = jpeg(None, cv2.IMWRITE_JPEG_RST_INTERVAL, 3)
    for data in (progressive, png, turned, restarts):
        received = open_image(data, "x")
        assert isinstance(received, np.ndarray)
        np.testing.assert_array_equal(received, decode_image(data, "x"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.9, 0.99, -2])
def test_a_file_that_ends_early_is_refused_whichever_rows_are_asked_for(name, keep):
    data = FILES[name]
    data = data[: keep if keep < 0 else int(len(data) * keep)]
    for end in (1, HEIGHT // 2, HEIGHT):
        with pytest.raises(UndecodableImage) as error:
            image = open_image(data, "folder/x.jpg")
            image.rows(end)
        assert error.value.name == "folder/x.jpg" and error.value.reason.startswith("damaged JPEG: ")


def test_damage_is_noticed_where_rows_need_it_and_only_there():
    data = jpeg()
    middle = len(data) // 2
    broken = data[:middle] + b"\xff\xd9" + data[middle + 2 :]  # the image ends here, the file does not
    assert open_image(broken, "x").rows(20).shape == (20, WIDTH, 3)
    for end in (HEIGHT * 3 // 4, HEIGHT):
        with pytest.raises(UndecodableImage, match="damaged JPEG"):
            open_image(broken, "x").rows(end)
    with pytest.raises(UndecodableImage, match="damaged JPEG"):
        decode_image(broken, "x")


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"not an image"])
def test_what_is_no_image_is_refused_at_once(data):
    with pytest.raises(UndecodableImage):
        open_image(data, "x")


@given(st.data())
def test_any_damage_is_an_image_or_an_undecodable_one(data):
    content = bytearray(FILES["subsampling 420"])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = open_image(bytes(content), "x")
        end = data.draw(st.integers(1, image.shape[0]))
        rows = image[:end] if isinstance(image, np.ndarray) else image.rows(end)
    except UndecodableImage:
        return
    assert len(rows) >= end and rows.shape[1:] == image.shape[1:]


def test_files_of_a_list(image_folder, images):
    listed = open_image_list(image_folder / "list.txt", image_folder, 7)
    for index in range(len(listed)):
        opened = listed.open(index)
        whole = opened if isinstance(opened, np.ndarray) else opened.rows(opened.shape[0])
        np.testing.assert_array_equal(whole, images.read(index))
