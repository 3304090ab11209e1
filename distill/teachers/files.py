"""Teachers that are files: what they consist of, their identity, and an engine that computes one."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.engines.engine import Answers, EngineImages
from distill.engines.file_engine import TRIED, FileEngine
from distill.engines.onnx_engine import import_extra, open_onnx_engine
from distill.engines.onnx_file import external_files
from distill.engines.paddle_engine import open_paddle_engine, program_files
from distill.errors import UserError
from distill.export.description import FILE, Description
from distill.export.files import REPORT, find_exported
from distill.recipe import BARE_SUFFIXES, AnyTeacher, NormalizationSection, OnnxTeacher, PaddleTeacher, TeacherModel
from distill.weights import sha256_of


@dataclass(frozen=True)
class TeacherFiles:
    """What a teacher's path leads to.

    Attributes:
        network: The ONNX file, or Paddle's program.
        all: Every file that its answers depend on.
        normalization: Before the network; None: it takes bytes.
    """

    network: Path
    all: tuple[Path, ...]
    normalization: NormalizationSection | None


class FileTeacherEngine:
    """See `distill.engines.engine.Engine`; images are [N, H, W, 3]. "logits" are logits, whatever the file puts out.

    Attributes:
        num_classes: Of the teacher.
    """

    def __init__(self, engine: FileEngine, num_classes: int, probabilities: bool) -> None:
        self._engine = engine
        self.num_classes = num_classes
        self._probabilities = probabilities
        self.description = engine.description

    def __call__(self, images: EngineImages) -> Answers:
        """See `distill.engines.engine.Engine`."""
        answers = self._engine(images)
        if self._probabilities:
            answers["logits"] = log_of(answers["logits"])
        return answers


def log_of(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """The natural logarithm, float32, computed in float64; what is below 1e-30, zero too, counts as 1e-30."""
    logarithm: NDArray[np.float32] = np.log(np.maximum(probabilities.astype(np.float64), 1e-30)).astype(np.float32)
    return logarithm


def digest_of(teacher: AnyTeacher) -> str:
    """The SHA-256 of a teacher's file in hexadecimal; of several the SHA-256 of names and digests.

    Raises:
        UserError: A file cannot be read.
    """
    if isinstance(teacher, TeacherModel):
        return sha256_of(Path(teacher.weights))
    files = find_files(teacher).all
    if len(files) == 1:
        return sha256_of(files[0])
    listed = "".join(f"{sha256_of(path)}  {path.name}\n" for path in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def identity_of(name: str, digest: str, classes_digest: str | None) -> list[tuple[str, str]]:
    """A teacher's entries in a run's summary, and in what ranks must have in common."""
    return [(name, digest)] + ([(f"{name}, classes", classes_digest)] if classes_digest is not None else [])


def find_files(teacher: OnnxTeacher | PaddleTeacher) -> TeacherFiles:
    """What a teacher's path leads to.

    Raises:
        UserError: It leads nowhere, or to something that is not of this kind.
    """
    path = Path(teacher.path)
    if path.is_dir():
        return _exported(teacher, path) if (path / REPORT).exists() else _plain_folder(teacher, path)
    if not path.exists():
        raise UserError(f"{path} does not exist: expected {_EXPECTED[teacher.kind]}")
    if path.suffix not in BARE_SUFFIXES or (path.suffix == ".onnx") != (teacher.kind == "onnx"):
        raise UserError(f"{path} is not of the kind {teacher.kind}: expected {_EXPECTED[teacher.kind]}")
    return TeacherFiles(path, _with_weights(teacher, path), teacher.normalization)


_EXPECTED = {
    "onnx": "an .onnx file, or a folder that `distill export --format onnx` wrote",
    "paddle": "a program of Paddle Inference, .json or .pdmodel, or a folder with one",
}


def _with_weights(teacher: OnnxTeacher | PaddleTeacher, network: Path) -> tuple[Path, ...]:
    if teacher.kind == "onnx":
        return (network, *external_files(import_extra("onnx"), network))
    return program_files(network)


def _plain_folder(teacher: OnnxTeacher | PaddleTeacher, folder: Path) -> TeacherFiles:
    """The one program in a folder of Paddle's."""
    found = [path for path in sorted(folder.iterdir()) if path.with_suffix(".pdiparams").is_file()]
    programs = [path for path in found if path.suffix in (".json", ".pdmodel")]
    if teacher.kind != "paddle" or len(programs) != 1:
        raise UserError(f"{folder} holds {REPORT} of no `distill export`: expected {_EXPECTED[teacher.kind]}")
    if teacher.normalization is None:
        raise UserError(f"{folder} states no preprocessing that is read here: state normalization")
    return TeacherFiles(programs[0], program_files(programs[0]), teacher.normalization)


