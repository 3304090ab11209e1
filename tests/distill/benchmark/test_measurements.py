import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from distill.benchmark.measurements import measurement, read_measurements, record
from distill.errors import RunError, UserError
from distill.evaluation import Evaluation
from distill.parallel import Device
from distill.recipe.file import load_recipe
from distill.weights import sha256_of, write_weights


def test_what_is_recorded_is_read_back(tmp_path, found):
    path = tmp_path / "runs" / "measured.jsonl"
    other = replace(found, weights_sha256="c" * 64, top1=1 / 3)
    assert read_measurements(path) == []
    record(path, found)
    record(path, other)
    assert read_measurements(path) == [found, other]
    assert [json.loads(line)["top1"] for line in path.read_text().splitlines()] == [0.8239, 1 / 3]
    assert [file.name for file in path.parent.iterdir()] == ["measured.jsonl"]


def test_what_is_measured_again_replaces_what_was_shown_and_stays_in_the_file(tmp_path, found):
    path = tmp_path / "measured.jsonl"
    moved = replace(found, weights="elsewhere.pdparams", date="2026-11-25")
    at_320 = replace(found, crop_px=320)
    for each in (found, at_320, moved):
        record(path, each)
    assert read_measurements(path) == [moved, at_320]
    assert len(path.read_text().splitlines()) == 3


def test_two_that_record_at_once_lose_nothing(tmp_path, found):
    path = tmp_path / "measured.jsonl"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: record(path, replace(found, weights_sha256=str(number))), range(20)))
    assert len(read_measurements(path)) == 20


def test_a_full_disk_leaves_what_was_recorded(tmp_path, found, small_files_only):
    path = tmp_path / "measured.jsonl"
    record(path, found)
    with small_files_only(1000), pytest.raises(RunError, match=r"Cannot write .*measured\.jsonl"):
        record(path, replace(found, weights_sha256="d"))
    assert read_measurements(path) == [found]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _: "{", "line 2: not a measurement"),
        (lambda _: "[]", "line 2: not a measurement"),
        (lambda _: '{"model": "ResNet18"}', "line 2: not a measurement"),
        (lambda found: json.dumps(found | {"top2": 0.9}), "line 2: not a measurement"),
        (lambda found: json.dumps(found | {"model": "VGG"}), "line 2: unknown model 'VGG'"),
    ],
)
def test_another_file_is_refused_and_not_changed(tmp_path, found, change, reason):
    path = tmp_path / "measured.jsonl"
    text = f"{json.dumps(asdict(found))}\n{change(asdict(found))}\n"
    path.write_text(text)
    with pytest.raises(UserError, match=reason):
        read_measurements(path)
    with pytest.raises(UserError, match=reason):
        record(path, found)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("changes", "comparable"),
    [
        ({}, True),
        ({"images": 49_999, "undecodable": 1}, True),
        ({"images": 500}, False),
        ({"num_classes": 100}, False),
    ],
)
def test_what_may_be_compared_with_what_is_published(found, changes, comparable):
    assert replace(found, **changes).on_imagenet == comparable


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("weights/ResNet50_vd_pretrained.pdparams", "ResNet50_vd_pretrained"),
        ("runs/mine/student.safetensors", "mine"),
        ("runs/mine/stages/0-pool/best.safetensors", "0-pool"),
        ("student.safetensors", "student"),
    ],
)
def test_names_for_people(found, weights, name):
    assert replace(found, weights=weights).name == name


def test_an_evaluation_is_recorded_with_all_that_says_what_it_means(digits, tmp_path):
    recipe = load_recipe(digits.recipe(tmp_path / "r.yaml"))
    weights = tmp_path / "w.safetensors"
    write_weights(weights, {})
    found = measurement(recipe, weights, Evaluation(0.5, 0.9, 296, 1), Device("cpu", 3))
    assert (found.model, found.width, found.stem_stride, found.num_classes) == ("ResNet18_vd", 0.0625, 4, 10)
    assert (found.top1, found.top5, found.images, found.undecodable) == (0.5, 0.9, 296, 1)
    assert (found.weights, found.weights_sha256) == (str(weights), sha256_of(weights))
    assert found.sources == (str(digits.folder / "test-images.gz"),)
    assert (found.resize_short_px, found.crop_px, found.recipe) == (28, 28, "digits")
    assert found.hardware.endswith(", 3 threads")
    part = [{"kind": "idx", "range": [0, 9]} | {k: str(digits.folder / f"test-{k}.gz") for k in ("images", "labels")}]
    fewer = load_recipe(
        digits.recipe(tmp_path / "f.yaml", evaluation={"sources": part, "resize_short_px": 28, "crop_px": 28})
    )
    other = measurement(fewer, weights, Evaluation(0.5, 0.9, 9, 0), Device("cpu", 3))
    assert other.sources == (f"{Path(digits.folder) / 'test-images.gz'} [0, 9)",)
    assert other.images_sha256 != found.images_sha256
