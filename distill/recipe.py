"""The schema of a recipe: frozen, unknown keys forbidden, no Paddle import.

A recipe states every value that affects accuracy. A key that may be left out means either "this
technique is not used", "the architecture as published", or an operational setting that changes
speed and never the result. `distill.recipe_file` reads the YAML and reports errors by line.

A rule between keys is a validator of the later key (through `info.data`, which holds the earlier
ones), so that it is reported on that key's line and beside every other error. Its message continues
the key's name: "must divide ...". A field's description ends every error about it.
"""

import keyword
import math
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from distill.errors import did_you_mean
from distill.models.factory_names import FACTORY_PATTERN, check_factory_name, is_factory
from distill.models.specs import SPECS, check_model_name

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Triple = tuple[float, float, float]


def _known_model(name: str) -> str:
    if is_factory(name):
        check_factory_name(name)
    else:
        check_model_name(name)
    return name


def _argument(value: object) -> object:
    if isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    received = list(value) if isinstance(value, tuple) else value
    raise ValueError(f"must be a number, text, true or false, received {received!r}")


def _named_arguments(arguments: dict[str, object] | None) -> dict[str, object] | None:
    for key in arguments or {}:
        if not key.isidentifier() or keyword.iskeyword(key):
            raise ValueError(f"must have the names of a function's arguments as keys, received {key!r}")
        if key == "num_classes":
            raise ValueError("must not have num_classes, which is the recipe's own")
    return arguments


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
Argument = Annotated[
    bool | int | float | str,
    PlainValidator(_argument),
    WithJsonSchema({"type": ["boolean", "number", "string"]}),
]
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


# --- networks ---------------------------------------------------------------------------------


class ModelSection(Section):
    """The network that is trained: the student where there is a teacher."""

    name: Annotated[
        str,
        AfterValidator(_known_model),
        Field(
            description="A name that `distill zoo` lists, or module:function, a Python function that takes num_classes "
            "and returns a paddle.nn.Layer: images [N, 3, H, W] to logits. Its code runs.",
            json_schema_extra={"anyOf": [{"enum": list(SPECS)}, {"pattern": FACTORY_PATTERN}]},
        ),
    ]
    width: Annotated[float, Field(gt=0.0, le=4.0, description="Multiplier of every channel count.")] = 1.0
    stem_stride: Annotated[
        Literal[1, 2, 4],
        Field(description="4 as published; 2 without max-pool; 1 also with a stride-1 convolution (28-64 px)."),
    ] = 4
    weights: Annotated[str | None, Field(description="Weights to start from (.safetensors or .pdparams).")] = None
    data_format: Annotated[Literal["NCHW", "NHWC"], Field(description="Operational: memory layout.")] = "NCHW"
    arguments: Annotated[
        dict[str, Argument] | None,
        AfterValidator(_named_arguments),
        Field(description="Of a factory, module:function: further keyword arguments."),
    ] = None
    classifier: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Of a factory's network: name of its last layer, which makes the logits. Absent: the last "
            "nn.Linear.",
        ),
    ] = None

    @field_validator("width", "stem_stride", "data_format")
    @classmethod
    def _of_the_series(cls, value: object, info: ValidationInfo) -> object:
        name = info.data.get("name", "")
        if is_factory(name) and info.field_name is not None and value != cls.model_fields[info.field_name].default:
            raise ValueError(
                f"must be left out beside the factory {name}: it means something for networks of the series alone. "
                "What the function takes goes into model.arguments"
            )
        return value

    @field_validator("arguments", "classifier")
    @classmethod
    def _of_a_factory(cls, value: object, info: ValidationInfo) -> object:
        name = info.data.get("name")
        if value is not None and name is not None and not is_factory(name):
            raise ValueError(
                f"must be left out beside {name}: it means something for a factory, module:function, alone"
            )
        return value


class NormalizationSection(Section):
    """(x / 255 - mean) / std, a channel each in the order R, G, B."""

    mean: Triple
    std: tuple[Positive, Positive, Positive]


TeacherSide = Annotated[
    int | None,
    Field(
        ge=1,
        description="The view is resized to this side for the teacher (bilinear, half-pixel centres, no smoothing: "
        "meant for enlarging). Absent: it sees the view as it is.",
    ),
]
TeacherClasses = Annotated[
    str | None,
    Field(
        min_length=1,
        description="A text file that maps the teacher's classes to the student's, a line a student class: `3 281-285` "
        "or `0 404,895`, # begins a comment; probabilities of several are added. Absent: they have the same classes.",
    ),
]
BARE_SUFFIXES = (".onnx", ".json", ".pdmodel")
"""Of a network's file, which alone states no preprocessing; a path with another one is a folder."""


