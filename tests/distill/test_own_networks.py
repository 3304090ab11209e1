"""Networks of a user's own, `module:function`, as students and teachers: from the recipe to what leaves a run."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from distill.errors import RunError, UserError
from distill.evaluation import evaluate_weights
from distill.export.write import ExportOptions, export_student
from distill.labels.manifest import store_key
from distill.learner import Learner
from distill.metrics import read_metrics
from distill.models.factory import find_factory
from distill.parallel import Device
from distill.prediction import predict, predict_exported
from distill.recipe import ModelSection
from distill.recipe.file import load_recipe
from distill.rehearsal.small_inputs import random_weights
from distill.stages import run_recipe
from distill.teachers.teacher import open_teacher
from distill.trunk import Trunk
from distill.weights import read_weights, write_weights

CPU = Device("cpu", 1)
SERIES = {"name": "ResNet18_vd", "width": 0.125}
KL = {"kl": {"weight": 1.0, "temperature": 2.0}}
CENTER = {"size_px": 28, "crop": {"kind": "center", "resize_short_px": 28}, "horizontal_flip": 0.0}
BELOW = ["stem.*", "norm.*", "body.*"]


@pytest.fixture
def own(own_module, digits, tmp_path):
    """Writes a recipe with a student of one's own; keywords replace keys of the recipe, `arguments` those of it."""
    module = own_module()

    def write(name="own", arguments=(), **changes) -> Path:
        model = {"name": f"{module}:tiny", "arguments": {"width": 4} | dict(arguments)}
        return digits.recipe(tmp_path / f"{name}.yaml", **({"model": model, "epochs": 1} | changes))

    write.name = f"{module}:tiny"
    return write


def series_teacher(weights: Path, **changes) -> dict:
    return {"batch_norm": "stored", "models": [SERIES | {"weights": str(weights)}]} | changes


def own_teacher(name: str, tmp_path: Path, **changes) -> dict:
    paddle.seed(5)
    path = tmp_path / "own-teacher.safetensors"
    network = find_factory(name)(num_classes=10, width=8)
    write_weights(path, {key: value.numpy() for key, value in network.state_dict().items()})
    model = {"name": name, "arguments": {"width": 8}, "weights": str(path)}
    return {"batch_norm": "stored", "models": [model]} | changes


def test_a_student_of_ones_own_learns_from_the_series_by_the_names_of_layers(own, teacher_weights, tmp_path, capfd):
    recipe = load_recipe(
        own(
            teacher=series_teacher(teacher_weights),
            loss=KL | {"feature_mse": {"weight": 0.1, "student_layer": "body", "teacher_layer": "stage1"}},
            ema_decay=0.9,
            runtime={"log_every_steps": 1},
        ),
        ["data.sources.0.range=[0, 64]"],
    )
    assert load_recipe(own()) != recipe
    result = run_recipe(recipe, tmp_path / "run", device="cpu")
    assert result.final.steps == 2
    trained = [entry for entry in read_metrics(tmp_path / "run/metrics.jsonl") if entry["kind"] == "train"]
    assert all(np.isfinite([entry["kl"], entry["feature_mse"]]).all() for entry in trained)
    weights = read_weights(tmp_path / "run/student.safetensors")
    network = find_factory(own.name)(num_classes=10, width=4)  # what a user's own program does
    missing, unexpected = network.set_state_dict({key: paddle.to_tensor(value) for key, value in weights.items()})
    assert (missing, unexpected) == ([], [])
    assert load_recipe(tmp_path / "run/recipe.yaml") == recipe
    said = capfd.readouterr().err
    assert f"{own.name} runs the code of {tmp_path / own.name.partition(':')[0]}.py (SHA-256 " in said
    assert "the student computes with Paddle's kernels, slower here, because a network of your own" in said


def test_a_run_killed_anywhere_ends_with_the_same_bits_also_with_dropout(
    own, teacher_weights, train_and_kill, tmp_path
):
    recipe = own(
        arguments={"dropout": 0.5},
        teacher=series_teacher(teacher_weights),
        loss=KL,
        ema_decay=0.9,
        runtime={"checkpoint_every_steps": 2},
    )
    outputs = []
    for name, kills in (("whole", []), ("killed", [3, 4])):
        for kill_at in [*kills, -1]:
            train_and_kill(recipe, tmp_path / name, kill_at)
        outputs.append((tmp_path / name / "student.safetensors").read_bytes())
    assert outputs[0] == outputs[1]


