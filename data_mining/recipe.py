"""The schema of a mining recipe: frozen, unknown keys forbidden, nothing heavy imported.

A stage's section holds what changes its result, and is part of the key of what the stage makes; the section
`runtime` holds what never does. `distill.recipe.file` reads the YAML and reports errors by line.
"""

import re
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from distill.models.specs import check_model_name
from distill.recipe import Count, Fraction, NormalizationSection, Section

Cosine = Annotated[float, Field(ge=-1.0, le=1.0)]
HashBits = Annotated[int, Field(ge=0, le=64, description="Of the 64 bits of the perceptual hash.")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


# --- images -----------------------------------------------------------------------------------


class ImageListSource(Section):
    """A text file of lines `path label` or `path`, or a Parquet file with `path` and `label`."""

    kind: Literal["image_list"]
    path: str
    root: Annotated[str, Field(description="The folder that the list's paths are relative to.")]


class FolderSource(Section):
    """All images below a folder."""

    kind: Literal["folder"]
    root: str
    labels: Annotated[
        Literal["none", "sub_folders"],
        Field(description="'sub_folders': the sorted names of the sub-folders are classes 0, 1, ..."),
    ] = "none"


class TarSource(Section):
    """Tar files (WebDataset layout: image members, each perhaps with a member of the same stem and the label)."""

    kind: Literal["tar"]
    path: Annotated[str, Field(description="A file, or a pattern such as pool/*.tar.")]


AnySource = Annotated[ImageListSource | FolderSource | TarSource, Field(discriminator="kind")]
Sources = Annotated[tuple[AnySource, ...], Field(min_length=1)]


class PoolSection(Section):
    """The images to choose from. Their labels, if any, are used where a section says so."""

    sources: Sources
    images_per_shard: Annotated[
        int, Field(ge=1, description="Of folders and lists; a shard is what a worker takes at a time. A tar is one.")
    ] = 10_000
    max_undecodable_fraction: Annotated[
        Fraction, Field(description="More of the pool than this undecodable: an error.")
    ] = 0.01


class ImageSet(Section):
    """Images with a name, beside the pool."""

    name: Name
    sources: Sources


# --- scores -----------------------------------------------------------------------------------


class TeacherSection(Section):
    """What every teacher states: how an image becomes its input."""

    num_classes: Annotated[int, Field(ge=2, le=65536)]
    resize_short_px: Count
    crop_px: Count
    normalization: NormalizationSection


class NetworkTeacher(TeacherSection):
    """A network of `distill` with its trained weights."""

    kind: Literal["network"]
    name: Annotated[str, Field(description="A name that `distill zoo` lists.")]
    weights: Annotated[str, Field(description="Its trained weights (.safetensors or .pdparams).")]
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    stem_stride: Literal[1, 2, 4] = 4

    @field_validator("name")
    @classmethod
    def _model_is_known(cls, value: str) -> str:
        check_model_name(value)
        return value


class OnnxTeacher(TeacherSection):
    """An ONNX file: input [N, 3, crop_px, crop_px] float32, normalised."""

    kind: Literal["onnx"]
    path: str
    logits_output: Annotated[str | None, Field(description="Default: the first output.")] = None
    embedding_output: Annotated[str | None, Field(description="[N, D]. Default: the second output.")] = None


AnyTeacher = Annotated[NetworkTeacher | OnnxTeacher, Field(discriminator="kind")]


class ScoreSection(Section):
    """What is kept of the teacher's answers."""

    top_classes: Annotated[int, Field(ge=1, le=1000, description="P: the classes kept of each image.")] = 10
    embedding_dim: Annotated[int, Field(ge=2, description="Of the embedding after PCA.")] = 256
    pca_images: Annotated[
        int, Field(ge=2, description="Spread over the pool when it is first scored; the PCA is fitted on them once.")
    ] = 5_000
    whiten: Annotated[
        bool, Field(description="Each direction of the PCA counts alike: more copies among as many candidates.")
    ] = False
    precision: Annotated[
        Literal["float32", "bfloat16"], Field(description="Of the teacher; bfloat16 is faster and moves scores by 1 %.")
    ] = "float32"


# --- leaks and duplicates ---------------------------------------------------------------------


class VerificationSection(Section):
    """SIFT and a geometric check of a candidate pair: RootSIFT, mutual matches, affine RANSAC.

    The bands were measured on 200 photographs at 256 px under ten edits (`scripts/benchmarks/verify.py`): of 2,322
    unrelated pairs one has more than 5 inliers (9); of the edited copies 99-100 % have 12 or more, of those that are
    blurred or cropped to a quarter 96 %.
    """

    side_px: Annotated[int, Field(ge=32, description="Both images are resized to this short side.")] = 256
    ratio: Annotated[float, Field(gt=0.0, le=1.0, description="Lowe's ratio of the nearest to the second.")] = 0.8
    ransac_px: Annotated[float, Field(gt=0.0, description="Largest error of an inlier.")] = 5.0
    drop_inliers: Annotated[int, Field(ge=4, description="As many inliers or more: the same picture.")] = 12
    review_inliers: Annotated[int, Field(ge=3, description="Fewer than this: not the same; between: to review.")] = 6

    @field_validator("review_inliers")
    @classmethod
    def _bands_are_ordered(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("drop_inliers", value):
            raise ValueError(f"must not exceed drop_inliers {info.data['drop_inliers']}, received {value}")
        return value


class LeaksSection(Section):
    """Pool images that show a protected image."""

    min_cosine: Annotated[Cosine, Field(description="Candidates by embedding, originals and mirrored.")]
    altered_min_cosine: Annotated[
        Cosine | None,
        Field(
            description="Candidates by embedding, of crops and framed copies: what is so near to a protected image cut "
            "out or framed. Takes 28 more passes of the teacher over the protected images. null: not looked for."
        ),
    ] = None
    max_hash_bits: Annotated[HashBits, Field(description="Candidates by perceptual hash.")]
    certain_hash_bits: Annotated[
        int, Field(ge=-1, le=64, description="So close a hash with so close an embedding needs no SIFT; -1: never.")
    ] = -1
    review_hash_bits: Annotated[
        int, Field(ge=-1, le=64, description="A candidate with so close a hash is reviewed at least; -1: never.")
    ] = 4
    mirrored: Annotated[bool, Field(description="Look for mirrored copies too.")] = True
    within_label: Annotated[bool, Field(description="Compare images of one label only, as SSLD did.")] = False
    verification: VerificationSection = VerificationSection()
    drop_review_band: Annotated[bool, Field(description="What a person has not looked at is left out.")] = True


class SearchSection(Section):
    """How pairs are found in the pool."""

    exact_up_to_images: Annotated[int, Field(ge=0, description="Up to here the lossless join, above faiss.")] = (
        1_000_000
    )
    factory: Annotated[str | None, Field(description="faiss index, such as IVF65536,SQfp16. Default: by size.")] = None
    nprobe: Count = 64
    neighbours: Annotated[int, Field(ge=1, description="Of each image, searched by faiss.")] = 64
    audit_images: Annotated[int, Field(ge=1, description="Searched exactly as well: the measured recall.")] = 2_000


class DuplicatesSection(Section):
    """Pool images that show the same as another pool image, or as a labelled one."""

    min_cosine: Cosine
    max_hash_bits: HashBits
    against_labelled: Annotated[bool, Field(description="Drop what the section `labelled` has already.")] = True
    search: SearchSection = SearchSection()
    verify: Annotated[
        VerificationSection | None, Field(description="Check every pair by SIFT too; slow for a large pool.")
    ] = None
    large_component: Annotated[int, Field(ge=2, description="Larger components are checked and reported.")] = 50
    min_cosine_to_representative: Annotated[
        Cosine | None, Field(description="Guard against chains: less like the representative is kept.")
    ] = None


# --- selection --------------------------------------------------------------------------------


class BackfillSection(Section):
    """Classes that are short are filled with the pool's nearest neighbours of their labelled images."""

    neighbours: Annotated[int, Field(ge=1, description="Of each labelled image.")]
    min_cosine: Cosine


class ByClass(Section):
    """The best images of each class."""

    kind: Literal["by_class"]
    images_per_class: Annotated[int, Field(ge=1, description="K.")]
    classes_per_image: Annotated[
        int, Field(ge=1, description="An image competes in so many of its best classes, and enters once.")
    ] = 1
    min_confidence: Fraction = 0.0
    fill_by_repeating: Annotated[bool, Field(description="Repeat the images of short classes up to K.")] = False
    backfill: BackfillSection | None = None


class ByRetrieval(Section):
    """The pool's nearest neighbours of each labelled image."""

    kind: Literal["by_retrieval"]
    neighbours: Annotated[int, Field(ge=1, description="Of each labelled image.")]
    min_cosine: Cosine = -1.0
    max_images: Annotated[int | None, Field(ge=1)] = None


AnySelect = Annotated[ByClass | ByRetrieval, Field(discriminator="kind")]


class PackSection(Section):
    """The chosen images as tar files of smaller JPEGs."""

    short_side_px: Annotated[int, Field(ge=32, description="Larger images are resized to it, smaller kept.")] = 256
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    images_per_tar: Count = 10_000


# --- operation --------------------------------------------------------------------------------

_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def parse_bytes(text: str) -> int:
    """The number of bytes that "4GiB" or "500 MB" states.

    Raises:
        ValueError: It is not a positive number with a unit.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]i?B|B)", text.strip())
    value = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if value < 1:
        raise ValueError(f"must be a number with a unit such as 4GiB, received {text!r}")
    return value


class RuntimeSection(Section):
    """Operational settings: they change speed and safety, never the result."""

    executor: Literal["local", "ray"] = "local"
    workers: Annotated[int | None, Field(ge=1, description="Processes. Default: as many as CPU cores.")] = None
    memory: Annotated[str, Field(description="What a process may use, such as 4GiB; all workers together.")] = "4GiB"
    batch_size: Annotated[int, Field(ge=1, description="Images a forward pass of the teacher.")] = 32
    device: Literal["auto", "cpu", "gpu"] = "auto"
    attempts: Annotated[int, Field(ge=1, description="At a shard whose worker died.")] = 3

    @field_validator("memory")
    @classmethod
    def _memory_is_a_size(cls, value: str) -> str:
        parse_bytes(value)
        return value

    @property
    def memory_bytes(self) -> int:
        """`memory` in bytes."""
        return parse_bytes(self.memory)


class MiningRecipe(Section):
    """From a pool to an image list.

    The order of the sections is that of the stages: pool -> index -> score -> leaks -> duplicates -> select -> pack.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    description: str
    pool: PoolSection
    labelled: Annotated[ImageSet | None, Field(description="The images that the student trains on anyway.")] = None
    protected: Annotated[tuple[ImageSet, ...], Field(description="What must not leak: validation and test sets.")] = ()
    teacher: AnyTeacher
    score: ScoreSection = ScoreSection()
    leaks: Annotated[LeaksSection | None, Field(description="Needs `protected`.")] = None
    duplicates: DuplicatesSection | None = None
    select: AnySelect
    pack: PackSection | None = None
    runtime: RuntimeSection = RuntimeSection()

    @field_validator("protected")
    @classmethod
    def _names_differ(cls, value: tuple[ImageSet, ...]) -> tuple[ImageSet, ...]:
        names = [each.name for each in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"must have names that differ, received twice: {', '.join(twice)}")
        return value

    @field_validator("leaks")
    @classmethod
    def _leaks_need_protected(cls, value: LeaksSection | None, info: ValidationInfo) -> LeaksSection | None:
        if value is not None and "protected" in info.data and not info.data["protected"]:
            raise ValueError("compares with protected images: add the section `protected`")
        return value

    @field_validator("select")
    @classmethod
    def _select_has_what_it_needs(cls, value: AnySelect, info: ValidationInfo) -> AnySelect:
        needs_labelled = isinstance(value, ByRetrieval) or value.backfill is not None
        if needs_labelled and "labelled" in info.data and info.data["labelled"] is None:
            raise ValueError("looks for neighbours of labelled images: add the section `labelled`")
        score = info.data.get("score")
        if isinstance(value, ByClass) and score is not None and value.classes_per_image > score.top_classes:
            raise ValueError(
                f"must have classes_per_image of at most score.top_classes {score.top_classes}, "
                f"received {value.classes_per_image}"
            )
        return value
