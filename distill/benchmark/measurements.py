"""The accuracies that a user measured: one file of JSON lines, to which `distill evaluate --record` adds."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import UserError
from distill.files import cannot_write, locked, write_atomically
from distill.models.specs import SPECS

if TYPE_CHECKING:
    from distill.evaluation import Evaluation
    from distill.parallel import Device
    from distill.recipe import AnySource, Recipe

IMAGENET_CLASSES = 1000
IMAGENET_VALIDATION_IMAGES = 50_000


@dataclass(frozen=True)
class Measurement:
    """The accuracy of a file of weights on labelled images, as it was measured on one day.

    Attributes:
        model: The network, a name in `SPECS`.
        width: Multiplier of its channels.
        stem_stride: 1, 2 or 4; 4 as published.
        num_classes: Of its classifier.
        weights: The file.
        weights_sha256: Its SHA-256: what was measured, wherever the file has gone.
        top1: Accuracy in [0, 1].
        top5: Likewise, the right class among five.
        images: How many were measured.
        undecodable: How many could not be.
        sources: The lists, folders or files that name the images.
        images_sha256: Tells these images from others; see `Images.identity`.
        resize_short_px: Preprocessing: the short side is resized to this.
        crop_px: Height and width of the centre that was cropped.
        recipe: The recipe's name.
        date: YYYY-MM-DD.
        hardware: Processor or accelerator, and the number of threads on a CPU.
        paddle: Version of PaddlePaddle.
    """

    model: str
    width: float
    stem_stride: int
    num_classes: int
    weights: str
    weights_sha256: str
    top1: float
    top5: float
    images: int
    undecodable: int
    sources: tuple[str, ...]
    images_sha256: str
    resize_short_px: int
    crop_px: int
    recipe: str
    date: str
    hardware: str
    paddle: str

    @property
    def on_imagenet(self) -> bool:
        """Whether it may be compared with what is published: as many classes, all images of the validation set."""
        return self.num_classes == IMAGENET_CLASSES and self.images + self.undecodable == IMAGENET_VALIDATION_IMAGES

    @property
    def name(self) -> str:
        """For people: the name of the weights' file, or of the run whose student they are."""
        path = Path(self.weights)
        return path.parent.name or path.stem if path.stem in ("student", "best") else path.stem

    @property
    def subject(self) -> tuple[object, ...]:
        """What was measured: measured once more, the later one holds."""
        return self.weights_sha256, self.images_sha256, self.resize_short_px, self.crop_px


def check_recordable(recipe: "Recipe") -> None:
    """Refuses what `distill zoo` could not count.

    Raises:
        UserError: The network is none of the series.
    """
    if recipe.model.name not in SPECS:
        raise UserError(
            f"--record keeps accuracies for `distill zoo`, which counts the layers of the series alone, and "
            f"{recipe.model.name} is none of it. Leave out --record; --json prints what was measured"
        )


def measurement(recipe: "Recipe", weights: Path, evaluation: "Evaluation", device: "Device") -> Measurement:
    """What `evaluate_weights` found, with all that says what it means."""
    from distill.data.sources import open_sources
    from distill.report import device_name, environment
    from distill.weights import sha256_of

    section = recipe.stages[-1].evaluation
    identity = open_sources(section.sources, recipe.num_classes).identity()
    packages = environment(device)["packages"]
    threads = f", {device.threads} threads" if device.kind == "cpu" else ""
    return Measurement(
        model=recipe.model.name,
        width=recipe.model.width,
        stem_stride=recipe.model.stem_stride,
        num_classes=recipe.num_classes,
        weights=str(weights),
        weights_sha256=sha256_of(weights),
        top1=evaluation.top1,
        top5=evaluation.top5,
        images=evaluation.images,
        undecodable=evaluation.undecodable,
        sources=tuple(_place(source) for source in section.sources),
        images_sha256=identity["listed"],
        resize_short_px=section.resize_short_px,
        crop_px=section.crop_px,
        recipe=recipe.name,
        date=time.strftime("%Y-%m-%d"),
        hardware=device_name(device) + threads,
        paddle=packages.get("paddlepaddle") or packages.get("paddlepaddle-gpu") or "unknown",
    )


def record(path: Path, found: Measurement) -> None:
    """Adds a measurement to a file of them, which is made; whatever interrupts it, the file stays whole.

    Raises:
        UserError: The file holds something else.
        RunError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent):
            kept = path.read_text(encoding="utf-8") if path.exists() else ""
            _parse(kept, path)
            write_atomically(path, f"{kept}{json.dumps(asdict(found))}\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def read_measurements(path: Path) -> list[Measurement]:
    """All that is recorded, of equal subjects the last, in the order of the file; none where there is no file.

    Raises:
        UserError: The file cannot be read, or a line of it is no measurement; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the measurements {path} cannot be read: {error}") from error
    return list({found.subject: found for found in _parse(text, path)}.values())


def _parse(text: str, path: Path) -> Iterator[Measurement]:
    return iter([_measurement(line, f"{path}, line {n}") for n, line in enumerate(text.splitlines(), 1) if line])


def _measurement(line: str, where: str) -> Measurement:
    try:
        content: dict[str, Any] = json.loads(line)
        found = Measurement(**content | {"sources": tuple(content["sources"])})
    except (ValueError, TypeError, KeyError) as error:
        expected = ", ".join(field.name for field in fields(Measurement))
        raise UserError(f"{where}: not a measurement ({error}); expected JSON with the keys {expected}") from None
    if found.model not in SPECS:
        raise UserError(f"{where}: unknown model {found.model!r}; `distill zoo` lists those there are")
    return found


def _place(source: "AnySource") -> str:
    match source.kind:
        case "image_list":
            place = source.path
        case "class_folders":
            place = source.root
        case "idx":
            place = source.images
    return place if source.range is None else f"{place} [{source.range[0]}, {source.range[1]})"
