import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import distill
from distill import cli
from distill.errors import RunError, UserError
from distill.recipe.file import parse_recipe

EXAMPLE = Path(__file__).parent / "recipe" / "example_recipe.yaml"
HEAVY = ("paddle", "grain", "cv2", "numpy", "visualdl", "matplotlib", "rich")


def modules_of(*arguments):
    """What a new process has imported after a command."""
    code = "import sys; from distill.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(process.stderr.split())


def test_help_and_validate_import_nothing_that_is_slow():
    assert modules_of("--help").isdisjoint({*HEAVY, "pydantic", "yaml"})
    assert modules_of("train", "--help").isdisjoint({*HEAVY, "yaml"})
    assert modules_of("validate", str(EXAMPLE)).isdisjoint(HEAVY)


def test_it_runs_as_a_module():
    process = subprocess.run([sys.executable, "-m", "distill", "--version"], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, f"distill {distill.__version__}\n")


@pytest.mark.parametrize("command", ["validate", "recipes", "schema", "zoo", "train", "evaluate", "predict", "export"])
def test_every_command_explains_itself(run_cli, command):
    status, output, _ = run_cli(command, "--help")
    assert status == 0
    assert output.startswith(f"Usage: distill {command} ")
    assert "Example" in output or command == "zoo"
    assert f"  {command} " in run_cli("--help")[1]


def test_validate_says_what_is_valid(run_cli):
    status, output, errors = run_cli("validate", EXAMPLE)
    assert (status, errors) == (0, "")
    assert output == f"{EXAMPLE} is valid: example, ResNet18, stages: distill, finetune\n"


def test_validate_reports_all_errors_of_all_recipes_and_no_traceback(run_cli, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text(EXAMPLE.read_text().replace("temperature: 2.0", "temperature: 0.0"))
    status, output, errors = run_cli("validate", broken, EXAMPLE, tmp_path / "absent.yaml", "--set", "seed=-1")
    assert (status, output) == (2, "")
    assert "error: 2 errors in " in errors
    assert "loss.kl.temperature must be > 0, received 0.0 (" in errors
    assert errors.count("seed must be >= 0, received -1 (--set seed=-1)") == 2
    assert "there is no recipe " in errors
    assert "Traceback" not in errors


def test_a_wrong_option_is_the_users_error(run_cli):
    status, _, errors = run_cli("train", EXAMPLE, "--devise", "cpu")
    assert status == 2
    assert "--device" in errors
    assert run_cli("train", EXAMPLE, "--device", "tpu")[0] == 2
    assert run_cli("predict", "x.png")[0] == 2
    assert "add --resume" in run_cli("train", EXAMPLE, "--accept-change", "seed")[2]


def test_recipes_are_listed_and_shown(run_cli, tmp_path):
    (tmp_path / "small.yaml").write_text(EXAMPLE.read_text())
    for arguments in (["recipes", "--folder", tmp_path], ["recipes", "list", "--folder", tmp_path]):
        status, output, _ = run_cli(*arguments)
        assert status == 0
        assert "example" in output and "ResNet34" in output and "not yet run" in output
    assert run_cli("recipes", "show", "small", "--folder", tmp_path)[1] == EXAMPLE.read_text()
    assert "Did you mean 'small'?" in run_cli("recipes", "show", "smal", "--folder", tmp_path)[2]


def test_the_schema_is_written(run_cli, tmp_path):
    status, output, _ = run_cli("schema")
    assert status == 0
    assert json.loads(output)["title"] == "Recipe"
    assert run_cli("schema", "--output", tmp_path / "s.json")[0] == 0
    assert (tmp_path / "s.json").read_text() == output
    status, _, errors = run_cli("schema", "--output", tmp_path / "absent" / "s.json")
    assert status == 2
    assert "cannot write" in errors


def test_the_zoo_is_printed_and_drawn(run_cli, tmp_path):
    records = tmp_path / "absent.jsonl"
    status, output, _ = run_cli("zoo", "--records", records)
    assert status == 0
    assert "ResNet50_vd" in output and "Nothing measured here yet" in output
    status, _, errors = run_cli("zoo", "--records", records, "--figures", tmp_path / "figures")
    assert status == 0
    assert f"wrote {tmp_path / 'figures' / 'accuracy_flops.svg'}" in errors
    assert len(list((tmp_path / "figures").iterdir())) == 8
    (tmp_path / "broken.jsonl").write_text("{\n")
    status, _, errors = run_cli("zoo", "--records", tmp_path / "broken.jsonl")
    assert status == 2
    assert "broken.jsonl, line 1: not a measurement" in errors


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("no such thing"), 2, "error: no such thing\n"),
        (RunError("the disk is full"), 1, "error: the disk is full\n"),
        (KeyboardInterrupt(), 130, ""),
        (
            ZeroDivisionError("a\nb"),
            1,
            "error: unexpected error, rerun with --debug to see where: ZeroDivisionError: a b\n",
        ),
    ],
)
def test_the_exit_status_tells_whose_error_it_was(run_cli, monkeypatch, error, status, message):
    def fails(*_):
        raise error

    monkeypatch.setattr("distill.commands.train.load_named", fails)
    found, output, errors = run_cli("train", "x")
    assert (found, output) == (status, "")
    assert errors.endswith(message)
    assert "Traceback" not in errors


