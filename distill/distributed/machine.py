"""What this host has to compute with, and which of it the ranks take."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from distill.errors import UserError
from distill.parallel import DeviceKind, import_paddle

_PROBE_SECONDS = 300.0
_SHOWN_LINES = 3


@dataclass(frozen=True)
class Machine:
    """Paddle, and the GPUs that it sees.

    Attributes:
        paddle: Its version.
        cuda: Whether it was built for NVIDIA GPUs.
        gpus: How many it sees.
    """

    paddle: str
    cuda: bool
    gpus: int


@dataclass(frozen=True)
class Devices:
    """What the ranks of this host compute on.

    Attributes:
        kind: "gpu" or "cpu".
        ranks: How many there are.
        gpus: One for each, by the names that CUDA_VISIBLE_DEVICES has for them, else by number; none on the CPU.
    """

    kind: DeviceKind
    ranks: int
    gpus: tuple[str, ...] = ()


def probe() -> Machine:
    """Looks, in a process of its own: Paddle takes memory, and crashes where its libraries do not fit the host's.

    Raises:
        UserError: Paddle is missing or too old, or does not work here.
    """
    command = [sys.executable, "-m", __name__]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"importing PaddlePaddle did not end within {_PROBE_SECONDS:.0f} s on this host") from error
    if found.returncode:
        last = "\n  ".join(found.stderr.strip().splitlines()[-_SHOWN_LINES:])
        raise UserError(f"PaddlePaddle does not work on this host (status {found.returncode}):\n  {last}")
    answer = json.loads(found.stdout.splitlines()[-1])
    if "problem" in answer:
        raise UserError(answer["problem"])
    return Machine(**answer)


def choose_devices(
    machine: Machine, kind: DeviceKind, names: Sequence[str], ranks: int | None, visible: str | None
) -> Devices:
    """Decides what the ranks of this host compute on.

    Args:
        machine: What there is.
        kind: What was asked for.
        names: GPUs that were asked for; none: all.
        ranks: How many ranks on the CPU were asked for.
        visible: CUDA_VISIBLE_DEVICES.

    Raises:
        UserError: There are no such devices, or the wishes contradict each other.
    """
    if names and (ranks is not None or kind == "cpu"):
        raise UserError("--devices names GPUs; ranks on the CPU are counted by --ranks. Give one of them")
    if ranks is not None and kind == "gpu":
        raise UserError("--ranks counts ranks on the CPU; a GPU has one rank, --devices names them. Give one of them")
    if ranks is not None or kind == "cpu":
        return Devices("cpu", ranks or 1)
    if not machine.gpus:
        if kind == "gpu" or names:
            why = "sees no GPU" if machine.cuda else "was built without CUDA; install paddle-distill[gpu]"
            raise UserError(f"GPUs were asked for, but this PaddlePaddle {why}. Ranks on the CPU: --ranks N")
        return Devices("cpu", 1)
    present = [name.strip() for name in visible.split(",")] if visible else [str(n) for n in range(machine.gpus)]
    if len(present) > machine.gpus:
        raise UserError(f"CUDA_VISIBLE_DEVICES is {visible!r}, but PaddlePaddle sees {machine.gpus} of these GPUs")
    absent = [name for name in names if name not in present]
    if absent or len(set(names)) < len(names):
        problem = f"no {', '.join(absent)}" if absent else "one of them twice"
        raise UserError(f"--devices {','.join(names)}: {problem}. This host shows {', '.join(present)}")
    chosen = tuple(names or present)
    return Devices("gpu", len(chosen), chosen)


def _look() -> dict[str, object]:
    try:
        paddle = import_paddle()
    except UserError as error:
        return {"problem": str(error)}
    cuda = bool(paddle.device.is_compiled_with_cuda())
    return asdict(Machine(paddle.__version__, cuda, paddle.device.cuda.device_count() if cuda else 0))


if __name__ == "__main__":
    print(json.dumps(_look()))
