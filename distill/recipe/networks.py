"""A recipe's networks: the student's model, its teachers, and the store of their answers."""

import keyword
import math
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from distill.models.factory_names import FACTORY_PATTERN, check_factory_name, is_factory
from distill.models.specs import SPECS, check_model_name
from distill.recipe.fields import Positive, Section, Triple


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


Argument = Annotated[
    bool | int | float | str,
    PlainValidator(_argument),
    WithJsonSchema({"type": ["boolean", "number", "string"]}),
]


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