def test_dropout_is_drawn_anew_in_every_step_and_by_the_seed(own, tmp_path):
    weights = []
    for name, *overrides in (("a",), ("b",), ("c", "seed=4"), ("d", "model.arguments.dropout=0.0")):
        recipe = load_recipe(own(arguments={"dropout": 0.5}), ["data.sources.0.range=[0, 64]", *overrides])
        run_recipe(recipe, tmp_path / name, device="cpu")
        weights.append((tmp_path / name / "student.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert len({*weights}) == 3


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_a_teacher_of_ones_own(own, tmp_path, engine):
    """On the fast engine and without, for a student in the other layout too: the answers are the network's own."""
    feature = {"feature_mse": {"weight": 0.1, "student_layer": "stage1", "teacher_layer": "body"}}
    answers = []
    images = np.random.default_rng(0).random((4, 3, 28, 28), dtype=np.float32)
    for data_format in ("NCHW", "NHWC"):
        path = own(
            model={"name": "ResNet18_vd", "width": 0.0625, "data_format": data_format},
            teacher=own_teacher(own.name, tmp_path, engine=engine),
            loss=KL | feature,
        )
        recipe = load_recipe(path, ["data.sources.0.range=[0, 64]"])
        teacher = open_teacher(recipe, 0, CPU)
        assert ("Paddle Inference" in teacher.engines[0]) == (engine == "auto")
        given = images if data_format == "NCHW" else np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        answer = {name: value.numpy() for name, value in teacher(paddle.to_tensor(given)).items()}
        if data_format == "NHWC":
            answer["body"] = answer["body"].transpose(0, 3, 1, 2)
        answers.append(answer)
        run_recipe(recipe, tmp_path / data_format, device="cpu")
    network = find_factory(own.name)(num_classes=10, width=8)
    weights = read_weights(tmp_path / "own-teacher.safetensors")
    network.set_state_dict({key: paddle.to_tensor(value) for key, value in weights.items()})
    network.eval()
    expected = network(paddle.to_tensor((images - np.float32(0.3)) / np.float32(0.38))).numpy()
    for answer in answers:
        np.testing.assert_allclose(answer["logits"], expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(answer["body"], answers[0]["body"], rtol=1e-3, atol=1e-4)


def test_stored_answers_belong_to_the_arguments_too(own, tmp_path):
    labels = {"folder": str(tmp_path / "store"), "top_classes": 4}
    path = own(teacher=own_teacher(own.name, tmp_path, labels=labels), loss=KL)
    small = ["data.sources.0.range=[0, 64]"]
    run_recipe(load_recipe(path, small), tmp_path / "run", device="cpu")
    again = load_recipe(path, small)
    run_recipe(again, tmp_path / "again", device="cpu")
    runs = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("run", "again")]
    assert runs[0] == runs[1]

    class Images:
        def __len__(self):
            return 64

        def identity(self):
            return {"listed": "x"}

    key = store_key(again, 0, Images())["teachers"][0]
    assert key["arguments"] == {"width": 8}
    assert key["name"] == own.name
    with pytest.raises(UserError, match=r"teachers.0.arguments.dropout: absent in the store, 0.1 in the recipe"):
        run_recipe(load_recipe(path, [*small, "teacher.models.0.arguments.dropout=0.1"]), tmp_path / "x", device="cpu")


def test_the_classifier_alone_is_trained_on_features_that_are_kept(own, tmp_path, capfd):
    start = tmp_path / "start.safetensors"
    network = find_factory(own.name)(num_classes=10, width=4)
    write_weights(start, {key: value.numpy() for key, value in network.state_dict().items()})
    path = own(view=CENTER, freeze=BELOW, epochs=2)
    results = []
    for name, reuse in (("kept", "true"), ("computed", "false")):
        changes = [f"runtime.reuse_features={reuse}", "data.sources.0.range=[0, 64]", f"model.weights={start}"]
        run_recipe(load_recipe(path, changes), tmp_path / name, device="cpu")
        results.append((tmp_path / name / "student.safetensors").read_bytes())
        said = capfd.readouterr().err
        assert "the classifier alone is trained; what is below it computes with Paddle Inference, oneDNN" in said
        assert ("its features are computed once" in said) == (reuse == "true")
    assert results[0] == results[1]
    before, after = read_weights(start), read_weights(tmp_path / "kept/student.safetensors")
    changed = {key for key in before if (before[key] != after[key]).any()}
    assert changed == {"head.weight", "head.bias"}


def test_features_that_dropout_changes_are_not_kept(own, tmp_path, capfd):
    path = own(view=CENTER, freeze=BELOW, arguments={"dropout": 0.5}, epochs=2)
    recipe = load_recipe(path, ["data.sources.0.range=[0, 64]"])
    run_recipe(recipe, tmp_path / "run", device="cpu")
    said = capfd.readouterr().err
    assert "what is below it draws at random (dropout), so it computes in every step" in said
    assert "its features" not in said


def test_features_belong_to_the_arguments_too(own):
    identities = []
    for arguments in ({}, {}, {"dropout": 0.0}):
        recipe = load_recipe(own(freeze=BELOW, arguments=arguments))
        model = Learner(recipe, 0, CPU, None).student.model
        identities.append(Trunk(model, recipe.stages[0].normalization, CPU, 28).identity()["sha256"])
    assert identities[0] == identities[1] != identities[2]


def test_resuming_with_other_arguments_shows_the_difference(own, tmp_path):
    small = ["data.sources.0.range=[0, 64]"]
    run_recipe(load_recipe(own(), small), tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match=r"model.arguments.width: 4 -> 5"):
        run_recipe(load_recipe(own(arguments={"width": 5}), small), tmp_path / "run", resume=True, device="cpu")


@pytest.fixture
def finished(own, tmp_path):
    """A run of a student of one's own, and some images as files."""
    import cv2

    run_recipe(load_recipe(own()), tmp_path / "run", device="cpu")
    images = []
    for number in range(3):
        images.append(tmp_path / f"{number}.png")
        pixels = np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        cv2.imwrite(str(images[-1]), pixels)
    return tmp_path / "run", images


def test_its_card_says_how_to_load_it_without_this_project(finished, own, monkeypatch):
    run, _ = finished
    card = (run / "MODEL_CARD.md").read_text()
    assert "import onnxruntime" not in card
    assert "--format onnx" not in card
    code = card.rpartition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(run)
    found = {"images": np.zeros((1, 3, 28, 28), np.float32)}
    exec(code, found)
    assert f"from {own.name.partition(':')[0]} import tiny" in code
    assert "tiny(num_classes=10, width=4)" in code
    assert found["logits"].shape == (1, 10)


@pytest.mark.parametrize("inside", [False, True])
def test_it_is_exported_for_paddle_inference(finished, tmp_path, monkeypatch, inside):
    run, images = finished
    recipe = load_recipe(run / "recipe.yaml")
    options = ExportOptions("paddle", "float32", inside)
    agreement = export_student(recipe, run / "student.safetensors", tmp_path / "export", options)
    assert agreement.holds
    expected = predict(run, images, device="cpu", top_k=10)
    monkeypatch.chdir("/")
    for module in [name for name in sys.modules if name.startswith("own_networks_")]:
        monkeypatch.delitem(sys.modules, module)
    received = predict_exported(tmp_path / "export", images, top_k=10)  # needs the module no more
    for own_image, theirs in zip(received, expected, strict=True):
        probabilities = {ranked.index: ranked.probability for ranked in theirs.classes}
        assert all(abs(ranked.probability - probabilities[ranked.index]) < 1e-5 for ranked in own_image.classes)


def test_it_is_exported_as_weights_and_not_as_onnx(finished, tmp_path):
    run, images = finished
    recipe = load_recipe(run / "recipe.yaml")
    export_student(recipe, run / "student.safetensors", tmp_path / "export", ExportOptions("safetensors"))
    assert len(predict_exported(tmp_path / "export", images)) == 3
    with pytest.raises(UserError, match="--format onnx writes the layers of the series alone"):
        export_student(recipe, run / "student.safetensors", tmp_path / "onnx", ExportOptions("onnx"))


def test_it_is_evaluated_and_predicts_from_the_command_line(finished, run_cli, tmp_path):
    run, images = finished
    recorded = json.loads((run / "result.json").read_text())["train"]["evaluation"]["top1"]
    assert evaluate_weights(load_recipe(run / "recipe.yaml"), run / "student.safetensors").top1 == recorded
    status, out, said = run_cli("predict", images[0], "--run", run, "--json")
    assert status == 0, said
    assert json.loads(out)[0]["error"] is None
    status, _, said = run_cli("evaluate", run, "--record", "--records", tmp_path / "measured.jsonl")
    assert status == 2
    assert "counts the layers of the series alone" in said
    assert not (tmp_path / "measured.jsonl").exists()


def test_where_the_module_is_not_there_the_folder_to_start_from_is_asked_for(finished, run_cli, monkeypatch):
    run, images = finished
    for module in [name for name in sys.modules if name.startswith("own_networks_")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != os.getcwd()])
    monkeypatch.chdir("/")
    status, _, said = run_cli("predict", images[0], "--run", run)
    assert status == 2
    assert "there is no module 'own_networks_" in said
    assert "Looked in the current folder, /," in said


def test_validating_a_recipe_runs_none_of_its_code(own_module, digits, tmp_path, run_cli):
    module = own_module("import pathlib\npathlib.Path('executed').touch()")
    path = digits.recipe(tmp_path / "r.yaml", model={"name": f"{module}:f"})
    status, out, said = run_cli("validate", path)
    assert status == 0, said
    assert f"{module}:f" in out
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("os:system", {"command": "touch executed"}),
        ("subprocess:run", {"args": "touch executed", "shell": True}),
        ("subprocess:call", {"args": "touch executed", "shell": True}),
        ("builtins:exec", {"source": "open('executed', 'w')"}),
        ("runpy:run_path", {"path_name": "evil.py"}),
        ("paddle.utils.cpp_extension.extension_utils:run_cmd", {"command": "touch executed"}),
        ("distill.labels.builders:subprocess", {"args": "touch executed", "shell": True}),
    ],
)
def test_a_hostile_recipe_runs_no_command_without_a_file_of_code(
    own_module, digits, tmp_path, run_cli, name, arguments
):
    own_module("")
    (tmp_path / "evil.py").write_text("open('executed', 'w')")
    path = digits.recipe(tmp_path / "r.yaml", model={"name": name, "arguments": arguments})
    status, _, said = run_cli("train", path, "--output", tmp_path / "run", "--device", "cpu")
    assert status == 2, said
    assert name in said
    assert not (tmp_path / "executed").exists()