def test_debug_shows_where_an_error_arose():
    with pytest.raises(UserError, match="no recipe"):
        cli.main(["train", "absent.yaml", "--debug"])


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_errors_are_red_on_a_terminal_only(run_cli, monkeypatch, variables, coloured):
    assert "\x1b" not in run_cli("validate", "absent.yaml")[2]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shown = []
    monkeypatch.setattr(cli.typer, "secho", lambda message, fg, err: shown.append((fg, err)))
    run_cli("validate", "absent.yaml")
    assert shown == [("red" if coloured else None, True)]


def test_evaluate_wants_weights_that_are_there(run_cli, tmp_path):
    status, _, errors = run_cli("evaluate", EXAMPLE)
    assert status == 2
    assert "--weights FILE" in errors
    (tmp_path / "recipe.yaml").write_text(EXAMPLE.read_text())
    status, _, errors = run_cli("evaluate", tmp_path)
    assert status == 2
    assert f"there are no weights {tmp_path / 'student.safetensors'}" in errors


def test_a_recipe_is_trained_evaluated_resumed_and_used(run_cli, digits, tmp_path):
    recipe = tmp_path / "digits.yaml"
    digits.recipe(recipe)
    run = tmp_path / "run"
    status, output, errors = run_cli("train", recipe, "--output", run, "--set", "epochs=1", "--device", "cpu")
    assert status == 0, errors
    assert "train: top-1 " in output and str(run / "student.safetensors") in output

    status, output, errors = run_cli("evaluate", run, "--json", "--device", "cpu")
    assert status == 0, errors
    measured = json.loads(output)
    assert measured["top1"] == json.loads((run / "result.json").read_text())["train"]["evaluation"]["top1"]
    assert f"top-1 {measured['top1']:.2%}" in run_cli("evaluate", recipe, "--weights", run / "student.safetensors")[1]
    records = tmp_path / "measured.jsonl"
    assert "recorded in" in run_cli("evaluate", run, "--record", "--records", records, "--device", "cpu")[2]
    rows = [line.split()[:3] for line in run_cli("zoo", "--records", records)[1].splitlines()]
    assert ["run", "28", f"{100 * measured['top1']:.2f}"] in rows

    assert run_cli("train", recipe, "--output", run)[0] == 2
    status, _, errors = run_cli("train", recipe, "--output", run, "--resume", "--set", "seed=99", "--set", "epochs=1")
    assert status == 2
    assert "-> 99" in errors and "--accept-change" in errors

    image = tmp_path / "image.png"
    cv2.imwrite(str(image), np.zeros((30, 30), np.uint8))
    status, output, errors = run_cli("predict", image, "--run", run, "--top-k", 2, "--json", "--device", "cpu")
    assert status == 0, errors
    assert len(json.loads(output)[0]["classes"]) == 2
    (tmp_path / "broken.png").write_bytes(b"not an image")
    status, output, errors = run_cli("predict", image, tmp_path / "broken.png", "--run", run)
    assert status == 1
    assert "not classified" in output


def test_a_recipe_is_rehearsed_and_scaled_down(run_cli, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        path = tmp_path / "images" / str(number % 3) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((32, 32, 3), number, np.uint8))
    small = ("--scale-down-data", "images", "--device", "cpu")

    status, output, errors = run_cli("train", EXAMPLE, "--dry-run")
    assert (status, output) == (2, "")
    assert "problems of example" in errors and "teacher.safetensors" in errors
    assert "scripts/fashion_mnist.py" in run_cli("train", EXAMPLE, "--scale-down")[2]
    status, output, errors = run_cli("validate", EXAMPLE, "--scale-down-data", "images")
    assert status == 0
    assert parse_recipe(output, "small").name == "example_scaled_down"

    status, output, errors = run_cli("train", EXAMPLE, "--dry-run", *small)
    assert status == 0, errors
    assert "in all: " in output and output.endswith("nothing was started, and nothing is left behind\n")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]

    status, output, errors = run_cli("train", EXAMPLE, *small)
    assert status == 0, errors
    assert "scaled down to 8 images of images; teachers have random weights; accuracy means nothing here" in errors
    assert "distill: top-1 " in output and "finetune: top-1 " in output
    run = tmp_path / "runs" / "example_scaled_down"
    assert (run / "student.safetensors").is_file() and (run / "inputs" / "teacher-0.safetensors").is_file()
    assert run_cli("train", EXAMPLE, *small)[0] == 2
    assert run_cli("train", EXAMPLE, "--resume", *small)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    status, output, errors = run_cli("train", EXAMPLE, "--dry-run", "--resume", *small)
    assert status == 0, errors
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
