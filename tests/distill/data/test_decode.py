import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from distill.data.decode import decode_image
from distill.data.types import UndecodableImage


@pytest.fixture(scope="module")
def image(make_picture):
    return make_picture(1, 60, 84)


@pytest.fixture(scope="module")
def jpeg(image):
    return encoded(image, "JPEG", quality=95)


def encoded(image, kind, mode=None, **options):
    buffer = io.BytesIO()
    pillow = Image.fromarray(image)
    (pillow.convert(mode) if mode else pillow).save(buffer, kind, **options)
    return buffer.getvalue()


def assert_near(received, expected, mean):
    assert received.shape == expected.shape and received.dtype == np.uint8 and received.flags.c_contiguous
    assert np.abs(received.astype(int) - expected).mean() <= mean


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_come_back_as_they_were(image, kind):
    np.testing.assert_array_equal(decode_image(encoded(image, kind), "x"), image)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_in_rgb(image, kind):
    assert_near(decode_image(encoded(image, kind, quality=95), "x"), image, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_jpeg_pixels_are_those_of_opencv(image, options):
    data = encoded(image, "JPEG", **options)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(decode_image(data, "x"), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_is_repeated(image, kind):
    decoded = decode_image(encoded(image, kind, mode="L"), "x")
    assert (decoded == decoded[:, :, :1]).all()
    assert_near(decoded, np.stack([np.array(Image.fromarray(image).convert("L"))] * 3, 2), 3)


def test_cmyk(image):
    assert_near(decode_image(encoded(image, "JPEG", mode="CMYK", quality=95), "x"), image, 3)


def test_alpha_is_dropped_and_palettes_are_resolved(image):
    alpha = np.full((*image.shape[:2], 1), 77, np.uint8)
    np.testing.assert_array_equal(decode_image(encoded(np.concatenate([image, alpha], 2), "PNG"), "x"), image)
    palette = Image.fromarray(image).convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), "x"), np.array(palette.convert("RGB")))


def test_sixteen_bits_keep_the_upper_eight(image):
    sixteen = image.astype(np.uint16) * 256 + 17
    data = cv2.imencode(".png", sixteen[:, :, ::-1])[1].tobytes()
    assert_near(decode_image(data, "x"), image, 0.2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_as_opencv_applies_it(jpeg, orientation, order):
    tiff = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, 1)
    tiff += struct.pack(order + "HHIHHI", 0x0112, 3, 1, orientation, 0, 0)
    segment = b"Exif\0\0" + tiff
    data = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(decode_image(data, "x"), expected)


def segment(kind, content):
    return b"\xff" + bytes([kind]) + struct.pack(">H", len(content) + 2) + content


def exif(orientation):
    return segment(0xE1, b"Exif\0\0" + struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0))


@pytest.mark.parametrize(
    ("before", "upright"),
    [
        (segment(0xE0, b"JFIF\0\1\1" + bytes(7)), False),
        (segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"), False),
        (2 * segment(0xED, b"Photoshop 3.0\0" + bytes(65_000)), False),  # the orientation lies behind 64 KB
        (b"\xff\xff", False),  # fill bytes
        (segment(0xFE, b"a comment about Exif\0\0II*\0\x08\0\0\0"), False),
        (exif(1), True),  # the first segment counts
    ],
)
def test_the_exif_segment_is_found_wherever_the_header_has_it(jpeg, before, upright):
    expected = decode_image(jpeg, "x")
    received = decode_image(jpeg[:2] + before + exif(6) + jpeg[2:], "x")
    np.testing.assert_array_equal(received, expected if upright else np.rot90(expected, -1))


def test_the_word_exif_among_the_pixels_turns_nothing(jpeg, image):
    at = len(jpeg) - 2
    assert_near(decode_image(jpeg[:at] + exif(6)[4:] + jpeg[at:], "x"), image, 3)


@pytest.mark.parametrize(
    "tiff", [b"", b"II", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\x08\0\0\0\1\0\x12"]
)
def test_a_damaged_exif_segment_does_no_harm(jpeg, image, tiff):
    segment = b"Exif\0\0" + tiff
    data = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
    assert_near(decode_image(data, "x"), image, 3)


def test_extraneous_bytes_cost_no_pixel(jpeg):
    np.testing.assert_array_equal(decode_image(jpeg[:-2] + b"\0" * 5 + jpeg[-2:], "x"), decode_image(jpeg, "x"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.98])
def test_a_truncated_file_is_refused_and_named(image, kind, keep):
    data = encoded(image, kind)
    with pytest.raises(UndecodableImage) as error:
        decode_image(data[: int(len(data) * keep)], "folder/x.jpg")
    assert error.value.name == "folder/x.jpg" and error.value.reason
    assert str(error.value).startswith("folder/x.jpg: ")


def test_a_png_with_a_wrong_checksum_is_refused(image):
    data = bytearray(encoded(image, "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(UndecodableImage):
        decode_image(bytes(data), "x")


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\xff\xd8", b"\xff\xd8\xff", b"not an image at all", b"<html></html>" * 50]
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(UndecodableImage):
        decode_image(data, "x")


def test_headers_that_announce_too_much_are_refused(jpeg):
    at = jpeg.index(b"\xff\xc0") + 5  # height and width in the frame header
    huge_jpeg = jpeg[:at] + b"\xff\xdc\xff\xdc" + jpeg[at + 4 :]
    with pytest.raises(UndecodableImage, match="65500 x 65500 px are more than"):
        decode_image(huge_jpeg, "x")

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(UndecodableImage):
        decode_image(png, "x")