def test_a_dry_run_checks_and_measures_it(own, run_cli, tmp_path, monkeypatch):
    monkeypatch.setattr("distill.rehearsal.trial.SECONDS", 0.1)
    path = own(
        teacher=own_teacher(own.name, tmp_path),
        loss=KL | {"feature_mse": {"weight": 0.1, "student_layer": "body", "teacher_layer": "body.0"}},
    )
    status, out, said = run_cli("train", path, "--dry-run", "--output", tmp_path / "run", "--device", "cpu")
    assert status == 0, said
    assert f"own-teacher.safetensors fits {own.name}, SHA-256 " in out
    assert not (tmp_path / "run").exists()
    for change, message in (
        ("model.arguments.width=hello", "model.name: "),
        ("teacher.models.0.arguments.width=9", "does not fit the network of"),
    ):
        status, _, said = run_cli("train", path, "--dry-run", "--set", change, "--device", "cpu")
        assert status == 2
        assert message in said


def test_it_is_scaled_down_as_it_is(own, digits, run_cli, tmp_path):
    path = own(teacher=own_teacher(own.name, tmp_path), loss=KL)
    images = tmp_path / "images"
    images.mkdir()
    for source in digits.folder.iterdir():
        name = source.name.replace("test", "t10k").replace("-images", "-images-idx3-ubyte")
        (images / name.replace("-labels", "-labels-idx1-ubyte")).write_bytes(source.read_bytes())
    status, _, said = run_cli(
        "train", path, "--scale-down", "--scale-down-data", images, "--output", tmp_path / "run", "--device", "cpu"
    )
    assert status == 0, said
    assert read_weights(tmp_path / "run/student.safetensors")["stem.weight"].shape == (4, 3, 3, 3)


