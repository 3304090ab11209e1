"""The ablation of scripts/experiments: its statistics, its table, and all of it in small on the digits."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from distill.data.idx import IdxImages
from distill.errors import UserError
from distill.report import write_picture

EXPERIMENTS = Path(__file__).parents[2] / "scripts" / "experiments"
NAMES = ("ablation_images", "ablation_report", "ablation_rows", "ablation_runs", "ablation_statistics")


def load(name):
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXPERIMENTS))


images, report, rows, runs, statistics = map(load, NAMES)


@pytest.fixture(scope="module")
def cifar10(digits, tmp_path_factory):
    """400 digits to train on and 100 to test on, laid out as CIFAR-10 is expected."""
    folder = tmp_path_factory.mktemp("cifar10")
    for part, count in {"train": 400, "test": 100}.items():
        source = IdxImages(digits.folder / f"{part}-images.gz", digits.folder / f"{part}-labels.gz", 10)
        (folder / part).mkdir()
        lines = []
        for number in range(count):
            write_picture(folder / part / f"{number}.png", source.read(number))
            lines.append(f"{part}/{number}.png {source.labels[number]}\n")
        (folder / f"{part}_list.txt").write_text("".join(lines))
    return folder


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [1, 1.3, 2, 3.7, 4, 30, 1000])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_quantiles_are_those_of_student(freedom, confidence):
    expected = stats.t.ppf((1 + confidence) / 2, freedom)
    assert statistics.t_quantile(freedom, confidence) == pytest.approx(expected, rel=1e-5)


accuracies = st.lists(st.floats(10, 90), min_size=2, max_size=6)


@given(accuracies, accuracies)
def test_the_interval_is_welchs(after, before):
    found = statistics.compare(after, before, paired=False)
    assert found.mean == pytest.approx(np.mean(after) - np.mean(before), abs=1e-9)
    if min(np.std(after), np.std(before)) < 1e-3:  # SciPy warns of lost precision
        return
    low, high = stats.ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    assert found.margin == pytest.approx((high - low) / 2, rel=1e-4)


def test_paired_values_are_compared_seed_by_seed():
    after, before = [61.0, 64.0, 58.5], [60.0, 62.5, 57.0]
    low, high = stats.ttest_rel(after, before).confidence_interval(0.95)
    found = statistics.compare(after, before, paired=True)
    assert found.mean == pytest.approx(4 / 3) and found.margin == pytest.approx((high - low) / 2)
    assert found.margin < statistics.compare(after, before, paired=False).margin / 5


@pytest.mark.parametrize("paired", [True, False])
def test_one_seed_decides_nothing_and_none_is_refused(paired):
    found = statistics.compare([62.0], [60.0], paired=paired)
    assert (found.mean, found.margin) == (2.0, None)
    assert statistics.verdict(found, 1.0) == "undecided"
    with pytest.raises(ValueError, match="at least one value"):
        statistics.compare([], [], paired=paired)


def test_equal_values_have_no_spread():
    assert statistics.compare([60.0, 60.0], [59.0, 59.0], paired=False) == statistics.Difference(1.0, 0.0)


@pytest.mark.parametrize(
    ("mean", "margin", "direction", "expected"),
    [
        (0.5, 0.4, 0.7, "confirmed"),
        (-0.5, 0.4, -0.7, "confirmed"),
        (-0.5, 0.4, 0.7, "not confirmed"),
        (0.5, 0.6, 0.7, "undecided"),
        (-0.5, 0.6, 0.7, "undecided"),
        (0.0, 0.0, 0.7, "undecided"),
    ],
)
def test_the_verdict_is_where_the_interval_lies(mean, margin, direction, expected):
    assert statistics.verdict(statistics.Difference(mean, margin), direction) == expected


# --- the table of rows ------------------------------------------------------------------------------


def test_every_row_shows_a_stage_of_a_valid_run_and_is_compared_with_an_earlier_row():
    before = []
    for name, row in rows.ROWS.items():
        recipe = runs.full_recipe(rows.RUNS[row.run], 4, Path("runs/ablation"), quick=False)
        assert recipe.seed == 4
        assert row.stage == rows.START or row.stage in [stage.name for stage in recipe.stages]
        assert all(comparison.other in before for comparison in row.comparisons)
        before.append(name)


def test_a_run_differs_from_its_recipe_by_what_its_row_says():
    def stage(name):
        return runs.full_recipe(rows.RUNS[name], 0, Path("runs/ablation"), quick=False).stages[0]

    base = stage("symmetric_kl")
    for name, changed in {
        "kl": {"loss"},
        "jensen_shannon": {"loss"},
        "batch_statistics": {"teacher"},
        "epochs_2x": {"epochs"},
        "pool_random": {"epochs", "data"},
        "labels": {"loss", "teacher"},
    }.items():
        assert {key for key in type(base).model_fields if getattr(stage(name), key) != getattr(base, key)} == changed


def test_with_and_without_a_pool_there_are_as_many_updates():
    lists = {"labelled": 5120, "random": 15_360, "selected": 15_360}

    def updates(name):
        stage = runs.full_recipe(rows.RUNS[name], 0, Path("runs/ablation"), quick=False).stages[0]
        return stage.epochs * sum(lists[Path(source.path).stem] for source in stage.data.sources) / 128

    assert updates("epochs_2x") == updates("pool_random") == updates("ssld") == updates("ssld_v2") == 3200
    assert updates("symmetric_kl") == updates("labels") == 1600


def test_another_output_folder_takes_the_place_of_the_recipes_own():
    for run in rows.RUNS.values():
        text = str(runs.full_recipe(run, 1, Path("elsewhere"), quick=False))
        assert "elsewhere/lists/test.txt" in text and "runs/ablation" not in text
    recipe = runs.full_recipe(rows.RUNS["fix_115"], 1, Path("elsewhere"), quick=False)
    assert recipe.model.weights == "elsewhere/runs/ssld_v2-seed1/student.safetensors"
    assert recipe.stages[0].view.size_px == recipe.stages[0].evaluation.crop_px == 37


def test_a_run_that_others_start_from_is_trained_first():
    assert rows.runs_of(["fix_143", "tested_143"]) == ["ssld_v2", "fix_143"]
    assert rows.runs_of(["finetune", "pool_mined", "labels"]) == ["labels", "ssld"]
    assert rows.shares_weights("finetune", "pool_mined") and rows.shares_weights("fix_143", "autoaugment")
    assert not rows.shares_weights("autoaugment", "finetune")


# --- images ------------------------------------------------------------------------------------------


def test_images_are_split_so_that_the_pool_is_nobody_elses(cifar10, tmp_path):
    images.write_lists(cifar10, tmp_path, images.QUICK)
    found = {
        name: images.read_list(tmp_path / "lists" / f"{name}.txt") for name in ("labelled", "teacher", "pool", "test")
    }
    assert [len(found[name]) for name in found] == [60, 120, 120, 64]
    assert np.bincount([label for _, label in found["labelled"]]).tolist() == [6] * 10
    assert set(found["labelled"]) < set(found["teacher"])
    assert not set(found["pool"]) & set(found["teacher"])
    assert all(path.exists() for lines in found.values() for path, _ in lines)


def test_another_folder_of_images_is_refused(cifar10, tmp_path):
    images.write_lists(cifar10, tmp_path, images.QUICK)
    images.write_lists(cifar10, tmp_path, images.QUICK)
    with pytest.raises(UserError, match="was begun with other images"):
        images.write_lists(cifar10, tmp_path, images.FULL)


def test_too_few_images_or_none_are_refused(cifar10, tmp_path):
    with pytest.raises(UserError, match="at least 512 training images of each class"):
        images.write_lists(cifar10, tmp_path, images.FULL)
    with pytest.raises(UserError, match=r"cannot read .*train_list.txt.*scripts/cifar10.py"):
        images.write_lists(tmp_path / "nowhere", tmp_path, images.QUICK)
    (tmp_path / "train_list.txt").write_text("image.png\n")
    with pytest.raises(UserError, match="expected lines `path label`"):
        images.write_lists(tmp_path, tmp_path, images.QUICK)


# --- the report -----------------------------------------------------------------------------------------


def test_the_table_says_what_was_found(tmp_path):
    values = {
        "kl": {0: 0.60, 1: 0.61, 2: 0.605},
        "symmetric_kl": {0: 0.64, 1: 0.65, 2: 0.645},
        "jensen_shannon": {},
    }
    text = report.write_report(tmp_path, list(values), values, quick=False)
    line = next(line for line in text.splitlines() if line.startswith("| `symmetric_kl`"))
    margin = stats.ttest_ind([64, 65, 64.5], [60, 61, 60.5], equal_var=False).confidence_interval(0.95).high - 4
    assert f"| 64.50 +- 0.50 | `kl` | +4.00 +- {margin:.2f} |" in line
    assert line.endswith("| +0.20 (MobileNetV3-large, 76.0 -> 76.2) | confirmed |")
    assert "| `jensen_shannon` | the Jensen-Shannon divergence proper | 0 | not yet run |" in text
    assert "A quick run" not in text
    kept = json.loads((tmp_path / "ablation.json").read_text())
    assert [entry["verdict"] for entry in kept["comparisons"]] == [None, "confirmed", None, None]
    assert kept["rows"]["kl"]["top1_by_seed"] == {"0": 0.60, "1": 0.61, "2": 0.605}
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ablation.json", "ablation.md", "ablation.png"]


def test_rows_of_one_training_are_compared_by_the_seeds_that_both_have(tmp_path):
    values = {"pool_mined": {0: 0.60, 1: 0.70}, "finetune": {0: 0.61, 1: 0.712, 2: 0.5}}
    entry = report.find(values)[-1]
    assert entry.paired and entry.difference.mean == pytest.approx(1.1)
    assert report.find(values)[-1].verdict == "undecided"  # two seeds: t is 12.7


# --- all of it ------------------------------------------------------------------------------------------


def ablation(*arguments):
    command = [sys.executable, str(EXPERIMENTS / "ablation.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=EXPERIMENTS.parents[1])


def test_in_small_it_runs_and_goes_on_where_it_was(cifar10, tmp_path):
    options = ("--cifar10", cifar10, "--output", tmp_path / "out", "--quick", "--seeds", 1)
    done = ablation(*options, "--rows", "kl,symmetric_kl")
    assert done.returncode == 0, done.stderr
    assert "run 2 of 2, symmetric_kl-seed0" in done.stdout and "A quick run" in done.stdout
    stores = list((tmp_path / "out" / "labels").iterdir())
    assert len(stores) == 1 and stores[0].name.startswith("seed0-")
    before = (tmp_path / "out" / "ablation.json").read_bytes()
    again = ablation(*options, "--rows", "kl,symmetric_kl")
    assert again.returncode == 0 and "run 1" not in again.stdout
    assert (tmp_path / "out" / "ablation.json").read_bytes() == before


def test_interrupted_it_lets_the_run_save_and_goes_on(cifar10, tmp_path):
    command = [sys.executable, str(EXPERIMENTS / "ablation.py"), "--cifar10", str(cifar10), "--quick", "--seeds", "1"]
    command += ["--rows", "labels", "--output", str(tmp_path / "out")]
    first = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    metrics = tmp_path / "out" / "runs" / "labels-seed0"
    for _ in range(1000):  # until training has begun
        if metrics.exists() or first.poll() is not None:
            break
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal's Ctrl-C: to the whole group
    said, _ = first.communicate(timeout=100)
    assert first.returncode in (130, 0), said  # it may have been as good as finished
    again = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "labels,ssdl"], "there is no row 'ssdl'"),
        (["--seeds", "0"], "expected a whole number from 1, received '0'"),
        (["--quick", "--rows", "labels"], "cannot read"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, arguments, message):
    done = ablation("--cifar10", tmp_path, "--output", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