class TeacherModel(ModelSection):
    """One frozen network of the series whose answers the student learns."""

    kind: Literal["network"] = "network"
    weights: Annotated[str, Field(description="Its trained weights (.safetensors or .pdparams).")]
    normalization: Annotated[
        NormalizationSection | None, Field(description="Where the teacher's differs from the student's.")
    ] = None
    resize_px: TeacherSide = None
    classes: TeacherClasses = None
    num_classes: Annotated[
        int | None, Field(ge=2, le=65536, description="Of the teacher, beside `classes`. Absent: the student's.")
    ] = None

    @property
    def file(self) -> str:
        """What it is read from."""
        return self.weights

    @field_validator("num_classes")
    @classmethod
    def _classes_are_mapped(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("classes", value) is None:
            raise ValueError("must come with classes: the file that maps the teacher's classes to the student's")
        return value


class FileTeacher(Section):
    """A frozen network of any architecture, as a file; it computes in float32 on a CPU, beside a GPU too."""

    path: Annotated[str, Field(min_length=1, description="The file, or a folder that `distill export` wrote.")]
    normalization: Annotated[
        NormalizationSection | None,
        Field(
            validate_default=True,
            description="Of RGB in [0, 1]. A network that wants [0, 1]: mean 0, std 1; [-1, 1]: mean 0.5, std 0.5; "
            "bytes 0..255: mean 0, std 0.00392156862745098; (x - 127) / 128: mean 0.498039216, std 0.501960784. "
            "Absent: what the folder of `distill export` states.",
        ),
    ] = None
    answers: Annotated[
        Literal["logits", "probabilities"],
        Field(description="What the network puts out; of probabilities, behind a softmax, the logarithm is taken."),
    ] = "logits"
    resize_px: TeacherSide = None
    classes: TeacherClasses = None

    @property
    def file(self) -> str:
        """What it is read from."""
        return self.path

    @property
    def name(self) -> str:
        """For people: the last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @field_validator("normalization")
    @classmethod
    def _preprocessing_is_stated(
        cls, value: NormalizationSection | None, info: ValidationInfo
    ) -> NormalizationSection | None:
        if value is None and info.data.get("path", "").endswith(BARE_SUFFIXES):
            raise ValueError(
                "must be there: a file does not state its preprocessing, as a folder of `distill export` does. "
                "Usual of ImageNet: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"
            )
        return value


class OnnxTeacher(FileTeacher):
    """An ONNX file: one input, [N, 3, H, W] or [N, H, W, 3], float32 or uint8; needs the extra `export`."""

    kind: Literal["onnx"]
    logits_output: Annotated[
        str | None,
        Field(min_length=1, description="Any tensor of the graph, [N, classes]. Absent: the first output."),
    ] = None


class PaddleTeacher(FileTeacher):
    """A program of Paddle Inference, .json or .pdmodel with its .pdiparams beside it; inputs as of `onnx`."""

    kind: Literal["paddle"]


def _teacher_kind(value: object) -> object:
    """The `kind` of an entry, "network" where it states none."""
    if isinstance(value, dict):
        kind = value.get("kind", "network")
        return kind if kind is None else str(kind)
    return getattr(value, "kind", "network")


AnyTeacher = Annotated[
    Annotated[TeacherModel, Tag("network")]
    | Annotated[OnnxTeacher, Tag("onnx")]
    | Annotated[PaddleTeacher, Tag("paddle")],
    Discriminator(_teacher_kind),
]


def _top_classes(value: object) -> object:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"must be a whole number >= 1 or 'all', received {value!r}")


class LabelsSection(Section):
    """A store of the teacher's answers: what is there is read, what is not is computed once."""

    folder: Annotated[str, Field(min_length=1, description="The store; `distill labels info` says what it will need.")]
    top_classes: Annotated[
        int | Literal["all"],
        PlainValidator(_top_classes),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "all"}]}),
        Field(description="Classes kept of an answer; the mass of the others is spread evenly over them."),
    ] = 10
    views: Annotated[
        int | None,
        Field(ge=1, description="Epoch e repeats the order, the views and what is mixed of epoch e mod views."),
    ] = None
    missing: Annotated[
        Literal["compute", "wait"],
        Field(description="Operational. 'wait': until `distill labels build`, anywhere, has stored the answer."),
    ] = "compute"