def test_random_weights_stand_for_a_teacher_of_ones_own(own, tmp_path):
    section = ModelSection(name=own.name)
    weights = random_weights(section, 10, seed=0, size_px=28)
    assert {key: value.tobytes() for key, value in weights.items()} == {
        key: value.tobytes() for key, value in random_weights(section, 10, seed=0, size_px=28).items()
    }
    network = find_factory(own.name)(num_classes=10)
    network.set_state_dict({key: paddle.to_tensor(value) for key, value in weights.items()})
    network.eval()
    noise = np.random.default_rng(1).standard_normal((16, 3, 28, 28), dtype=np.float32)
    assert 0.3 < network(paddle.to_tensor(noise)).numpy().std() < 3


def test_a_layer_that_is_not_there_and_kernels_that_cannot_be_are_errors(own, teacher_weights, tmp_path):
    def feature(student, teacher):
        return KL | {"feature_mse": {"weight": 0.1, "student_layer": student, "teacher_layer": teacher}}

    for number, (loss, message) in enumerate(
        (
            (feature("bodi", "stage1"), r"student_layer: the student has no layer 'bodi'.*Did you mean 'body'"),
            (feature("head", "stage1"), "one is a map, the other a vector"),
            (feature("stem", "stage4"), "must have one shape: choose layers of the same resolution"),
        )
    ):
        recipe = load_recipe(own(teacher=series_teacher(teacher_weights), loss=loss))
        with pytest.raises(UserError, match=message):
            run_recipe(recipe, tmp_path / str(number), device="cpu")
    recipe = load_recipe(own(teacher=own_teacher(own.name, tmp_path), loss=feature("body", "bady")))
    with pytest.raises(UserError, match=r"teacher_layer: the teacher has no layer 'bady'.*Did you mean 'body'"):
        Learner(recipe, 0, CPU, None)
    with pytest.raises(RunError, match="student_kernels onednn"):
        Learner(load_recipe(own(runtime={"student_kernels": "onednn"})), 0, CPU, None)
