"""What the report says, as plain values: `report.json` is this, and the page shows it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ImageRef:
    """An image that the page may show.

    Attributes:
        set_name: "pool", "labelled" or "protected-<name>".
        image: Its number in that set.
        path: As an image list names it.
    """

    set_name: str
    image: int
    path: str


@dataclass(frozen=True)
class FunnelStep:
    """Images after a stage.

    Attributes:
        name: What they are: "decoded", "no leaks".
        images: How many.
        left_out: How many the stage left out.
        why: The rule that left them out.
    """

    name: str
    images: int
    left_out: int
    why: str


@dataclass(frozen=True)
class Pair:
    """A pool image beside the protected image that it may show.

    Attributes:
        pool: The one.
        protected: The other.
        mirrored: Whether the mirrored protected image was compared.
        cosine: Of the embeddings.
        hash_bits: In which the perceptual hashes differ.
        inliers: Of the geometric check; None where it was not needed.
        decision: "drop" or "review".
        reason: What decided, of `leaks.REASONS`.
    """

    pool: ImageRef
    protected: ImageRef
    mirrored: bool
    cosine: float
    hash_bits: int
    inliers: int | None
    decision: str
    reason: str


@dataclass(frozen=True)
class Group:
    """Images that show the same.

    Attributes:
        size: With the one that stays.
        kept: The one that stays.
        left_out: Some of the others.
    """

    size: int
    kept: ImageRef
    left_out: tuple[ImageRef, ...]


@dataclass(frozen=True)
class Sample:
    """An image of a class, chosen or refused.

    Attributes:
        image: The image.
        score: The teacher's probability, or the cosine.
        why: "predicted", "neighbour"; of a refused image the reason.
    """

    image: ImageRef
    score: float
    why: str


@dataclass(frozen=True)
class ClassSample:
    """Some images of a class.

    Attributes:
        label: The class.
        in_pool: Images whose best class it is.
        on_list: Different images on the list.
        chosen: The first and the last ones chosen.
        refused: The best ones that are not on the list.
    """

    label: int
    in_pool: int
    on_list: int
    chosen: tuple[Sample, ...]
    refused: tuple[Sample, ...]


@dataclass(frozen=True)
class Summary:
    """The whole report.

    Attributes:
        name: The recipe's.
        description: The recipe's.
        funnel: From everything listed to the lines of the list.
        leaks: Some dropped pairs, the weakest evidence first.
        review: Some pairs of the review band, the strongest evidence first.
        groups: The largest groups of duplicates.
        classes_in_pool: Images by best class, [C].
        classes_on_list: Different images by class, [C].
        quota: Images a class may have, None where there is no such limit.
        confidence_in_pool: Images by the best class's probability, in equal bins over [0, 1].
        confidence_on_list: The same of the list.
        samples: For some classes.
        undecodable: Some images that could not be read: (name, reason).
        stages: What each stage reports: counts, facts and seconds, by name.
        settings: The recipe's sections.
        versions: Of the programs, and the processor.
    """

    name: str
    description: str
    funnel: tuple[FunnelStep, ...]
    leaks: tuple[Pair, ...]
    review: tuple[Pair, ...]
    groups: tuple[Group, ...]
    classes_in_pool: tuple[int, ...]
    classes_on_list: tuple[int, ...]
    quota: int | None
    confidence_in_pool: tuple[int, ...]
    confidence_on_list: tuple[int, ...]
    samples: tuple[ClassSample, ...]
    undecodable: tuple[tuple[str, str], ...]
    stages: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    versions: dict[str, str]
