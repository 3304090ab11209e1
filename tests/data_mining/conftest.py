"""A small world to mine: images with structure, and a teacher that opens in a moment."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from skimage import data

from data_mining.recipe import MiningRecipe

CLASSES, SIDE, GRID = 4, 32, 4


@pytest.fixture(scope="session")
def draw():
    """Draws the image of a number: coloured blobs and rectangles, uint8 [height, width, 3], RGB."""

    def image(number, height=72, width=80):
        random = np.random.default_rng(number)
        small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(25):
            left, top = random.integers(0, width - 8), random.integers(0, height - 8)
            colour = tuple(map(int, random.integers(0, 256, 3)))
            corner = int(left + random.integers(4, 20)), int(top + random.integers(4, 20))
            cv2.rectangle(picture, (int(left), int(top)), corner, colour, -1)
        return picture

    return image


@pytest.fixture(scope="session")
def write():
    """Writes an RGB image to a file; its format is that of the suffix."""

    def image(path, picture):
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        return path

    return image


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory):
    """An ONNX teacher: the embedding is a thumbnail, the logits are linear in it."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weight = np.random.default_rng(0).normal(size=(3 * GRID**2, CLASSES)).astype(np.float32)
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    block = SIDE // GRID
    graph = onnx.helper.make_graph(
        [
            node("AveragePool", ["x"], ["thumbnail"], kernel_shape=[block, block], strides=[block, block]),
            node("Flatten", ["thumbnail"], ["embedding"]),
            node("MatMul", ["embedding", "w"], ["logits"]),
        ],
        "teacher",
        [info("x", onnx.TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [info("logits", onnx.TensorProto.FLOAT, ["N", CLASSES])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path_factory.mktemp("onnx") / "teacher.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
def recipe_of():
    """A recipe for a pool; any section can be given or replaced."""

    def recipe(pool, teacher="teacher.onnx", /, **sections):
        values = {
            "name": "small",
            "description": "",
            "pool": {"sources": [{"kind": "folder", "root": str(pool)}]},
            "teacher": {
                "kind": "onnx",
                "path": str(teacher),
                "embedding_output": "embedding",
                "num_classes": CLASSES,
                "resize_short_px": SIDE,
                "crop_px": SIDE,
                "normalization": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
            },
            "score": {"top_classes": 3, "embedding_dim": 16, "pca_images": 20},
            "select": {"kind": "by_class", "images_per_class": 3},
            "runtime": {"device": "cpu", "workers": 1},
        }
        return MiningRecipe.model_validate({**values, **sections})

    return recipe


# --- a pool with something for every stage ----------------------------------------------------------


@pytest.fixture(scope="session")
def world(tmp_path_factory, draw, write):
    """A pool of three folders with a leak, a mirrored leak, an exact duplicate and a file that is no image."""
    root = tmp_path_factory.mktemp("world")
    for number in range(24):
        write(root / "pool" / "abc"[number % 3] / f"{number:02d}.png", draw(number))
    for number in range(100, 104):
        write(root / "test" / f"{number}.png", draw(number))
    for number in range(200, 206):
        write(root / "train" / str(number % 2) / f"{number}.png", draw(number))
    write(root / "pool" / "a" / "leak.jpg", draw(100))
    write(root / "pool" / "b" / "mirrored.png", np.ascontiguousarray(draw(101)[:, ::-1]))
    write(root / "pool" / "c" / "twin.bmp", draw(3))
    (root / "pool" / "c" / "broken.jpg").write_bytes(b"no image")
    return root


@pytest.fixture
def sections(world):
    """Of a recipe with all stages."""
    verification = {"side_px": 144, "drop_inliers": 12, "review_inliers": 8}
    source = {"kind": "folder", "root": str(world / "pool")}
    return {
        "pool": {"sources": [source], "max_undecodable_fraction": 0.1},
        "labelled": {
            "name": "train",
            "sources": [{"kind": "folder", "root": str(world / "train"), "labels": "sub_folders"}],
        },
        "protected": [{"name": "test", "sources": [{"kind": "folder", "root": str(world / "test")}]}],
        "leaks": {"min_cosine": 0.9, "max_hash_bits": 8, "verification": verification},
        "duplicates": {"min_cosine": 0.98, "max_hash_bits": 4},
        "select": {"kind": "by_class", "images_per_class": 4, "classes_per_image": 2},
        "pack": {"short_side_px": 48, "images_per_tar": 5},
    }


@pytest.fixture
def small(world, sections, teacher_file, recipe_of):
    def recipe(**changes):
        return recipe_of(world / "pool", teacher_file, **{**sections, **changes})

    return recipe


# --- photographs and their copies ------------------------------------------------------------------

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "retina", "hubble_deep_field")


def _photograph(name, short_px=256):
    image = np.ascontiguousarray(getattr(data, name)()[..., :3])
    scale = short_px / min(image.shape[:2])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _crop(image, share):
    height, width = (round(side * share**0.5) for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 3, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _rotated(image, degrees):
    height, width = image.shape[:2]
    return cv2.warpAffine(image, cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1), (width, height))


def _overlaid(image):
    image = image.copy()
    image[40:100, 30:160] = (255, 255, 0)
    return image


def _mirrored(image):
    return np.ascontiguousarray(image[:, ::-1])


EDITS = {
    "jpeg": lambda x: cv2.imdecode(cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, 25])[1], cv2.IMREAD_COLOR),
    "half": lambda x: cv2.resize(x, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "square": lambda x: cv2.resize(x, (256, 256), interpolation=cv2.INTER_AREA),
    "crop 80": lambda x: _crop(x, 0.8),
    "crop 50": lambda x: _crop(x, 0.5),
    "crop 25": lambda x: _crop(x, 0.25),
    "rotation": lambda x: _rotated(x, 12),
    "colour": lambda x: np.clip(x * np.array([1.2, 0.9, 0.8]) + 10, 0, 255).astype(np.uint8),
    "blur": lambda x: cv2.GaussianBlur(x, (0, 0), 1.5),
    "overlay": _overlaid,
    "border": lambda x: cv2.copyMakeBorder(x, 20, 20, 20, 20, cv2.BORDER_CONSTANT),
}


@pytest.fixture(scope="session")
def photos():
    """Bundled photographs and what happens to copies: `names`, `load(name, short_px)`, `edits` by name, `mirrored`."""
    return SimpleNamespace(names=PHOTOGRAPHS, load=_photograph, edits=EDITS, mirrored=_mirrored)
