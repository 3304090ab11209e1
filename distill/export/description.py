"""`inference.yml`: what an exported network is and how its images must be prepared, in PaddleClas's words."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from distill.errors import UserError
from distill.recipe import ModelSection, NormalizationSection, Section

FILE = "inference.yml"
MAX_BYTES = 2**24

Format = Literal["paddle", "onnx", "safetensors"]
StoredPrecision = Literal["float32", "float16", "int8"]


class Description(Section):
    """An exported network.

    Attributes:
        model: The network, without weights.
        num_classes: Of its classifier.
        format: Of the files.
        precision: Of the weights in them.
        resize_short_px: The short side of an image is resized to this, bilinear.
        crop_px: Height and width of the centre that is then cropped.
        normalization: What comes next; None where the network does it itself and takes bytes.
        class_names: One for each class, if known.
    """

    model: ModelSection
    num_classes: int = Field(ge=1, le=65536)
    format: Format
    precision: StoredPrecision
    resize_short_px: int = Field(ge=1)
    crop_px: int = Field(ge=1)
    normalization: NormalizationSection | None
    class_names: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """For people: "onnx, int8"."""
        return f"{self.format}, {self.precision}"


def to_yaml(description: Description) -> str:
    """The file's text."""
    return yaml.safe_dump(_content(description), sort_keys=False, allow_unicode=True, default_flow_style=None)


def read_description(path: Path) -> Description:
    """Reads a file that `to_yaml` wrote.

    Raises:
        UserError: It is missing, damaged, or says something that this version would not do.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}. Expected a folder that `distill export` wrote"
        ) from error
    if len(text) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES} bytes")
    try:
        content = yaml.safe_load(text.decode("utf-8"))
        description = _description(content)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"{type(error).__name__} {error}"
        raise UserError(f"{path} is none that `distill export` wrote: {reason}. Export again") from error
    if _content(description) != content:
        keys = [key for key, value in _content(description).items() if content.get(key) != value]
        where = ", ".join(keys) or ", ".join(map(str, content.keys() - _content(description).keys()))
        raise UserError(
            f"{path}: {where:.80} is not as `distill export` writes it, so the images would be prepared in another way "
            "than it says. Export again"
        )
    return description


def _content(description: Description) -> dict[str, Any]:
    """The file as nested dictionaries. Steps and their keys are those of PaddleClas's deployment files."""
    crop_px, normalization = description.crop_px, description.normalization
    steps: list[dict[str, Any]] = [
        {"ResizeImage": {"resize_short": description.resize_short_px, "interpolation": "bilinear", "backend": "cv2"}},
        {"CropImage": {"size": crop_px}},
    ]
    if normalization is not None:
        values = {"mean": list(normalization.mean), "std": list(normalization.std)}
        steps += [
            {"NormalizeImage": {"scale": "1.0/255.0", **values, "order": "", "channel_num": 3}},
            {"ToCHWImage": None},
        ]
    planes = normalization is not None
    names = description.class_names
    return {
        "Global": {
            "model_name": description.model.name,
            "width": description.model.width,
            "stem_stride": description.model.stem_stride,
            **({"arguments": description.model.arguments} if description.model.arguments else {}),
            **({"classifier": description.model.classifier} if description.model.classifier else {}),
            "num_classes": description.num_classes,
            "format": description.format,
            "precision": description.precision,
        },
        "Input": {
            "name": "images",
            "colours": "RGB",
            "dtype": "float32" if planes else "uint8",
            "layout": "NCHW" if planes else "NHWC",
            "shape": [-1, 3, crop_px, crop_px] if planes else [-1, crop_px, crop_px, 3],
        },
        "PreProcess": {"transform_ops": steps},
        "PostProcess": {
            "Topk": {"topk": min(5, description.num_classes)} | ({"label_list": list(names)} if names else {})
        },
    }


def _description(content: Any) -> Description:
    known = content["Global"]
    resize, crop, *rest = content["PreProcess"]["transform_ops"]
    names = content["PostProcess"]["Topk"].get("label_list")
    normalization = None
    if rest:
        normalization = {key: tuple(rest[0]["NormalizeImage"][key]) for key in ("mean", "std")}
    return Description.model_validate(
        {
            "model": {
                "name": known["model_name"],
                "width": known["width"],
                "stem_stride": known["stem_stride"],
                "arguments": known.get("arguments"),
                "classifier": known.get("classifier"),
            },
            **{key: known[key] for key in ("num_classes", "format", "precision")},
            "resize_short_px": resize["ResizeImage"]["resize_short"],
            "crop_px": crop["CropImage"]["size"],
            "normalization": normalization,
            "class_names": tuple(names) if names is not None else None,
        },
        strict=True,
    )
