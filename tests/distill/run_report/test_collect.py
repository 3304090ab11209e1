import pytest

from distill.errors import UserError
from distill.run_report.collect import collect, curves


def test_updates_are_counted_on_from_stage_to_stage():
    entries = [
        {"kind": "train", "stage": 0, "stage_name": "a", "step": 5, "loss": 2.0},
        {"kind": "undecodable", "stage": 0, "stage_name": "a", "step": 5, "file": "x", "reason": "y"},
        {"kind": "evaluation", "stage": 0, "stage_name": "a", "step": 10, "top1": 0.5, "images": 9, "undecodable": 0},
        {"kind": "train", "stage": 1, "stage_name": "b", "step": 3, "loss": 1.0, "learning_rate": float("nan")},
    ]
    assert curves(entries) == {"loss": [(5, 2.0), (13, 1.0)], "top1": [(10, 0.5)]}


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no run: expected a folder that `distill train` wrote"):
        collect(tmp_path)
