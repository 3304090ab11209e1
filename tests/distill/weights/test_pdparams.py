import builtins
import collections
import os
import pickle
import struct
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distill.weights.pdparams import read_pdparams
from distill.weights.pickles import RefusedPickle


@pytest.fixture
def read(tmp_path):
    def read_bytes(content):
        path = tmp_path / "weights.pdparams"
        path.write_bytes(content)
        return read_pdparams(path)

    return read_bytes


# --- what must be read ------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_reads_what_the_framework_saves(tmp_path, protocol):
    import paddle

    net = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4), paddle.nn.Linear(4, 2))
    path = tmp_path / "net.pdparams"
    paddle.save(net.state_dict(), str(path), protocol=protocol)
    arrays = read_pdparams(path)
    assert list(arrays) == list(net.state_dict())
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(arrays[key], value.numpy())
        assert arrays[key].dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(
    arrays=st.dictionaries(
        st.text(max_size=6).filter(lambda key: "@@" not in key),
        st.sampled_from(["f2", "<f4", ">f4", "f8", "i1", "<i8", ">i2", "u1", "?"]).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
        ),
        max_size=4,
    ),
    protocol=st.integers(2, 5),
    ordered=st.booleans(),
    fortran=st.booleans(),
)
def test_reads_any_dict_of_arrays(tmp_path_factory, arrays, protocol, ordered, fortran):
    arrays = {key: np.asarray(array, order="F" if fortran else "C") for key, array in arrays.items()}
    path = tmp_path_factory.mktemp("weights") / "w.pdparams"
    path.write_bytes(pickle.dumps(collections.OrderedDict(arrays) if ordered else arrays, protocol=protocol))
    loaded = read_pdparams(path)
    assert loaded.keys() == arrays.keys()
    for key, array in arrays.items():
        assert loaded[key].dtype == array.dtype.newbyteorder("=")
        assert loaded[key].shape == array.shape
        np.testing.assert_array_equal(loaded[key], array)


@pytest.mark.parametrize("protocol", [2, 4])
def test_reads_numpy_scalars(read, protocol):
    loaded = read(pickle.dumps({"step": np.float32(1.5)}, protocol=protocol))
    assert loaded["step"].shape == ()
    assert loaded["step"] == 1.5


@pytest.mark.parametrize(("new", "old"), [(b"numpy._core.multiarray", b"numpy.core.multiarray")])
def test_reads_files_of_numpy_1_and_2(read, new, old):
    array = np.arange(3, dtype="f4")
    content = pickle.dumps({"w": array}, protocol=2).replace(new, old)
    np.testing.assert_array_equal(read(content)["w"], array)
    np.testing.assert_array_equal(read(content.replace(old, new))["w"], array)


def test_reads_what_python_2_wrote(read):
    data = np.array([1.5, -2.0], "<f4").tobytes()
    content = (
        b"\x80\x02}q\x00U\x06weightcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01\x8a\x01\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08" + data + b"tbs."
    )
    np.testing.assert_array_equal(read(content)["weight"], [1.5, -2.0])


def test_joins_big_arrays_that_were_cut_for_protocol_2(read):
    whole = np.arange(10, dtype="f4").reshape(2, 5)
    content = {
        "bias": np.zeros(2),
        "w@@.0": whole.ravel()[:6],
        "w@@.1": whole.ravel()[6:],
        "UnpackBigParamInfor@@": {"w": {"OriginShape": (2, 5), "slices": ["w@@.0", "w@@.1"]}},
        "StructuredToParameterName@@": {"w": "linear_0.w_0"},
    }
    loaded = read(pickle.dumps(content, protocol=2))
    assert set(loaded) == {"bias", "w"}
    np.testing.assert_array_equal(loaded["w"], whole)


# --- what must not run ------------------------------------------------------------------------


class Exploit:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("function", [os.mkdir, builtins.eval])
def test_code_in_a_file_is_refused_not_run(tmp_path, read, protocol, function):
    proof = tmp_path / "proof"
    argument = str(proof) if function is os.mkdir else f"__import__('os').mkdir({str(proof)!r})"
    content = pickle.dumps({"fc.weight": np.ones(2), "x": Exploit(function, argument)}, protocol=protocol)

    with pytest.raises(RefusedPickle):
        read(content)
    assert not proof.exists()

    pickle.loads(content)  # the exploit is a real one
    assert proof.exists()


