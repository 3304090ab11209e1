"""What a run leaves for people: its environment, its result, the picture of the first views."""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from distill.files import write_atomically
from distill.parallel import CPUINFO, Device

_PACKAGES = (
    "paddlepaddle",
    "paddlepaddle-gpu",
    "numpy",
    "grain",
    "opencv-python-headless",
    "simplejpeg",
    "safetensors",
    "onnx",
    "onnxruntime",
)

_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}
"""Widest first: the kernel's name of it, and everybody's."""


def environment(device: Device) -> dict[str, Any]:
    """Versions, hardware and command of this process, for `environment.json`."""
    return {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "project": version("paddle-distill"),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version_or_none(name))},
        "processor": processor(),
        "device": device.kind,
        "threads": device.threads,
    }


def git_commit() -> str | None:
    """The commit of the checkout this code lies in, with "+" where files differ; None outside one."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def processor() -> str:
    """The processor as the kernel describes it, e.g. "AMD EPYC (family 25, model 17, AVX-512)".

    The hosts of a cloud often have nothing but the name in common.
    """
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return platform.processor()
    # reversed: of all the processors that are listed, the first one's lines remain
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = facts.get("flags", "").split()
    vectors = next((name for flag, name in _VECTORS.items() if flag in flags), "")
    details = [f"{key.split()[-1]} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    described = ", ".join([*details, vectors] if vectors else details)
    return facts.get("model name", platform.machine()) + (f" ({described})" if described else "")


def device_name(device: Device) -> str:
    """Of what computes: a GPU's name, or `processor`."""
    if device.kind == "cpu":
        return processor()
    import paddle

    return str(paddle.device.cuda.get_device_name())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON that a crash cannot leave half done."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def _version_or_none(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def first_views_picture(images: np.ndarray, *, data_format: str, side_px: int = 1024) -> np.ndarray:
    """Up to 64 views as one picture, so that a person sees what the networks see.

    Args:
        images: uint8 [N, 3, S, S] or, with data_format "NHWC", [N, S, S, 3].
        data_format: "NCHW" or "NHWC".
        side_px: About the picture's width.

    Returns:
        uint8 [H, W, 3], RGB.
    """
    views = images.transpose(0, 2, 3, 1) if data_format == "NCHW" else images
    columns = min(8, len(views))
    rows = min(8, len(views) // columns)
    scale = max(1, side_px // (columns * views.shape[1]))
    grid = views[: rows * columns].reshape(rows, columns, *views.shape[1:])
    grid = np.pad(grid, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    picture = grid.transpose(0, 2, 1, 3, 4).reshape(rows * grid.shape[2], columns * grid.shape[3], 3)
    return picture.repeat(scale, 0).repeat(scale, 1)


def write_picture(path: Path, image: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] RGB as a PNG."""
    import cv2

    ok, encoded = cv2.imencode(".png", image[:, :, ::-1])
    if not ok:
        raise ValueError(f"{path}: cannot encode a picture of shape {image.shape} and dtype {image.dtype}")
    write_atomically(path, encoded.tobytes())
