"""Encoded bytes to RGB: JPEG by libjpeg-turbo, everything else by OpenCV."""

import struct

import cv2
import numpy as np
import simplejpeg

from distill.data.types import Image, UndecodableImage

# What a hostile header of some bytes can make us allocate: 3 bytes a pixel.
MAX_PIXELS = 2**28

# libjpeg's remark on bytes that no pixel depends on. All its other remarks mean lost pixels.
_HARMLESS = "extraneous bytes before marker"

# A JPEG's header is a row of segments: 0xFF, kind, and the size of what follows, these two bytes included.
_SEGMENT = struct.Struct(">BBH")
_APP1, _START_OF_SCAN = 0xE1, 0xDA
_ORIENTATION_TAG = 0x0112


def decode_image(data: bytes, name: str) -> Image:
    """Decodes an image as OpenCV's `imread` does, which the published accuracies were measured with.

    Grey is repeated to three channels, CMYK converted, alpha dropped, 16 bits reduced to the upper 8, the EXIF
    orientation applied. A JPEG that ends early or whose data are damaged is refused: the decoders would
    fill the rest with grey.

    Args:
        data: The whole file.
        name: For the message.

    Returns:
        uint8 [H, W, 3], RGB, contiguous.

    Raises:
        UndecodableImage: Not an image, a damaged one, or one of more than MAX_PIXELS.
    """
    if not data:
        raise UndecodableImage(name, "the file is empty")
    if data.startswith(b"\xff\xd8"):
        return _decode_jpeg(data, name)
    return _decode_other(data, name)


def _decode_jpeg(data: bytes, name: str) -> Image:
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if height * width > MAX_PIXELS:
            raise UndecodableImage(name, f"{width} x {height} px are more than {MAX_PIXELS} pixels")
        try:
            image: Image = simplejpeg.decode_jpeg(data, "RGB")
        except ValueError as error:
            if _HARMLESS not in str(error):
                raise
            image = simplejpeg.decode_jpeg(data, "RGB", strict=False)
    except ValueError as error:
        raise UndecodableImage(name, f"damaged JPEG: {error}") from None
    orientation = _exif_orientation(data)
    return image if orientation == 1 else _upright(image, orientation)


def _decode_other(data: bytes, name: str) -> Image:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise UndecodableImage(name, f"OpenCV cannot decode it: {error.err or error}") from None
    if image is None:
        raise UndecodableImage(name, f"damaged, or not an image (the file starts with {data[:8]!r})")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[no-any-return]


def _exif_orientation(data: bytes) -> int:
    """The orientation 1..8 that a JPEG's EXIF segment states; 1 (upright) where there is none or it is damaged."""
    at = 2
    while at <= len(data) - _SEGMENT.size:
        prefix, kind, size = _SEGMENT.unpack_from(data, at)
        if prefix != 0xFF or kind == _START_OF_SCAN:
            break
        if kind == 0xFF:  # a fill byte
            at += 1
        elif kind == _APP1 and data.startswith(b"Exif\0\0", at + _SEGMENT.size):
            return _tiff_orientation(data[at + 10 : at + 2 + size])
        else:
            at += 2 + size
    return 1


def _tiff_orientation(tiff: bytes) -> int:
    order = "<" if tiff.startswith(b"II") else ">"
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(entries):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _upright(image: Image, orientation: int) -> Image:
    """Undoes an EXIF orientation 2..8 (EXIF 2.3, table of tag 0x0112)."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
