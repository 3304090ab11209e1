import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import RunError
from distill.metrics import MetricsLog, StepRecords, read_metrics, topk_hits


@given(st.integers(1, 30), st.integers(2, 12), st.integers(1, 12), st.integers(0, 2**32))
def test_topk_agrees_with_sorting(rows, classes, k, seed):
    rng = np.random.default_rng(seed)
    logits = rng.permuted(np.tile(np.arange(classes, dtype=np.float32), (rows, 1)), axis=1)  # no ties
    labels = rng.integers(0, classes, rows)
    best = np.argsort(-logits, axis=1)[:, :k]
    assert topk_hits(logits, labels, k) == (best == labels[:, None]).any(1).sum()


def test_a_constant_network_is_right_for_one_class_only():
    assert topk_hits(np.zeros((10, 10)), np.arange(10), 1) == 1


def test_nan_never_hits():
    assert topk_hits(np.full((3, 4), np.nan), np.zeros(3, np.int64), 4) == 0


def test_records_average_and_forget():
    records = StepRecords("train")
    records.append(1, {"loss": 1.0}, [np.array([4])])
    records.append(2, {"loss": 3.0}, [np.array([5])])
    assert records.drain() == {"loss": 2.0}
    assert records.drain() == {}


def test_a_loss_that_is_not_finite_names_step_terms_and_samples():
    records = StepRecords("train")
    records.append(7, {"kl": 1.0, "loss": 1.0}, [np.array([1, 2])])
    records.append(8, {"kl": float("nan"), "loss": float("nan")}, [np.array([30, 40]), np.array([50])])
    with pytest.raises(RunError, match=r"step 8: kl = nan, loss = nan. Sample indices: 30, 40, 50\."):
        records.drain()


def entry(stage, step, loss=0.5):
    return {"kind": "train", "stage": stage, "stage_name": f"s{stage}", "step": step, "loss": loss}


def test_a_resumed_log_forgets_what_came_behind_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path, stage=0, after_step=0)
    for stage, step in [(0, 10), (0, 20), (1, 5), (1, 10)]:
        log.write(entry(stage, step))
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')  # the crash
    log = MetricsLog(tmp_path, stage=1, after_step=5)
    log.write(entry(1, 10, loss=0.25))
    log.close()
    kept = read_metrics(tmp_path / "metrics.jsonl")
    assert [(e["stage"], e["step"], e["loss"]) for e in kept] == [
        (0, 10, 0.5),
        (0, 20, 0.5),
        (1, 5, 0.5),
        (1, 10, 0.25),
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert len(list((tmp_path / "visualdl").iterdir())) == 1


def test_every_line_is_json(tmp_path):
    log = MetricsLog(tmp_path, stage=0, after_step=0)
    log.write(entry(0, 1))
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == entry(0, 1)
