"""What a file's first bytes say about its format and its size in pixels, before anything is decoded.

OpenCV alone would allocate 2^30 pixels, 3 GB, because a file of 100 kB says so; and it knows formats, such as JPEG 2000
and OpenEXR, that no list of photographs needs and whose decoders then need not be trusted.
"""

import struct
from collections.abc import Callable, Iterator

MAX_PIXELS = 178_956_970
"""The largest image that is decoded, width times height: 537 MB of RGB. Pillow draws the same line by default."""

FORMATS = ("JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF")

_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # types of a field's value


def announced_size(data: bytes) -> tuple[int, int] | None:
    """Height and width that the header of any of FORMATS but JPEG states; None where it is of no such format.

    Raises:
        ValueError: The header is damaged.
    """
    for magic, read in _READERS.items():
        if data.startswith(magic):
            try:
                return read(data)
            except struct.error:
                raise ValueError("the file ends in its header") from None
    return None


def _png(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _gif(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return height, width


def _bmp(data: bytes) -> tuple[int, int]:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
    return abs(height), abs(width)  # a negative height is stored from the top


def _webp(data: bytes) -> tuple[int, int]:
    if data[8:12] != b"WEBP":
        raise ValueError("a RIFF file that is no WebP")
    if data[12:16] == b"VP8X":  # 24 bits each
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", data, 24)
        return 1 + (high_height << 16 | low_height), 1 + (high_width << 16 | low_width)
    if data[12:16] == b"VP8L":  # 14 bits each behind one byte of signature
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return height & 0x3FFF, width & 0x3FFF


def _tiff(data: bytes) -> tuple[int, int]:
    """Of the first image, which is the one that is decoded; of a field that is there twice the larger value."""
    sizes = {_TIFF_HEIGHT: 0, _TIFF_WIDTH: 0}
    for tag, value in _tiff_fields(data):
        if tag in sizes:
            sizes[tag] = max(sizes[tag], value)
    return sizes[_TIFF_HEIGHT], sizes[_TIFF_WIDTH]


def _tiff_fields(data: bytes) -> Iterator[tuple[int, int]]:
    """Tag and first value of each field of integers in the first directory."""
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")  # BigTIFF: offsets of 8 bytes
    (directory,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, directory)
    first, field_bytes, value_at = (directory + 8, 20, 12) if big else (directory + 2, 12, 8)
    for at in range(first, first + count * field_bytes, field_bytes):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if kind in _TIFF_INTEGERS:
            yield tag, struct.unpack_from(order + _TIFF_INTEGERS[kind], data, at + value_at)[0]


_READERS: dict[bytes, Callable[[bytes], tuple[int, int]]] = {
    b"\x89PNG\r\n\x1a\n": _png,
    b"GIF8": _gif,
    b"BM": _bmp,
    b"RIFF": _webp,
    b"II*\0": _tiff,
    b"MM\0*": _tiff,
    b"II+\0": _tiff,
    b"MM\0+": _tiff,
}
