from dataclasses import replace

import pytest

from distill.benchmark.latency_rows import COLUMNS, Target, all_targets, choose_targets, read_rows, write_rows
from distill.errors import UserError


def test_the_series_is_thirteen_networks_at_their_sizes():
    targets = choose_targets([])
    assert len(targets) == 13
    assert Target("ResNet50_vd", "ResNet50_vd", 224, 256) in targets
    assert [target for target in targets if target.crop_px != 224] == [
        Target("Fix_ResNet50_vd_ssld_v2", "ResNet50_vd", 320, 320)
    ]
    assert len(all_targets()) == 17
    assert targets[0].macs == pytest.approx(1.8e9, rel=0.02)


def test_published_rows_stand_for_their_network():
    names = ["ResNet50_vd_ssld", "ResNet18", "ResNet50_vd", "Fix_ResNet50_vd_ssld_v2", "ResNeXt101_32x8d_wsl"]
    chosen = [(target.model, target.crop_px) for target in choose_targets(names)]
    assert chosen == [
        ("ResNet50_vd", 224),
        ("ResNet18", 224),
        ("Fix_ResNet50_vd_ssld_v2", 320),
        ("ResNeXt101_32x8d_wsl", 224),
    ]
    with pytest.raises(UserError, match=r"unknown model 'ResNet50vd'\. Did you mean 'ResNet50_vd'\? Valid: ResNet18"):
        choose_targets(["ResNet50vd"])


def test_rows_are_kept_in_the_order_of_the_published_table(latency_row, tmp_path):
    small, eager = replace(latency_row, model="ResNet18"), replace(latency_row, engine="eager", batch=1)
    write_rows(tmp_path / "latency.csv", [latency_row, eager, small])
    assert read_rows(tmp_path / "latency.csv") == [small, eager, latency_row]
    assert read_rows(tmp_path / "none.csv") == []
    assert len({latency_row.key, eager.key, small.key}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a table of latencies"),
        ("model,crop_px\n", "is not a table of latencies: expected the columns model, crop_px, resize_short_px"),
        (",".join(COLUMNS) + "\nResNet18,224\n", "line 2: not a row of the table"),
        (",".join(COLUMNS) + "\n" + ",".join(["x"] * len(COLUMNS)) + "\n", "line 2: not a row of the table"),
    ],
)
def test_another_file_is_refused(tmp_path, text, message):
    (tmp_path / "latency.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_rows(tmp_path / "latency.csv")
