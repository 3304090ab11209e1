"""What a file of weights is: its format, arrays, network and identity; nothing in it is executed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.errors import UserError
from distill.models.plan import plan_network, state_shapes
from distill.models.specs import SPECS, check_model_name
from distill.weights.convert import to_ours
from distill.weights.fetch import remembered
from distill.weights.files import read_metadata, read_weights, sha256_of
from distill.weights.foreign import dialect_of, from_foreign
from distill.weights.loading import fit
from distill.weights.names import is_classifier, naming_style
from distill.weights.recognize import Match, family_of, recognize

_FORMATS = {".safetensors": "safetensors", ".pdparams": "pickle of paddle.save"}


@dataclass(frozen=True)
class Description:
    """A file of weights in words and numbers.

    Attributes:
        format: How it is written.
        sha256: Of the file, in hexadecimal.
        arrays: Shape and type by key, in the file's order.
        names: Whose names they are.
        matches: The networks that they fit.
        remarks: What else is known: notes from fetching and converting, which of two meanings a name has.
    """

    format: str
    sha256: str
    arrays: dict[str, tuple[tuple[int, ...], str]]
    names: str
    matches: list[Match]
    remarks: list[str]


def describe(path: Path) -> Description:
    """Describes a file that `read_weights` reads.

    Raises:
        UserError: It cannot be read.
    """
    arrays = read_weights(path)
    known = {**(read_metadata(path) if path.suffix == ".safetensors" else {}), **remembered(path)}
    return Description(
        format=_FORMATS.get(path.suffix, "torch.save"),
        sha256=sha256_of(path),
        arrays={key: (array.shape, str(array.dtype)) for key, array in arrays.items()},
        names=family_of(arrays),
        matches=recognize(arrays),
        remarks=[*(f"{key}: {value}" for key, value in known.items() if key != "sha256"), *_ssld_meaning(path, arrays)],
    )


def verify(path: Path, model: str, *, width: float = 1.0, stem_stride: int = 4, sha256: str | None = None) -> Match:
    """Checks that a file holds a network's weights, finite and complete, of any number of classes.

    Args:
        path: A file that `read_weights` reads, in any naming that `recognize` knows.
        model: Our name of the network.
        width: Its multiplier of the channels.
        stem_stride: Its stem.
        sha256: What the file must have; None: what was remembered when it was fetched, if anything.

    Raises:
        UserError: It does not fit; the message lists what differs. Or it has another SHA-256.
    """
    try:
        spec = check_model_name(model)
        plan_network(spec, width=width, stem_stride=stem_stride)
    except ValueError as error:
        raise UserError(str(error)) from error
    expected, found = sha256 or remembered(path).get("sha256"), sha256_of(path)
    if expected is not None and expected.lower() != found:
        raise UserError(f"{path} has the SHA-256 {found}, expected {expected}: fetch it again")
    arrays = read_weights(path)
    dialect = dialect_of(arrays)
    match = Match(model, width, stem_stride, _classes(arrays), dialect)
    fitting = recognize(arrays)
    if match in fitting:
        to_ours(arrays, match, path)
        return match
    if dialect is not None:
        arrays = from_foreign(arrays, model, match.plan, dialect).arrays
    shapes = state_shapes(plan_network(SPECS[model], match.num_classes, width=width, stem_stride=stem_stride))
    try:
        fit(arrays, shapes, source=str(path))
    except UserError as error:
        others = " or ".join(map(str, fitting))
        raise UserError(str(error) + (f"\nThe shapes in the file are those of {others}." if others else "")) from error
    return match


def _classes(arrays: Mapping[str, np.ndarray]) -> int:
    """The outputs of the classifier, 1000 where none is found: the comparison then says that it is missing."""
    keys = ("fc.bias", "classifier.1.bias")
    biases = [array for key, array in arrays.items() if key in keys or (is_classifier(key) and key.endswith("bias"))]
    return len(biases[0]) if biases and biases[0].ndim == 1 and len(biases[0]) else 1000


def _ssld_meaning(path: Path, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Tells the two published files called ResNet50_vd_ssld apart by the style of their names."""
    is_ssld = "ResNet50_vd_ssld" in path.name and "ssld_v2" not in path.name
    style = naming_style(arrays)
    if not is_ssld or style not in ("current", "old"):
        return []
    which = {
        "old": "the names are from before PaddleClas 2.1: as published this is the file with 82.4 % (ssld)",
        "current": "the names are from PaddleClas 2.1 or later: as published this is the file with 83.0 % (ssld_v2)",
    }[style]
    return [f"two published files are called ResNet50_vd_ssld; {which}; a converted file no longer tells"]
