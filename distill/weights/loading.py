"""Puts a file's weights into a model, all of them or none."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.errors import UserError
from distill.weights.files import read_weights
from distill.weights.foreign import dialect_of
from distill.weights.names import is_classifier, naming_style, rename

if TYPE_CHECKING:
    from paddle.nn import Layer

LOG = logging.getLogger(__name__)
_SHOWN = 8  # keys listed in an error, of each kind


def load_into(model: "Layer", path: Path | str, *, allow_other_classes: bool = False) -> None:
    """Loads a `.safetensors` or `.pdparams` file into a model.

    Every array of the model must be in the file with its shape, under its own name or that of another
    naming style of the series (see `distill.weights.names`), and every array of the file must be used;
    otherwise the model is left as it was. A network that a factory made takes its own names alone, see
    `fit_own_names`.

    Args:
        model: a network of `distill.models`.
        path: the file.
        allow_other_classes: keep the model's fresh classifier, and log it, where the file's has another
            number of classes. Everything else must still fit.

    Raises:
        UserError: the file cannot be read, or does not fit; the message lists what does not.
    """
    own = model.state_dict()
    if not model.published_names:
        state = {key: (tuple(value.shape), value.numpy().dtype) for key, value in own.items()}
        arrays = fit_own_names(read_weights(path), state, source=str(path), network=model.name)
        model.set_state_dict({key: _as_tensor(value) for key, value in arrays.items()})
        return
    shapes = {key: tuple(value.shape) for key, value in own.items()}
    arrays = fit(read_weights(path), shapes, source=str(path), allow_other_classes=allow_other_classes)
    kept = own.keys() - arrays.keys()
    if kept:
        LOG.warning("%s has another number of classes: %s start afresh.", path, " and ".join(sorted(kept)))
    model.set_state_dict(own | {key: _as_tensor(value) for key, value in arrays.items()})


def fit(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    source: str,
    allow_other_classes: bool = False,
) -> dict[str, np.ndarray]:
    """Renames a file's arrays to a model's keys and checks that they fit.

    Args:
        arrays: what the file holds.
        shapes: the model's keys and shapes.
        source: the file's name, for the message.
        allow_other_classes: leave out a classifier of another number of classes instead of refusing it.

    Returns:
        float32 arrays by the model's keys.

    Raises:
        UserError: see `load_into`.
    """
    renamed = rename(arrays, shapes)
    if allow_other_classes:
        renamed, shapes = _without_classifier(renamed, shapes)
    problems = [
        *_listed("missing in the file", sorted(shapes.keys() - renamed.keys())),
        *_listed("in the file, not in the model", sorted(renamed.keys() - shapes.keys())),
        *_listed("unlike the model", list(_mismatches(renamed, shapes))),
    ]
    if problems:
        hint = _naming_hint(arrays)
        lines = "\n  ".join(problems)
        raise UserError(
            f"{source} does not fit the model ({len(shapes)} arrays):\n  {lines}\n"
            f"{hint}. Check model.name, model.width, model.stem_stride and num_classes."
        )
    return {key: value.astype(np.float32, copy=False) for key, value in renamed.items()}


def fit_own_names(
    arrays: Mapping[str, np.ndarray],
    state: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    *,
    source: str,
    network: str,
) -> dict[str, np.ndarray]:
    """Checks that a file's arrays fit a network that a factory made: same names and shapes, none more, none less.

    Args:
        arrays: what the file holds.
        state: the network's shapes and types by key.
        source: the file's name, for the message.
        network: the factory's name, likewise.

    Returns:
        the arrays in the network's types; numbers of another kind (whole, floating point) are not converted.

    Raises:
        UserError: see `load_into`.
    """
    problems = [
        *_listed("missing in the file", sorted(state.keys() - arrays.keys())),
        *_listed("in the file, not in the network", sorted(arrays.keys() - state.keys())),
        *_listed("unlike the network", list(_own_mismatches(arrays, state))),
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise UserError(
            f"{source} does not fit the network of {network} ({len(state)} arrays):\n  {lines}\n"
            "The names are taken as they are. Check model.arguments and num_classes"
        )
    return {key: arrays[key].astype(dtype, copy=False) for key, (_, dtype) in state.items()}


def _own_mismatches(
    arrays: Mapping[str, np.ndarray], state: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
) -> Iterable[str]:
    for key in state.keys() & arrays.keys():
        (shape, dtype), array = state[key], arrays[key]
        if array.shape != shape:
            yield f"{key} (expected {list(shape)}, received {list(array.shape)})"
        elif array.dtype.kind != dtype.kind:
            yield f"{key} (expected {dtype}, received {array.dtype})"
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            yield f"{key} (holds NaN or infinity)"


def _naming_hint(arrays: Mapping[str, np.ndarray]) -> str:
    style = naming_style(arrays)
    if style:
        return f"Its names are of the series' {style} style"
    if dialect_of(arrays):
        return "Its names are those of a PyTorch library: convert it with `distill weights convert`"
    return "None of its names is of this series"


def _without_classifier(
    arrays: dict[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], Mapping[str, tuple[int, ...]]]:
    """Drops the classifier from both sides if its number of classes, and only that, differs."""
    theirs = {key: array.shape for key, array in arrays.items() if is_classifier(key)}
    ours = {key: shape for key, shape in shapes.items() if is_classifier(key)}
    if theirs == ours or theirs.keys() != ours.keys():
        return arrays, shapes
    if any(len(theirs[key]) != len(ours[key]) or theirs[key][:-1] != ours[key][:-1] for key in ours):
        return arrays, shapes  # other features: the network differs, the classes may not
    return (
        {key: array for key, array in arrays.items() if key not in ours},
        {key: shape for key, shape in shapes.items() if key not in ours},
    )


def _mismatches(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> Iterable[str]:
    for key, shape in shapes.items():
        array = arrays.get(key)
        if array is None:
            continue
        if array.shape != shape:
            yield f"{key} (expected {list(shape)}, received {list(array.shape)})"
        elif array.dtype.kind != "f":
            yield f"{key} (expected floating point, received {array.dtype})"
        elif not np.isfinite(array).all():
            yield f"{key} (holds NaN or infinity)"


def _listed(title: str, items: list[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return [f"{title}: {', '.join(items[:_SHOWN])}{more}"]


def _as_tensor(array: np.ndarray) -> Any:
    import paddle

    return paddle.to_tensor(array)
