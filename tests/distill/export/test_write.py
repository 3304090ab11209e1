import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import yaml

from distill.errors import RunError, UserError
from distill.export.write import ExportOptions, export_student
from distill.prediction import find_images, predict, predict_exported
from distill.weights import load_into, read_weights

WAYS = [
    ("paddle", "float32", False),
    ("paddle", "float32", True),
    ("onnx", "float32", False),
    ("onnx", "float32", True),
    ("onnx", "float16", False),
    ("onnx", "float16", True),
    ("onnx", "int8", False),
    ("onnx", "int8", True),
    ("safetensors", "float32", False),
    ("safetensors", "float16", False),
]
PREPROCESSING_NODES = [f"preprocessing.{step}" for step in ("planes", "values", "scaled", "normalised")]
NEAR = {"float32": 1e-5, "float16": 0.02, "int8": 0.2}  # of a probability


@pytest.mark.parametrize(("kind", "precision", "inside"), WAYS)
def test_each_export_answers_as_the_student(trained, tmp_path, kind, precision, inside):
    names = tuple(f"digit {number}" for number in range(10))
    options = ExportOptions(kind, precision, inside, class_names=names)
    folder = tmp_path / "new" / "export"
    agreement = export_student(trained.recipe, trained.run / "student.safetensors", folder, options)
    assert agreement.holds
    assert agreement.images == 256
    assert agreement.student_top1 > 0.8  # it does know the digits: agreement of guesses would mean little
    assert list((tmp_path / "new").iterdir()) == [folder]
    report = json.loads((folder / "export.json").read_text())
    assert {path.name for path in folder.iterdir()} == {*report["files"], "inference.yml", "export.json"}
    assert report["agreement"]["same_top1"] == agreement.same_top1
    assert report["calibration_images"] == (200 if precision == "int8" else 0)
    images = find_images([trained.photographs])
    expected = predict(trained.run, images, top_k=10, device="cpu")
    received = predict_exported(folder, images, top_k=10)
    assert [each.image for each in received] == [each.image for each in expected]
    for own, theirs in zip(received, expected, strict=True):
        probabilities = {ranked.index: ranked.probability for ranked in theirs.classes}
        assert all(abs(ranked.probability - probabilities[ranked.index]) < NEAR[precision] for ranked in own.classes)
        assert own.classes[0].name == f"digit {theirs.classes[0].index}"
    for name in report["files"]:
        assert predict_exported(folder / name, images[:1], top_k=10) == received[:1]


def test_int8_is_computed_in_8_bits_and_calibrated_with_the_list(trained, tmp_path):
    names = [path.relative_to(trained.photographs) for path in find_images([trained.photographs])]
    (trained.photographs / "list.txt").write_text("".join(f"{name}\n" for name in names))
    options = ExportOptions("onnx", "int8", True, calibration=trained.photographs / "list.txt", tolerance=1.0)
    export_student(trained.recipe, trained.run / "student.safetensors", tmp_path / "export", options)
    assert json.loads((tmp_path / "export" / "export.json").read_text())["calibration_images"] == len(names) == 6
    graph = onnx.load(tmp_path / "export" / "inference.onnx").graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    producers = {output: node.op_type for node in graph.node for output in node.output}
    assert convolutions
    assert all(producers[name] == "DequantizeLinear" for node in convolutions for name in node.input[:2])
    inside = [node.op_type for node in graph.node if node.name in PREPROCESSING_NODES]
    assert inside == ["Transpose", "Cast", "Mul", "Add"]


def test_safetensors_load_again_and_float16_halves_them(trained, tmp_path):
    for precision in ("float32", "float16"):
        options = ExportOptions("safetensors", precision)
        export_student(trained.recipe, trained.run / "student.safetensors", tmp_path / precision, options)
    single, half = (tmp_path / precision / "inference.safetensors" for precision in ("float32", "float16"))
    assert read_weights(single).keys() == read_weights(trained.run / "student.safetensors").keys()
    assert half.stat().st_size < 0.6 * single.stat().st_size
    load_into(trained.model, half)
    load_into(trained.model, single)


def test_an_export_that_answers_otherwise_is_not_left_behind(trained, tmp_path, run_cli):
    target = tmp_path / "exports" / "onnx"
    status, output, errors = run_cli(
        "export", trained.run, "--format", "onnx", "--precision", "float16", "--tolerance", "1e-9", "--output", target
    )
    assert (status, output) == (1, "")
    assert "does not answer as the student does, and was removed. 256 images: " in errors
    assert "(at most 1e-09)" in errors
    assert list(target.parent.iterdir()) == []


def test_a_broken_calibration_fails_on_the_share_of_equal_classes(trained, tmp_path):
    """Calibrated with black images alone, all that is brighter is cut off."""
    import cv2

    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((28, 28, 3), np.uint8))
    (tmp_path / "list.txt").write_text("black.png\n")
    options = ExportOptions("onnx", "int8", calibration=tmp_path / "list.txt", tolerance=100.0)
    with pytest.raises(RunError, match="keep their first class"):
        export_student(trained.recipe, trained.run / "student.safetensors", tmp_path / "export", options)
    assert not (tmp_path / "export").exists()


