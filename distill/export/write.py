"""From a trained student to a folder of files that were compared with it before they got their name."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.data.image_list import open_image_list
from distill.data.sources import Images, Part, open_sources
from distill.engines.engine import open_engine
from distill.errors import RunError, UserError
from distill.export.agreement import COMPARED_IMAGES, Agreement, compare, evaluation_views
from distill.export.description import FILE, Description, Format, StoredPrecision, to_yaml
from distill.export.files import NAMES, REPORT, open_exported, write_network
from distill.files import cannot_write, sync_folder, temporary_name, write_atomically
from distill.models import build_model
from distill.models.factory_names import is_factory
from distill.parallel import Device, setup_process
from distill.recipe import Recipe
from distill.report import environment, write_json
from distill.weights import load_into, sha256_of

if TYPE_CHECKING:
    from distill.models import Network

CALIBRATION_IMAGES = 512

REFUSED: dict[tuple[Format, StoredPrecision], str] = {
    (
        "paddle",
        "float16",
    ): "Paddle Inference computes in float16 on a GPU alone, and converts the float32 export itself "
    "there (Config.enable_use_gpu(..., PrecisionType.Half)); on a CPU with AVX-512 it computes that export in bfloat16 "
    "(Config.enable_mkldnn_bfloat16())",
    ("paddle", "int8"): "Paddle's 8-bit export is not offered here. Use --format onnx",
    ("safetensors", "int8"): "safetensors holds weights alone, and 8-bit weights need the scales of the values between "
    "the layers. Use --format onnx",
}
"""What is not offered, and why."""


@dataclass(frozen=True)
class ExportOptions:
    """What is asked for.

    Attributes:
        format: Of the files.
        precision: Of the weights in them.
        with_preprocessing: Whether the network takes bytes and normalises them itself.
        calibration: For int8: an image list, whose paths are relative to its folder. None: the last stage's training
            images.
        class_names: One for each class, or None.
        tolerance: See `compare`.
    """

    format: Format
    precision: StoredPrecision = "float32"
    with_preprocessing: bool = False
    calibration: Path | None = None
    class_names: tuple[str, ...] | None = None
    tolerance: float | None = None

    def check(self) -> None:
        """Raises UserError where these do not go together."""
        refusal = REFUSED.get((self.format, self.precision))
        if refusal is not None:
            raise UserError(f"--format {self.format} --precision {self.precision}: {refusal}")
        if self.with_preprocessing and self.format == "safetensors":
            raise UserError(
                "--with-preprocessing puts the normalisation into the network, and safetensors holds "
                "weights alone. Use --format onnx or paddle"
            )
        if self.calibration is not None and self.precision != "int8":
            raise UserError("--calibration names images for --precision int8: add that, or leave it out")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise UserError(f"--tolerance must be >= 0, received {self.tolerance}")


def export_student(recipe: Recipe, weights: Path, output: Path, options: ExportOptions) -> Agreement:
    """Writes the student's files into a new folder, once they are found to answer as it does.

    Beside the network: `inference.yml` (see `distill.export.description`) and `export.json` (what was compared, of
    what it was made, hashes).

    Args:
        recipe: States network, preprocessing, and the images to compare with (its last stage's evaluation).
        weights: A .safetensors or .pdparams file of `recipe.model`.
        output: The folder, which must not exist.
        options: What to write.

    Raises:
        UserError: Options that do not go together, a folder that exists, weights or images that do not fit.
        RunError: The files answer otherwise than the student, or cannot be written; none is left.
    """
    options.check()
    if output.exists() or output.is_symlink():
        raise UserError(f"{output} exists already: choose another folder with --output, or remove it")
    device = setup_process("cpu")
    if options.format == "onnx" and is_factory(recipe.model.name):
        raise UserError(
            f"--format onnx writes the layers of the series alone, and {recipe.model.name} may have any. Use --format "
            "paddle, which other programs can convert (paddle2onnx), or safetensors"
        )
    model = build_model(recipe.model, recipe.num_classes, size_px=recipe.stages[-1].evaluation.crop_px)
    load_into(model, weights)
    source = open_sources(recipe.stages[-1].evaluation.sources, recipe.num_classes)
    description = _description(recipe, options)
    temporary = temporary_name(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        agreement = _write(temporary, model, recipe, weights, description, options, source, device)
        os.rename(temporary, output)
        sync_folder(output.parent)
    except OSError as error:
        raise cannot_write(output, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return agreement


def _write(
    folder: Path,
    model: "Network",
    recipe: Recipe,
    weights: Path,
    description: Description,
    options: ExportOptions,
    source: Images,
    device: Device,
) -> Agreement:
    normalization = recipe.stages[-1].normalization
    images = _calibration_images(recipe, options, description) if options.precision == "int8" else []
    write_network(model, description, normalization if options.with_preprocessing else None, images, folder)
    write_atomically(folder / FILE, to_yaml(description))
    files = [name for names in NAMES[options.format] for name in names if (folder / name).exists()]
    report: dict[str, Any] = {
        "files": {name: sha256_of(folder / name) for name in files},
        "recipe": recipe.name,
        "weights": str(weights),
        "weights_sha256": sha256_of(weights),
        "calibration_images": len(images),
        "environment": environment(device),
    }
    write_json(folder / REPORT, report)
    exported = open_exported(folder, device)
    plain = open_engine(model, normalization, device, outputs=("logits",), kind="eager")
    agreement = compare(
        lambda views: plain(views)["logits"],
        exported,
        source,
        images=COMPARED_IMAGES,
        tolerance=options.tolerance,
    )
    if not agreement.holds:
        raise RunError(
            f"the export ({description.label}) does not answer as the student does, and was removed. {agreement}"
        )
    computed = {"student": plain.description, "exported": exported.engine}
    write_json(folder / REPORT, {"agreement": agreement.as_dict(), "computed_by": computed, **report})
    return agreement


def _description(recipe: Recipe, options: ExportOptions) -> Description:
    stage = recipe.stages[-1]
    names = options.class_names
    if names is not None and len(names) != recipe.num_classes:
        raise UserError(
            f"--class-names must have {recipe.num_classes} lines, one for each class, received {len(names)}"
        )
    return Description(
        model=recipe.model.model_copy(update={"weights": None, "data_format": "NCHW"}),
        num_classes=recipe.num_classes,
        format=options.format,
        precision=options.precision,
        resize_short_px=stage.evaluation.resize_short_px,
        crop_px=stage.evaluation.crop_px,
        normalization=None if options.with_preprocessing else stage.normalization,
        class_names=names,
    )


def _calibration_images(recipe: Recipe, options: ExportOptions, description: Description) -> list[np.ndarray]:
    """Views uint8 [crop_px, crop_px, 3] of images that the evaluation does not use."""
    if options.calibration is not None:
        listed = open_image_list(options.calibration, options.calibration.parent, None)
        source = Images([Part(listed, 0, len(listed), 1)])
    else:
        source = open_sources(recipe.stages[-1].data.sources, recipe.num_classes)
    views = evaluation_views(source, CALIBRATION_IMAGES, description.resize_short_px, description.crop_px)
    found = [view for view, _ in views]
    if not found:
        raise UserError("none of the images to calibrate with can be decoded: name others with --calibration LIST")
    return found
