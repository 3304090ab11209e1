"""The quick start's main job: mining, then two students; a table and a picture. Start it with scripts/quickstart."""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import quickstart_funnel
from matplotlib.axes import Axes
from quickstart_funnel import Step, read_funnel
from rich.console import Console
from rich.table import Table

from distill.benchmark.count import multiply_accumulates, parameters
from distill.data.idx import IdxImages
from distill.metrics import read_metrics
from distill.models.plan import plan_network
from distill.models.specs import SPECS
from distill.recipe import ModelSection
from distill.recipe.file import load_recipe
from distill.report import write_picture

RECIPES = Path("recipes/fashion_mnist")
TEACHER_WEIGHTS = RECIPES / "teacher.safetensors"
TEST_IMAGES = Path("data/fashion-mnist/t10k-images-idx3-ubyte.gz")
CLASSES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
RUNS = {"baseline": "1,000 labels alone", "distilled": "taught on mined images, no labels"}
POOL = Path("data/fashion-mnist-pool")
MINING_RECIPE = Path("recipes/mining/fashion_mnist_pool.yaml")
MINED = Path("runs/fashion_mnist_pool")  # where recipes/fashion_mnist/distilled.yaml looks for the list
HEADINGS = ("", "network", "top-1 %", "parameters", "MACs", "time")
COLOURS = ("#8a8f98", "#c44e52", "#4c8dbf", "#1f5f8b")


@dataclass(frozen=True)
class Row:
    """A line of the table: accuracies in [0, 1] of one or more seeds."""

    name: str
    model: ModelSection
    top1: Sequence[float]
    seconds: float | None


def main() -> int:
    options = parse_arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    weights = teacher_weights(options)
    teacher = evaluate_teacher(weights)
    funnel = mine(weights)
    for seed in range(options.seeds):
        for name in RUNS:
            settings = [f"seed={seed}"]
            if name == "distilled":
                settings.append(f"teacher.models.0.weights={weights}")
            train(name, run_folder(options.output, name, seed), settings)
    rows = collect(options, teacher)
    print_tables(rows, funnel, options.output)
    draw(rows, funnel, options)
    examples = save_examples(options.output / "examples")
    print(f"\nTables:  {options.output / 'quickstart.md'}\nPicture: {options.output / 'quickstart.png'}")
    print(f"Mining:  {MINED / 'report.html'} shows what was left out, and why")
    print(f"Ask the student: distill predict {examples}/*.png --top-k 2 --class-names {examples}/classes.txt \\")
    print(f"                   --run {run_folder(options.output, 'distilled', 0)}")
    print(f"Runs:    {options.output} (visualdl --logdir {options.output} shows every curve)")
    print(f"Done in {(time.monotonic() - started) / 60:.1f} minutes; a second run reuses all of it.")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/quickstart",
        description="A small network on Fashion-MNIST: 1,000 labels alone against the same network distilled from a "
        "teacher on images without labels. Those are mined from a pool of 23,500, which has copies of test images, "
        "duplicates and images of something else. Ends with tables, a picture and mining's report. What is finished is "
        "reused.",
    )
    parser.add_argument("--seeds", type=int, default=1, help="how often to train each student (default 1)")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="default: runs/quickstart")
    parser.add_argument(
        "--train-teacher",
        action="store_true",
        help="train the teacher too (half an hour on two cores) instead of taking the weights that ship with it",
    )
    return parser.parse_args()


def teacher_weights(options: argparse.Namespace) -> Path:
    """The weights that ship with the project, or those of a teacher trained now."""
    if not options.train_teacher:
        return TEACHER_WEIGHTS
    train("teacher", options.output / "teacher", [])
    return Path(options.output / "teacher" / "student.safetensors")


def train(recipe: str, folder: Path, settings: Sequence[str]) -> None:
    """Runs or resumes `distill train`, in the words that a user would type."""
    command = ["train", str(RECIPES / f"{recipe}.yaml"), "--output", str(folder), "--resume"]
    distill([*command, *(word for setting in settings for word in ("--set", setting))])


