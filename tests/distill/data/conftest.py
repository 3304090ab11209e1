from pathlib import Path

import cv2
import numpy as np
import pytest

from distill.data.image_list import open_image_list
from distill.recipe import RuntimeSection, Stage

IMAGES = 23


def picture(index, height, width):
    """A smooth colour picture that no other index has."""
    small = np.random.default_rng(index).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def write_picture(path, image):
    assert cv2.imwrite(str(path), image[:, :, ::-1])


@pytest.fixture(scope="session")
def make_picture():
    return picture


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """IMAGES pictures of different sizes, JPEG and PNG, and list.txt with the labels 0-6."""
    folder = tmp_path_factory.mktemp("images")
    lines = []
    for index in range(IMAGES):
        name = f"{index:02d}.{'png' if index % 3 == 0 else 'jpg'}"
        write_picture(folder / name, picture(index, 40 + 3 * index, 90 - 2 * index))
        lines.append(f"{name} {index % 7}\n")
    (folder / "list.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def images(image_folder):
    return open_image_list(image_folder / "list.txt", image_folder, 7)


@pytest.fixture
def listed(tmp_path):
    """Opens a list with the given content."""

    def open_content(content: bytes | str, num_classes=10):
        path = tmp_path / "list.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return open_image_list(Path(path), tmp_path, num_classes)

    return open_content


@pytest.fixture(scope="session")
def make_stage():
    """A stage whose data part matters here; keywords replace its keys."""

    def make(**changes):
        stage = {
            "name": "s",
            "epochs": 3,
            "global_batch_size": 8,
            "device_batch_size": 4,
            "data": {"sources": [{"kind": "class_folders", "root": "unused"}]},
            "view": {
                "size_px": 32,
                "crop": {
                    "kind": "random_area",
                    "scale": [0.08, 1.0],
                    "ratio": [0.75, 4 / 3],
                    "sampling": "published",
                },
                "horizontal_flip": 0.5,
            },
            "mixup": {"alpha": 0.2, "group_size": 2},
            "normalization": {"mean": [0, 0, 0], "std": [1, 1, 1]},
            "evaluation": {
                "sources": [{"kind": "class_folders", "root": "unused"}],
                "resize_short_px": 40,
                "crop_px": 32,
                "batch_size": 5,
            },
            "loss": {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.0}},
            "optimizer": {
                "kind": "momentum",
                "learning_rate": 0.1,
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 0.0,
                "decay_bias_and_norm": False,
            },
            "schedule": {"kind": "constant", "warmup_epochs": 0},
        }
        return Stage.model_validate(stage | changes)

    return make


@pytest.fixture(scope="session")
def runtime():
    return lambda **changes: RuntimeSection.model_validate({"prefetch_batches": 2} | changes)
