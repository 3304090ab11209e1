"""Who may import whom: the arrows of the architecture, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("paddle", "grain", "cv2", "visualdl", "matplotlib", "pyarrow")


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


@pytest.mark.parametrize("path", modules("distill"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_trainer_knows_nothing_of_mining(path):
    assert not any(name.split(".")[0] == "data_mining" for name in imports(path))


@pytest.mark.parametrize("path", modules("distill/losses"), ids=lambda path: path.name)
def test_losses_take_tensors_and_numbers_only(path):
    ours = {name for name in imports(path) if name.startswith("distill.")}
    assert not {name for name in ours if not name.startswith(("distill.losses", "distill.errors"))}


@pytest.mark.parametrize("path", modules("distill/data"), ids=lambda path: path.name)
def test_the_data_pipeline_runs_without_paddle(path):
    assert not any(name.split(".")[0] == "paddle" for name in imports(path))


@pytest.mark.parametrize(
    "module", ["distill", "distill.cli", "distill.recipe.file", "distill.recipe.json_schema", "distill.benchmark.zoo"]
)
def test_what_answers_at_once_imports_nothing_heavy(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
