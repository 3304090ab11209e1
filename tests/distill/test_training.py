import json
from dataclasses import replace

import numpy as np
import paddle
import pytest

from distill import checkpoint
from distill.data.types import Batch
from distill.learner import Learner
from distill.metrics import read_metrics
from distill.parallel import Device
from distill.recipe.file import load_recipe
from distill.stages import run_recipe
from distill.training import train_stage
from distill.weights import read_weights

CPU = Device("cpu", 2)


def batch_of(images, labels, global_count, *, partner=None, lam=None):
    return Batch(
        images=images,
        labels=labels,
        indices=np.arange(len(labels)),
        partner=partner,
        lam=lam,
        epoch=0,
        step=0,
        ends_step=True,
        global_count=global_count,
        failures=(),
    )


@pytest.fixture
def some_images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (8, 3, 28, 28), dtype=np.uint8), rng.integers(0, 10, 8)


def gradients(learner):
    return {name: p.grad.numpy().copy() for name, p in learner.parameters if p.grad is not None}


def test_accumulated_micro_batches_have_the_gradient_of_the_global_batch(digits, tmp_path, some_images):
    # Batch normalisation is the one thing that depends on the micro-batch: freeze it.
    recipe = load_recipe(digits.recipe(tmp_path / "r.yaml", freeze=["*.bn.*"]))
    images, labels = some_images
    learner = Learner(recipe, 0, CPU, None)
    whole_terms = learner.accumulate(batch_of(images, labels, 8))
    whole = gradients(learner)
    learner.optimizer.clear_grad()
    parts = [learner.accumulate(batch_of(images[part], labels[part], 8)) for part in (slice(0, 3), slice(3, 8))]
    np.testing.assert_allclose(sum(float(p["loss"]) for p in parts), float(whole_terms["loss"]), rtol=1e-5)
    for name, gradient in gradients(learner).items():
        np.testing.assert_allclose(gradient, whole[name], rtol=1e-3, atol=1e-5)


def test_a_cut_image_counts_for_both_labels_and_is_not_mixed_again(digits, tmp_path, some_images):
    learner = Learner(load_recipe(digits.recipe(tmp_path / "r.yaml")), 0, CPU, None)
    images, labels = some_images
    partner = np.roll(np.arange(8), 1)
    mixed = batch_of(images, labels, 8, partner=partner, lam=np.full(8, 0.3, np.float32))
    cut = learner.accumulate(replace(mixed, cut=np.ones(8, np.bool_)))
    own, others = (learner.accumulate(batch_of(images, target, 8)) for target in (labels, labels[partner]))
    assert float(cut["loss"]) == pytest.approx(0.3 * float(own["loss"]) + 0.7 * float(others["loss"]), rel=1e-5)
    assert float(learner.accumulate(mixed)["loss"]) != pytest.approx(float(cut["loss"]), rel=1e-3)


def test_an_empty_micro_batch_adds_nothing(digits, tmp_path, some_images):
    learner = Learner(load_recipe(digits.recipe(tmp_path / "r.yaml")), 0, CPU, None)
    images, labels = some_images
    assert learner.accumulate(batch_of(images[:0], labels[:0], 8)) == {}
    assert gradients(learner) == {}


def test_frozen_parameters_and_their_batch_norms_stay_bit_for_bit(digits, tmp_path):
    frozen = ["stem.*", "blocks.*"]
    recipe = load_recipe(digits.recipe(tmp_path / "r.yaml", freeze=frozen, epochs=1))
    before = {k: v.numpy() for k, v in Learner(recipe, 0, CPU, None).student.model.state_dict().items()}
    train_stage(recipe, 0, tmp_path / "run", device=CPU)
    after = read_weights(tmp_path / "run" / "stages" / "0-train" / "student.safetensors")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_a_multiplier_of_zero_stops_a_stage_and_half_halves_its_step(digits, tmp_path):
    steps = {}
    for last in (1.0, 0.5):
        recipe = load_recipe(digits.recipe(tmp_path / "r.yaml", stage_lr_multipliers=[0.0, 1.0, 1.0, 1.0, last]))
        learner = Learner(recipe, 0, CPU, None)
        before = {name: p.numpy().copy() for name, p in learner.parameters}
        rng = np.random.default_rng(1)
        learner.accumulate(batch_of(rng.integers(0, 256, (8, 3, 28, 28), dtype=np.uint8), np.arange(8), 8))
        learner.update(0.1)
        steps[last] = {name: p.numpy() - before[name] for name, p in learner.parameters}
    assert all(not step.any() for name, step in steps[1.0].items() if name.startswith("stem."))
    block = "blocks.7.conv0.conv.weight"
    assert steps[1.0][block].any()
    np.testing.assert_allclose(steps[0.5][block], 0.5 * steps[1.0][block], rtol=1e-3, atol=1e-7)


