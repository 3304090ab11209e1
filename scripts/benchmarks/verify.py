"""Measures the geometric check of a pair of images: its time, what it finds of copies under edits, and false alarms.

    python scripts/benchmarks/verify.py [--images FOLDER] [--count 200] [--side 256]

Without a folder, scikit-image's bundled photographs are used: enough to see that it works, too few for rates. Each
photograph is edited (see `scripts/experiments/pollute.py`) and compared with its original and with the mirrored
original, as the stage `leaks` does; the better count of inliers is kept. False alarms: each photograph with some
others, none of which shows the same, both ways too.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from skimage import data

from data_mining.verify import Features, describe, inliers
from distill.data.decode import decode_image
from distill.data.types import Image

sys.path.append(str(Path(__file__).parents[1] / "experiments"))
from pollute import EDITS

RATIO, RANSAC_PX = 0.8, 5.0
THRESHOLDS = (6, 8, 10, 12, 16, 24, 32)
UNRELATED_PER_IMAGE = 12
SUFFIXES = (".jpg", ".jpeg", ".png")
BUNDLED = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "retina", "hubble_deep_field")

Both = tuple[Features, Features]
"""Of an image and of its mirror image."""


def photographs(folder: Path | None, count: int) -> list[Image]:
    """Up to `count` images, evenly spread over the sorted files of a folder."""
    if folder is None:
        return [np.ascontiguousarray(getattr(data, name)()[..., :3]) for name in BUNDLED[:count]]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"{folder}: expected images ({', '.join(SUFFIXES)}), found none")
    size = min(count, len(files))
    chosen = [files[number * len(files) // size] for number in range(size)]
    return [decode_image(path.read_bytes(), str(path)) for path in chosen]


def count_inliers(copy: Features, original: Both) -> int:
    """The better of the original and the mirrored match."""
    return max(inliers(copy, each, ratio=RATIO, ransac_px=RANSAC_PX) for each in original)


def unrelated(originals: Sequence[Both]) -> Iterator[int]:
    """The inliers of each image with a few before it."""
    for number, (one, _) in enumerate(originals):
        for other in originals[max(0, number - UNRELATED_PER_IMAGE) : number]:
            yield count_inliers(one, other)


def shares(counts: Sequence[int]) -> dict[str, float]:
    """Of all pairs, those that reach each threshold, and the median."""
    values = np.asarray(counts)
    reached = {f">={least}": round(float((values >= least).mean()), 4) for least in THRESHOLDS}
    return {"median": float(np.median(values)), **reached}


def measure(images: Sequence[Image], side: int) -> Iterator[dict[str, object]]:
    """A row for the times and false alarms, and one for each edit."""
    started = time.perf_counter()
    plain = [describe(image, side) for image in images]
    describe_ms = 1e3 * (time.perf_counter() - started) / len(images)
    mirrored = [describe(np.ascontiguousarray(image[:, ::-1]), side) for image in images]
    originals = list(zip(plain, mirrored, strict=True))
    started = time.perf_counter()
    false_alarms = list(unrelated(originals))
    pairs_s = time.perf_counter() - started
    yield {
        "images": len(images),
        "side_px": side,
        "keypoints": round(float(np.mean([len(each.points) for each in plain])), 1),
        "describe_ms": round(describe_ms, 2),
        "pair_ms": round(1e3 * pairs_s / (2 * len(false_alarms)), 2) if false_alarms else None,
    }
    if false_alarms:
        yield {"unrelated pairs": len(false_alarms), "most": max(false_alarms), **shares(false_alarms)}
    for name, edit in EDITS.items():
        random = np.random.default_rng(0)
        copies = [describe(edit(image, random), side) for image in images]
        yield {"edit": name, **shares([count_inliers(*pair) for pair in zip(copies, originals, strict=True)])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="photographs, none of them twice")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--side", type=int, default=256, help="short side in px that both images are resized to")
    options = parser.parse_args()
    if options.count < 1:
        parser.error(f"--count must be at least 1, received {options.count}")
    cv2.setNumThreads(1)  # times are of one core
    for row in measure(photographs(options.images, options.count), options.side):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
