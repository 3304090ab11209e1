"""Hostile tars: what cannot be trusted is reported, what lies before it is used, and nothing runs for ever."""

import io
import os
import tarfile
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_mining.tars import tar_members

END = bytes(2 * tarfile.BLOCKSIZE)


def header(name, size=0, kind=b"0", link=b""):
    """A header of one block; a size that octal digits cannot state is written in base 256, as GNU tar does."""
    block = bytearray(tarfile.BLOCKSIZE)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[124:136] = b"%011o\0" % size if 0 <= size < 8**11 else size.to_bytes(12, "big", signed=True)
    if size >= 8**11:
        block[124] = 0x80
    block[136:148] = b"%011o\0" % 0
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extended(following, **records):
    """A pax header whose records replace what the following header says."""
    lines = b""
    for key, value in records.items():
        line = f" {key.replace('__', '.')}=".encode() + value + b"\n"
        length = next(n for n in range(len(line), len(line) + 20) if len(str(n)) + len(line) == n)
        lines += str(length).encode() + line
    padding = bytes(-len(lines) % tarfile.BLOCKSIZE)
    return header(b"pax", len(lines), b"x") + lines + padding + following


IMAGE = header(b"good.png", 3) + b"png".ljust(tarfile.BLOCKSIZE, b"\0")
HOSTILE = {
    "a size below zero": header(b"a.png", -512) + END,
    "a size that leads back to the first header": header(b"a.png", -2048) + END,
    "a size that leads back, in an extended header": extended(header(b"a.png"), size=b"-3072") + END,
    "a size beyond the file": header(b"a.png", 2**60) + END,
    "a name beyond the memory": header(b"name", 2**40, b"L") + END,
    "an extended header beyond the memory": header(b"pax", 2**40, b"x") + END,
    "an extended header of a size below zero": header(b"pax", -512, b"x") + END,
    "extended headers without end": header(b"pax", 0, b"x") * 3000 + END,
    "a sparse file of 100 GB": extended(
        header(b"a.png", 512), GNU__sparse__major=b"1", GNU__sparse__minor=b"0", GNU__sparse__realsize=b"99999999999"
    )
    + b"99999999999\n".ljust(512, b"\0")
    + END,
    "a wrong checksum": header(b"a.png").replace(b"0000644", b"0000777") + END,
    "no end": header(b"a.png", 512),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_member_ends_the_tar_and_those_before_it_are_used(tmp_path, name):
    path, failures = tmp_path / "x.tar", []
    path.write_bytes(IMAGE + HOSTILE[name])
    tracemalloc.start()
    try:
        members = tar_members(str(path), failures)
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()
    assert members[0].path == "good.png" and (members[0].offset, members[0].size) == (512, 3)
    assert all(0 <= member.offset + member.size <= path.stat().st_size for member in members)
    assert failures and all(tar == str(path) for _, tar, _ in failures)


def test_a_sparse_tar_is_not_read_into_memory(tmp_path):
    path, failures = tmp_path / "x.tar", []
    path.write_bytes(IMAGE + header(b"pax", 2**34, b"x"))
    os.truncate(path, 2**34 + 4096)  # there are as many bytes as the header says, and they cost nothing
    tracemalloc.start()
    try:
        assert [member.path for member in tar_members(str(path), failures)] == ["good.png"]
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert "a header of 17179869184 bytes" in failures[0][2]


def test_links_and_devices_are_not_followed(tmp_path):
    path, failures = tmp_path / "x.tar", []
    kinds = {"hard": b"1", "symbolic": b"2", "character": b"3", "block": b"4", "pipe": b"6"}
    members = b"".join(header(f"{name}.png".encode(), 0, kind, b"/etc/passwd") for name, kind in kinds.items())
    path.write_bytes(members + IMAGE + END)
    assert [member.path for member in tar_members(str(path), failures)] == ["good.png"]
    assert [name for name, *_ in failures] == [f"{name}.png" for name in kinds]


def test_names_are_labels_and_lead_nowhere(tmp_path):
    path, failures = tmp_path / "x.tar", []
    names = [b"../../etc/a.png", b"/etc/b.png", b"c\xff.png", b"\x1b[31md.png"]
    path.write_bytes(b"".join(header(name) for name in names) + END)
    found = [member.path for member in tar_members(str(path), failures)]
    assert found == ["../../etc/a.png", "/etc/b.png", "c\\xff.png", "\x1b[31md.png"]
    assert all(name.encode() for name in found) and not failures
    assert list(tmp_path.iterdir()) == [path]


def real_tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.png", "a.cls", "é" * 60 + ".jpg", "b" * 150 + ".png"):
            member = tarfile.TarInfo(name)
            member.size = 700
            tar.addfile(member, io.BytesIO(b"7".ljust(700)))
    return buffer.getvalue()


REAL = real_tar()


@given(data=st.data())
def test_any_damage_is_members_or_failures(tmp_path_factory, data):
    content = bytearray(REAL)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(
            st.binary(min_size=1, max_size=12) | st.sampled_from([b"\xff" * 8, b"\x80" + bytes(7), b"7" * 11])
        )
        content[at : at + len(piece)] = piece
    if data.draw(st.booleans()):  # a checksum that fits: what is behind it is believed
        at = data.draw(st.integers(0, len(content) // 512 - 1)) * 512
        content[at + 148 : at + 156] = b" " * 8
        content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    del content[data.draw(st.integers(0, len(content)) | st.just(len(content))) :]
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    path.write_bytes(content)
    failures = []
    members = tar_members(str(path), failures)
    assert all(0 <= m.offset <= m.offset + m.size <= len(content) and m.path.encode() for m in members)
    assert all(reason and name.encode() is not None for name, _, reason in failures)
