"""The readers that `fuzz.py` gives damaged files to, each with valid ones to begin with."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data_mining.recipe_file import load_mining_recipe
from data_mining.tars import tar_members
from distill import checkpoint
from distill.data.class_folders import open_class_folders
from distill.data.decode import decode_image
from distill.data.idx import read_idx
from distill.data.image_list import open_image_list
from distill.data.types import UndecodableImage
from distill.errors import RunError, UserError
from distill.export.description import read_description
from distill.labels.records import Layout, encode, expand, undecodable
from distill.labels.store import LabelStore
from distill.metrics import read_metrics
from distill.recipe.file import load_recipe
from distill.weights import read_weights, write_weights

CHECKOUT = Path(__file__).resolve().parents[2]
RECORDED = CHECKOUT / "tests" / "distill" / "weights" / "recorded"


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        title: A line of the table.
        seeds: Valid files.
        read: Reads a damaged one; is given its path and what draws.
        refusals: The errors with which it may refuse.
    """

    title: str
    seeds: Sequence[bytes]
    read: Callable[[Path, random.Random], object]
    refusals: tuple[type[Exception], ...] = (UserError, RunError)


def _some_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"fc.weight": rng.normal(size=(5, 7)).astype("f4"), "half": np.ones(3, "f2"), "steps": np.array(7, "i8")}


def recipes(folder: Path) -> Target:
    paths = [
        CHECKOUT / "tests/distill/recipe/example_recipe.yaml",
        *sorted((CHECKOUT / "recipes").glob("*/*.yaml"))[:6],
    ]
    return Target(
        "recipe", [path.read_bytes() for path in paths if "mining" not in str(path)], lambda p, _: load_recipe(p)
    )


def mining_recipes(folder: Path) -> Target:
    seeds = [path.read_bytes() for path in sorted((CHECKOUT / "recipes/mining").glob("*.yaml"))]
    return Target("mining recipe", seeds, lambda path, _: load_mining_recipe(path))


def options(folder: Path) -> Target:
    """A recipe as it is, and a damaged --set."""
    recipe = CHECKOUT / "tests/distill/recipe/example_recipe.yaml"
    seeds = [
        b"optimizer.learning_rate=0.1",
        b"stages.0.epochs=3",
        b"data.sources=[{kind: class_folders, root: x}]",
        b"loss={kl: {weight: 1}}",
    ]
    return Target(
        "--set", seeds, lambda path, _: load_recipe(recipe, [path.read_bytes().decode("utf-8", "surrogateescape")])
    )


def image_lists(folder: Path) -> Target:
    text = b"\xef\xbb\xbfa.jpg 0\nb c.png 9\r\n\n  d.png\t3 \ne.tar@512+99 1\n" + "ä/ö.png 2\n".encode()
    unlabelled = b"a.jpg\nb.jpg\nc/d.png"

    def read(path: Path, draw: random.Random) -> object:
        images = open_image_list(path, folder, draw.choice([None, 10]))
        return [(images.path(index), images.name(index)) for index in range(min(len(images), 100))]

    return Target("image list, text", [text, unlabelled], read)


def parquet_lists(folder: Path) -> Target:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def written(compression: str, dictionary: bool) -> bytes:
        buffer = io.BytesIO()
        table = pa.table({"path": [f"{n}.jpg" for n in range(40)], "label": [n % 10 for n in range(40)]})
        pq.write_table(table, buffer, compression=compression, use_dictionary=dictionary)
        return buffer.getvalue()

    def read(path: Path, draw: random.Random) -> object:
        path = path.rename(path.with_suffix(".parquet"))
        return len(open_image_list(path, folder, draw.choice([None, 10])))

    return Target("image list, Parquet", [written("zstd", True), written("none", False), written("snappy", True)], read)


def idx_files(folder: Path) -> Target:
    import gzip

    plain = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 4]) + bytes(range(32))

    return Target("IDX images", [plain, gzip.compress(plain)], lambda path, _: read_idx(path, 3))


