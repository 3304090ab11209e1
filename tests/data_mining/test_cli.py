import json
import subprocess
import sys
from pathlib import Path

import pytest

import distill
from data_mining import cli
from data_mining.recipe_file import load_mining_recipe
from data_mining.workspace import Part, Workspace
from distill.errors import UserError

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "recipes" / "mining").glob("*.yaml"))
HEAVY = ("paddle", "numpy", "cv2", "pyarrow", "faiss", "pydantic", "rich", "matplotlib")


@pytest.fixture
def run_cli(capfd):
    """Runs a command line; returns exit status, standard output and standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as leaving:
            cli.main([*map(str, arguments)])
        output, errors = capfd.readouterr()
        return leaving.value.code or 0, output, errors

    return run


def test_help_imports_nothing_that_is_slow():
    code = "import sys; from data_mining.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert set(process.stderr.split()).isdisjoint(HEAVY)


def test_it_runs_as_a_module():
    process = subprocess.run([sys.executable, "-m", "data_mining", "--version"], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, f"data-mining {distill.__version__}\n")


@pytest.mark.parametrize("command", ["run", "validate", "recipes", "schema", *cli.STAGE_HELP])
def test_every_command_explains_itself(run_cli, command):
    status, output, _ = run_cli(command, "--help")
    assert status == 0
    assert output.startswith(f"Usage: data-mining {command} ")
    assert "Example" in output


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_valid_and_say_where_they_come_from(path, run_cli):
    assert load_mining_recipe(path).name == path.stem
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for fact in ("Source:", "Command:", "Measured:"):
        assert sum(fact in line for line in header) == 1, fact
    status, output, _ = run_cli("validate", path, "--set", "runtime.workers=3")
    assert status == 0 and output.startswith(f"{path} is valid: {path.stem}, stages: index, score, ")


def test_the_schema_in_the_repository_is_up_to_date(run_cli):
    status, output, _ = run_cli("schema")
    assert status == 0 and "images_per_class" in json.dumps(json.loads(output))
    assert output == (ROOT / "recipes" / "mining" / "mining.schema.json").read_text()


def test_recipes_are_listed(run_cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "mining").mkdir(parents=True)
    (tmp_path / "recipes" / "mining" / "broken.yaml").write_text("name: broken\n")
    text = (ROOT / "recipes" / "mining" / "yalniz.yaml").read_text()
    (tmp_path / "recipes" / "mining" / "good.yaml").write_text(text)
    lines = run_cli("recipes")[1].splitlines()
    assert lines[0].startswith("broken  not valid: data-mining validate")
    assert lines[1].startswith("good    The 16,000 best")


def test_options_are_settings_of_the_recipe():
    given = cli._with_options(["a.b=1"], cli.ExecutorName.RAY, 3, "2GiB", cli.DeviceName.CPU)
    recipe = load_mining_recipe(ROOT / "recipes" / "mining" / "yalniz.yaml", given[1:])
    runtime = recipe.runtime
    assert (runtime.executor, runtime.workers, runtime.memory, runtime.device) == ("ray", 3, "2GiB", "cpu")
    assert cli._with_options(None, None, None, None, None) == []


@pytest.mark.parametrize(("text", "part"), [("1/1", Part(0, 1)), ("3/8", Part(2, 8)), ("8/8", Part(7, 8))])
def test_parts_count_from_one(text, part):
    assert cli.parse_part(text) == part


@pytest.mark.parametrize("text", ["0/8", "9/8", "1", "/2", "1/", "-1/2", "1/2/3", "a/b", ""])
def test_what_is_no_part(text):
    with pytest.raises(UserError, match=r"--part must be I/N with I from 1 to N, such as 2/8"):
        cli.parse_part(text)


def test_errors_are_one_line_and_a_status(run_cli, tmp_path):
    assert run_cli("run", "yalnis")[0::2] == (
        2,
        "error: there is no mining recipe 'yalnis', expected a file or one of: "
        f"{', '.join(path.stem for path in PRESETS)}. Did you mean 'yalniz'?\n",
    )
    status, _, errors = run_cli("run", "yalniz", "--memory", "lots", "--output", tmp_path)
    assert status == 2 and "runtime.memory must be a number with a unit" in errors
    status, _, errors = run_cli("leaks", "yalniz", "--part", "1/2", "--output", tmp_path)
    assert status == 2 and "--part: leaks needs all images at once" in errors
    status, _, errors = run_cli("run", "yalniz", "--output", tmp_path, "--set", f"pool.sources.0.path={tmp_path}/*.tar")
    assert status == 2 and "there is no such tar file" in errors and "Traceback" not in errors


def test_a_second_run_in_the_same_folder_is_refused(run_cli, tmp_path):
    with Workspace(tmp_path):
        status, _, errors = run_cli("index", "yalniz", "--output", tmp_path)
    assert status == 2 and "another run works in" in errors


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("DATA_MINING_DEBUG", "")  # which the option sets, for this process and its workers
    with pytest.raises(UserError, match="no mining recipe"):
        cli.main(["run", "none", "--debug"])
