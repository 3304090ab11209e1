from collections.abc import Callable
from pathlib import Path

import pytest

from distill import cli
from distill.models import create_model
from distill.weights import write_weights


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a ResNet18_vd x 0.125 with 10 classes, fresh."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model = create_model("ResNet18_vd", 10, width=0.125)
    write_weights(path, {name: value.numpy() for name, value in model.state_dict().items()})
    return path


@pytest.fixture
def run_cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line of `distill`; returns exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            cli.main([*map(str, arguments)])
        output, errors = capfd.readouterr()
        return int(leaving.value.code or 0), output, errors

    return run
