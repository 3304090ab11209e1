import ctypes
import gc
from pathlib import Path

import paddle
import pytest

from distill.errors import RunError
from distill.onednn.library import Handle, Library, dimensions, onednn
from distill.parallel import setup_process


def test_a_missing_library_is_told(tmp_path):
    with pytest.raises(RunError, match=r"Paddle's oneDNN cannot be loaded: .*libdnnl\.so\.3"):
        Library(tmp_path)


def test_another_version_is_refused(monkeypatch):
    monkeypatch.setattr("distill.onednn.library.OLDEST_MINOR", 1000)
    with pytest.raises(RunError, match=r"libdnnl\.so\.3 is oneDNN 3\.\d+\.\d+, expected 3\.1000 or a later 3\.x"):
        Library(Path(paddle.__path__[0]) / "libs")


def test_an_error_says_which_function_and_why():
    with pytest.raises(
        RunError, match=r"oneDNN 3\.\d+\.\d+: dnnl_memory_desc_create_with_string_tag: invalid arguments"
    ):
        onednn().create("memory_desc", "memory_desc_create_with_string_tag", 2, dimensions((1, 1)), 3, b"nonsense")


def test_an_object_is_destroyed_once_with_its_last_reference():
    destroyed = []
    handle = Handle(ctypes.c_void_p(5), lambda pointer: destroyed.append(pointer.value))
    other = handle
    del handle
    gc.collect()
    assert destroyed == []
    assert other.address == 5
    del other
    gc.collect()
    assert destroyed == [5]


def test_primitives_have_their_threads_whatever_a_predictor_left():
    openmp = ctypes.CDLL(str(Path(paddle.__path__[0]) / "libs" / "libiomp5.so"))
    openmp.omp_set_num_threads(1)
    with onednn().at_work():
        assert openmp.omp_get_max_threads() == Library.threads == setup_process("cpu").threads
