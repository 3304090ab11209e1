import os
import subprocess
import sys

import pytest

from distill import parallel
from distill.errors import UserError
from distill.parallel import THREADS_VARIABLE, import_paddle, setup_process


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ | environment
    )


def test_threads_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    assert setup_process("cpu").threads == len(os.sched_getaffinity(0))


def test_without_paddle_one_line_says_what_to_install(tmp_path):
    (tmp_path / "paddle.py").write_text("raise ImportError('no such library')")
    done = run_python("import distill.cli; distill.cli.main(['train', 'r.yaml'])", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    # the recipe is missing too; what comes first is the recipe, so ask for Paddle alone
    done = run_python("from distill.parallel import import_paddle; import_paddle()", PYTHONPATH=str(tmp_path))
    assert (
        "PaddlePaddle cannot be imported (no such library). Install it: pip install 'paddle-distill[cpu]'"
        in done.stderr
    )


def test_a_paddle_that_is_too_old_is_refused(monkeypatch):
    import paddle

    monkeypatch.setattr(paddle, "__version__", "2.5.1")
    with pytest.raises(UserError, match=r"PaddlePaddle 2\.5\.1 is too old, expected >= 2\.6\.2"):
        import_paddle()


def test_a_gpu_that_is_not_there_is_refused():
    import paddle

    if paddle.device.is_compiled_with_cuda():
        pytest.skip("this Paddle has CUDA")
    with pytest.raises(UserError, match="--device gpu: this PaddlePaddle was built without CUDA"):
        setup_process("gpu")


def test_importing_paddle_warns_nobody():
    done = run_python("from distill.parallel import import_paddle; import_paddle()")
    assert done.returncode == 0
    assert "arning" not in done.stderr


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("vendor_id : GenuineIntel\nflags : avx512f", None),
        ("vendor_id : AuthenticAMD\nflags : avx2 avx512f", "7"),
        ("vendor_id : AuthenticAMD\nflags : avx2", "5"),
    ],
)
def test_mkl_gets_its_fast_path_on_amd_only(monkeypatch, tmp_path, cpuinfo, expected):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(parallel, "CPUINFO", tmp_path / "cpuinfo")
    assert parallel._mkl_path_for_amd() == expected