def mine(weights: Path) -> list[Step]:
    """Builds the pool and mines the list that the student trains on; says what became of the pool."""
    call("python scripts/quickstart_pool.py", [sys.executable, "scripts/quickstart_pool.py"])
    arguments = ["run", str(MINING_RECIPE), "--output", str(MINED)]
    if weights != TEACHER_WEIGHTS:
        arguments += ["--set", f"teacher.weights={weights}"]
    call(f"data-mining {shlex.join(arguments)}", [sys.executable, "-m", "data_mining", *arguments])
    return read_funnel(MINED, POOL)


def distill(arguments: Sequence[str], *, capture: bool = False) -> str:
    return call(f"distill {shlex.join(arguments)}", [sys.executable, "-m", "distill", *arguments], capture=capture)


def call(shown: str, command: Sequence[str], *, capture: bool = False) -> str:
    """Shows a command as a user would type it, runs it, and stops with its exit status if it fails."""
    print(f"\n$ {shown}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def evaluate_teacher(weights: Path) -> float:
    """The teacher's accuracy on the test images."""
    arguments = ["evaluate", str(RECIPES / "teacher.yaml"), "--weights", str(weights), "--json"]
    return float(json.loads(distill(arguments, capture=True))["top1"])


def run_folder(output: Path, name: str, seed: int) -> Path:
    return output / f"{name}-seed{seed}"


def save_examples(folder: Path) -> Path:
    """Writes the first test image of each class as a PNG, and the classes' names, for `distill predict`."""
    folder.mkdir(exist_ok=True)
    images = IdxImages(TEST_IMAGES, TEST_IMAGES.with_name("t10k-labels-idx1-ubyte.gz"), len(CLASSES))
    for label, name in enumerate(CLASSES):
        write_picture(folder / f"{name}.png", images.read(int((images.labels == label).argmax())))
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def collect(options: argparse.Namespace, teacher: float) -> list[Row]:
    """Reads what the runs left."""
    students: dict[str, list[tuple[float, float]]] = {}
    for seed in range(options.seeds):
        for name in RUNS:
            spent = 0.0
            results = json.loads((run_folder(options.output, name, seed) / "result.json").read_text())
            for stage, result in results.items():
                spent += result["seconds"]
                title = {
                    "train": RUNS["baseline"],
                    "pool": RUNS["distilled"],
                    "finetune": "then finetuned on the 1,000",
                }
                students.setdefault(title[stage], []).append((result["evaluation"]["top1"], spent))
    student = load_recipe(RECIPES / "baseline.yaml").model
    return [Row("teacher (39,000 other labels)", load_recipe(RECIPES / "teacher.yaml").model, [teacher], None)] + [
        Row(title, student, [top1 for top1, _ in runs], statistics.mean(seconds for _, seconds in runs))
        for title, runs in students.items()
    ]


def print_tables(rows: Sequence[Row], funnel: Sequence[Step], output: Path) -> None:
    """Shows what mining did and what the networks reached, and keeps both as Markdown."""
    mined = (quickstart_funnel.TITLE, quickstart_funnel.HEADINGS, [step.cells for step in funnel])
    reached = ("Fashion-MNIST, 10,000 test images", HEADINGS, [cells(row) for row in rows])
    text = ""
    for title, headings, lines in (mined, reached):
        table = Table(title=title)
        for heading in headings:
            table.add_column(heading, justify="left" if heading in ("", "network") else "right")
        for line in lines:
            table.add_row(*line)
        Console().print("\n", table)
        marked = [headings, ["---"] * len(headings), *lines]
        text += f"{title}\n\n" + "".join("| " + " | ".join(line) + " |\n" for line in marked) + "\n"
    (output / "quickstart.md").write_text(text)
    gain = statistics.mean(rows[-1].top1) - statistics.mean(rows[1].top1)
    print(f"Distillation adds {100 * gain:+.1f} points to the same network and the same labels.")


def cells(row: Row) -> tuple[str, ...]:
    """Under HEADINGS."""
    plan = plan_network(SPECS[row.model.name], 10, width=row.model.width, stem_stride=row.model.stem_stride)
    spread = f" ± {100 * statistics.stdev(row.top1):.1f}" if len(row.top1) > 1 else ""
    return (
        row.name,
        f"{row.model.name} x {row.model.width:g}",
        f"{100 * statistics.mean(row.top1):.1f}{spread}",
        f"{parameters(plan) / 1e3:,.0f} k",
        f"{multiply_accumulates(plan, 28) / 1e6:.2f} M",
        "" if row.seconds is None else f"{row.seconds:.0f} s",
    )


def draw(rows: Sequence[Row], funnel: Sequence[Step], options: argparse.Namespace) -> None:
    """Draws what mining left of the pool, the accuracy while training, and the accuracies reached."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), width_ratios=[1, 1.3, 1.1], layout="constrained")
    draw_funnel(axes[0], funnel)
    draw_curves(axes[1], rows[0], options)
    draw_bars(axes[2], rows, options.seeds)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.output / "quickstart.png", dpi=120)


def draw_funnel(axis: Axes, funnel: Sequence[Step]) -> None:
    names = ["\n".join(textwrap.wrap(step.name, 18)) for step in funnel]
    topic = [step.topic for step in funnel]
    polluted = [step.polluted for step in funnel]
    axis.barh(names, topic, color="#4c9f70", label="of the topic")
    bars = axis.barh(names, polluted, left=topic, color="#dd8452", label="leaks, twins, off topic")
    axis.bar_label(bars, [step.cells[-1] for step in funnel], padding=3)
    axis.invert_yaxis()
    axis.set(title="Mining: what is left of the pool", xlabel="images, and the share that does not belong there")
    axis.legend(loc="lower right", fontsize=8)
    axis.set_xlim(0, 1.2 * funnel[0].images)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    axis.tick_params(axis="y", labelsize=8)


def draw_curves(axis: Axes, teacher: Row, options: argparse.Namespace) -> None:
    for seed in range(options.seeds):
        for name, colour in zip(RUNS, (COLOURS[1], COLOURS[3]), strict=True):
            entries = read_metrics(run_folder(options.output, name, seed) / "metrics.jsonl")
            steps, top1, before = [], [], 0
            for stage in sorted({entry["stage"] for entry in entries}):
                points = [e for e in entries if e["stage"] == stage and e["kind"] == "evaluation"]
                steps += [before + e["step"] for e in points]
                top1 += [100 * e["top1"] for e in points]
                before = steps[-1]
            axis.plot(steps, top1, "o-", color=colour, markersize=4, label=RUNS[name] if seed == 0 else None)
    axis.axhline(100 * teacher.top1[0], color=COLOURS[0], linestyle="--", label="the teacher")
    axis.set(xlabel="updates of 128 images", ylabel="top-1 on the test images, %", title="While training")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")


def draw_bars(axis: Axes, rows: Sequence[Row], seeds: int) -> None:
    means = [100 * statistics.mean(row.top1) for row in rows]
    spreads = [100 * statistics.stdev(row.top1) if len(row.top1) > 1 else 0.0 for row in rows]
    names = ["\n".join(textwrap.wrap(row.name, 16)) for row in rows]
    drawn = axis.bar(names, means, yerr=spreads if any(spreads) else None, color=COLOURS, capsize=4)
    axis.bar_label(drawn, [f"{mean:.1f}" for mean in means], padding=3)
    axis.set(
        ylim=(min(means) - 6, max(means) + 2.5),
        title="Reached" + (f", mean of {seeds} seeds" if any(spreads) else ""),
    )
    axis.tick_params(axis="x", labelsize=8)


if __name__ == "__main__":
    sys.exit(main())
