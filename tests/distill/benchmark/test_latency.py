from dataclasses import replace

import pytest

from distill.benchmark import latency
from distill.benchmark.latency import Contender, Plan, choose_contenders, estimate_seconds, measure
from distill.benchmark.latency_rows import Target, read_rows, write_rows
from distill.errors import RunError, UserError
from distill.parallel import Device, setup_process

SMALL = Target("ResNet18_vd", "ResNet18_vd", 32, 36)
ENGINES = [Contender("eager", "float32"), Contender("predictor", "float32"), Contender("onnxruntime", "float32")]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(latency, "SPIN_SECONDS", 0.0)


@pytest.fixture
def plan(tmp_path):
    return Plan([SMALL], ENGINES, [1, 2], 0.01, setup_process("cpu"), tmp_path / "latency")


def test_every_engine_has_a_row_for_each_batch_size(plan):
    rows = measure(plan)
    assert rows == read_rows(plan.table)
    assert {(row.engine, row.precision, row.batch) for row in rows} == {
        (each.engine, each.precision, batch) for each in ENGINES for batch in (1, 2)
    }
    for row in rows:
        assert (row.model, row.crop_px, row.resize_short_px) == ("ResNet18_vd", 32, 36)
        assert 0 < row.min_ms <= row.median_ms <= row.p90_ms
        assert row.runs >= latency.ROUNDS * latency.LEAST_CALLS
        assert row.threads == plan.device.threads
    assert [path.name for path in plan.output.iterdir()] == ["latency.csv"]


def test_what_is_measured_is_kept_and_the_rest_is_added(plan):
    first = measure(replace(plan, contenders=ENGINES[:2], batches=[1]))
    whole = measure(plan)
    assert len(whole) == 6
    assert set(first) < set(whole)
    assert measure(plan) == whole
    again = measure(plan, again=True)
    assert len(again) == 6
    assert set(again) != set(whole)


def test_rows_of_another_machine_are_not_mixed_with_ours(plan):
    rows = measure(replace(plan, contenders=ENGINES[:1], batches=[1]))
    write_rows(plan.table, [replace(rows[0], processor="Another")])
    with pytest.raises(UserError, match=r"was measured on Another, .* and this is .*: choose another folder"):
        measure(plan)


def test_rows_that_are_finished_survive_an_interruption(plan, monkeypatch):
    real = latency._measure_batch

    def interrupted(target, batch, calls, given):
        if batch == 2:
            raise KeyboardInterrupt
        return real(target, batch, calls, given)

    monkeypatch.setattr(latency, "_measure_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(plan)
    assert [row.batch for row in read_rows(plan.table)] == [1, 1, 1]


def test_an_engine_that_answers_nonsense_is_an_error(plan):
    with pytest.raises(RunError, match=r"eager float32: ResNet18_vd answers \(2, 500\)"):
        latency._measure_batch(SMALL, 2, {ENGINES[0]: lambda planes: planes.reshape(-1)[:1000]}, plan)


def test_what_this_machine_has_not_is_left_out_with_the_reason(plan):
    chosen, left_out = choose_contenders(["eager", "onnxruntime"], ["float32", "bfloat16"], plan.device)
    assert chosen == [Contender("eager", "float32"), Contender("onnxruntime", "float32")]
    assert [line.split(":")[0] for line in left_out] == [
        "eager bfloat16 is left out",
        "onnxruntime bfloat16 is left out",
    ]
    with pytest.raises(UserError, match="nothing to measure: eager bfloat16 is left out"):
        choose_contenders(["eager"], ["bfloat16"], plan.device)


def test_a_gpu_has_eager_paddle_alone():
    chosen, left_out = choose_contenders(
        ["eager", "predictor", "onnxruntime"], ["float32", "float16"], Device("gpu", 2)
    )
    assert chosen == [Contender("eager", "float32"), Contender("eager", "float16")]
    assert left_out[0] == (
        "predictor float32 is left out: engine 'predictor' computes on a CPU only: use --device cpu, or engine 'eager'"
    )
    assert left_out[2] == "onnxruntime float32 is left out: ONNX Runtime computes on a CPU here: --device cpu"


def test_the_estimate_grows_with_the_work_and_leaves_out_what_is_done(plan):
    whole = estimate_seconds(plan)
    assert whole > estimate_seconds(replace(plan, batches=[1])) > 0
    assert estimate_seconds(replace(plan, targets=[replace(SMALL, crop_px=224)])) > whole
    keys = [latency._key(SMALL, each, batch) for each in ENGINES for batch in (1, 2)]
    assert estimate_seconds(plan, frozenset(keys)) == 0


def test_the_command_writes_table_report_and_figure(tmp_path, run_cli):
    command = ["benchmark", "latency", "ResNet18", "--batch", "1", "--engines", "predictor", "--precision", "float32"]
    command += ["--seconds", "0.01", "--output", tmp_path / "here"]
    status, _, errors = run_cli(*command)
    assert status == 0
    names = {path.name for path in (tmp_path / "here").iterdir()}
    figures = {f"accuracy_latency_predictor_float32.{kind}" for kind in ("png", "svg")}
    assert names == {"latency.csv", "latency.md"} | figures
    assert "1 networks, batches of 1, predictor float32: about " in errors
    table = (tmp_path / "here" / "latency.csv").read_bytes()
    status, _, errors = run_cli(*command)
    assert status == 0
    assert "about nothing to measure, 1 measurements are kept" in errors
    assert (tmp_path / "here" / "latency.csv").read_bytes() == table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ResNet51"], "unknown model 'ResNet51'"),
        (["--batch", "0"], "--batch must be numbers of 1 to 1024"),
        (["--batch", "1,,4"], "--batch must be numbers"),
        (["--batch", "99999"], "--batch must be numbers"),
        (["--precision", "float8"], "--precision: unknown 'float8'. Did you mean 'float32'? Valid: float32, bfloat16"),
        (["--engines", "tensorrt"], "--engines: unknown 'tensorrt'"),
        (["--engines", "eager", "--precision", "bfloat16"], "nothing to measure: eager bfloat16 is left out"),
        (["--seconds", "0"], "--seconds must be > 0"),
        (["--seconds", "nan"], "--seconds must be > 0"),
    ],
)
def test_wrong_options_are_the_users_error(tmp_path, run_cli, arguments, message):
    status, output, errors = run_cli("benchmark", "latency", "--output", tmp_path / "here", *arguments)
    assert (status, output) == (2, "")
    assert message in errors
    assert not (tmp_path / "here").exists()
