"""Encoded bytes to RGB: JPEG by libjpeg-turbo; PNG, WebP, BMP, TIFF and GIF by OpenCV."""

import struct
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import simplejpeg

from distill.data.image_header import FORMATS, MAX_PIXELS, announced_size
from distill.data.types import Image, ImageRows, UndecodableImage

# libjpeg's remark on bytes that no pixel depends on. All its other remarks mean lost pixels.
_HARMLESS = "extraneous bytes before marker"

# A JPEG's header is a row of segments: 0xFF, kind, and the size of what follows, these two bytes included.
_SEGMENT = struct.Struct(">BBH")
_APP1, _START_OF_SCAN, _RESTART_INTERVAL = 0xE1, 0xDA, 0xDD
_FRAMES = range(0xC0, 0xC2)  # baseline and extended, Huffman-coded: rows come in order
_ORIENTATION_TAG = 0x0112

# Below the last row that is wanted: chroma is interpolated from a row of its own beneath, which is up to 2 pixels.
_MARGIN_ROWS = 4
_FEWEST_ROWS_SAVED = 16  # the least that is worth a copy of the file


def decode_image(data: bytes, name: str) -> Image:
    """Decodes an image as OpenCV's `imread` does, which the published accuracies were measured with.

    Grey is repeated to three channels, CMYK converted, alpha dropped, 16 bits reduced to the upper 8, the EXIF
    orientation applied, the first picture of an animation taken. A JPEG that ends early or whose data are damaged is
    refused: the decoders would fill the rest with grey.

    Args:
        data: The whole file.
        name: For the message.

    Returns:
        uint8 [H, W, 3], RGB, contiguous.

    Raises:
        UndecodableImage: Not an image of FORMATS, a damaged one, or one of more than MAX_PIXELS.
    """
    _check_not_empty(data, name)
    if data.startswith(b"\xff\xd8"):
        return _decode_jpeg(data, name)
    return _decode_other(data, name)


def open_image(data: bytes, name: str) -> Image | ImageRows:
    """`decode_image`, put off until it is known how many rows are needed, where that saves work.

    That is for JPEGs whose rows are stored one after the other, upright, without restart markers: the rows below are
    not decoded. All others are decoded here.

    Args:
        data: The whole file.
        name: For the message.

    Raises:
        UndecodableImage: As `decode_image`.
    """
    _check_not_empty(data, name)
    if data.startswith(b"\xff\xd8"):
        height, width, colours = _jpeg_size(data, name)
        segments = list(_segments(data))
        height_at = _place_of_height(data, segments)
        if height_at is not None and colours in ("YCbCr", "Gray") and _exif_orientation(data, segments) == 1:
            return JpegRows(data, name, height, width, height_at)
    return decode_image(data, name)


class JpegRows:
    """A JPEG of which only the upper rows are decoded.

    The header is made to state a smaller height: libjpeg decodes so many rows and passes over the rest. A file that
    ends early is refused all the same; damage in the rows that are passed over goes unnoticed.

    Args:
        data: The whole file.
        name: For the message.
        height: The image's.
        width: The image's.
        height_at: Where the header states the height.
    """

    def __init__(self, data: bytes, name: str, height: int, width: int, height_at: int) -> None:
        self.shape = (height, width, 3)
        self._data, self._name, self._height_at = data, name, height_at

    def rows(self, end: int) -> Image:
        """The upper `end` rows, and perhaps more: the pixels of `decode_image`, uint8 [>= end, W, 3].

        Raises:
            UndecodableImage: The file ends early, or these rows are damaged.
        """
        needed = end + _MARGIN_ROWS
        if needed + _FEWEST_ROWS_SAVED > self.shape[0]:
            return _jpeg_pixels(self._data, self._name)
        shorter = bytearray(self._data)
        struct.pack_into(">H", shorter, self._height_at, needed)
        image = np.empty((needed, *self.shape[1:]), dtype=np.uint8)
        try:
            simplejpeg.decode_jpeg(shorter, "RGB", buffer=image)
        except ValueError as error:
            # libjpeg's first remark: on these rows, else on an end that it did not find, else on what it passed over
            if _HARMLESS not in str(error):
                raise UndecodableImage(self._name, f"damaged JPEG: {error}") from None
        return image[:end]


def _check_not_empty(data: bytes, name: str) -> None:
    if not data:
        raise UndecodableImage(name, "the file is empty")


def _jpeg_size(data: bytes, name: str) -> tuple[int, int, str]:
    """Height, width and colour space."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise UndecodableImage(name, f"damaged JPEG: {error}") from None
    _check_size(height, width, name)
    return height, width, colours


def _check_size(height: int, width: int, name: str) -> None:
    """Before anything is allocated: a header of some bytes may announce any size."""
    if height * width > MAX_PIXELS:
        raise UndecodableImage(name, f"{width} x {height} px are more than {MAX_PIXELS} pixels")


def _decode_jpeg(data: bytes, name: str) -> Image:
    _jpeg_size(data, name)
    image = _jpeg_pixels(data, name)
    orientation = _exif_orientation(data, _segments(data))
    return image if orientation == 1 else _upright(image, orientation)


def _jpeg_pixels(data: bytes, name: str) -> Image:
    """All pixels, as they are stored."""
    try:
        image: Image = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as error:
        if _HARMLESS not in str(error):
            raise UndecodableImage(name, f"damaged JPEG: {error}") from None
        image = simplejpeg.decode_jpeg(data, "RGB", strict=False)
    return image


def _decode_other(data: bytes, name: str) -> Image:
    try:
        size = announced_size(data)
    except ValueError as error:
        raise UndecodableImage(name, f"damaged: {error}") from None
    if size is None:
        known = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise UndecodableImage(name, f"no {known} file (it starts with {data[:8]!r})")
    _check_size(*size, name)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise UndecodableImage(name, f"OpenCV cannot decode it: {error.err or error}") from None
    if image is None:
        raise UndecodableImage(name, "damaged, or of a kind that OpenCV does not decode")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)  # type: ignore[no-any-return]


Segment = tuple[int, int, int]


def _segments(data: bytes) -> Iterator[Segment]:
    """Kind, place of the content and its size of the header's segments, up to the first scan."""
    at = 2
    while at <= len(data) - _SEGMENT.size:
        prefix, kind, size = _SEGMENT.unpack_from(data, at)
        if prefix != 0xFF:
            return
        if kind == 0xFF:  # a fill byte
            at += 1
            continue
        yield kind, at + _SEGMENT.size, size - 2
        if kind == _START_OF_SCAN:
            return
        at += 2 + size


def _place_of_height(data: bytes, segments: Iterable[Segment]) -> int | None:
    """Where the frame header states the height; None where the rows cannot be decoded from the top.

    A frame header has precision, height, width, number of components; a scan header begins with their number in it.
    """
    height_at = components = 0
    for kind, at, size in segments:
        if kind in _FRAMES and size >= 6:
            height_at, components = at + 1, data[at + 5]
        elif kind == _RESTART_INTERVAL:
            return None  # at a restart marker libjpeg makes its one remark, before it finds the end missing
        elif kind == _START_OF_SCAN and at < len(data):
            return height_at if height_at and data[at] == components else None
    return None


def _exif_orientation(data: bytes, segments: Iterable[Segment]) -> int:
    """The orientation 1..8 that a JPEG's EXIF segment states; 1 (upright) where there is none or it is damaged."""
    for kind, at, size in segments:
        if kind == _APP1 and data.startswith(b"Exif\0\0", at):
            return _tiff_orientation(data[at + 6 : at + size])
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