class TeacherSection(Section):
    """One or more teachers; the probabilities of several are averaged."""

    models: Annotated[
        tuple[AnyTeacher, ...],
        Field(min_length=1, description="Each of a kind: network (the default), onnx, paddle."),
    ]
    batch_norm: Annotated[
        Literal["stored", "batch"],
        Field(description="'stored': running statistics. 'batch': statistics of the batch, as SSLD did."),
    ]
    engine: Annotated[
        Literal["auto", "eager"],
        Field(
            description="Operational, of the kind network. 'auto': Paddle Inference with oneDNN where it applies (a "
            "CPU, stored statistics), checked against the plain model at the start."
        ),
    ] = "auto"
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"],
        Field(
            description="Of the teacher's computation, whatever the stage's amp. 'bfloat16': a CPU with AVX-512, or a "
            "GPU; its logits differ by about 1 % of the largest. 'float16': a GPU."
        ),
    ] = "float32"
    labels: Annotated[LabelsSection | None, Field(description="Absent: the teacher computes in every run.")] = None
    devices: Annotated[
        tuple[Annotated[str, Field(pattern=r"^(cpu|gpu(:[0-9]{1,4})?)$")], ...],
        Field(
            description="Operational. A process for each, cpu, gpu or gpu:N, fills the labels while the student trains "
            "and waits for what it needs."
        ),
    ] = ()

    @property
    def files(self) -> tuple[FileTeacher, ...]:
        """The teachers that are files."""
        return tuple(model for model in self.models if isinstance(model, FileTeacher))

    @field_validator("batch_norm", "precision")
    @classmethod
    def _files_are_fixed(cls, value: str, info: ValidationInfo) -> str:
        fixed = "stored" if info.field_name == "batch_norm" else "float32"
        kinds = sorted({model.kind for model in info.data.get("models", ()) if model.kind != "network"})
        if value != fixed and kinds:
            why = "its statistics are part of its graph" if fixed == "stored" else "it computes in that on a CPU"
            raise ValueError(f"must be {fixed!r} beside a teacher of the kind {kinds[0]}: {why}; received {value!r}")
        return value

    @field_validator("labels")
    @classmethod
    def _answers_can_be_stored(cls, value: LabelsSection | None, info: ValidationInfo) -> LabelsSection | None:
        if value is not None and info.data.get("batch_norm") == "batch":
            raise ValueError(
                "does not go with batch_norm 'batch': the answer to an image would depend on the others of its batch. "
                "Use batch_norm 'stored', or remove labels"
            )
        return value

    @field_validator("devices")
    @classmethod
    def _processes_share_a_store(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and info.data.get("labels", value) is None:
            raise ValueError("must come with labels: the store through which their answers reach training")
        models = info.data.get("models", ())
        if models and all(model.kind != "network" for model in models) and any(name != "cpu" for name in value):
            raise ValueError(
                f"must be cpu for teachers that are files, which compute on a CPU alone, received {list(value)}"
            )
        return value


# --- data -------------------------------------------------------------------------------------


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


def _or_none(number: float | None) -> str:
    return "none" if number is None else f"{number:g}"


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


# --- losses -----------------------------------------------------------------------------------


class Term(Section):
    """A part of the loss and its weight in the sum."""

    weight: Annotated[float, Field(gt=0.0)]


class TemperatureTerm(Term):
    """A term between softened distributions."""

    temperature: Annotated[float, Field(gt=0.0, description="Typical: 1-4.")]


class CrossEntropyTerm(Term):
    """Against the ground truth; unlabelled images contribute nothing."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)]


class DKDTerm(TemperatureTerm):
    """Decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679)."""

    alpha: NonNegative
    beta: NonNegative


class DISTTerm(TemperatureTerm):
    """DIST (Huang et al. 2022, arXiv 2205.10536)."""

    beta: NonNegative
    gamma: NonNegative


class FeatureTerm(Term):
    """Mean squared error between features, the student's projected to the teacher's width."""

    student_layer: TapName
    teacher_layer: TapName


class LossSection(Section):
    """The weighted sum that is minimised; each term is logged under its name."""

    cross_entropy: CrossEntropyTerm | None = None
    kl: Annotated[TemperatureTerm | None, Field(description="KL(teacher || student).")] = None
    symmetric_kl: Annotated[
        TemperatureTerm | None, Field(description="SSLD's loss, published there under the name JS.")
    ] = None
    jensen_shannon: TemperatureTerm | None = None
    dkd: DKDTerm | None = None
    dist: DISTTerm | None = None
    feature_mse: FeatureTerm | None = None

    @property
    def terms(self) -> dict[str, Term]:
        """The terms in use, by name."""
        return {name: term for name in type(self).model_fields if (term := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _has_a_term(self) -> "LossSection":
        if not self.terms:
            raise ValueError(f"must have at least one of: {', '.join(type(self).model_fields)}")
        return self


# --- optimisation -----------------------------------------------------------------------------


class OptimizerSection(Section):
    """Stochastic gradient descent with momentum; L2 is added to the gradient."""

    kind: Literal["momentum"]
    learning_rate: Annotated[float, Field(gt=0.0, description="The peak, for the stage's global_batch_size.")]
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)]
    nesterov: bool
    weight_decay: NonNegative
    decay_bias_and_norm: Annotated[bool, Field(description="Whether biases and BN parameters decay too.")]
    clip_norm: Annotated[float | None, Field(gt=0.0, description="Largest global norm of the gradient.")] = None


class Schedule(Section):
    """Every schedule warms up linearly, a step at a time."""

    warmup_epochs: NonNegative


class ConstantSchedule(Schedule):
    """The peak, all the way."""

    kind: Literal["constant"]


class CosineSchedule(Schedule):
    """From the peak down to end_learning_rate along half a cosine."""

    kind: Literal["cosine"]
    end_learning_rate: NonNegative


class StepSchedule(Schedule):
    """Multiplied by factor at each of the boundaries."""

    kind: Literal["step"]
    boundaries_epochs: Annotated[tuple[Positive, ...], Field(min_length=1)]
    factor: Annotated[float, Field(gt=0.0, lt=1.0)]


class PolynomialSchedule(Schedule):
    """From the peak down to end_learning_rate as (1 - progress) ** power."""

    kind: Literal["polynomial"]
    power: Positive
    end_learning_rate: NonNegative


AnySchedule = Annotated[
    ConstantSchedule | CosineSchedule | StepSchedule | PolynomialSchedule, Field(discriminator="kind")
]


class RecalibrationSection(Section):
    """Batch normalisation at the stage's own size: objects look larger or smaller than in the training before."""

    images: Annotated[
        int, Field(ge=1, description="Training images whose mean and variance become the stored ones; at most all.")
    ]


