import gzip
import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "fashion_mnist.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("fashion_mnist_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path, script, monkeypatch):
    """An unpacked package with other content than the real one, which is expected instead."""
    import hashlib

    folder = tmp_path / "root" / script.DEBIAN_FOLDER
    folder.mkdir(parents=True)
    for name in script.CONTENTS:
        (folder / name).write_bytes(gzip.compress(name.encode()))
        monkeypatch.setitem(script.CONTENTS, name, hashlib.sha256(name.encode()).hexdigest())
    return tmp_path / "root"


def test_files_are_told_by_their_content_not_by_how_they_are_packed(script, package, tmp_path):
    script.from_installed_package(tmp_path / "data", package)
    assert script.is_complete(tmp_path / "data")
    name = next(iter(script.CONTENTS))
    (tmp_path / "data" / name).write_bytes(gzip.compress(name.encode(), compresslevel=0))
    assert script.is_complete(tmp_path / "data")


@pytest.mark.parametrize("damage", [b"", b"not gzip", gzip.compress(b"other content", mtime=0), None])
def test_a_damaged_or_missing_file_is_noticed(script, package, tmp_path, damage):
    script.from_installed_package(tmp_path / "data", package)
    victim = tmp_path / "data" / next(iter(script.CONTENTS))
    if damage is None:
        victim.unlink()
    else:
        victim.write_bytes(damage)
    assert not script.is_complete(tmp_path / "data")


def test_when_every_source_fails_it_says_why_and_what_to_do(script, tmp_path, monkeypatch, capsys):
    def fails(folder):
        raise OSError("no network here")

    monkeypatch.setattr(script, "SOURCES", {"the only source": fails})
    monkeypatch.setattr(sys, "argv", ["fashion_mnist.py", str(tmp_path / "data")])
    assert script.main() == 1
    said = capsys.readouterr().err
    assert "the only source: no network here" in said
    assert f"Put these four files into {tmp_path / 'data'} by hand" in said
    assert "t10k-labels-idx1-ubyte.gz" in said


def test_the_next_source_is_tried(script, package, tmp_path, monkeypatch):
    def fails(folder):
        raise OSError("not installed")

    sources = {"first": fails, "second": lambda folder: script.from_installed_package(folder, package)}
    monkeypatch.setattr(script, "SOURCES", sources)
    monkeypatch.setattr(sys, "argv", ["fashion_mnist.py", str(tmp_path / "data")])
    assert script.main() == 0


def test_files_are_fetched_where_no_package_is_and_go_on_when_cut(script, package, https_server, tmp_path, monkeypatch):
    https_server.files |= {f"/{name}": (package / script.DEBIAN_FOLDER / name).read_bytes() for name in script.CONTENTS}
    monkeypatch.setattr(script, "URL", f"https://localhost:{https_server.server_port}/")
    https_server.cuts = [10]
    script.from_paddle(tmp_path / "data")
    assert script.is_complete(tmp_path / "data")
    assert [request.get("Range") for request in https_server.requests] == [None, "bytes=10-", None, None, None]
    name = next(iter(script.CONTENTS))
    (tmp_path / "data" / name).write_bytes(gzip.compress(b"other content"))
    script.from_paddle(tmp_path / "data")
    assert script.is_complete(tmp_path / "data") and len(https_server.requests) == 6
