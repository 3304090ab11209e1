import os
import subprocess
import sys

import pytest

from distill.errors import RunError, UserError
from distill.files import TEMPORARY_PREFIX, owned, write_atomically


def test_replaces_a_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, b"old")
    write_atomically(path, "né")
    assert path.read_bytes() == "né".encode()
    assert os.listdir(tmp_path) == ["result.json"]


def test_full_disk_keeps_the_old_file(tmp_path, small_files_only):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with small_files_only(1000), pytest.raises(RunError, match=r"Cannot write .*weights: File too large"):
        write_atomically(path, bytes(5000))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights"]


def test_missing_folder_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(RunError, match=r"missing/result\.json: No such file or directory"):
        write_atomically(tmp_path / "missing" / "result.json", b"")


def test_interruption_before_the_rename_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    path.write_bytes(b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))


def test_a_lock_has_one_owner_and_ends_with_him(tmp_path):
    path = tmp_path / ".lock"
    code = (
        "import sys, pathlib, distill.files as f\n"
        "with f.owned(pathlib.Path(sys.argv[1]), 'no'):\n    print(1, flush=True)\n    input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout.readline() == b"1\n"
        with pytest.raises(UserError, match="somebody has it"), owned(path, "somebody has it"):
            pass
        owner.kill()
    with owned(path, "somebody has it"):
        assert path.exists()
