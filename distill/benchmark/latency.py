"""How long the networks of the series take on this machine: engines side by side, in turns."""

import functools
import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from numpy.typing import NDArray

from distill.benchmark.latency_rows import EngineName, LatencyPrecision, LatencyRow, Target, read_rows, write_rows
from distill.display import Display, readable_time
from distill.engines.engine import check_support, open_predictor, quiet, run_predictor, save_program
from distill.engines.onnx_engine import import_extra, session_options
from distill.errors import RunError, UserError
from distill.export.folding import fold_batch_norm
from distill.export.onnx_graph import onnx_network
from distill.files import cannot_write
from distill.models import create_model
from distill.models.resnet import ResNet
from distill.parallel import Device
from distill.report import device_name

NUM_CLASSES = 1000
WARM_UP_CALLS = 3
ROUNDS = 5
LEAST_CALLS = 2  # timed in a turn
SPIN_SECONDS = 0.3  # an engine's threads spin for 0.2 s behind their work, at the cost of whoever comes next
OPENING_SECONDS = 4.0  # of a network in an engine, for the estimate
CPU_MACS_A_SECOND = 3e10  # of a thread, for the estimate
GPU_MACS_A_SECOND = 2e12  # for the estimate

Planes = NDArray[np.float32]
Call = Callable[[Planes], object]