class RuntimeSection(Section):
    """Operational settings: they change speed and safety, never the result.

    Threads come first: decoding, resizing and copying release Python's global lock. An image holds it for at most some
    40 microseconds, for all that an image of 28 x 28 px costs is 41. So threads share one process well as long as
    `loader_threads` x 40 us is well below what one image costs one core: by that reckoning about 12 threads for
    photographs of 110 kB (1 ms), 5 for packed ones of 30 kB, one for images of a few kB. `loader_processes` pay beyond
    that, or where the training loop itself holds the lock; each runs `loader_threads`, takes seconds to start, and
    hands its batches over by a copy. `distill benchmark data RECIPE` tells which of them it is.
    """

    loader_threads: Annotated[int, Field(ge=1, description="In each process: as many as cores are free.")] = 2
    loader_processes: Annotated[
        int, Field(ge=0, description="0: threads only; more where `distill benchmark data` names Python's lock.")
    ] = 0
    prefetch_batches: Count = 4
    student_kernels: Annotated[
        Literal["auto", "onednn", "paddle"],
        Field(
            description="What computes the student on a CPU: oneDNN where it answers as Paddle's kernels do, found out "
            "at the start (auto), that or an error (onednn), or Paddle's kernels. They differ by rounding."
        ),
    ] = "auto"
    read_timeout_seconds: Annotated[
        float, Field(gt=0.0, description="A batch that takes longer stops the run and names the file being read.")
    ] = 600.0
    log_every_steps: Count = 20
    checkpoint_every_minutes: Annotated[float, Field(gt=0.0)] = 15.0
    checkpoint_every_steps: Annotated[int | None, Field(ge=1)] = None
    keep_checkpoints: Annotated[int, Field(ge=2, description="A damaged last one falls back to the one before.")] = 2
    reuse_features: Annotated[
        bool,
        Field(
            description="Where the classifier alone is trained and views do not change, the features below it are "
            "computed in the first epoch, kept on the disk (8 kB an image with 2048 channels), and read afterwards."
        ),
    ] = True
    features_folder: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Keeps these features, for other runs too; absent: in the run's folder, while it trains.",
        ),
    ] = None


