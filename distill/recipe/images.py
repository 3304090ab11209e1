"""A recipe's images: sources, views, what is mixed, and the evaluation."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from distill.recipe.fields import Count, Fraction, Interval, Section, ShareInterval


class Source(Section):
    """What every kind of source can do."""

    use_labels: Annotated[bool, Field(description="false: withhold the labels, the images count as unlabelled.")] = True
    range: Annotated[
        tuple[Annotated[int, Field(ge=0)], Count] | None,
        Field(description="[first, end): take only these samples, in the source's own order."),
    ] = None
    repeat: Annotated[int, Field(ge=1, description="How often each sample occurs in an epoch.")] = 1

    @field_validator("range")
    @classmethod
    def _range_is_not_empty(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"must be [first, end) with first < end, received {list(value)}")
        return value


class ImageListSource(Source):
    """A text file of lines `path label` or `path`, or a Parquet file with `path` and `label`."""

    kind: Literal["image_list"]
    path: str
    root: Annotated[str, Field(description="The folder that the list's paths are relative to.")]


class ClassFoldersSource(Source):
    """A folder with one sub-folder a class; classes in sorted order."""

    kind: Literal["class_folders"]
    root: str


class IdxSource(Source):
    """IDX files (MNIST, Fashion-MNIST), plain or .gz; grey is repeated to three channels."""

    kind: Literal["idx"]
    images: str
    labels: str | None = None


AnySource = Annotated[ImageListSource | ClassFoldersSource | IdxSource, Field(discriminator="kind")]


class DataSection(Section):
    """The images of an epoch: all sources one after the other."""

    sources: Annotated[tuple[AnySource, ...], Field(min_length=1)]
    max_undecodable_fraction: Annotated[
        Fraction, Field(description="Training stops when more of the samples seen than this cannot be decoded.")
    ] = 0.001


class RandomAreaCrop(Section):
    """A box of random area and aspect ratio, resized to size_px (bilinear)."""

    kind: Literal["random_area"]
    scale: Annotated[ShareInterval, Field(description="Of the image's area, at most 1. Usual: [0.08, 1].")]
    ratio: Annotated[Interval, Field(description="Width / height. Usual: [0.75, 1.3333].")]
    sampling: Annotated[
        Literal["published", "usual"],
        Field(
            description="'published': area clamped so that the box fits, uniform ratio, no retry. "
            "'usual': log-uniform ratio, ten tries, then a centre crop."
        ),
    ]


class PaddedCrop(Section):
    """Zeros around the image, then a box of size_px at a random place: small images."""

    kind: Literal["padded"]
    padding_px: Count


class CenterCrop(Section):
    """The evaluation's preprocessing: resize the short side, crop the centre."""

    kind: Literal["center"]
    resize_short_px: Count


AnyCrop = Annotated[RandomAreaCrop | PaddedCrop | CenterCrop, Field(discriminator="kind")]


class AutoAugmentPolicy(Section):
    """One of the 25 ImageNet sub-policies of AutoAugment (Cubuk et al. 2018, arXiv 1805.09501, table 9)."""

    kind: Literal["autoaugment"]


class RandAugmentPolicy(Section):
    """Some of fourteen operations, all of one strength (Cubuk et al. 2020, arXiv 1909.13719)."""

    kind: Literal["randaugment"]
    operations: Annotated[int, Field(ge=1, description="How many, one after the other. The paper's ResNet-50: 2.")]
    magnitude: Annotated[
        float, Field(ge=0.0, le=10.0, description="From no change, 0, to the strongest, 10. The paper's ResNet-50: 9.")
    ]


AnyPolicy = Annotated[AutoAugmentPolicy | RandAugmentPolicy, Field(discriminator="kind")]


class ErasingSection(Section):
    """Random erasing (Zhong et al. 2020, arXiv 1708.04896): a box of the view becomes noise."""

    probability: Annotated[float, Field(gt=0.0, le=1.0, description="That a view is erased. Usual: 0.25-0.5.")]
    area: Annotated[ShareInterval, Field(description="Of the view's area, at most 1. Usual: [0.02, 0.4].")]
    aspect: Annotated[Interval, Field(description="Width / height. Usual: [0.3, 3.3333].")]


class ViewSection(Section):
    """The random view of an image that student and teacher see: crop, flip, policy, erasing."""

    size_px: Annotated[int, Field(ge=28, description="Height and width of the view.")]
    crop: AnyCrop
    horizontal_flip: Annotated[Fraction, Field(description="Probability.")]
    policy: Annotated[AnyPolicy | None, Field(description="Absent: colours and shapes stay as they are.")] = None
    erasing: Annotated[ErasingSection | None, Field(description="Absent: nothing is erased.")] = None

    @property
    def is_random(self) -> bool:
        """Whether the view of an image differs from epoch to epoch. Whatever else is drawn at random belongs here."""
        drawn = self.policy is not None or self.erasing is not None
        return drawn or self.crop.kind != "center" or self.horizontal_flip not in (0.0, 1.0)


class MixSection(Section):
    """What mixup and CutMix share: both mix samples inside groups of consecutive ones."""

    alpha: Annotated[float, Field(gt=0.0, description="lambda ~ Beta(alpha, alpha).")]
    group_size: Annotated[
        int, Field(ge=2, description="Partners are drawn in groups of this size; it divides device_batch_size.")
    ]
    probability: Annotated[
        float | None, Field(gt=0.0, le=1.0, description="That a group is mixed in this way. Absent: every group is.")
    ] = None


class MixupSection(MixSection):
    """Mixup (Zhang et al. 2018, arXiv 1710.09412): the weighted sum of two images."""


class CutMixSection(MixSection):
    """CutMix (Yun et al. 2019, arXiv 1905.04899): a box of one image, pasted over another."""


class EvaluationSection(Section):
    """The labelled images on which the student, and nothing else, is measured."""

    sources: Annotated[tuple[AnySource, ...], Field(min_length=1)]
    resize_short_px: Count
    crop_px: Annotated[int, Field(ge=28)]
    batch_size: Annotated[int, Field(ge=1, description="Operational.")] = 256
    every_epochs: Annotated[int, Field(ge=1, description="The last epoch is always evaluated.")] = 1
    max_undecodable_fraction: Fraction = 0.0

    @field_validator("crop_px")
    @classmethod
    def _crop_fits(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("resize_short_px", value):
            raise ValueError(f"must not exceed resize_short_px {info.data['resize_short_px']}, received {value}")
        return value
