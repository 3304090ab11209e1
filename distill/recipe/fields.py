"""What the sections of a recipe share: their base, types of values, and errors that name a place."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from distill.errors import did_you_mean
from distill.models.specs import SPECS

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Triple = tuple[float, float, float]


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"must be [low, high] with low <= high, received {list(interval)}")
    return interval


def _shares(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[1] > 1:
        raise ValueError(f"must not exceed 1, received {list(interval)}")
    return interval


Interval = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]
ShareInterval = Annotated[Interval, AfterValidator(_shares)]
SERIES_TAPS = ("stem", "stage1", "stage2", "stage3", "stage4", "embedding")
TapName = Annotated[
    str,
    Field(
        min_length=1,
        description=f"{', '.join(SERIES_TAPS[:-1])} or embedding; of a factory's network embedding or the name of any "
        "layer.",
        json_schema_extra={"examples": list(SERIES_TAPS)},
    ),
]


class PlacedError(ValueError):
    """A rule between keys that is reported at a key further in.

    Args:
        message: As of any validator.
        path: Keys and indices from the validator's own field.
    """

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.path = path


def check_tap(model: str | None, layer: str, *path: str | int) -> None:
    """Refuses a tap that a network of the series has not; of any other network nothing is known here.

    Raises:
        PlacedError: At `path`.
    """
    if model in SPECS and layer not in SERIES_TAPS:
        raise PlacedError(
            f"must be {', '.join(map(repr, SERIES_TAPS[:-1]))} or {SERIES_TAPS[-1]!r} of {model}, received {layer!r}."
            f"{did_you_mean(layer, SERIES_TAPS)}",
            *path,
        )


class Section(BaseModel):
    """Base of every part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