def test_the_frameworks_own_loader_would_run_it(tmp_path):
    import paddle

    path = tmp_path / "weights.pdparams"
    path.write_bytes(pickle.dumps({"x": Exploit(os.mkdir, str(tmp_path / "proof"))}, protocol=4))
    with pytest.raises(RefusedPickle, match=r"'posix'\.'mkdir'.*do not trust"):
        read_pdparams(path)
    assert not (tmp_path / "proof").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paddle.load(str(path))
    assert (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cnumpy\nload\n.",  # another function of an allowed module
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",  # a dotted path out of an allowed name
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}X\x01\x00\x00\x00aK\x01sb.",  # BUILD on a function
        b"\x80\x02}X\x01\x00\x00\x00acnumpy\nndarray\n)Rs.",  # a call of what may only be an argument
        b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R.",  # an array of objects
        b"(ios\nsystem\n.",  # INST
        b"\x80\x02Ptoken\n.",  # a persistent id
        b"\x80\x02\x82\x01.",  # the extension registry
        b"\x80\x02cnumpy\ndtype\n)\x81.",  # NEWOBJ
    ],
)
def test_tricks_are_refused(read, content):
    with pytest.raises(RefusedPickle):
        read(content)


def array_pickle(shape, data):
    return pickle.dumps({"w": np.frombuffer(data, "u1")}, protocol=4).replace(
        b"K" + bytes([len(data)]) + b"\x85", b"\x8a\x08" + struct.pack("<q", shape) + b"\x85", 1
    )


BOMBS = {
    "a shape that the data does not fill": array_pickle(2**40, b"1234567"),
    "bytes of a declared length": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "text of a declared length": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
    "a frame of a declared length": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
    "a memo of billions of entries": b"\x80\x02Nr\xfe\xff\xff\xff.",
    "one text turned to bytes again and again": b"\x80\x02("
    + (b"X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x00")
    + b"c_codecs\nencode\nq\x01h\x00X\x06\x00\x00\x00latin1q\x02\x86q\x03R"
    + b"h\x01h\x03R" * 5000
    + b"t.",
    "tuples of tuples as a name": b"\x80\x04N" + b"q\x00h\x00\x86" * 64 + b"\x8c\x01a\x93.",
    "tuples of tuples as a key": b"\x80\x04}N" + b"q\x00h\x00\x86" * 64 + b"Ns.",
    "a shape of long numbers": b"\x80\x02cnumpy._core.multiarray\n_reconstruct\nNNN\x87R(K\x01("
    + (b"\x8a\xff" + b"\x7f" * 255) * 4000
    + b"tcnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R\x89C\x00tb.",
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_cannot_ask_for_much(read, name):
    tracemalloc.start()
    try:
        with pytest.raises(RefusedPickle):
            read(BOMBS[name])
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 30 * len(BOMBS[name]) + 100_000


def test_a_slice_cannot_be_used_twice(read):
    how = {"OriginShape": (1000,), "slices": ["part"] * 100}
    with pytest.raises(RefusedPickle, match="UnpackBigParamInfor"):
        read(pickle.dumps({"part": np.zeros(10), "UnpackBigParamInfor@@": {"w": how}}, protocol=4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([np.zeros(2)], "expected a dict of arrays, found list"),
        ({"epoch": 3}, "expected an array under the key 'epoch', found int"),
        ({"model": {"w": np.zeros(2)}}, "expected an array under the key 'model', found dict"),
        ({1: np.zeros(2)}, "expected text, found int"),
        ({"w": np.array(["a"])}, "array of type 'U1'"),
        ({"w": np.array([1, "a"], dtype=object)}, "array of type 'O8'"),
        ({"w": np.zeros(2, "c16")}, "array of type 'c16'"),
    ],
)
def test_other_content_is_named(read, content, message):
    with pytest.raises(RefusedPickle, match=message):
        read(pickle.dumps(content, protocol=4))


def test_an_empty_file(read):
    with pytest.raises(RefusedPickle, match="empty"):
        read(b"")


VALID = {p: pickle.dumps({"fc.weight": np.arange(6.0).reshape(2, 3), "n": np.int64(3)}, protocol=p) for p in (2, 4)}


@settings(max_examples=300, deadline=None)
@given(data=st.data(), protocol=st.sampled_from([2, 4]))
def test_damage_is_refused_or_leaves_a_dict_of_arrays(tmp_path_factory, data, protocol):
    content = bytearray(VALID[protocol])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    path = tmp_path_factory.getbasetemp() / "damaged.pdparams"
    path.write_bytes(content)
    try:
        arrays = read_pdparams(path)
    except RefusedPickle:
        return
    assert all(isinstance(key, str) and isinstance(value, np.ndarray) for key, value in arrays.items())