def test_a_full_disk_leaves_nothing(trained, tmp_path, small_files_only):
    for kind in ("onnx", "safetensors"):
        with small_files_only(1000), pytest.raises(RunError):
            export_student(
                trained.recipe, trained.run / "student.safetensors", tmp_path / "export", ExportOptions(kind)
            )
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "paddle", "--precision", "float16"], "computes in float16 on a GPU alone"),
        (["--format", "paddle", "--precision", "int8"], "Use --format onnx"),
        (["--format", "safetensors", "--precision", "int8"], "Use --format onnx"),
        (["--format", "safetensors", "--with-preprocessing"], "Use --format onnx or paddle"),
        (["--format", "onnx", "--calibration", "x.txt"], "--calibration names images for --precision int8"),
        (["--format", "onnx", "--precision", "int8", "--calibration", "none.txt"], "none.txt: the image list cannot"),
        (["--format", "onnx", "--tolerance", "-1"], "--tolerance must be >= 0"),
        (["--format", "onnx", "--tolerance", "nan"], "--tolerance must be >= 0"),
        (["--format", "onnx", "--weights", "none.safetensors"], "there are no weights none.safetensors"),
        (["--format", "onnx", "--class-names", "none.txt"], "Cannot read the class names none.txt"),
        (["--format", "onnx", "--set", "model.width=0.5"], "does not fit the model"),
        (["--format", "tflite"], "tflite"),
        ([], "--format"),
    ],
)
def test_wrong_options_are_the_users_error(trained, tmp_path, run_cli, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, output, errors = run_cli("export", trained.run, "--output", tmp_path / "export", *arguments)
    assert (status, output) == (2, "")
    assert message in errors
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_not_touched(trained, tmp_path, run_cli):
    (tmp_path / "mine.txt").write_text("mine")
    status, _, errors = run_cli("export", trained.run, "--format", "onnx", "--output", tmp_path)
    assert status == 2
    assert "exists already" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command_line_exports_and_predicts(trained, tmp_path, run_cli):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"digit {number}\n" for number in range(10)))
    run = shutil.copytree(trained.run, tmp_path / "run")
    status, output, _ = run_cli("export", run, "--format", "onnx", "--class-names", names)
    assert status == 0
    assert "256 images: 100.00% keep their first class" in output
    folder = run / "export" / "onnx-float32"
    assert f"the export is in {folder}" in output
    assert yaml.safe_load((folder / "inference.yml").read_text())["PostProcess"]["Topk"]["label_list"][3] == "digit 3"
    given = [trained.photographs, "--class-names", names, "--json"]
    status, output, _ = run_cli("predict", *given, "--model", folder)
    received = json.loads(output)
    status, output, _ = run_cli("predict", *given, "--run", run)
    expected = json.loads(output)
    assert [each["image"] for each in received] == [each["image"] for each in expected]
    assert [each["classes"][0]["name"] for each in received] == [each["classes"][0]["name"] for each in expected]


def test_wrong_ways_to_predict(trained, tmp_path, run_cli):
    images = [trained.photographs]
    for arguments, message in [
        ([], "either --run or --model"),
        (["--run", trained.run, "--model", trained.run], "either --run or --model"),
        (["--model", trained.run, "--weights", "x.safetensors"], "has its own weights"),
        (["--model", trained.run, "--device", "gpu"], "computes on the CPU"),
        (["--model", tmp_path / "none"], "does not exist"),
        (["--model", trained.run], "inference.yml cannot be read"),
        (["--model", trained.run / "student.safetensors"], "inference.yml cannot be read"),
    ]:
        status, output, errors = run_cli("predict", *images, *arguments)
        assert (status, output) == (2, "")
        assert message in errors
    status, _, errors = run_cli("predict", tmp_path, "--run", trained.run)
    assert status == 2
    assert "no images in this folder" in errors


@pytest.mark.parametrize("kind", ["paddle", "onnx", "safetensors"])
def test_a_damaged_export_is_refused(trained, tmp_path, kind):
    folder = tmp_path / "export"
    export_student(trained.recipe, trained.run / "student.safetensors", folder, ExportOptions(kind))
    images = find_images([trained.photographs])[:1]
    report = json.loads((folder / "export.json").read_text())
    for name in report["files"]:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-100])
        with pytest.raises(UserError, match=f"{name} is not the file that was exported"):
            predict_exported(folder, images)
        (folder / name).unlink()
        with pytest.raises(UserError, match="is incomplete"):
            predict_exported(folder, images)
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match="is no file of the network"):
        predict_exported(folder / "export.json", images)
    (folder / "export.json").write_text("{}")
    with pytest.raises(UserError, match=r"export\.json cannot be used"):
        predict_exported(folder, images)


def test_the_command_line_needs_nothing_slow_for_its_help():
    code = "import sys; from distill.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    process = subprocess.run(
        [sys.executable, "-c", code, "export", "--help"], capture_output=True, text=True, check=True
    )
    assert {"paddle", "numpy", "onnx", "rich", "yaml"}.isdisjoint(process.stderr.split())
    assert process.stdout.startswith("Usage: distill export ")
