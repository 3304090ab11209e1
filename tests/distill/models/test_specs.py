import subprocess
import sys

import pytest

from distill.models import model_names
from distill.models.specs import NAMINGS, SPECS, check_model_name

SERIES = """ResNet18 ResNet18_vd ResNet34 ResNet34_vd ResNet50 ResNet50_vc ResNet50_vd ResNet101 ResNet101_vd ResNet152
ResNet152_vd ResNet200_vd ResNeXt101_32x8d_wsl ResNeXt101_32x16d_wsl ResNeXt101_32x32d_wsl ResNeXt101_32x48d_wsl"""


def test_the_series_is_complete() -> None:
    assert model_names() == SERIES.split()
    assert all(spec.name == name and spec.naming in NAMINGS for name, spec in SPECS.items())


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("ResNet50vd", "ResNet50_vd"), ("resnet18", "ResNet18"), ("ResNeXt101_32x16_wsl", "ResNeXt101_32x16d_wsl")],
)
def test_an_unknown_name_lists_the_valid_ones_and_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError) as error:
        check_model_name(name)
    assert f"unknown model {name!r}. Did you mean {nearest!r}?" in str(error.value)
    assert all(valid in str(error.value) for valid in SERIES.split())


def test_names_and_the_zoo_do_without_paddle() -> None:
    code = (
        "import sys, distill.models, distill.models.plan, distill.benchmark.zoo\n"
        "assert not {'paddle', 'numpy', 'grain', 'cv2'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
