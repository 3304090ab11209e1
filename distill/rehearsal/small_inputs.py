"""What a scaled-down recipe needs on the disk: small real images, and teachers with random weights."""

import itertools
import os
from pathlib import Path

import numpy as np

from distill.data.class_folders import open_class_folders
from distill.data.image_list import ImageFiles, open_image_list
from distill.data.types import UNLABELLED, IntArray
from distill.errors import RunError, UserError
from distill.files import write_atomically
from distill.models import FACTORY_PX
from distill.recipe import IdxSource, ImageListSource, Recipe, TeacherModel
from distill.rehearsal.scale_down import LIST, SmallData
from distill.weights import write_weights

FASHION_MNIST = Path("data/fashion-mnist")
TRAINING_IMAGES, EVALUATION_IMAGES = 256, 128
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_MOST_CLASSES = 65536  # as a recipe's num_classes


class SmallImages:
    """The images of a scaled-down run.

    Args:
        path: A folder of class folders, a folder with the four files of Fashion-MNIST or MNIST, or an image list whose
            paths are relative to its folder. None: `FASHION_MNIST`.
        inputs: Where `write` puts the list of those chosen.

    Attributes:
        data: For `scale_down`.
        description: Which images, for people.

    Raises:
        UserError: There are none there, or some have no label.
    """

    def __init__(self, path: Path | None, inputs: Path) -> None:
        self._list = b""
        folder = path or FASHION_MNIST
        files = [next(filter(Path.is_file, (folder / f"{name}.gz", folder / name)), None) for name in _IDX]
        if all(files):
            self.data = _of_idx(*map(str, files))
            self.description = f"{TRAINING_IMAGES} images of {folder}"
            return
        if path is None:
            raise UserError(
                f"--scale-down trains on small real images, and {FASHION_MNIST} is not here: `python "
                "scripts/fashion_mnist.py` fetches it (31 MB), or name your own with --scale-down-data FOLDER or LIST"
            )
        source = open_class_folders(path, _MOST_CLASSES) if path.is_dir() else _open_list(path)
        training, evaluation = _choose(source, path)
        self._list = b"".join(_line(source, index) for index in itertools.chain(training, evaluation))
        listed = inputs / LIST
        parts = [(0, len(training)), (len(training), len(training) + len(evaluation))]
        first, second = (ImageListSource(kind="image_list", path=str(listed), root=".", range=part) for part in parts)
        classes = int(source.labels[[*training, *evaluation]].max()) + 1
        self.data = SmallData(first, second, max(2, classes))
        self.description = f"{len(training)} images of {path}"

    def write(self, inputs: Path) -> None:
        """Writes the list of the chosen images, where there is one."""
        if self._list:
            write_atomically(inputs / LIST, self._list)


def write_inputs(recipe: Recipe, images: SmallImages, inputs: Path) -> None:
    """Writes what `scale_down` made a recipe expect: the list of images, and teachers with random weights.

    The same recipe gets the same weights, so that stored answers stay valid.

    Raises:
        RunError: Nothing can be written there.
    """
    try:
        inputs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {inputs}: {error.strerror}. Choose another folder with --output") from error
    images.write(inputs)
    teachers = {
        model.weights: (model, model.resize_px or stage.view.size_px)
        for stage in recipe.stages
        if stage.teacher is not None
        for model in stage.teacher.models
        if isinstance(model, TeacherModel)  # `scale_down` leaves no others
    }
    for number, (model, size_px) in enumerate(teachers.values()):
        write_weights(model.weights, random_weights(model, recipe.num_classes, seed=number, size_px=size_px))


def random_weights(
    section: TeacherModel, num_classes: int, *, seed: int, size_px: int = FACTORY_PX
) -> dict[str, np.ndarray]:
    """Weights of a fresh network that answers noise of mean 0 and variance 1 with logits of variance 1.

    With the BN statistics of a fresh network (mean 0, variance 1) the activations of a deep one grow without bound.

    Args:
        section: The network.
        num_classes: Of its classifier.
        seed: Of its weights.
        size_px: Side of the images that a factory's network will be given.
    """
    import paddle

    from distill.models import build_model

    paddle.seed(seed)
    model = build_model(section, num_classes, size_px=size_px)
    for layer in model.sublayers():
        if hasattr(layer, "_mean"):
            layer._momentum = 0.0  # one pass replaces what is stored
    side = 64 if model.published_names else size_px
    shape = (8, 3, side, side) if section.data_format == "NCHW" else (8, side, side, 3)
    noise = paddle.to_tensor(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))
    with paddle.no_grad():
        model.train()
        scale = 1.0 / float(model(noise).numpy().std())
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    last = f"{model.classifier}."
    return {name: value * np.float32(scale) if name.startswith(last) else value for name, value in weights.items()}


def _of_idx(images: str, labels: str, test_images: str, test_labels: str) -> SmallData:
    return SmallData(
        IdxSource(kind="idx", images=images, labels=labels, range=(0, TRAINING_IMAGES)),
        IdxSource(kind="idx", images=test_images, labels=test_labels, range=(0, EVALUATION_IMAGES)),
        num_classes=10,
    )


def _open_list(path: Path) -> ImageFiles:
    if not path.is_file():
        raise UserError(f"--scale-down-data: there is no folder and no image list {path}")
    return open_image_list(path, path.parent, _MOST_CLASSES)


def _choose(source: ImageFiles, path: Path) -> tuple[list[int], list[int]]:
    """Images to train on and others to evaluate on, spread evenly over the source and so over its classes."""
    labelled: IntArray = np.flatnonzero(source.labels != UNLABELLED)
    if len(labelled) < 3:
        raise UserError(
            f"--scale-down-data {path}: {len(labelled)} of its {len(source)} images have labels, expected at least 3"
        )
    count = min(len(labelled), TRAINING_IMAGES + EVALUATION_IMAGES)
    chosen = labelled[np.linspace(0, len(labelled) - 1, count).astype(np.int64)].tolist()
    return [index for place, index in enumerate(chosen) if place % 3 != 2], chosen[2::3]


def _line(source: ImageFiles, index: int) -> bytes:
    return os.path.abspath(source.path(index)) + b" %d\n" % source.labels[index]