def class_folders(folder: Path) -> Target:
    """Names instead of bytes: each line of an example becomes a file, where the system takes it."""
    seeds = [b"cat/1.jpg\ncat/2.png\ndog/deep/3.JPEG\ndog/.hidden/4.jpg\n.git/5.jpg\nreadme.txt"]

    def read(path: Path, draw: random.Random) -> object:
        names = path.read_bytes().split(b"\n")[:50]
        root = Path(tempfile.mkdtemp(dir=folder))
        try:
            for name in names:
                place = os.path.normpath(os.path.join(os.fsencode(root), name.replace(b"\0", b"").lstrip(b"/")))
                if not place.startswith(os.fsencode(root) + b"/"):
                    continue
                with contextlib.suppress(OSError):
                    os.makedirs(os.path.dirname(place), exist_ok=True)
                    draw.choice(
                        [
                            lambda at: os.close(os.open(at, os.O_CREAT | os.O_EXCL)),
                            os.mkdir,
                            os.mkfifo,
                            lambda at: os.symlink("..", at),
                        ]
                    )(place)
            images = open_class_folders(root, draw.choice([None, 2, 50]))
            return [(images.path(index), images.name(index)) for index in range(len(images))]
        finally:
            shutil.rmtree(root)

    return Target("class folders", seeds, read)


def weights_of(suffix: str, title: str, seeds: Sequence[bytes]) -> Target:
    return Target(title, seeds, lambda path, _: read_weights(path.rename(path.with_suffix(suffix))))


def pdparams(folder: Path) -> Target:
    seeds = [pickle.dumps(_some_arrays(), protocol=protocol) for protocol in (2, 3, 4)]
    return weights_of(".pdparams", ".pdparams", seeds)


def torch_files(folder: Path) -> Target:
    return weights_of(".pth", "torch files", [path.read_bytes() for path in sorted(RECORDED.glob("*.pth"))])


def safetensors(folder: Path) -> Target:
    write_weights(folder / "seed.safetensors", _some_arrays(), {"model": "ResNet18_vd"})
    return weights_of(".safetensors", "safetensors", [(folder / "seed.safetensors").read_bytes()])


def checkpoints(folder: Path) -> Target:
    """One file of a checkpoint damaged; half of them with sums that fit, as a program that errs would leave them."""
    saved = checkpoint.save(folder / "checkpoints", 2, _some_arrays(), {"best_top1": 0.5, "position": {"step": 2}})
    files = {path.name: path.read_bytes() for path in saved.iterdir()}

    def read(path: Path, draw: random.Random) -> object:
        content = path.read_bytes()
        name = next((name for name, data in files.items() if data[:20] == content[:20]), draw.choice(sorted(files)))
        (saved / name).write_bytes(content)
        try:
            if draw.random() < 0.5 and name != "SHA256SUMS":
                sums = [
                    f"{hashlib.sha256((saved / each).read_bytes()).hexdigest()}  {each}\n"
                    for each in files
                    if each != "SHA256SUMS"
                ]
                (saved / "SHA256SUMS").write_text("".join(sums))
            return checkpoint.load(saved)
        finally:
            for each, data in files.items():
                (saved / each).write_bytes(data)

    return Target("checkpoint", list(files.values()), read, (checkpoint.DamagedCheckpoint,))


def stored_labels(folder: Path) -> Target:
    """A shard, sealed with a sum that fits or not, or partial, or the sum itself."""
    layouts = [Layout(10, 3), Layout(10, "all")]
    stores = [
        LabelStore(folder / f"labels-{n}", layout, 16, group_size=2, block_positions=4, shard_blocks=2)
        for n, layout in enumerate(layouts)
    ]
    seeds = []
    for store in stores:
        rows = encode(np.random.default_rng(0).standard_normal((12, 10)).astype(np.float32), store.layout)
        rows[5] = undecodable(1, store.layout)[0]
        store.add(0, 0, rows)
        seeds += [
            (store.folder / "view-00000" / f"shard-0000{n}").read_bytes() for n in ("0.labels", "1.partial", "0.json")
        ]

    def read(path: Path, draw: random.Random) -> object:
        content, store = path.read_bytes(), draw.choice(stores)
        place = store.folder / "view-00000"
        before = {each: each.read_bytes() for each in place.iterdir()}
        try:
            name = draw.choice(["shard-00000.labels", "shard-00001.partial", "shard-00000.json"])
            (place / name).write_bytes(content)
            if name.endswith(".labels") and draw.random() < 0.8:
                (place / "shard-00000.json").write_text(json.dumps({"sha256": hashlib.sha256(content).hexdigest()}))
            store.recount(0)
            slot = store.slot(0, 0, 16, np.arange(16))
            if not np.isfinite(expand(slot.rows[slot.usable], store.layout)).all():
                raise AssertionError("an answer that is not finite was given out")
            return store.stored(0), store.empty(0, 0, 16)
        finally:
            for each in place.iterdir():
                each.unlink()
            for each, data in before.items():
                each.write_bytes(data)

    return Target("stored labels", seeds, read)


