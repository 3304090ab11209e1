import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.weights import read_weights
from distill.weights.pickles import RefusedPickle
from distill.weights.torch_files import read_torch

RECORDED = Path(__file__).parent / "recorded"
FORMS = ["kinds.pth", "kinds_before_1.6.pth"]


@pytest.fixture
def read(tmp_path):
    def read_bytes(content):
        path = tmp_path / "weights.pth"
        path.write_bytes(content)
        return read_torch(path)

    return read_bytes


@pytest.mark.parametrize("name", FORMS)
def test_reads_every_kind_of_tensor_that_torch_saves(name):
    arrays = read_weights(RECORDED / name)
    with np.load(RECORDED / "kinds.npz") as expected:
        assert list(arrays) == list(expected)
        for key in expected:
            np.testing.assert_array_equal(arrays[key], expected[key], err_msg=key, strict=True)


# --- zips as torch.save writes them, by hand -----------------------------------------------------


def packed(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"\x8a" + bytes([len(raw := value.to_bytes(9, "little", signed=True))]) + raw


def tensor(key="0", count=4, offset=0, shape=(4,), stride=(1,), kind="FloatStorage"):
    def sizes(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + text("storage")
        + f"ctorch\n{kind}\n".encode()
        + (text(key) + text("cpu") + number(count) + b"tQ" + number(offset) + sizes(shape) + sizes(stride))
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def state(tensors):
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in tensors.items()) + b"u."


DATA = np.arange(4, dtype="<f4").tobytes()


def archive(tensors, members=(("a/data/0", DATA),), **options):
    return packed([("a/data.pkl", state(tensors)), *members], **options)


def test_a_zip_by_hand_is_read(read):
    np.testing.assert_array_equal(read(archive({"w": tensor()}))["w"], np.arange(4))
    found = read(archive({"w": tensor(offset=1, shape=(2, 2), stride=(1, 1))}))
    np.testing.assert_array_equal(found["w"], [[1, 2], [2, 3]])


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_checkpoints_and_parallel_prefixes_are_unwrapped(read, wrapper):
    inner = b"}(" + text("module.fc.bias") + tensor() + b"u"
    content = b"\x80\x02}(" + text("epoch") + b"K\x03" + text(wrapper) + inner + b"u."
    found = read(packed([("a/data.pkl", content), ("a/data/0", DATA)]))
    np.testing.assert_array_equal(found["fc.bias"], np.arange(4))


class Exploit:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def exploits(tmp_path):
    """A pickle that runs `touch`, bare, inside a zip, and behind the head of the old form."""
    attack = pickle.dumps({"w": Exploit(os.system, f"touch {tmp_path / 'proof'}")}, protocol=2)
    with open(RECORDED / FORMS[1], "rb") as old:
        for _ in range(3):
            pickle.load(old)
        end = old.tell()
        old.seek(0)
        head = old.read(end)
    return {"bare": attack, "zip": packed([("a/data.pkl", attack), ("a/data/0", DATA)]), "old": head + attack}


@pytest.mark.parametrize("form", ["bare", "zip", "old"])
def test_code_in_a_file_is_refused_not_run(tmp_path, read, form):
    contents = exploits(tmp_path)
    with pytest.raises(RefusedPickle, match=r"asks to call 'posix'\.'system'.*do not trust"):
        read(contents[form])
    assert not (tmp_path / "proof").exists()
    pickle.loads(contents["bare"])  # the exploit is a real one
    assert (tmp_path / "proof").exists()


def test_the_command_line_names_the_file(tmp_path):
    (tmp_path / "evil.bin").write_bytes(exploits(tmp_path)["zip"])
    with pytest.raises(UserError, match=r"evil\.bin is not a usable file of weights: it asks to call"):
        read_weights(tmp_path / "evil.bin")
    assert not (tmp_path / "proof").exists()


def test_member_names_write_nothing_anywhere(tmp_path, read):
    members = [("a/data/0", DATA), ("a/data/../../../proof", b"x"), (str(tmp_path / "proof"), b"x"), ("../proof", b"x")]
    assert read(archive({"w": tensor()}, members)).keys() == {"w"}
    with pytest.raises(RefusedPickle, match="missing or has another size"):
        read(archive({"w": tensor(key="../../../../../etc/passwd")}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.pth"]


def overlapping():
    """A central directory that names one member's bytes a thousand times (Fifield 2019, "A better zip bomb")."""
    content = bytearray(archive({"w": tensor()}, [("a/data/0", bytes(40_000))]))
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        entry = opened.infolist()[-1]
        start = opened.start_dir
    directory = bytes(content[start:-22])
    one = directory[directory.rindex(b"PK\x01\x02") :]
    many = b"".join(one.replace(b"a/data/0", f"a/data/{n % 10}".encode()) for n in range(1, 1000))
    del content[start:]
    assert entry.file_size == 40_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1001, 1001, len(directory + many), start, 0)
    return bytes(content) + directory + many + end


BOMBS = {
    "a compressed zip": lambda: archive(
        {"w": tensor(count=2**24, shape=(2**24,))}, [("a/data/0", bytes(2**26))], compression=zipfile.ZIP_DEFLATED
    ),
    "members that share their bytes": overlapping,
    "a tensor of one number, repeated": lambda: archive({"w": tensor(shape=(2**40,), stride=(0,))}),
    "a tensor of sizes that overflow": lambda: archive({"w": tensor(shape=(2**62, 2**62), stride=(0, 0))}),
    "many tensors of one storage": lambda: archive(
        {f"w{n}": tensor(count=25_000, shape=(25_000,)) for n in range(300)}, [("a/data/0", bytes(100_000))]
    ),
    "a storage of a declared size": lambda: archive({"w": tensor(count=2**50, shape=(2**50,))}),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_cannot_ask_for_much(read, name):
    content = BOMBS[name]()
    tracemalloc.start()
    try:
        with pytest.raises(RefusedPickle):
            read(content)
        assert tracemalloc.get_traced_memory()[1] < 30 * len(content) + 500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04", "not a zip"),
        (b"hello", "neither a zip nor"),
        (pickle.dumps({"w": np.ones(2)}, protocol=2), "neither a zip nor"),
        (packed([("a/x", b"")]), "expected one data.pkl"),
        (packed([("a/data.pkl", state({})), ("b/data.pkl", state({}))]), "expected one data.pkl.*found 2"),
        (archive({"w": tensor()}, [("a/byteorder", b"big"), ("a/data/0", DATA)]), "big-endian"),
        (archive({"w": tensor()}, []), "storage of 'w' is missing"),
        (archive({"w": tensor(count=5, shape=(5,))}), "missing or has another size"),
        (archive({"w": tensor(offset=1)}), "reaches beyond its storage"),
        (archive({"w": tensor(offset=2**70)}), "reaches beyond its storage"),
        (archive({"w": tensor(offset=-1)}), "expected a tensor of plain numbers"),
        (archive({"w": tensor(stride=(-1,))}), "not a few sizes"),
        (archive({"w": tensor(shape=(2, 2))}), "expected a tensor of plain numbers"),
        (archive({"w": tensor(kind="QInt8Storage")}), "asks to call 'torch'.'QInt8Storage'"),
        (archive({"w": tensor(), "v": tensor(kind="HalfStorage")}), "one storage in two ways"),
        (archive({"epoch": b"K\x03"}), "expected a tensor under the key 'epoch', found int"),
        (archive({}), "expected a dict of tensors"),
        (packed([("a/data.pkl", b"\x80\x02K\x03.")]), "expected a dict of tensors, found int"),
        (packed([("a/data.pkl", b"\x80\x02X\x01\x00\x00\x00aQ.")]), "damaged|unpack|refers to"),
    ],
)
def test_other_content_is_named(read, content, message):
    with pytest.raises(RefusedPickle, match=message):
        read(content)


def test_two_members_of_one_name_are_refused(read):
    with pytest.warns(UserWarning, match="Duplicate name"):
        content = archive({"w": tensor()}, [("a/data/0", DATA), ("a/data/0", DATA)])
    with pytest.raises(RefusedPickle, match="two members of one name"):
        read(content)


@settings(max_examples=150)
@given(data=st.data(), name=st.sampled_from(FORMS))
def test_damage_is_refused_or_leaves_a_dict_of_arrays(tmp_path_factory, data, name):
    content = bytearray((RECORDED / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content)) | st.just(len(content))) :]
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(content)
    try:
        arrays = read_torch(path)
    except RefusedPickle:
        return
    assert all(isinstance(key, str) and isinstance(value, np.ndarray) for key, value in arrays.items())
