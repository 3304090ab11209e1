import hashlib
import pickle

import numpy as np
import pytest
import safetensors.numpy

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


def test_code_is_refused_with_the_files_name(tmp_path):
    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps({"w": print}, protocol=4))
    with pytest.raises(UserError, match=r"w\.pdparams is not a usable file of weights: .*'builtins'\.'print'"):
        read_weights(path)


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read the weights .*none\.pdparams: No such file"):
        read_weights(tmp_path / "none.pdparams")
    with pytest.raises(UserError, match=r"\.safetensors and \.pdparams files, received '\.pth'"):
        read_weights(tmp_path / "net.pth")


def test_sha256(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(b"weights")
    assert sha256_of(path) == hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(UserError, match="No such file"):
        sha256_of(tmp_path / "none")
