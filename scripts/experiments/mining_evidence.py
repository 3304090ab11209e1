#!/usr/bin/env python3
"""How well mining cleans a pool whose dirt is known: CIFAR-10 and photographs, polluted with all that mining removes.

    python scripts/experiments/mining_evidence.py --cifar10 CIFAR10 --photographs PHOTOGRAPHS

One command, called again for each next step; what is finished is kept:

1. It builds the pool and the lists of images, and says how to train the teacher.
2. With the teacher's weights it runs `data-mining`, states what was found (evidence.json, .md and .png), and says how
   to train the three students.
3. With the students' runs it adds what mining did to them; more seeds by
   `distill train recipes/cifar10/student_mined.yaml --set seed=1 --output runs/cifar10_student_mined-seed1`.

CIFAR10 holds train_list.txt and test_list.txt (lines `path label`) and the images; PHOTOGRAPHS holds images;
Fashion-MNIST, the images that are off the topic, comes from scripts/fashion_mnist.py.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import yaml
from findings import as_markdown, findings, read_fates
from pollute import EDITS, KINDS, Picture, array_picture, file_picture, plan_pool, read_truth, write_pool

from data_mining.recipe_file import load_mining_recipe
from distill.data.decode import decode_image
from distill.data.idx import read_idx

POOL_IMAGES = 48_000  # 375 batches of 128: students on all of it, or on the third that is chosen, get equal updates
CLEAN_IMAGES = 25_000  # of CIFAR-10; the teacher has the other half
CHOSEN_A_CLASS = 1_600
COPIES_PER_EDIT = 100  # of CIFAR-10's test images, and as many of photographs
DUPLICATES = 2_500
SEED = 1  # 0 is what the thresholds were looked at with

TEACHER_RUN = Path("runs/cifar10_teacher")
STUDENTS = {
    "student_mined": "the 16,000 that mining chose",
    "student_random": "16,000 of the pool at random",
    "student_unmined": "the whole pool",
}


def main() -> int:
    options = parse_arguments()
    output: Path = options.output
    truth = build(options) if not (output / "pool" / "truth.csv").exists() else read_truth(output / "pool")
    weights = options.teacher or TEACHER_RUN / "student.safetensors"
    if not weights.exists():
        print("The pool is built. Train the teacher, then call this again:\n")
        print("  distill train recipes/cifar10/teacher.yaml")
        return 0
    recipe = write_recipe(output, weights)
    command = [sys.executable, "-m", "data_mining", "run", str(recipe), "--output", str(output / "mining")]
    done = subprocess.run(command, check=False)
    if done.returncode:
        return done.returncode
    fates = read_fates(output / "mining", load_mining_recipe(recipe), output / "pool" / "images")
    values = findings(truth, fates)
    values["students"] = student_results()
    write_random_list(output, sum(fate.chosen for fate in fates.values()))
    report(output, values)
    missing = [name for name in STUDENTS if name not in values["students"]]
    if missing:
        print("\nFor what mining does to a student, train these, then call this again:\n")
        print(*(f"  distill train recipes/cifar10/{name}.yaml" for name in missing), sep="\n")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, help="the folder with train_list.txt")
    parser.add_argument("--photographs", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--fashion-mnist", type=Path, default=Path("data/fashion-mnist"), help="IDX files")
    parser.add_argument("--output", type=Path, default=Path("runs/mining_evidence"), help="as the recipes expect it")
    parser.add_argument("--teacher", type=Path, help=f"weights; default: those in {TEACHER_RUN}")
    return parser.parse_args()


# --- the pool ---------------------------------------------------------------------------------


def build(options: argparse.Namespace) -> Any:
    """Writes the pool, then the lists of images."""
    rng = np.random.Generator(np.random.Philox(SEED))
    train, test = (read_list(options.cifar10, f"{part}_list.txt") for part in ("train", "test"))
    train = [train[number] for number in rng.permutation(len(train))]
    photographs = sorted(path for path in options.photographs.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    photographs = [photographs[number] for number in rng.permutation(len(photographs))]
    guarded, others = photographs[: len(photographs) // 2], photographs[len(photographs) // 2 :]
    clean = cifar_pictures(train[:CLEAN_IMAGES], options.cifar10) + photograph_pictures(others)
    entries = [
        *plan_leaks(cifar_pictures(test, options.cifar10), 1),
        *plan_leaks(photograph_pictures(guarded), 2),
    ]
    room = POOL_IMAGES - len(entries) - len(clean) - DUPLICATES
    off_topic = fashion_pictures(options.fashion_mnist / "train-images-idx3-ubyte.gz", room)
    entries += plan_pool(clean, [], off_topic, duplicates=DUPLICATES, copies_per_edit=0, seed=SEED)
    entries = [entries[number] for number in rng.permutation(len(entries))]
    print(f"writing {len(entries):,} images to {options.output / 'pool'} ...", flush=True)
    lists = options.output / "lists"
    lists.mkdir(parents=True, exist_ok=True)
    write_list(lists / "teacher.txt", [f"{path} {label}" for path, label in train[CLEAN_IMAGES:]])
    write_list(lists / "test.txt", [f"{path} {label}" for path, label in test])
    write_list(lists / "photographs.txt", [str(path.absolute()) for path in guarded])
    truth = write_pool(options.output / "pool", entries, seed=SEED)
    write_list(lists / "unmined.txt", [str((options.output / "pool/images" / line.path).absolute()) for line in truth])
    return truth


def plan_leaks(pictures: Sequence[Picture], seed: int) -> Any:
    return plan_pool([], pictures, [], duplicates=0, copies_per_edit=COPIES_PER_EDIT, seed=seed)


def read_list(folder: Path, name: str) -> list[tuple[Path, int]]:
    """The absolute paths and labels of a list."""
    lines = (line.rsplit(" ", 1) for line in (folder / name).read_text().splitlines())
    return [((folder / path).absolute(), int(label)) for path, label in lines]


def write_list(path: Path, lines: Sequence[str]) -> None:
    path.write_text("\n".join(lines) + "\n")


def cifar_pictures(entries: Sequence[tuple[Path, int]], folder: Path) -> list[Picture]:
    root = folder.absolute()
    return [file_picture(path, f"CIFAR-10/{path.relative_to(root)}") for path, _ in entries]


def photograph_pictures(paths: Sequence[Path]) -> list[Picture]:
    return [file_picture(path, f"photographs/{path.name}") for path in paths]


def fashion_pictures(path: Path, count: int) -> list[Picture]:
    images = read_idx(path, dimensions=3)[:count]
    return [array_picture(image, f"Fashion-MNIST/{number}") for number, image in enumerate(images)]


def write_random_list(output: Path, count: int) -> None:
    """As many images as were chosen, of the whole pool."""
    lines = (output / "lists" / "unmined.txt").read_text().splitlines()
    numbers = np.random.Generator(np.random.Philox(SEED)).choice(len(lines), count, replace=False)
    write_list(output / "lists" / "random.txt", [lines[number] for number in np.sort(numbers)])


# --- mining -----------------------------------------------------------------------------------


def write_recipe(output: Path, weights: Path) -> Path:
    """The mining recipe.

    Its thresholds are for images of 32 px: of 1,500 pairs of unrelated test images none had more than 4 inliers; pairs
    of one motif by one photographer have 8-12, which a person must judge; from 13 they are one photograph.
    """
    lists = output / "lists"
    values = {
        "name": "mining_evidence",
        "description": "CIFAR-10 and photographs, polluted on purpose",
        "pool": {"sources": [{"kind": "folder", "root": str(output / "pool/images")}]},
        "protected": [
            {"name": name, "sources": [{"kind": "image_list", "path": str(lists / f"{file}.txt"), "root": "."}]}
            for name, file in (("cifar10_test", "test"), ("photographs", "photographs"))
        ],
        "teacher": {
            "kind": "network",
            "name": "ResNet18_vd",
            "width": 0.25,
            "stem_stride": 2,
            "weights": str(weights),
            "num_classes": 10,
            "resize_short_px": 32,
            "crop_px": 32,
            "normalization": {"mean": [0.491, 0.482, 0.447], "std": [0.247, 0.243, 0.262]},
        },
        "score": {"top_classes": 5, "embedding_dim": 128, "whiten": True},
        "leaks": {
            "min_cosine": 0.45,
            "altered_min_cosine": 0.6,
            "max_hash_bits": 12,
            "verification": {"side_px": 128, "drop_inliers": 13, "review_inliers": 8},
            "drop_review_band": True,
        },
        "duplicates": {"min_cosine": 0.98, "max_hash_bits": 2},
        "select": {"kind": "by_class", "images_per_class": CHOSEN_A_CLASS},
        "runtime": {"device": "cpu"},
    }
    path = output / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


# --- the report -------------------------------------------------------------------------------


def student_results() -> dict[str, list[float]]:
    """The accuracies of the students that are trained, of one seed or of several."""
    found = {}
    for name in STUDENTS:
        paths = sorted(Path("runs").glob(f"cifar10_{name}*/result.json"))
        if paths:
            found[name] = [json.loads(path.read_text())["train"]["evaluation"]["top1"] for path in paths]
    return found


def report(output: Path, values: dict[str, Any]) -> None:
    """Writes the JSON, the Markdown and the picture, and prints the Markdown."""
    text = "# What mining found in a pool polluted on purpose\n\n" + as_markdown(values)
    if values["students"]:
        lines = [f"| {STUDENTS[name]} | {as_percent(top1)} |" for name, top1 in values["students"].items()]
        text += "\n### A student on\n\n| images | top-1 |\n| --- | --- |\n" + "\n".join(lines) + "\n"
    (output / "evidence.json").write_text(json.dumps(values, indent=2) + "\n")
    (output / "evidence.md").write_text(text)
    draw(output, values)
    print(text)
    print(*(f"wrote {output / 'evidence'}.{suffix}" for suffix in ("json", "md", "png")), sep="\n")


def as_percent(top1: Sequence[float]) -> str:
    """Mean and standard deviation of the seeds."""
    spread = f" +- {100 * statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
    return f"{100 * statistics.mean(top1):.2f}{spread} % ({len(top1)} seed{'s' if len(top1) > 1 else ''})"


def draw(output: Path, values: dict[str, Any]) -> None:
    """Recall by edit, the composition before and after, and what left though nobody planted it."""
    figure = plt.figure(figsize=(13, 7.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.7, 1])
    recall, kinds = upper.subplots(1, 2, width_ratios=[2.2, 1])
    draw_recall(recall, values["leaks_by_edit"])
    draw_composition(kinds, values["composition"])
    draw_pairs(lower, output / "pool" / "images", values["false_removals"])
    figure.savefig(output / "evidence.png", dpi=110)
    plt.close(figure)


def draw_recall(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    sources = sorted({row["source"] for row in rows})
    places = np.arange(len(EDITS))
    width = 0.8 / max(1, len(sources))
    for number, (source, colour) in enumerate(zip(sources, ("#1f5f8b", "#dd8452"), strict=False)):
        by_edit = {row["edit"]: row for row in rows if row["source"] == source}
        planted = np.array([by_edit[edit]["planted"] for edit in EDITS])
        dropped = 100 * np.array([by_edit[edit]["dropped"] for edit in EDITS]) / planted
        review = 100 * np.array([by_edit[edit]["review"] for edit in EDITS]) / planted
        x = places + (number - (len(sources) - 1) / 2) * width
        axis.bar(x, dropped, width, color=colour, label=f"{source}, dropped")
        axis.bar(x, review, width, bottom=dropped, color=colour, alpha=0.4, label=f"{source}, to review")
    axis.set_xticks(places, [edit.replace("_", " ") for edit in EDITS], rotation=30, ha="right")
    axis.set(ylim=(0, 105), ylabel="% of the copies", title="Copies of protected images that were found")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=4, fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def draw_composition(axis: Any, counts: dict[str, dict[str, int]]) -> None:
    colours = ("#4c9f70", "#c44e52", "#dd8452", "#8a8f98")
    for place, title in enumerate(("pool", "list")):
        total, bottom = sum(counts[kind][title] for kind in KINDS), 0.0
        for kind, colour in zip(KINDS, colours, strict=True):
            share = 100 * counts[kind][title] / total
            label = kind.replace("_", " ") if place == 0 else None
            axis.bar(place, share, 0.6, bottom=bottom, color=colour, label=label)
            bottom += share
    axis.set_xticks([0, 1], ["the pool", "the list"])
    axis.set(ylabel="%", title="What it consists of")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def draw_pairs(figure: Any, images: Path, rows: Sequence[dict[str, Any]], most: int = 12) -> None:
    figure.suptitle(f"Dropped as leaks, though not planted: {len(rows)}. Above: of the pool; below: protected")
    if not rows:
        return
    # evenly from the most to the least certain
    shown = [rows[number] for number in np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))]
    for column, axes in enumerate(np.reshape(figure.subplots(2, most), (2, most)).T):
        for axis in axes:
            axis.axis("off")
        if column < len(shown):
            for axis, path in zip(axes, (images / shown[column]["path"], Path(shown[column]["shows"])), strict=True):
                axis.imshow(decode_image(path.read_bytes(), str(path)))
            axes[0].set_title(f"{shown[column]['inliers']} inliers", fontsize=8)


if __name__ == "__main__":
    sys.exit(main())