@dataclass(frozen=True)
class Contender:
    """An engine in a precision."""

    engine: EngineName
    precision: LatencyPrecision

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        targets: Networks.
        contenders: Engines, which take turns.
        batches: Numbers of images.
        seconds: That each contender is timed for at each batch size, at least.
        device: What `setup_process` returned.
        output: The folder of `latency.csv`.
    """

    targets: Sequence[Target]
    contenders: Sequence[Contender]
    batches: Sequence[int]
    seconds: float
    device: Device
    output: Path

    @property
    def table(self) -> Path:
        """Where the rows are kept."""
        return self.output / "latency.csv"


def choose_contenders(
    engines: Sequence[EngineName], precisions: Sequence[LatencyPrecision], device: Device
) -> tuple[list[Contender], list[str]]:
    """The engines that this machine has, and why others are left out.

    Raises:
        UserError: None is left.
    """
    chosen, left_out = [], []
    for engine in engines:
        for precision in precisions:
            reason = _unavailable(engine, precision, device)
            if reason is None:
                chosen.append(Contender(engine, precision))
            else:
                left_out.append(f"{engine} {precision} is left out: {reason}")
    if not chosen:
        raise UserError("nothing to measure: " + "; ".join(left_out))
    return chosen, left_out


def _unavailable(engine: EngineName, precision: LatencyPrecision, device: Device) -> str | None:
    if engine == "onnxruntime":
        missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            return f"{' and '.join(missing)} not installed: pip install 'paddle-distill[export]'"
        if device.kind != "cpu":
            return "ONNX Runtime computes on a CPU here: --device cpu"
        return None if precision == "float32" else "ONNX Runtime computes a network in float32 on a CPU"
    try:
        check_support(engine, precision, device)
    except UserError as error:
        return str(error)
    return None


def estimate_seconds(plan: Plan, done: frozenset[tuple[str, int, str, str, int]] = frozenset()) -> float:
    """About how long `measure` will take, from multiply-accumulates; some engines are three times as fast."""
    cpu = plan.device.kind == "cpu"
    speed = CPU_MACS_A_SECOND * plan.device.threads if cpu else GPU_MACS_A_SECOND
    total = 0.0
    for target in plan.targets:
        for contender in plan.contenders:
            missing = [n for n in plan.batches if _key(target, contender, n) not in done]
            for batch in missing:
                call = target.macs * batch / speed
                least = (WARM_UP_CALLS + ROUNDS * (LEAST_CALLS + 1)) * call
                total += ROUNDS * SPIN_SECONDS + max(plan.seconds + (WARM_UP_CALLS + ROUNDS) * call, least)
            total += OPENING_SECONDS if missing else 0.0
    return total


def measure(plan: Plan, *, again: bool = False) -> list[LatencyRow]:
    """Measures what the table in the output folder does not have yet, and writes it after each batch size.

    Weights are random: their values change no time. A call takes normalised images, float32 [N, 3, crop_px, crop_px],
    and returns logits, both in NumPy's memory. Of a network at a batch size, each contender has `ROUNDS` turns of
    `seconds` / `ROUNDS`, whose first call is not timed.

    Args:
        plan: What.
        again: Measure what the table has, too.

    Returns:
        All rows of the table.

    Raises:
        UserError: The table is none, or of another machine or other versions.
        RunError: It cannot be written.
    """
    rows = {row.key: row for row in read_rows(plan.table)}
    _check_machine(plan, rows.values())
    wanted = {
        _key(target, contender, batch)
        for target in plan.targets
        for contender in plan.contenders
        for batch in plan.batches
    }
    done = frozenset() if again else frozenset(rows.keys() & wanted)
    try:
        plan.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(plan.output, error) from error
    with Display("latency", len(wanted), done=len(done), unit="measurement") as display:
        _announce(plan, done, display)
        finished = len(done)
        for target in plan.targets:
            missing = {
                batch: [each for each in plan.contenders if _key(target, each, batch) not in done]
                for batch in plan.batches
            }
            calls = _open_contenders(
                target, [c for c in plan.contenders if any(c in m for m in missing.values())], plan
            )
            for batch, contenders in missing.items():
                if not contenders:
                    continue
                for row in _measure_batch(target, batch, {each: calls[each] for each in contenders}, plan):
                    rows[row.key] = row
                write_rows(plan.table, rows.values())
                finished += len(contenders)
                display.advance(finished, {"network": f"{target.model} {target.crop_px} px", "batch": str(batch)})
    return read_rows(plan.table)


def _announce(plan: Plan, done: frozenset[tuple[str, int, str, str, int]], display: Display) -> None:
    left = estimate_seconds(plan, done)
    display.say(
        f"{len(plan.targets)} networks, batches of {', '.join(map(str, plan.batches))}, "
        f"{', '.join(map(str, plan.contenders))}: about {readable_time(left) if left else 'nothing'} to measure"
        + (f", {len(done)} measurements are kept (--again measures them too)" if done else "")
    )
    load = os.getloadavg()[0]
    if left and load > 0.5:
        display.say(f"other programs compute on this machine (load {load:.1f}): the times will be too long")


def _key(target: Target, contender: Contender, batch: int) -> tuple[str, int, str, str, int]:
    return target.model, target.crop_px, contender.engine, contender.precision, batch


def versions() -> str:
    """Of what computes."""
    found = f"paddle {paddle.__version__}"
    if importlib.util.find_spec("onnxruntime") is not None:
        found += f", onnxruntime {import_extra('onnxruntime').__version__}"
    return found


def _check_machine(plan: Plan, rows: Iterable[LatencyRow]) -> None:
    own = f"{device_name(plan.device)}, {plan.device.threads} threads, {versions()}"
    others = sorted({row.machine for row in rows} - {own})
    if others:
        raise UserError(
            f"{plan.table} was measured on {others[0]}, and this is {own}: choose another folder with --output"
        )


def _open_contenders(target: Target, contenders: Sequence[Contender], plan: Plan) -> dict[Contender, Call]:
    if not contenders:
        return {}
    paddle.seed(0)
    model = create_model(target.network, NUM_CLASSES)
    model.eval()
    folded = fold_batch_norm(model)
    return {each: _OPENERS[each.engine](model, folded, target, each, plan) for each in contenders}


def _open_eager(model: ResNet, folded: ResNet, target: Target, contender: Contender, plan: Plan) -> Call:
    mixed = contender.precision != "float32"  # on a GPU alone
    amp_type = contender.precision if mixed else "float16"

    def call(planes: Planes) -> object:
        with paddle.no_grad(), paddle.amp.auto_cast(enable=mixed, dtype=amp_type):
            return model(paddle.to_tensor(planes)).astype("float32").numpy()

    return call


def _open_predictor(model: ResNet, folded: ResNet, target: Target, contender: Contender, plan: Plan) -> Call:
    folder = plan.output / f".tmp-{contender.precision}-{os.getpid()}"
    folder.mkdir()
    spec = paddle.static.InputSpec([None, 3, target.crop_px, target.crop_px], "float32", "images")
    try:
        with quiet():
            program, weights = save_program(folded, folder / "network", spec)
            predictor = open_predictor(program, weights, contender.precision, plan.device.threads)
            run_predictor(predictor, np.zeros((1, 3, target.crop_px, target.crop_px), np.float32))
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    return functools.partial(run_predictor, predictor)


def _open_onnxruntime(model: ResNet, folded: ResNet, target: Target, contender: Contender, plan: Plan) -> Call:
    network = onnx_network(folded, target.crop_px).SerializeToString()
    runtime = import_extra("onnxruntime")
    session = runtime.InferenceSession(network, **session_options(runtime, plan.device.threads))
    return lambda planes: session.run(["logits"], {"images": planes})


_OPENERS: dict[EngineName, Callable[[ResNet, ResNet, Target, Contender, Plan], Call]] = {
    "eager": _open_eager,
    "predictor": _open_predictor,
    "onnxruntime": _open_onnxruntime,
}


def _measure_batch(target: Target, batch: int, calls: Mapping[Contender, Call], plan: Plan) -> list[LatencyRow]:
    shape = (batch, 3, target.crop_px, target.crop_px)
    planes = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for contender, call in calls.items():
        answer = np.asarray(call(planes)).reshape(batch, -1)
        if answer.shape != (batch, NUM_CLASSES) or not np.isfinite(answer).all():
            raise RunError(f"{contender}: {target.model} answers {answer.shape}, or not with numbers")
        for _ in range(WARM_UP_CALLS - 1):
            call(planes)
    seconds: dict[Contender, list[float]] = {contender: [] for contender in calls}
    for _ in range(ROUNDS):
        for contender, call in calls.items():
            time.sleep(SPIN_SECONDS)
            seconds[contender] += _turn(call, planes, plan)
    return [_summary(target, contender, batch, own, plan) for contender, own in seconds.items()]


def _turn(call: Call, planes: Planes, plan: Plan) -> list[float]:
    """Seconds of single calls; the first, which finds caches full of what others left, is not among them."""
    paddle.base.core.set_num_threads(plan.device.threads)  # Paddle Inference leaves one to eager Paddle
    call(planes)
    found: list[float] = []
    while len(found) < LEAST_CALLS or sum(found) < plan.seconds / ROUNDS:
        started = time.perf_counter()
        call(planes)
        found.append(time.perf_counter() - started)
    return found


def _summary(target: Target, contender: Contender, batch: int, seconds: Sequence[float], plan: Plan) -> LatencyRow:
    least, median, late = (round(1e3 * float(value), 4) for value in np.percentile(seconds, (0, 50, 90)))
    return LatencyRow(
        model=target.model,
        crop_px=target.crop_px,
        resize_short_px=target.resize_short_px,
        engine=contender.engine,
        precision=contender.precision,
        batch=batch,
        runs=len(seconds),
        min_ms=least,
        median_ms=median,
        p90_ms=late,
        date=time.strftime("%Y-%m-%d"),
        processor=device_name(plan.device),
        threads=plan.device.threads,
        versions=versions(),
    )
