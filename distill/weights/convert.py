"""From a file of one library's weights to a file of another's."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from distill.errors import UserError
from distill.models.plan import state_shapes
from distill.models.specs import check_model_name
from distill.weights.files import read_metadata, read_weights, sha256_of, write_weights
from distill.weights.foreign import TIMM_NAMES, Converted, from_foreign, to_foreign
from distill.weights.loading import fit
from distill.weights.recognize import Match, family_of, recognize

TARGETS = ("ours", "timm", "torchvision", "transformers")


def convert_file(source: Path, target: Path, *, model: str | None = None, to: str = "ours") -> tuple[Match, Converted]:
    """Converts weights, and writes them as `.safetensors` in float32.

    Args:
        source: Any file that `read_weights` reads.
        target: The new file.
        model: Our name of the network; None: the one whose shapes the file has.
        to: One of `TARGETS`: whose names to write.

    Returns:
        What was recognised, and what was written.

    Raises:
        UserError: The file cannot be read or fits no network, or not only one, or `to` has no place for all of it.
        RunError: The new file could not be written.
    """
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: converted weights are written as .safetensors; give OUT that suffix")
    arrays = read_weights(source)
    match = choose(arrays, source, model or _noted_model(source))
    converted = to_ours(arrays, match, source)
    if to != "ours":
        converted = to_foreign(converted.arrays, match.model, match.plan, to)
    name = match.model if to == "ours" else TIMM_NAMES[match.model]
    notes = {"model": match.model, "names": to, "converted_from": source.name, "sha256_of_source": sha256_of(source)}
    metadata = notes | {"network": name, "remarks": "; ".join(converted.remarks)}
    write_weights(target, converted.arrays, {key: value for key, value in metadata.items() if value})
    return match, converted


def choose(arrays: Mapping[str, np.ndarray], source: Path, model: str | None) -> Match:
    """Picks the network that the arrays belong to.

    Raises:
        UserError: There is none, or more than one and `model` is None, or `model` is another.
    """
    if model is not None:
        try:
            check_model_name(model)
        except ValueError as error:
            raise UserError(f"--model: {error}") from error
    found = recognize(arrays)
    chosen = [match for match in found if model in (None, match.model)]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        names = ", ".join(str(match) for match in chosen)
        raise UserError(f"{source} fits several networks alike ({names}): say which it is with --model")
    if found:
        raise UserError(f"{source} does not fit {model}; its shapes are those of {', '.join(map(str, found))}")
    example = ", ".join(f"{key} {list(array.shape)}" for key, array in list(arrays.items())[:4])
    hint = f"`distill weights verify {source} --model {model or 'NAME'}` lists what differs"
    raise UserError(
        f"{source} fits no network of this series ({len(arrays)} arrays, names: {family_of(arrays)}; {example}, "
        f"...). {hint}."
    )


def to_ours(arrays: Mapping[str, np.ndarray], match: Match, source: Path | str) -> Converted:
    """Brings arrays that `recognize` has matched under our names, as finite float32."""
    found = Converted(dict(arrays))
    if match.dialect is not None:
        found = from_foreign(arrays, match.model, match.plan, match.dialect)
    shapes = state_shapes(match.plan)
    fitted = fit(found.arrays, shapes, source=str(source))
    return Converted({key: fitted[key] for key in shapes}, found.remarks)


def _noted_model(source: Path) -> str | None:
    """The network that a converted file names in its header."""
    return read_metadata(source).get("model") if source.suffix == ".safetensors" else None
