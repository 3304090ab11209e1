import importlib.util
import json
import random
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "benchmarks" / "decode.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("decode_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def jpeg(seed, height=90, width=120):
    small = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))[1].tobytes()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a class").mkdir()
    for seed in range(3):
        (tmp_path / "a class" / f"{seed}.JPEG").write_bytes(jpeg(seed))
    (tmp_path / "broken.jpg").write_bytes(jpeg(0)[:100])
    return tmp_path


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["decode.py", *map(str, arguments)])
    script.main()


def test_every_row_is_measured(script, monkeypatch, folder, capsys):
    run(script, monkeypatch, "--photographs", folder, "--repeat", 1, "--json", folder / "facts.json")
    output, errors = capsys.readouterr()
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["photographs"] == 3 and facts["images_a_pass"] == 102
    assert facts["rows"][0]["name"] == script.ANCHOR and facts["rows"][0]["ratio"] == 1
    assert all(row["images_per_second_per_core"] > 0 and row["ratio_min"] <= row["ratio"] for row in facts["rows"])
    assert all(row["name"] in output for row in facts["rows"])
    assert "times as fast as PaddleClas' way" in output
    assert "left out: " in errors and "broken.jpg" in errors


@pytest.mark.parametrize("arguments", [["--photographs", "."], ["--repeat", "0"]])
def test_nothing_to_measure(script, monkeypatch, tmp_path, arguments, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        run(script, monkeypatch, *arguments)
    assert leaving.value.code == 2
    errors = capsys.readouterr().err
    assert "no JPEG file that can be decoded in ." in errors or "must be at least 1" in errors


def test_the_installed_photographs(script):
    assert {path.name for path in script.installed_photographs()} >= {"china.jpg", "flower.jpg", "rocket.jpg"}


def test_the_float_views_are_the_normalised_crop(script):
    """PaddleClas' way and the careful one agree, and with a computation by hand."""
    data = jpeg(5, 300, 400)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    for seed in range(6):
        views = []
        for make in (script.paddleclas_view, script.float_view):
            random.seed(seed)
            views.append(make(data))
        np.testing.assert_array_equal(*views)
        random.seed(seed)
        box = script.paddleclas_box(300, 400)
        part = np.ascontiguousarray(image[box.top : box.top + box.height, box.left : box.left + box.width])
        expected = cv2.resize(part, (224, 224)) / 255
        expected = (expected[:, ::-1] if random.randint(0, 1) else expected) - script.MEAN
        np.testing.assert_allclose(views[0], (expected / script.STD).transpose(2, 0, 1), atol=1e-5)
        assert views[0].dtype == np.float32


def test_the_loader_reads_the_packed_images(script, tmp_path):
    images = [jpeg(seed) for seed in range(3)]
    source = script.list_in_tar(images, tmp_path)
    assert [source.encoded(index) for index in range(3)] == images
