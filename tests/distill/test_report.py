import json
import platform

import cv2
import numpy as np
import pytest

from distill import report
from distill.parallel import Device
from distill.report import environment, first_views_picture, processor, write_json, write_picture


def test_the_picture_shows_the_views_in_order():
    views = np.zeros((3, 3, 28, 28), np.uint8)
    for number in range(3):
        views[number, number] = 200  # red, green, blue
    picture = first_views_picture(views, data_format="NCHW", side_px=90)
    assert picture.shape == (30, 90, 3)
    for number in range(3):
        expected = np.eye(3, dtype=np.uint8)[number] * 200
        np.testing.assert_array_equal(picture[15, 30 * number + 15], expected)


@pytest.mark.parametrize("count", [1, 7, 9, 64, 100])
def test_both_layouts_give_the_same_picture(count):
    views = np.random.default_rng(0).integers(0, 255, (count, 3, 28, 28), dtype=np.uint8)
    as_nhwc = first_views_picture(views.transpose(0, 2, 3, 1), data_format="NHWC")
    np.testing.assert_array_equal(first_views_picture(views, data_format="NCHW"), as_nhwc)


def test_a_picture_survives_the_file(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    write_picture(tmp_path / "p.png", image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "p.png"))[:, :, ::-1], image)


def test_the_environment_is_json_and_names_the_device(tmp_path):
    write_json(tmp_path / "e.json", environment(Device("cpu", 2)))
    content = json.loads((tmp_path / "e.json").read_text())
    assert (content["device"], content["threads"]) == ("cpu", 2)
    assert content["processor"] == processor()


@pytest.mark.parametrize(
    ("cpuinfo", "described"),
    [
        (
            "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nflags\t\t: fma avx2 avx512f\n"
            "\nprocessor\t: 1\nmodel\t\t: 99\n",
            "AMD EPYC (family 25, model 17, AVX-512)",
        ),
        ("model name\t: Some\nflags\t\t: fma avx2\n", "Some (AVX2)"),
        ("model name\t: Some: CPU\n", "Some: CPU"),
        ("", platform.machine()),
    ],
)
def test_a_processor_is_told_from_others_of_its_name(tmp_path, monkeypatch, cpuinfo, described):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(report, "CPUINFO", tmp_path / "cpuinfo")
    assert processor() == described