# --- the recipe -------------------------------------------------------------------------------


class Stage(Section):
    """One training run; it starts from the student that the stage before it left."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    epochs: Count
    global_batch_size: Annotated[int, Field(ge=1, description="Samples an update, over all devices.")]
    device_batch_size: Annotated[
        int, Field(ge=1, description="Samples a forward pass, and so a BN batch; divides global_batch_size.")
    ]
    data: DataSection
    view: ViewSection
    mixup: MixupSection | None = None
    cutmix: CutMixSection | None = None
    normalization: NormalizationSection
    evaluation: EvaluationSection
    teacher: TeacherSection | None = None
    loss: LossSection
    optimizer: OptimizerSection
    schedule: AnySchedule
    freeze: Annotated[
        tuple[str, ...], Field(description="Glob patterns of parameter names; frozen BN layers keep their statistics.")
    ] = ()
    recalibrate_bn: Annotated[
        RecalibrationSection | None,
        Field(description="Estimate the statistics of the frozen BN layers anew before training, then keep them."),
    ] = None
    stage_lr_multipliers: Annotated[
        tuple[NonNegative, NonNegative, NonNegative, NonNegative, NonNegative] | None,
        Field(description="Of the stem and stages 1-4, as the published finetuning; the FC learns at the full rate."),
    ] = None
    ema_decay: Annotated[float | None, Field(gt=0.0, lt=1.0, description="Moving average of the weights.")] = None
    amp: Annotated[Literal["O0", "O1", "O2"], Field(description="Mixed precision on GPUs.")] = "O0"
    sync_batch_norm: Annotated[
        bool,
        Field(
            description="On several GPUs a BN batch is that of all of them, device_batch_size each, so that the result "
            "depends on their number. Untested so far."
        ),
    ] = False

    @property
    def labels(self) -> LabelsSection | None:
        """Where the teacher's answers are stored, if they are."""
        return self.teacher.labels if self.teacher is not None else None

    @property
    def mix_group_size(self) -> int:
        """How many consecutive samples are mixed with each other; 1 without mixup and CutMix."""
        section = self.mixup or self.cutmix
        return section.group_size if section is not None else 1

    @property
    def repeats_views(self) -> bool:
        """Whether an image looks the same in every epoch, so that what was computed of it may be kept."""
        return not self.view.is_random and self.mix_group_size == 1

    @property
    def waits_for_labels(self) -> bool:
        """Whether other processes compute the teacher's answers."""
        labels = self.labels
        return labels is not None and (labels.missing == "wait" or bool(self.teacher and self.teacher.devices))

    def view_epoch(self, epoch: int) -> int:
        """The epoch whose random choices this one makes: itself, unless `teacher.labels.views` lets them recur."""
        views = self.labels.views if self.labels is not None else None
        return epoch if views is None else epoch % views

    @property
    def view_epochs(self) -> range:
        """The epochs whose random choices the stage makes: as many as it has views."""
        views = self.labels.views if self.labels is not None else None
        return range(self.epochs if views is None else min(views, self.epochs))

    @field_validator("device_batch_size")
    @classmethod
    def _device_batch_divides(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("global_batch_size", value) % value:
            raise ValueError(f"must divide global_batch_size {info.data['global_batch_size']}, received {value}")
        return value

    @field_validator("mixup", "cutmix")
    @classmethod
    def _groups_fill_the_batch(cls, value: MixSection | None, info: ValidationInfo) -> MixSection | None:
        if value is not None and info.data.get("device_batch_size", 0) % value.group_size:
            raise ValueError(
                f"must have a group_size that divides device_batch_size {info.data['device_batch_size']}, "
                f"received {value.group_size}"
            )
        return value

    @field_validator("cutmix")
    @classmethod
    def _mixup_and_cutmix_share_groups(cls, value: CutMixSection | None, info: ValidationInfo) -> CutMixSection | None:
        mixup = info.data.get("mixup")
        if value is None or mixup is None:
            return value
        if value.group_size != mixup.group_size:
            raise ValueError(f"must have the group_size of mixup, {mixup.group_size}, received {value.group_size}")
        if value.probability is None or mixup.probability is None or value.probability + mixup.probability > 1:
            raise ValueError(
                "must have a probability, and so must mixup, together at most 1, for a group is mixed in one way; "
                f"received {_or_none(value.probability)} and {_or_none(mixup.probability)}. Usual: 0.5 and 0.5"
            )
        return value

    @field_validator("loss")
    @classmethod
    def _loss_suits_the_teacher(cls, value: LossSection, info: ValidationInfo) -> LossSection:
        if "teacher" not in info.data:  # the section is there but wrong, and is reported itself
            return value
        terms = sorted(set(value.terms) - {"cross_entropy"})
        if terms and info.data["teacher"] is None:
            raise ValueError(f"compares with a teacher ({', '.join(terms)}): add the section `teacher`")
        if info.data["teacher"] is not None and not terms:
            raise ValueError("does not use the section `teacher`: add a term such as kl, or remove the section")
        if value.feature_mse is not None and info.data["teacher"].labels is not None:
            raise ValueError(
                "must have no feature_mse beside teacher.labels: the store keeps the teacher's classes, not its maps"
            )
        if value.feature_mse is not None and info.data["teacher"].files:
            raise ValueError(
                "must have no feature_mse beside a teacher that is a file: it answers with classes alone. Use the kind "
                "network, or remove feature_mse"
            )
        if value.feature_mse is not None and len(info.data["teacher"].models) == 1:
            name = getattr(info.data["teacher"].models[0], "name", None)
            check_tap(name, value.feature_mse.teacher_layer, "feature_mse", "teacher_layer")
        return value

    @field_validator("recalibrate_bn")
    @classmethod
    def _something_is_frozen(
        cls, value: RecalibrationSection | None, info: ValidationInfo
    ) -> RecalibrationSection | None:
        if value is not None and not info.data.get("freeze", True):
            raise ValueError("must come with freeze: training itself moves the statistics of what is not frozen")
        return value

    @field_validator("sync_batch_norm")
    @classmethod
    def _statistics_are_not_estimated(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("recalibrate_bn") is not None:
            raise ValueError("must be false beside recalibrate_bn, which keeps the statistics of frozen BN layers")
        return value

    @field_validator("schedule")
    @classmethod
    def _warmup_fits(cls, value: Schedule, info: ValidationInfo) -> Schedule:
        if value.warmup_epochs > info.data.get("epochs", value.warmup_epochs):
            raise ValueError(
                f"must not warm up for longer than the stage's {info.data['epochs']} epochs, "
                f"received warmup_epochs {value.warmup_epochs:g}"
            )
        return value


class Result(Section):
    """An accuracy in [0, 1] and where it comes from."""

    top1: Fraction
    top5: Fraction | None = None
    source: Annotated[str, Field(min_length=1, description="'published', or command, date and hardware.")]


class Recipe(Section):
    """A whole experiment.

    In the file, every key of a stage may also stand at the top: there it holds for all stages, and a
    stage states only what differs: sections are merged key by key, a list or a section of another
    `kind` replaces the shared one, `null` removes a key. A file without `stages` has one stage, "train".
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    description: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    num_classes: Annotated[int, Field(ge=2, le=65536)]
    model: ModelSection
    expected: Annotated[Result | None, Field(description="What the recipe should reach.")] = None
    measured: Annotated[Result | None, Field(description="What it did reach here; absent: not yet run.")] = None
    runtime: RuntimeSection = RuntimeSection()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]

    def with_stage(self, number: int, stage: Stage) -> "Recipe":
        """The recipe with another stage in place of stage `number`."""
        return self.model_copy(update={"stages": (*self.stages[:number], stage, *self.stages[number + 1 :])})

    @field_validator("stages")
    @classmethod
    def _stage_names_differ(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        names = [stage.name for stage in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"must have names that differ, received twice: {', '.join(twice)}")
        return value

    @field_validator("stages")
    @classmethod
    def _stages_suit_the_model(cls, value: tuple[Stage, ...], info: ValidationInfo) -> tuple[Stage, ...]:
        if "model" not in info.data:  # it is wrong, and is reported itself
            return value
        name = info.data["model"].name
        for number, stage in enumerate(value):
            if stage.stage_lr_multipliers is not None and is_factory(name):
                raise PlacedError(
                    f"must be left out beside the factory {name}: only networks of the series have these stages",
                    number,
                    "stage_lr_multipliers",
                )
            if stage.loss.feature_mse is not None:
                check_tap(name, stage.loss.feature_mse.student_layer, number, "loss", "feature_mse", "student_layer")
        return value
