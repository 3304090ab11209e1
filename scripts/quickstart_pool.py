#!/usr/bin/env python3
"""The quick start's pool: 20,000 Fashion-MNIST images without labels, polluted on purpose.

Added are edited copies of test images, equal files, and patches of a photograph. `data-mining run
recipes/mining/fashion_mnist_pool.yaml` cleans it. The copies are whole pictures: with silhouettes of 28 px neither the
embedding nor the hash brings crops, rotations, overlays or borders near their originals (0-9 % were found); more of
them are with photographs, see scripts/experiments/mining_evidence.py. Everything is PNG files of some 28 px:

    FOLDER/images/...      the pool, in a random order
    FOLDER/truth.csv       what each image of it is
    FOLDER/test/...        the 10,000 test images, which must not leak

Usage: python scripts/quickstart_pool.py [FOLDER]      (default: data/fashion-mnist-pool in the checkout)
"""

import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from experiments.pollute import IMAGES_PER_FOLDER, KINDS, Picture, array_picture, plan_pool, write_pool

from distill.data.decode import decode_image
from distill.data.idx import read_idx
from distill.data.types import Image

ROOT = Path(__file__).resolve().parent.parent
FASHION_MNIST = ROOT / "data" / "fashion-mnist"
UNLABELLED = slice(1_000, 21_000)  # of the training images: the student has labels of those before, the teacher after
EDITS = ("jpeg_25", "resize", "flip", "colour", "blur")
COPIES_PER_EDIT = 200
DUPLICATES = 500
OFF_TOPIC = 2_000
SEED = 1  # the thresholds of recipes/mining/fashion_mnist_pool.yaml were tuned on the pool of seed 0


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "data" / "fashion-mnist-pool"
    if (folder / "truth.csv").exists():  # written last
        return 0
    test = pictures(read_idx(FASHION_MNIST / "t10k-images-idx3-ubyte.gz", dimensions=3), "test")
    write_test(folder / "test", test)
    train = read_idx(FASHION_MNIST / "train-images-idx3-ubyte.gz", dimensions=3)
    entries = plan_pool(
        pictures(train[UNLABELLED], "train", UNLABELLED.start),
        test,
        patches(OFF_TOPIC),
        duplicates=DUPLICATES,
        copies_per_edit=COPIES_PER_EDIT,
        edits=EDITS,
        seed=SEED,
    )
    truth = write_pool(folder, entries, seed=SEED)
    counts = (f"{sum(line.kind == kind for line in truth):,} {kind.replace('_', ' ')}" for kind in KINDS)
    print(f"The pool of {len(truth):,} images is in {folder}: {', '.join(counts)}")
    return 0


def pictures(images: np.ndarray, part: str, first: int = 0) -> list[Picture]:
    """Named by the number in their file, as `write_test` names the files."""
    return [array_picture(image, f"Fashion-MNIST/{part}/{file_name(first + n)}") for n, image in enumerate(images)]


def file_name(number: int) -> str:
    return f"{number // IMAGES_PER_FOLDER:03d}/{number:06d}.png"


def write_test(folder: Path, test: list[Picture]) -> None:
    for number, picture in enumerate(test):
        path = folder / file_name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.encoded())


def patches(count: int) -> list[Picture]:
    """Grey squares of 28 px, cut out of the portrait that comes with Matplotlib, at random places and scales."""
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    photograph = cv2.cvtColor(decode_image(path.read_bytes(), str(path)), cv2.COLOR_RGB2GRAY)
    rng = np.random.Generator(np.random.Philox(SEED))
    return [array_picture(_patch(photograph, rng), f"grace_hopper/{number}") for number in range(count)]


def _patch(photograph: Image, rng: np.random.Generator) -> Image:
    height, width = photograph.shape
    side = round(28 * 10 ** rng.uniform(0, 1))
    top, left = rng.integers(0, height - side), rng.integers(0, width - side)
    return cv2.resize(photograph[top : top + side, left : left + side], (28, 28), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    sys.exit(main())
