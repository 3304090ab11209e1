import hashlib
import json
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import UserError
from distill.weights import read_weights, sha256_of, write_weights
from distill.weights.files import read_metadata


def test_safetensors_come_back_with_their_metadata(tmp_path):
    path = tmp_path / "student.safetensors"
    arrays = {
        "fc.weight": np.arange(6, dtype="f4").reshape(2, 3).T,
        "half": np.ones(3, "f2"),
        "steps": np.array(7, "i8"),
        "mask": np.array([True, False]),
        "none": np.zeros((0, 4), "f4"),
    }
    write_weights(path, arrays, {"model": "ResNet18_vd"})
    loaded = read_weights(path)
    assert loaded.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(loaded[key], array, strict=True)
    assert read_metadata(path) == {"model": "ResNet18_vd"}


def test_metadata_may_be_left_out(tmp_path):
    write_weights(tmp_path / "w.safetensors", {"w": np.ones(1)})
    assert read_metadata(tmp_path / "w.safetensors") == {}


def test_bfloat16_is_widened_exactly_from_both_formats(tmp_path):
    import paddle
    from safetensors.paddle import save_file

    # includes the largest, the smallest normal, a subnormal and a negative zero of bfloat16
    values = paddle.to_tensor([1.0, -2.5, 3.3895314e38, 1.1754944e-38, 9.18355e-41, -0.0]).astype("bfloat16")
    save_file({"w": values}, str(tmp_path / "w.safetensors"))
    paddle.save({"w": values}, str(tmp_path / "w.pdparams"))
    expected = values.astype("float32").numpy()
    for name in ("w.safetensors", "w.pdparams"):
        loaded = read_weights(tmp_path / name)["w"]
        np.testing.assert_array_equal(loaded.view(np.uint32), expected.view(np.uint32), strict=True)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 8 + b"{}", b"\x02" + bytes(7) + b"{]"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pdparams"])
def test_damaged_files_are_named(tmp_path, content, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"w\{suffix} is not a usable file of weights"):
        read_weights(path)


def test_a_safetensors_header_cannot_promise_more_than_the_file_holds(tmp_path):
    path = tmp_path / "w.safetensors"
    content = safetensors.numpy.save({"w": np.zeros(4, "f4")})
    path.write_bytes(content.replace(b"[4]", b"[9]").replace(b"[0,16]", b"[0,36]"))
    with pytest.raises(UserError, match="not a usable file"):
        read_weights(path)


def safetensors_of(header, data=bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE = {
    "a header of 8 EiB": struct.pack("<Q", 2**63) + b"{}",
    "a header of 100 MB": struct.pack("<Q", 100_000_001) + b"{}",
    "a header beyond the file": struct.pack("<Q", 1000) + b"{}",
    "overlapping arrays": safetensors_of({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}),
    "a hole": safetensors_of({"a": entry([2], 0, 8), "b": entry([1], 12, 16)}),
    "bytes of nobody": safetensors_of({"a": entry([2], 0, 8)}),
    "equal keys": safetensors_of(
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"I32","shape":[4],"data_offsets":[0,16]}}'
    ),
    "equal keys of an entry": safetensors_of(b'{"a":{"dtype":"F32","shape":[9],"shape":[4],"data_offsets":[0,16]}}'),
    "sizes below zero": safetensors_of({"a": entry([-2, -2], 0, 16)}),
    "sizes that overflow": safetensors_of({"a": entry([2**63, 2], 0, 16)}),
    "a shape of other bytes": safetensors_of({"a": entry([5], 0, 16)}),
    "half bytes": safetensors_of({"a": entry([32], 0, 16, "F4")}),
    "complex numbers": safetensors_of({"a": entry([2], 0, 16, "C64")}),
    "an unknown type": safetensors_of({"a": entry([4], 0, 16, "O8")}),
    "lists in lists": safetensors_of(b"[" * 100_000),
    "metadata of another kind": safetensors_of({"__metadata__": [1], "a": entry([4], 0, 16)}),
    "no JSON": safetensors_of(b'{"a": \xff}'),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_safetensors_are_refused(tmp_path, name):
    path = tmp_path / "w.safetensors"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"w\.safetensors is not a usable file of weights: "):
            read_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("read", [read_weights, read_metadata, sha256_of])
@pytest.mark.parametrize("suffix", [".safetensors", ".pdparams"])
def test_a_pipe_is_not_waited_for(tmp_path, read, suffix):
    os.mkfifo(tmp_path / f"w{suffix}")
    with pytest.raises(UserError, match="not a regular file"):
        read(tmp_path / f"w{suffix}")


REAL = safetensors.numpy.save({"a": np.zeros((2, 3), "f4"), "b": np.ones(5, "i8")}, {"model": "x"})


@given(data=st.data())
def test_any_damage_is_refused_or_leaves_arrays(tmp_path_factory, data):
    content = bytearray(REAL)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content)) | st.just(len(content))) :]
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content)
    for read in (read_weights, read_metadata):
        try:
            found = read(path)
        except UserError as error:
            assert "damaged.safetensors" in str(error)
        else:
            assert all(isinstance(key, str) for key in found)


def test_code_is_refused_with_the_files_name(tmp_path):
    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps({"w": print}, protocol=4))
    with pytest.raises(UserError, match=r"w\.pdparams is not a usable file of weights: .*'builtins'\.'print'"):
        read_weights(path)


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read the weights .*none\.pdparams: No such file"):
        read_weights(tmp_path / "none.pdparams")
    with pytest.raises(UserError, match=r"from \.safetensors, \.pdparams, \.pth, \.pt, \.bin files, received '\.npz'"):
        read_weights(tmp_path / "net.npz")


def test_sha256(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(b"weights")
    assert sha256_of(path) == hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(UserError, match="No such file"):
        sha256_of(tmp_path / "none")
