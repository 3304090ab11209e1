import importlib.util
import sys
from pathlib import Path

import pytest

from distill.evaluation import evaluate_weights
from distill.models import create_model
from distill.recipe.file import load_recipe
from distill.weights import write_weights

SCRIPT = Path(__file__).parents[2] / "scripts" / "examples" / "teacher_accuracy.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("teacher_accuracy_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model = create_model("ResNet18_vd", 10, width=0.0625)
    write_weights(path, {name: value.numpy() for name, value in model.state_dict().items()})
    return path


def test_a_teacher_scores_what_the_same_network_scores_as_a_student(
    script, weights, digits, tmp_path, monkeypatch, capsys
):
    teacher = {"name": "ResNet18_vd", "width": 0.0625, "weights": str(weights)}
    recipe = digits.recipe(
        tmp_path / "recipe.yaml",
        teacher={"batch_norm": "stored", "models": [teacher]},
        loss={"kl": {"weight": 1.0, "temperature": 1.0}},
    )
    as_student = evaluate_weights(load_recipe(recipe), weights)
    monkeypatch.setattr(sys, "argv", ["teacher_accuracy.py", str(recipe)])
    assert script.main() == 0
    assert f"{as_student.top1:.2%} top-1 on {as_student.images} images" in capsys.readouterr().out
    assert script.measure_teacher(recipe, ["evaluation.resize_short_px=28"]) == (as_student.top1, as_student.images)


@pytest.mark.parametrize("teacher", [False, True], ids=["no teacher", "no weights"])
def test_what_cannot_be_measured_is_said(script, teacher, digits, tmp_path, monkeypatch, capsys):
    changes = {}
    if teacher:
        models = [{"name": "ResNet18_vd", "width": 0.0625, "weights": str(tmp_path / "none.safetensors")}]
        changes = {
            "teacher": {"batch_norm": "stored", "models": models},
            "loss": {"kl": {"weight": 1, "temperature": 1}},
        }
    recipe = digits.recipe(tmp_path / "recipe.yaml", **changes)
    monkeypatch.setattr(sys, "argv", ["teacher_accuracy.py", str(recipe)])
    assert script.main() == 2
    assert ("none.safetensors" if teacher else "has no teacher") in capsys.readouterr().err
