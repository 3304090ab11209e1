"""Images inside tar files, read at random: an image list names a member by its place, `shard.tar@OFFSET+BYTES`.

The place needs no scan of the tar and no index in memory; `data-mining index` finds it, and so does Python's
`tarfile` (`offset_data` and `size` of a member). The tar must not be compressed.
"""

import re

_PLACE = re.compile(rb"(.+\.tar)@([0-9]{1,18})\+([0-9]{1,18})", re.DOTALL)


def member_path(tar: str, offset: int, size: int) -> str:
    """How an image list names the `size` bytes from `offset` of a tar."""
    return f"{tar}@{offset}+{size}"


def parse_member_path(path: bytes) -> tuple[bytes, int, int] | None:
    """The tar's path, offset and size in bytes of what `member_path` made; None for the path of a file."""
    match = _PLACE.fullmatch(path)
    return (match[1], int(match[2]), int(match[3])) if match else None