def _exported(teacher: OnnxTeacher | PaddleTeacher, folder: Path) -> TeacherFiles:
    description, files = find_exported(folder)
    if description.format != teacher.kind:
        instead = "its weights with the kind network" if description.format == "safetensors" else "that kind"
        raise UserError(f"{folder} was exported as {description.format}, expected {teacher.kind}: use {instead}")
    _check_stated(teacher, folder, description)
    return TeacherFiles(files[0], (folder / FILE, *files), description.normalization)


def _check_stated(teacher: OnnxTeacher | PaddleTeacher, folder: Path, description: Description) -> None:
    """Raises UserError where the recipe states another preprocessing than the folder."""
    own, stated = teacher.normalization, description.normalization
    if own is not None and own != stated:
        there = "has it inside the network" if stated is None else f"states mean {stated.mean} and std {stated.std}"
        raise UserError(
            f"normalization must be what {folder / FILE} says, which {there}; received mean {own.mean} and std "
            f"{own.std}. Leave it out"
        )


def open_file_teacher(teacher: OnnxTeacher | PaddleTeacher, *, view_px: int, threads: int) -> FileTeacherEngine:
    """Opens a teacher and tries it on noise.

    Args:
        teacher: Of the recipe.
        view_px: Side of the student's view.
        threads: Of the CPU.

    Raises:
        UserError: It is damaged, refused, takes something else, or puts out something else than is stated.
    """
    files = find_files(teacher)
    side = teacher.resize_px or view_px
    engine = _open(teacher, files, side, view_px, threads)
    engine.settle(side)
    noise = np.random.default_rng(1).random((TRIED, side, side, 3), dtype=np.float32)
    answers = engine(noise)["logits"]
    _check_answers(teacher, files.network, answers)
    return FileTeacherEngine(engine, answers.shape[1], teacher.answers == "probabilities")


def _open(
    teacher: OnnxTeacher | PaddleTeacher, files: TeacherFiles, side: int, view_px: int, threads: int
) -> FileEngine:
    if isinstance(teacher, PaddleTeacher):
        return open_paddle_engine(files.network, files.normalization, threads=threads, size_px=side, view_px=view_px)
    return open_onnx_engine(
        files.network,
        files.normalization,
        threads=threads,
        size_px=side,
        view_px=view_px,
        num_classes=None,
        logits_output=teacher.logits_output,
        outputs=("logits",),
    )


def _check_answers(teacher: OnnxTeacher | PaddleTeacher, path: Path, found: NDArray[np.float32]) -> None:
    """Whether they are logits or probabilities, as is stated: the one for the other would teach nothing, silently."""
    probabilities = bool((found >= 0).all() and np.allclose(found.sum(axis=1), 1, atol=1e-2))
    if probabilities != (teacher.answers == "probabilities"):
        what = "probabilities, each >= 0 and 1 together" if probabilities else "no probabilities"
        instead = "probabilities" if probabilities else "logits"
        raise UserError(f"{path} puts out {what}: state answers: {instead}, or name another output")
