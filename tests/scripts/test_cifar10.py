import hashlib
import importlib.util
import io
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from distill.data.decode import decode_image
from distill.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "cifar10.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("cifar10_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_python_2_wrote(labels, pixels):
    """A pickle of protocol 2 with Python 2's text, NumPy 1's names, and the array's bytes as text."""

    def text(value):
        data = value if isinstance(value, bytes) else value.encode()
        return (b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + len(data).to_bytes(4, "little")) + data

    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text("b") + b"tR(K\x01"
    array += b"M" + pixels.shape[0].to_bytes(2, "little") + b"M" + pixels.shape[1].to_bytes(2, "little") + b"\x86"
    dtype = (
        b"cnumpy\ndtype\n("
        + text("u1")
        + b"K\x00K\x01tR(K\x03"
        + text("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array += dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return (
        b"\x80\x02}("
        + text("batch_label")
        + text("one of them")
        + text("labels")
        + numbers
        + text("data")
        + array
        + b"u."
    )


def archive_of(path, **contents):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def pixels():
    return np.random.Generator(np.random.Philox(0)).integers(0, 256, (6, 2, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def batches(pixels):
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    data = [as_python_2_wrote([number, 9], part.reshape(2, -1)) for number, part in enumerate(pixels)]
    return dict(zip(names, data, strict=True))


def test_what_the_test_writes_is_what_python_reads(pixels):
    data = as_python_2_wrote([3, 9], pixels[0].reshape(2, -1))
    content = pickle.loads(data, encoding="latin1")
    assert content["labels"] == [3, 9] and (content["data"] == pixels[0].reshape(2, -1)).all()


def test_an_archive_becomes_images_and_lists(script, pixels, batches, tmp_path, monkeypatch):
    archive = archive_of(tmp_path / "cifar.tar.gz", **{"batches.meta": b"not looked at"}, **batches)
    folder = tmp_path / "data"
    monkeypatch.setattr(sys, "argv", ["cifar10.py", str(folder), "--archive", str(archive)])
    assert not script.is_complete(folder)
    assert script.main() == 0 and script.is_complete(folder)
    lines = [line.split() for line in (folder / "train_list.txt").read_text().splitlines()]
    assert [int(label) for _, label in lines] == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert lines[2][0] == "train/automobile/00002.png"
    for (name, _), image in zip(lines, pixels[:5].reshape(10, 3, 32, 32), strict=True):
        assert (decode_image((folder / name).read_bytes(), name) == image.transpose(1, 2, 0)).all()
    assert len((folder / "test_list.txt").read_text().splitlines()) == 2


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_an_archive_that_runs_code_is_refused_and_runs_none(script, batches, tmp_path):
    batches["data_batch_2"] = pickle.dumps({"data": Exploit(tmp_path / "owned")}, protocol=2)
    archive = archive_of(tmp_path / "cifar.tar.gz", **batches)
    with pytest.raises(UserError, match="data_batch_2 is not read: it asks to call"):
        script.from_archive(archive, tmp_path / "data")
    assert not (tmp_path / "owned").exists() and not script.is_complete(tmp_path / "data")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batches: batches.pop("test_batch"), "has no test_batch"),
        (lambda batches: batches.update(test_batch=b""), "test_batch is not read"),
        (lambda batches: batches.update(test_batch=pickle.dumps([1], 2)), "expected a dict, found list"),
        (lambda batches: batches.update(test_batch=pickle.dumps({"data": 1}, 2)), "expected `data`, uint8"),
        (
            lambda batches: batches.update(test_batch=as_python_2_wrote([10], np.zeros((1, 3072), np.uint8))),
            "expected `labels`, a whole number of 0-9 for each of 1 images",
        ),
    ],
)
def test_an_archive_of_something_else_is_refused(script, batches, tmp_path, change, message):
    change(batches)
    with pytest.raises(UserError, match=message):
        script.from_archive(archive_of(tmp_path / "cifar.tar.gz", **batches), tmp_path / "data")


def test_no_archive_is_refused_in_words(script, tmp_path, monkeypatch, capsys):
    (tmp_path / "text").write_text("text")
    for name in ("text", "missing"):
        monkeypatch.setattr(sys, "argv", ["cifar10.py", str(tmp_path / "data"), "--archive", str(tmp_path / name)])
        assert script.main() == 2
        assert "Expected cifar-10-python.tar.gz" in capsys.readouterr().err


def test_images_at_hand_stay_where_they_are(script, tmp_path, monkeypatch):
    images = tmp_path / "images"
    images.mkdir()
    (images / "a cat.png").write_bytes(b"")
    for part in ("train", "test"):
        (images / f"{part}_list.txt").write_text("a cat.png 3\n")
    monkeypatch.setattr(sys, "argv", ["cifar10.py", str(tmp_path / "data"), "--images", str(images)])
    assert script.main() == 0
    assert (tmp_path / "data" / "train_list.txt").read_text() == f"{images / 'a cat.png'} 3\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png 3\n", "there is no file .*a.png"),
        ("a.png\n", "expected `path label`.*line 1"),
        ("a.png 10\n", "a label of 0-9, received 'a.png 10'"),
        (None, "cannot read .*train_list.txt"),
    ],
)
def test_lists_that_cannot_be_are_refused(script, tmp_path, text, message):
    if text is not None:
        (tmp_path / "train_list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        script.from_images(tmp_path, tmp_path / "data")


@pytest.fixture
def served(script, batches, https_server, tmp_path, monkeypatch):
    """An archive at the local server, which is expected instead of the real one."""
    content = archive_of(tmp_path / "served.tar.gz", **batches).read_bytes()
    https_server.files["/cifar-10-python.tar.gz"] = content
    monkeypatch.setattr(script, "URL", f"https://localhost:{https_server.server_port}/cifar-10-python.tar.gz")
    monkeypatch.setattr(script, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(sys, "argv", ["cifar10.py", str(tmp_path / "data")])
    return https_server


def test_a_download_that_is_cut_goes_on(script, served, tmp_path):
    served.cuts = [3_000, 5_000]
    assert script.main() == 0
    assert [request.get("Range") for request in served.requests] == [None, "bytes=3000-", "bytes=8000-"]
    assert len((tmp_path / "data" / "train_list.txt").read_text().splitlines()) == 10
    (tmp_path / "data" / "test_list.txt").unlink()
    assert script.main() == 0 and len(served.requests) == 3  # the archive is there already


def test_another_archive_than_expected_is_not_kept(script, served, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "SHA256", "0" * 64)
    assert script.main() == 1
    assert "nothing was kept" in capsys.readouterr().err and not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("fault", ["missing", "http"])
def test_a_download_that_fails_says_what_to_do(script, served, tmp_path, capsys, fault):
    if fault == "missing":
        served.files.clear()
    else:
        served.redirect_to = "http://localhost/cifar-10-python.tar.gz"
    assert script.main() == 1
    said = capsys.readouterr().err
    assert ("404" if fault == "missing" else "not https: not followed") in said and "--archive" in said
