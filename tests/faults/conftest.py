"""Whole runs that something happens to."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from distill.recipe.file import load_recipe
from distill.stages import run_recipe


@pytest.fixture(scope="session")
def small_recipe(digits, tmp_path_factory):
    """Writes a recipe of 8 updates, with top-level keys replaced, and returns its path."""

    def write(**changes):
        path = tmp_path_factory.mktemp("recipe") / "small.yaml"
        view = {"size_px": 28, "crop": {"kind": "padded", "padding_px": 2}, "horizontal_flip": 0.5}
        runtime = {"log_every_steps": 1, "checkpoint_every_steps": 3}
        source = {
            "kind": "idx",
            "images": f"{digits.folder}/train-images.gz",
            "labels": f"{digits.folder}/train-labels.gz",
        }
        data = {"sources": [source | {"range": [0, 64]}]}
        changes = {"global_batch_size": 16, "view": view, "runtime": runtime, "data": data} | changes
        return digits.recipe(path, **changes)

    return write


@pytest.fixture(scope="session")
def whole_run(small_recipe, tmp_path_factory):
    """The student that the small recipe leaves where nothing happens."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_recipe(load_recipe(small_recipe()), folder, device="cpu")
    return student_of(folder)


@pytest.fixture
def distill():
    """The command in a process of its own: its status and what it said. A file may take `largest_file_bytes`."""

    def run(*arguments, largest_file_bytes=None, **options):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, largest_file_bytes))

        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "distill", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | {"NO_COLOR": "1"},
            preexec_fn=limit if largest_file_bytes else None,
            **options,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    return run


def student_of(folder: Path) -> bytes:
    return (folder / "student.safetensors").read_bytes()
