"""Small real data for all tests: 1,797 handwritten digits (scikit-learn), enlarged to 28 px."""

import contextlib
import gzip
import resource
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import settings

from distill.parallel import setup_process

# The same examples on every machine, so that a test fails for everybody or for nobody; look for new ones with
# scripts/test --hypothesis-profile=search
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=2000, deadline=None)
settings.load_profile("same")

DIGITS_RECIPE = """\
name: digits
description: Digits in small
seed: 3
num_classes: 10
model: {name: ResNet18_vd, width: 0.0625, stem_stride: 4}
epochs: 2
global_batch_size: 32
device_batch_size: 16
data:
  sources:
    - {kind: idx, images: DATA/train-images.gz, labels: DATA/train-labels.gz, range: [0, 200]}
view:
  size_px: 28
  crop: {kind: padded, padding_px: 2}
  horizontal_flip: 0.5
normalization: {mean: [0.3, 0.3, 0.3], std: [0.38, 0.38, 0.38]}
loss:
  cross_entropy: {weight: 1.0, label_smoothing: 0.1}
optimizer:
  kind: momentum
  learning_rate: 0.05
  momentum: 0.9
  nesterov: true
  weight_decay: 1e-4
  decay_bias_and_norm: false
schedule: {kind: cosine, warmup_epochs: 0.5, end_learning_rate: 0.0}
evaluation:
  sources:
    - {kind: idx, images: DATA/test-images.gz, labels: DATA/test-labels.gz}
  resize_short_px: 28
  crop_px: 28
  every_epochs: 1
runtime: {log_every_steps: 3}
"""


@pytest.fixture(scope="session", autouse=True)
def _process() -> None:
    """Threads and MKL's fast path, as in every real run."""
    setup_process("cpu")


@dataclass(frozen=True)
class Digits:
    """Where the digits lie, as IDX files."""

    folder: Path

    def recipe(self, target: Path, **changes: object) -> Path:
        """Writes the digits' recipe, with top-level keys replaced (None: left out), to `target`."""
        content = yaml.safe_load(DIGITS_RECIPE.replace("DATA", str(self.folder)).replace("1e-4", "0.0001"))
        content |= changes
        target.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False))
        return target


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """1,500 digits to train on and 297 to test on."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    bunch = load_digits()
    images = np.kron(bunch.images, np.ones((3, 3))) * (255 / 16)
    images = np.pad(images.astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    for part, rows in {"train": slice(0, 1500), "test": slice(1500, None)}.items():
        write_idx(folder / f"{part}-images.gz", images[rows])
        write_idx(folder / f"{part}-labels.gz", bunch.target[rows].astype(np.uint8))
    return Digits(folder)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Writes uint8 as the MNIST files are written: magic number, big-endian sizes, bytes."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=1))


@pytest.fixture
def small_files_only():
    """A real write error, as on a full disk: the system refuses to let files grow beyond some bytes."""

    @contextlib.contextmanager
    def limited(size_bytes):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
