import json

import cv2
import numpy as np
import pytest

from distill import cli
from distill.benchmark.data import PARTS, benchmark_data, measure_parts
from distill.data.sources import open_sources
from distill.errors import RunError, UserError
from distill.recipe.file import load_recipe

CROP = {"kind": "random_area", "scale": [0.08, 1.0], "ratio": [0.75, 1.3333], "sampling": "published"}


@pytest.fixture
def recipe(digits, tmp_path):
    """The digits' recipe with some keys replaced."""

    def load(**changes):
        return load_recipe(digits.recipe(tmp_path / "recipe.yaml", **changes), ())

    return load


@pytest.fixture
def image_folder(tmp_path):
    """Files of 48 x 60 px, JPEG and PNG, and their list."""
    folder = tmp_path / "images"
    folder.mkdir()
    names = [f"{index:02d}.{'png' if index % 2 else 'jpg'}" for index in range(12)]
    for index, name in enumerate(names):
        image = np.random.default_rng(index).integers(0, 256, (48, 60, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / name), image)
    (folder / "list.txt").write_text("".join(f"{name} {index % 7}\n" for index, name in enumerate(names)))
    return folder


@pytest.fixture
def photographs(recipe):
    """A recipe on a folder's image list."""

    def load(folder):
        source = {"kind": "image_list", "path": str(folder / "list.txt"), "root": str(folder)}
        view = {"size_px": 32, "crop": CROP, "horizontal_flip": 0.5}
        return recipe(data={"sources": [source]}, view=view)

    return load


def test_digits(recipe):
    report = benchmark_data(recipe(), seconds=0.05, threads=[2, 1, 2])
    assert (report.recipe, report.stage, report.size_px, report.sources_images) == ("digits", "train", 28, 200)
    assert tuple(report.parts.parts) == PARTS and report.parts.encoded_bytes == 0 and report.parts.pixels == 784
    assert report.parts.images > 0 and report.parts.undecodable == 0
    assert [(run.threads, run.workers, run.processes) for run in report.runs] == [(1, 1, 0), (2, 2, 0)]
    assert all(run.images_per_second > 0 and run.cores_used > 0 and run.idle_cores >= 0 for run in report.runs)
    assert report.cores_for(2 * report.images_per_second_per_core) == pytest.approx(2)


def test_files_in_worker_processes(photographs, image_folder):
    loaded = photographs(image_folder)
    loaded = loaded.model_copy(update={"runtime": loaded.runtime.model_copy(update={"loader_processes": 1})})
    report = benchmark_data(loaded, seconds=0.05, threads=[2])
    assert report.runs[0].workers == 2 and report.runs[0].cores_used is None
    sizes = [path.stat().st_size for path in image_folder.glob("*.*g")]
    assert min(sizes) <= report.parts.encoded_bytes <= max(sizes) and report.parts.pixels == 48 * 60


def test_undecodable_files_are_counted(photographs, image_folder):
    (image_folder / "03.png").write_bytes(b"no image")
    (image_folder / "04.jpg").write_bytes((image_folder / "04.jpg").read_bytes()[:-50])
    (image_folder / "05.png").unlink()
    loaded = photographs(image_folder)
    parts = measure_parts(open_sources(loaded.stages[0].data.sources, 10), loaded, 0, 0.2)
    assert parts.undecodable / (parts.images + parts.undecodable) == pytest.approx(3 / 12, rel=0.5)


def test_nothing_can_be_decoded(photographs, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("a.jpg 0\n")
    with pytest.raises(RunError, match=r"none of \d+ images could be decoded; the first: .*a\.jpg"):
        benchmark_data(photographs(tmp_path), seconds=0.01)


def test_a_view_that_cannot_be_made_names_the_image(recipe):
    view = {"size_px": 64, "crop": {"kind": "padded", "padding_px": 1}, "horizontal_flip": 0.0}
    with pytest.raises(UserError, match=r"train-images\.gz#\d+: the image has 28 x 28 px"):
        benchmark_data(recipe(view=view), seconds=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "trian"}, "no stage 'trian'. Did you mean 'train'?"),
        ({"seconds": 0}, "--seconds must be a number > 0, received 0"),
        ({"seconds": float("nan")}, "--seconds must be a number > 0, received nan"),
        ({"seconds": float("inf")}, "--seconds must be a number > 0, received inf"),
        ({"threads": []}, "--threads must be numbers >= 1 such as 1,2, received none"),
        ({"threads": [2, 0]}, "received 2,0"),
    ],
)
def test_wrong_options(recipe, options, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        benchmark_data(recipe(), **options)


@pytest.fixture
def run_cli(capfd):
    """Runs `distill benchmark data`; returns exit status, standard output and standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as leaving:
            cli.main(["benchmark", "data", *map(str, arguments)])
        return leaving.value.code or 0, *capfd.readouterr()

    return run


def test_the_command(digits, tmp_path, run_cli):
    path = digits.recipe(tmp_path / "recipe.yaml")
    status, output, _ = run_cli(path, "--seconds", "0.05", "--threads", "1", "--json")
    found = json.loads(output)
    assert status == 0 and set(found["parts"]["parts"]) == set(PARTS) and found["bottleneck"]
    status, output, _ = run_cli(path, "--seconds", "0.05", "--set", "view.size_px=32", "--student", "500")
    assert status == 0 and "views of 32 px" in output and "takes 500 images/s" in output


def test_the_command_refuses(digits, tmp_path, run_cli):
    path = digits.recipe(tmp_path / "recipe.yaml")
    status, _, errors = run_cli(path, "--threads", "two")
    assert status == 2 and "--threads must be numbers such as 1,2, received 'two'" in errors
    assert run_cli(path, "--seconds", "-1")[0] == 2
    source = {"kind": "image_list", "path": "absent.txt", "root": str(tmp_path)}
    status, output, errors = run_cli(digits.recipe(path, data={"sources": [source]}))
    assert (status, output) == (2, "") and "absent.txt: the image list cannot be read" in errors


def test_help_explains(run_cli):
    status, output, _ = run_cli("--help")
    assert status == 0 and "bottleneck" in output and "Examples:" in output
