import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from distill.errors import UserError
from distill.prediction import predict
from distill.recipe.file import load_recipe
from distill.run_report.card import code, render_card, text
from distill.stages import run_recipe

DESCRIPTION = "Small *digits* <script>alert(1)</script> | `code`\n# [x](http://example.org)"


@pytest.fixture(scope="module")
def finished(digits, teacher_weights, tmp_path_factory):
    """A run of two stages with a teacher that normalises by batch, seen from the folder where it was started."""
    folder = tmp_path_factory.mktemp("started here")
    model = {"name": "ResNet18_vd", "width": 0.125, "weights": str(teacher_weights)}
    path = digits.recipe(
        folder / "digits.yaml",
        description=DESCRIPTION,
        teacher={"batch_norm": "batch", "models": [model]},
        loss={"kl": {"weight": 1.0, "temperature": 2.0}},
        stages=[
            {"name": "distill"},
            {"name": "finetune", "epochs": 1, "ema_decay": 0.9, "teacher": None}
            | {"loss": {"kl": None, "cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}}},
        ],
    )
    here = os.getcwd()
    os.chdir(folder)
    try:
        run_recipe(load_recipe(path), Path("runs/a run"), device="cpu")
    finally:
        os.chdir(here)
    return folder


def blocks(card, language):
    return re.findall(rf"```{language}\n(.*?)```", card, re.S)


def test_a_finished_run_has_its_card(finished):
    run = finished / "runs" / "a run"
    card = (run / "MODEL_CARD.md").read_text()
    result = json.loads((run / "result.json").read_text())
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "other"
    assert front["metrics"] == ["accuracy"]
    assert {"image-classification", "knowledge-distillation", "ResNet18_vd"} <= set(front["tags"])
    for stage, measured in [("distill", "weights"), ("finetune", "moving average, 0.9")]:
        top1, top5 = (f"{result[stage]['evaluation'][each]:.2%}" for each in ("top1", "top5"))
        assert f"| `{stage}` | {top1} | {top5} | {measured} | 297 | 0 |" in card
    assert "Stage `distill`, `finetune` trains on 200 samples, 200 of them with a label" in card
    assert "Stage `distill`, `finetune` is measured on 297 samples" in card
    assert "depends on the other images of its batch (16 in training)" in card
    assert "licence unknown" in card
    assert "parameters | 48,082 |" in card
    for file in ("student.safetensors", "recipe.yaml"):
        digest = subprocess.run(["sha256sum", file], cwd=run, capture_output=True, text=True, check=True).stdout
        assert digest.split()[0] in card
    for stage in json.loads((run / "inputs.json").read_text())["stages"].values():
        assert stage["images"]["listed"] in card
        assert all(each["sha256"] in card for each in stage["teachers"])
    assert json.loads((run / "environment.json").read_text())["sittings"][0]["finished"] in card


def test_what_a_recipe_says_is_shown_and_not_obeyed(finished):
    card = (finished / "runs" / "a run" / "MODEL_CARD.md").read_text()
    assert r"Small \*digits\* \<script\>alert(1)\</script\> \| \`code\` \# \[x\](http://example.org)" in card
    assert not [line for line in card.splitlines() if line.startswith("# [")]


def test_the_card_is_the_same_whenever_it_is_written(finished, run_cli, monkeypatch):
    monkeypatch.chdir(finished)
    run = Path("runs/a run")
    before = (run / "MODEL_CARD.md").read_bytes()
    status, output, errors = run_cli("card", run, "-o", "again.md")
    assert (status, output) == (0, "the model card is in again.md\n"), errors
    assert Path("again.md").read_bytes() == before
    run_recipe(load_recipe(run / "recipe.yaml"), run, resume=True, device="cpu")
    assert len(json.loads((run / "environment.json").read_text())["sittings"]) == 2
    assert (run / "MODEL_CARD.md").read_bytes() == before


def test_every_block_of_code_runs_as_it_is_printed(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    run = folder / "runs" / "a run"
    card = (run / "MODEL_CARD.md").read_text()
    image = np.random.default_rng(0).integers(0, 256, (41, 67, 3), np.uint8)
    assert cv2.imwrite(str(run / "image.png"), cv2.GaussianBlur(image, (0, 0), 3))
    commands = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}"}

    def done(command, where):
        finish = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=200)
        assert finish.returncode == 0, finish.stderr
        return finish.stdout

    again, one_image, exports = blocks(card, "bash")
    for each, where in [(again, folder), (one_image, run), (exports, folder)]:
        shown = done(["bash", "-euc", each], where)
        if each == one_image:
            assert shown.count("image.png") == 1
    reproduced = folder / "runs" / "again" / "student.safetensors"
    assert reproduced.read_bytes() == (run / "student.safetensors").read_bytes()

    python, prepared, *runtimes = blocks(card, "python")
    assert len(runtimes) == 3
    for each in [python, *runtimes]:
        statements = [line for line in each.splitlines() if line and not line.startswith(("import", "from"))]
        assert len(statements) <= 5
    expected = predict(run, [run / "image.png"])[0].classes
    gather = "\nfound.append(np.exp(np.asarray(logits)[0].astype(float)))"
    script = python + prepared + "\nfound = []\n" + "".join(each + gather + "\n" for each in runtimes)
    ending = "\nimport json\nprint('ANSWERS', json.dumps([list(row / row.sum()) for row in found]))"
    printed = done([sys.executable, "-c", script + ending], run)
    assert str([(each.index, each.probability) for each in expected]) in printed
    answers = json.loads(printed.split("ANSWERS ")[1])
    for probabilities in answers:
        for ranked in expected:
            assert probabilities[ranked.index] == pytest.approx(ranked.probability, abs=1e-5)


def test_a_card_that_cannot_be_written_leaves_the_run_finished(finished, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(finished)
    run = tmp_path / "run"
    shutil.copytree(finished / "runs" / "a run", run)
    (run / "MODEL_CARD.md").unlink()
    (run / "MODEL_CARD.md").mkdir()
    result = run_recipe(load_recipe(run / "recipe.yaml"), run, resume=True, device="cpu")
    assert result.final.steps == 7
    assert (run / "student.safetensors").is_file()
    errors = capfd.readouterr().err
    assert "the model card was not written" in errors
    assert "distill card" in errors


def test_a_run_from_before_inputs_were_noted_says_less(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "runs" / "a run", run)
    (run / "inputs.json").unlink()
    environment = json.loads((run / "environment.json").read_text())
    for sitting in environment["sittings"]:
        sitting.pop("finished", None)
    (run / "environment.json").write_text(json.dumps(environment))
    card = render_card(run)
    assert "their number was not noted" in card
    assert "`not noted`" in card
    assert "did not note when it finished" in card
    assert "depends on the other images of its batch" in card


def test_what_has_not_finished_has_no_card(finished, tmp_path):
    with pytest.raises(UserError, match="is no run"):
        render_card(tmp_path)
    shutil.copy(finished / "runs" / "a run" / "recipe.yaml", tmp_path)
    with pytest.raises(UserError, match=r"has not finished: expected result\.json and student.safetensors"):
        render_card(tmp_path)


def test_data_are_escaped():
    assert text("a\n# b|c") == r"a \# b\|c"
    assert code("a|b") == r"`a\|b`"
    assert code("a`` `b") == "``` a`` `b ```"
