"""The one place that prepares a process for its device: threads, MKL's path, Paddle's version, seed.

Call `setup_process` before the first matrix product. Eager Paddle on a CPU is slow for two reasons
that both end here: importing it leaves one BLAS thread, and its bundled MKL takes a slow path on AMD
processors (measured: 3.0 -> 10.7-13.4 images/s for a ResNet50 forward pass on two Zen 4 cores).
"""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distill.distributed.rank import Rank
from distill.errors import UserError

DeviceKind = Literal["cpu", "gpu", "auto"]
OLDEST_PADDLE = "2.6.2"
CPUINFO = Path("/proc/cpuinfo")
THREADS_VARIABLE = "DISTILL_CPU_THREADS"
"""Environment variable: CPU threads of a process; absent: the cores it may use, shared among the ranks of its host."""


@dataclass(frozen=True)
class Device:
    """Where a process computes.

    Attributes:
        kind: "cpu" or "gpu".
        threads: BLAS threads on a CPU. Sums are ordered differently with another number, so bitwise
            repeatability needs the same one.
    """

    kind: str
    threads: int


def setup_process(device: DeviceKind = "auto", *, seed: int = 0, rank: Rank | None = None) -> Device:
    """Imports Paddle, checks it, and sets device, threads and the seed of weight initialisation.

    Args:
        device: "auto" takes the GPU where Paddle was built for one and sees one.
        seed: Of Paddle's generator, >= 0.
        rank: Of this process, where several train together: each takes a GPU of its own, or its share of the cores.

    Raises:
        UserError: Paddle is missing or too old, there is no such device, or `THREADS_VARIABLE` is no number.
    """
    rank = rank or Rank()
    threads = _threads(rank)
    mkl_path = _mkl_path_for_amd()
    if mkl_path is not None:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", mkl_path)
    paddle = import_paddle()
    kind = _choose_device(paddle, device)
    paddle.set_device(kind if rank.size == 1 or kind == "cpu" else f"gpu:{_gpu_of(rank)}")
    if kind == "cpu":
        paddle.base.core.set_num_threads(threads)
        from distill.onednn.library import use_threads  # imports Paddle

        use_threads(threads)
    paddle.seed(seed % 2**63)
    return Device(kind=kind, threads=threads)


def _threads(rank: Rank) -> int:
    text = os.environ.get(THREADS_VARIABLE, "")
    if not text:
        return max(1, len(os.sched_getaffinity(0)) // rank.local_size)
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"the environment variable {THREADS_VARIABLE} must be a whole number >= 1, received {text!r}")
    return int(text)


def _gpu_of(rank: Rank) -> int:
    """The GPU that Paddle's launcher chose for a rank, among those that the process sees."""
    chosen = os.environ.get("FLAGS_selected_gpus", "")  # noqa: SIM112 - Paddle's name
    return int(chosen) if chosen.isdecimal() else rank.local_number


def import_paddle() -> Any:
    """Imports Paddle, or says in one line what to install."""
    install = "pip install 'paddle-distill[cpu]' (or [gpu])"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import paddle
    except ImportError as error:
        raise UserError(f"PaddlePaddle cannot be imported ({error}). Install it: {install}") from error
    from packaging.version import Version

    if paddle.__version__ != "0.0.0" and Version(paddle.__version__) < Version(OLDEST_PADDLE):
        raise UserError(f"PaddlePaddle {paddle.__version__} is too old, expected >= {OLDEST_PADDLE}: {install}")
    return paddle


def _choose_device(paddle: Any, device: DeviceKind) -> str:
    gpus = paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0
    if device == "gpu" and not gpus:
        built = "sees no GPU" if paddle.device.is_compiled_with_cuda() else "was built without CUDA"
        raise UserError(f"--device gpu: this PaddlePaddle {built}. Use --device cpu, or install paddle-distill[gpu]")
    return "gpu" if gpus and device != "cpu" else "cpu"


def _mkl_path_for_amd() -> str | None:
    """MKL_DEBUG_CPU_TYPE for this processor: 7 with AVX-512, else 5; None where MKL chooses well itself.

    5 is up to 10 % faster than 7 on an idle Zen 4 and falls back to a fifth on a busy one.
    """
    try:
        cpu = CPUINFO.read_text()
    except OSError:
        return None
    if "AuthenticAMD" not in cpu:
        return None
    return "7" if "avx512f" in cpu else "5"
