"""When images that cannot be decoded are too many to go on."""

from collections.abc import Sequence

from distill.data.types import Failure
from distill.errors import RunError
from distill.recipe import Stage


def check_undecodable(
    stage: Stage, epoch: int, failed: int, images: int, last: Sequence[Failure], *, listed: str = ""
) -> None:
    """Stops where more of an epoch's images than the stage allows cannot be decoded.

    Args:
        stage: States `data.max_undecodable_fraction`.
        epoch: Counted from 0.
        failed: Images of this epoch that could not be decoded so far.
        images: In an epoch.
        last: Failures of which the last is named, where there are any.
        listed: Where a person finds the others, a sentence.

    Raises:
        RunError: There are too many.
    """
    fraction = stage.data.max_undecodable_fraction
    if failed > fraction * images:
        named = f" The last: {last[-1].name}: {last[-1].reason}." if last else ""
        raise RunError(
            f"{failed} of the {images} images of epoch {epoch} cannot be decoded; "
            f"stages.{stage.name}.data.max_undecodable_fraction {fraction:g} allows {fraction * images:g}.{named} "
            f"{listed + ' ' if listed else ''}Mend or remove them"
        )
