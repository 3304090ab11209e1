import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import distill
from distill import create_model, evaluate, load_recipe, predict, train
from distill.errors import UserError

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def own_classes(tmp_path, digits, teacher_weights):
    """A folder as the README's example has it, with digits as PNG files."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for part, rows in {"train": slice(0, 96), "test": slice(96, 160)}.items():
        for number, (image, label) in enumerate(zip(bunch.images[rows], bunch.target[rows], strict=True)):
            folder = tmp_path / "images" / part / f"digit{label}"
            folder.mkdir(parents=True, exist_ok=True)
            enlarged = np.kron(image * (255 / 16), np.ones((4, 4))).astype(np.uint8)
            assert cv2.imwrite(str(folder / f"{number}.png"), enlarged)
    shutil.copy(teacher_weights, tmp_path / "teacher.safetensors")
    digits.recipe(tmp_path / "recipe.yaml", loss=None)
    return tmp_path


def test_the_example_of_the_readme_runs_as_written(own_classes):
    section = README.read_text().split("## From Python\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    done = subprocess.run([sys.executable, "-c", code], cwd=own_classes, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"top-1 of the student: \d+\.\d%\nEvaluation\(top1=.*images=64", done.stdout)
    run = own_classes / "runs" / "mine"
    assert (run / "student.safetensors").is_file()


def test_weights_that_are_not_there_are_named(digits, tmp_path):
    recipe = load_recipe(digits.recipe(tmp_path / "digits.yaml"))
    with pytest.raises(UserError, match="expected weights of digits, received None"):
        evaluate(recipe)


def test_the_package_offers_the_api_beside_its_modules():
    from distill import api, training

    for name in distill.__all__:
        assert getattr(distill, name) is getattr(api, name)
    assert (api.create_model, api.predict, api.train) == (create_model, predict, train)
    assert {*distill.__all__, "training"} <= {*dir(distill)}
    assert distill.training is training
    folder = Path(distill.__file__).parent
    assert not [name for name in distill.__all__ if list(folder.glob(f"{name}.py"))]  # a module would hide the function
    with pytest.raises(AttributeError, match="module 'distill' has no attribute 'trian'"):
        _ = distill.trian
    with pytest.raises(ImportError, match="cannot import name 'trian'"):
        from distill import trian  # noqa: F401