def test_the_moving_average_is_measured_and_left_as_the_result(digits, tmp_path):
    recipe = load_recipe(digits.recipe(tmp_path / "r.yaml", ema_decay=0.5, epochs=1))
    train_stage(recipe, 0, tmp_path, device=CPU)
    saved = checkpoint.latest(tmp_path / "stages" / "0-train" / "checkpoints")
    left = read_weights(tmp_path / "stages" / "0-train" / "student.safetensors")
    for name, array in left.items():
        np.testing.assert_array_equal(array, saved.tensors[f"ema.{name}"])
    assert any(not np.array_equal(saved.tensors[f"student.{name}"], array) for name, array in left.items())
    entry = next(e for e in read_metrics(tmp_path / "metrics.jsonl") if e["kind"] == "evaluation")
    assert 0 <= entry["top1_without_ema"] <= 1


def test_the_best_weights_are_kept_beside_the_last(digits, tmp_path):
    recipe = load_recipe(digits.recipe(tmp_path / "r.yaml", epochs=3))
    result = train_stage(recipe, 0, tmp_path, device=CPU)
    measured = [e["top1"] for e in read_metrics(tmp_path / "metrics.jsonl") if e["kind"] == "evaluation"]
    assert result.best_top1 == max(measured)
    assert result.evaluation.top1 == measured[-1]
    best, last = (tmp_path / "stages" / "0-train" / f"{name}.safetensors" for name in ("best", "student"))
    assert (best.read_bytes() == last.read_bytes()) == (measured[-1] > max(measured[:-1]))


def test_a_checkpoint_is_complete_and_never_holds_the_teacher(digits, tmp_path):
    recipe = load_recipe(digits.recipe(tmp_path / "r.yaml", epochs=1))
    train_stage(recipe, 0, tmp_path, device=CPU)
    saved = checkpoint.latest(tmp_path / "stages" / "0-train" / "checkpoints")
    assert {key.split(".")[0] for key in saved.tensors} == {"student", "optimizer"}
    assert saved.state["position"]["step"] == 7
    assert saved.state["recipe"]["name"] == "digits"
    json.dumps(saved.state)


def test_a_stage_with_another_seed_starts_from_other_weights(digits, tmp_path):
    path = digits.recipe(tmp_path / "r.yaml")
    first, second = (Learner(load_recipe(path, [f"seed={seed}"]), 0, CPU, None) for seed in (1, 2))
    assert not paddle.equal_all(first.parameters[0][1], second.parameters[0][1])


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_unlabelled_images_teach_nothing_without_a_teacher(digits, tmp_path, some_images, data_format):
    model = {"name": "ResNet18_vd", "width": 0.0625, "data_format": data_format}
    learner = Learner(load_recipe(digits.recipe(tmp_path / "r.yaml", model=model)), 0, CPU, None)
    images, labels = some_images
    images = images if data_format == "NCHW" else images.transpose(0, 2, 3, 1)
    terms = learner.accumulate(batch_of(images, np.full_like(labels, -1), 8))
    assert float(terms["loss"]) == 0
    assert not any(gradient.any() for gradient in gradients(learner).values())


def test_mixed_precision_on_a_cpu_is_refused_aloud(digits, tmp_path, capsys):
    recipe = load_recipe(digits.recipe(tmp_path / "r.yaml", amp="O1", epochs=1))
    train_stage(recipe, 0, tmp_path, device=CPU)
    assert "amp O1 is ignored on a cpu" in capsys.readouterr().err


def test_a_run_says_what_computes_the_student_and_either_kernels_begin_alike(digits, tmp_path, capsys):
    losses = {}
    for kernels in ("onednn", "paddle"):
        runtime = {"student_kernels": kernels, "log_every_steps": 1}
        path = digits.recipe(tmp_path / "digits.yaml", epochs=1, runtime=runtime)
        run_recipe(load_recipe(path), tmp_path / kernels, device="cpu")
        assert ("the student computes with oneDNN 3." in capsys.readouterr().err) == (kernels == "onednn")
        entries = read_metrics(tmp_path / kernels / "metrics.jsonl")
        losses[kernels] = [entry["loss"] for entry in entries if entry["kind"] == "train"]
    assert losses["onednn"][0] == pytest.approx(losses["paddle"][0], rel=1e-4)