def tars(folder: Path) -> Target:
    def packed(form: int) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for name, data in [("a/1.jpg", bytes(700)), ("a/1.cls", b"3"), ("b" * 40 + "/" + "x" * 90 + ".png", b"x")]:
                header = tarfile.TarInfo(name)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
        return buffer.getvalue()

    def read(path: Path, _: random.Random) -> object:
        failures: list[tuple[str, str | None, str]] = []
        members, size = tar_members(str(path), failures), path.stat().st_size
        if any(not 0 <= member.offset <= member.offset + member.size <= size for member in members):
            raise AssertionError("a member that lies outside of its tar")
        return members

    return Target(
        "tar", [packed(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)], read, ()
    )


def images(folder: Path) -> Target:
    picture = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    seeds = [cv2.imencode(suffix, picture)[1].tobytes() for suffix in (".jpg", ".png", ".webp", ".bmp", ".tiff")]

    def read(path: Path, _: random.Random) -> object:
        return decode_image(path.read_bytes(), "x")

    return Target("image", seeds, read, (UndecodableImage,))


def descriptions(folder: Path) -> Target:
    from distill.export.description import Description, to_yaml
    from distill.recipe import ModelSection, NormalizationSection

    normalization = NormalizationSection(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    values = {"num_classes": 3, "format": "onnx", "precision": "int8", "resize_short_px": 8, "crop_px": 8}
    seeds = [
        to_yaml(
            Description(
                model=ModelSection(name="ResNet18_vd"), normalization=each, class_names=("a", "b", "c"), **values
            )
        )
        for each in (None, normalization)
    ]
    return Target(
        "an export's inference.yml", [seed.encode() for seed in seeds], lambda path, _: read_description(path)
    )


def logs(folder: Path) -> Target:
    lines = b"".join(
        json.dumps({"kind": "train", "stage": 0, "step": n, "loss": 0.5}).encode() + b"\n" for n in range(5)
    )
    return Target("metrics.jsonl", [lines], lambda path, _: read_metrics(path), ())


def onnx_files(folder: Path) -> Target:
    import onnx

    from distill.engines.onnx_file import check_onnx

    info = onnx.helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(np.ones((12, 4), np.float32), "w")
    nodes = [onnx.helper.make_node("Flatten", ["x"], ["f"]), onnx.helper.make_node("MatMul", ["f", "w"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, ["N", 3, 2, 2])], [info("y", 1, ["N", 4])], [weight])
    seed = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)]).SerializeToString()
    return Target("ONNX", [seed], lambda path, _: check_onnx(onnx, path))


def _small_program(folder: Path) -> list[Path]:
    """One network as programs of Paddle 3 and of Paddle 2, and its weights."""
    import paddle

    from distill.engines.engine import quiet, save_program

    spec = paddle.static.InputSpec([None, 3, 8, 8], "float32", "images")
    model = paddle.nn.Sequential(paddle.nn.Conv2D(3, 2, 3), paddle.nn.BatchNorm2D(2), paddle.nn.ReLU())
    model.eval()
    with quiet():
        new, _ = save_program(model, folder / "new", spec)
        with paddle.pir_utils.OldIrGuard():
            paddle.jit.save(model, str(folder / "old"), input_spec=[spec])
    return [new, folder / "old.pdmodel", folder / "old.pdiparams"]


def programs(folder: Path) -> Target:
    from distill.engines.paddle_program import check_program

    new, old, _ = (path.read_bytes() for path in _small_program(folder))

    def read(path: Path, draw: random.Random) -> object:
        is_json = path.read_bytes()[:1] == b"{"
        suffix = ".json" if is_json != (draw.random() < 0.1) else ".pdmodel"
        return check_program(path.rename(path.with_suffix(suffix)))

    return Target("Paddle program", [new, old], read)


def program_weights(folder: Path) -> Target:
    from distill.engines.paddle_program import check_program_weights

    seed = _small_program(folder)[2].read_bytes()
    return Target("Paddle program's weights", [seed], lambda path, _: check_program_weights(path))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "recipe": recipes,
    "mining-recipe": mining_recipes,
    "set": options,
    "image-list": image_lists,
    "parquet": parquet_lists,
    "idx": idx_files,
    "class-folders": class_folders,
    "pdparams": pdparams,
    "torch": torch_files,
    "safetensors": safetensors,
    "checkpoint": checkpoints,
    "labels": stored_labels,
    "tar": tars,
    "image": images,
    "inference": descriptions,
    "metrics": logs,
    "onnx": onnx_files,
    "program": programs,
    "program-weights": program_weights,
}
"""By name, for --target; each is given a folder of its own."""
