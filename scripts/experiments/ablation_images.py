"""The ablation's images: who gets which of CIFAR-10, and a pool to mine.

Of the training images 512 a class have labels for the student; the teacher has those and others, 25,000 in all; the
other half is the pool, among Fashion-MNIST, second copies and edited test images.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from ablation_process import call
from pollute import Picture, array_picture, file_picture, plan_pool, write_pool

from distill.data.idx import read_idx
from distill.errors import UserError
from distill.files import write_atomically

RECIPE = Path(__file__).parents[2] / "recipes" / "mining" / "cifar10_pool.yaml"
CLASSES = 10
SEED = 2
Line = tuple[Path, int]


@dataclass(frozen=True)
class Sizes:
    """Numbers of images; `copies_per_edit` of each kind of edit in the pool, `chosen_a_class` by mining."""

    labelled_a_class: int
    teacher: int
    pool_clean: int
    pool_off_topic: int
    pool_duplicates: int
    copies_per_edit: int
    chosen_a_class: int
    test: int


FULL = Sizes(512, 25_000, 25_000, 15_000, 2_500, 100, 1_536, 10_000)
QUICK = Sizes(6, 120, 120, 16, 4, 1, 8, 64)


def write_lists(cifar10: Path, output: Path, sizes: Sizes) -> None:
    """Writes `<output>/lists/{labelled,teacher,pool,test}.txt`, lines of absolute paths and labels, once.

    Raises:
        UserError: The folder has no lists or too few images, or `output` belongs to other images.
    """
    identity = {"cifar10": str(cifar10.absolute()), **asdict(sizes)}
    path = output / "lists" / "images.json"  # written last
    if path.exists():
        if json.loads(path.read_text()) != identity:
            raise UserError(
                f"{output} was begun with other images, {path.read_text().strip()}: name another folder with --output"
            )
        return
    train, test = (read_list(cifar10 / f"{part}_list.txt") for part in ("train", "test"))
    rng = np.random.Generator(np.random.Philox(SEED))
    train = [train[number] for number in rng.permutation(len(train))]
    labelled, others = _split(train, sizes.labelled_a_class)
    end = sizes.teacher - len(labelled)
    pool = others[end : end + sizes.pool_clean]
    if len(pool) < sizes.pool_clean or len(test) < sizes.test:
        raise UserError(
            f"{cifar10} must have {sizes.teacher + sizes.pool_clean:,} training images, {sizes.labelled_a_class} of "
            f"each class at least, and {sizes.test:,} test images, received {len(train):,} and {len(test):,}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    tested = test[:: len(test) // sizes.test][: sizes.test]
    lists = {"labelled": labelled, "teacher": labelled + others[:end], "pool": pool, "test": tested}
    for name, lines in lists.items():
        write_atomically(path.with_name(f"{name}.txt"), "".join(f"{file} {label}\n" for file, label in lines))
    write_atomically(path, json.dumps(identity) + "\n")


def read_list(path: Path) -> list[Line]:
    """Absolute paths and labels of a list, whose paths are relative to its folder.

    Raises:
        UserError: It cannot be read, or a line is not `path label`.
    """
    try:
        lines = [line.rsplit(" ", 1) for line in path.read_text().splitlines()]
        return [((path.parent / name).absolute(), int(label)) for name, label in lines]
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}. Expected lines `path label`, as scripts/cifar10.py writes them"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: expected lines `path label` with a whole number ({error})") from error


def _split(lines: Sequence[Line], count: int) -> tuple[list[Line], list[Line]]:
    """The first `count` of each class, and the others, both in the order of `lines`."""
    taken = [0] * CLASSES
    chosen, others = [], []
    for line in lines:
        if taken[line[1]] < count:
            taken[line[1]] += 1
            chosen.append(line)
        else:
            others.append(line)
    if min(taken) < count:
        raise UserError(f"expected at least {count} training images of each class, received {min(taken)} of one")
    return chosen, others


def mine(output: Path, fashion_mnist: Path, sizes: Sizes) -> None:
    """Builds the pool, runs `data-mining` on it, and draws as many images at random; what is finished is kept.

    Raises:
        UserError: Fashion-MNIST is not there.
        RunError: `data-mining` failed.
    """
    if not (output / "pool" / "truth.csv").exists():
        build_pool(output, fashion_mnist, sizes)
    chosen = output / "mining" / "selected.txt"
    if not chosen.exists():
        _run_mining(output, sizes)
    drawn = output / "lists" / "random.txt"
    if not drawn.exists():
        files = sorted((output / "pool" / "images").absolute().rglob("*.*"))
        numbers = np.random.Generator(np.random.Philox(SEED)).choice(len(files), count_lines(chosen), replace=False)
        write_atomically(drawn, "".join(f"{files[number]}\n" for number in np.sort(numbers)))


def build_pool(output: Path, fashion_mnist: Path, sizes: Sizes) -> None:
    """Writes `<output>/pool/images/...` and `truth.csv`."""
    path = fashion_mnist / "train-images-idx3-ubyte.gz"
    if not path.exists():
        raise UserError(
            f"there is no {path}: get it with scripts/fashion_mnist.py, or name its folder, --fashion-mnist"
        )
    grey = read_idx(path, dimensions=3)[: sizes.pool_off_topic]
    entries = plan_pool(
        _pictures(output / "lists" / "pool.txt"),
        _pictures(output / "lists" / "test.txt"),
        [array_picture(image, f"Fashion-MNIST/{number}") for number, image in enumerate(grey)],
        duplicates=sizes.pool_duplicates,
        copies_per_edit=sizes.copies_per_edit,
        seed=SEED,
    )
    write_pool(output / "pool", entries, seed=SEED)


def _pictures(path: Path) -> list[Picture]:
    return [file_picture(file) for file, _ in read_list(path)]


def _run_mining(output: Path, sizes: Sizes) -> None:
    settings = {
        "pool.sources.0.root": output / "pool" / "images",
        "protected.0.sources.0.path": output / "lists" / "test.txt",
        "teacher.weights": output / "runs" / "teacher" / "student.safetensors",
        "select.images_per_class": sizes.chosen_a_class,
    }
    arguments = ["run", str(RECIPE), "--output", str(output / "mining")]
    arguments += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    call("data_mining", arguments, output / "logs" / "mining.log")


def count_lines(path: Path) -> int:
    """Images of a list."""
    return path.read_bytes().count(b"\n")
