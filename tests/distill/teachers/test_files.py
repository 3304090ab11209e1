"""Teachers that are files: the same answers as the network they were made of, and everything around them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from scipy.special import softmax

from distill.engines.engine import quiet, save_program
from distill.errors import UserError
from distill.export.description import Description, to_yaml
from distill.export.files import write_network
from distill.export.folding import fold_batch_norm
from distill.export.onnx_graph import onnx_network
from distill.labels.manifest import store_key
from distill.metrics import read_metrics
from distill.models import create_model
from distill.normalization import normalize
from distill.parallel import Device
from distill.recipe import NormalizationSection, OnnxTeacher, TeacherSection
from distill.recipe.file import load_recipe
from distill.stages import run_recipe
from distill.teachers.files import digest_of, open_file_teacher
from distill.teachers.teacher import Teacher
from distill.weights import sha256_of, write_weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
CPU = Device("cpu", 1)
GREY = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.3, 0.35]}
BYTES = {"mean": [0.0, 0.0, 0.0], "std": 3 * [0.00392156862745098]}
STATED = NormalizationSection.model_validate(GREY, strict=False)
OTHER = NormalizationSection(mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0))
PX = 28


@pytest.fixture(scope="module")
def network():
    """A ResNet18_vd x 0.125 with 10 classes that answers each image differently."""
    paddle.seed(5)
    model = create_model("ResNet18_vd", 10, width=0.125, stem_stride=2)
    noise = paddle.to_tensor(np.random.default_rng(0).random((16, 3, PX, PX)), dtype="float32")
    with paddle.no_grad():
        for _ in range(20):
            model(noise)
    model.eval()
    assert model(noise).numpy().std(axis=0).min() > 0.01
    return model


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    """The network in every form, by name: what its entry of `teacher.models` says."""
    folder = tmp_path_factory.mktemp("files")
    weights = folder / "teacher.safetensors"
    write_weights(weights, {name: value.numpy() for name, value in network.state_dict().items()})
    own = {"name": "ResNet18_vd", "width": 0.125, "stem_stride": 2}
    found = {"network": {**own, "weights": str(weights), "normalization": GREY}}
    folded = fold_batch_norm(network)
    path = folder / "teacher.onnx"
    path.write_bytes(onnx_network(folded, PX).SerializeToString())
    found["onnx"] = {"kind": "onnx", "path": str(path), "normalization": GREY}
    (folder / "bytes.onnx").write_bytes(onnx_network(folded, PX, normalization=STATED).SerializeToString())
    found["onnx, bytes"] = {"kind": "onnx", "path": str(folder / "bytes.onnx"), "normalization": BYTES}
    with quiet():
        spec = paddle.static.InputSpec([None, 3, None, None], "float32", "images")
        program, _ = save_program(folded, folder / "teacher", spec)
    found["paddle"] = {"kind": "paddle", "path": str(program), "normalization": GREY}
    for kind in ("onnx", "paddle"):
        for inside in (False, True):
            name = f"{kind} folder{', bytes' if inside else ''}"
            export(network, folder / name, own, kind, inside)
            found[name] = {"kind": kind, "path": str(folder / name)}
    return found


def export(network, folder, own, kind, inside):
    """What `distill export` leaves, but for the comparison with images."""
    folder.mkdir()
    description = Description.model_validate(
        {
            "model": own,
            "num_classes": 10,
            "format": kind,
            "precision": "float32",
            "resize_short_px": PX,
            "crop_px": PX,
            "normalization": None if inside else STATED,
        },
        strict=False,
    )
    write_network(network, description, STATED if inside else None, [], folder)
    hashes = {path.name: sha256_of(path) for path in folder.iterdir()}
    (folder / "inference.yml").write_text(to_yaml(description))
    (folder / "export.json").write_text(json.dumps({"files": hashes}))


FORMS = [
    "network",
    "onnx",
    "onnx, bytes",
    "paddle",
    *(f"{kind} folder{inside}" for kind in ("onnx", "paddle") for inside in ("", ", bytes")),
]


def teacher(*models, classes=10, px=PX, device=CPU, data_format="NCHW"):
    section = TeacherSection.model_validate({"models": list(models), "batch_norm": "stored"}, strict=False)
    return Teacher(section, classes, OTHER, device=device, check_px=px, data_format=data_format)


@pytest.fixture(scope="module")
def images():
    """Whole bytes, so that a network that takes bytes gets what the others get."""
    values = np.random.default_rng(1).integers(0, 256, (5, 3, PX, PX)).astype(np.float32) / np.float32(255)
    return paddle.to_tensor(values)


def expected(network, images, normalization=STATED):
    with paddle.no_grad():
        return network(normalize(images, normalization)).numpy()


def near(received, wanted):
    np.testing.assert_allclose(received, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_answers_as_the_network(network, files, images, form):
    found = teacher(files[form])
    near(found(images)["logits"].numpy(), expected(network, images))
    planes = paddle.to_tensor(images.numpy().transpose(0, 2, 3, 1))
    near(teacher(files[form], data_format="NHWC")(planes)["logits"].numpy(), expected(network, images))


@pytest.mark.parametrize("form", ["onnx", "paddle", "onnx folder, bytes"])
def test_a_files_bits_depend_on_neither_the_others_nor_the_threads(files, images, form):
    together = teacher(files[form])(images)["logits"].numpy()
    for threads in (1, 2):
        alone = teacher(files[form], device=Device("cpu", threads))
        parts = [alone(images[at : at + 1])["logits"].numpy() for at in range(len(images))]
        assert (np.concatenate(parts) == together).all()


@pytest.mark.parametrize("form", ["network", "onnx", "paddle"])
def test_the_view_is_resized_and_classes_are_mapped(network, files, form, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("0 0-3\n1 5\n2 4,7-9\n")
    small = np.random.default_rng(2).random((3, 3, 14, 14), dtype=np.float32)
    model = {**files[form], "resize_px": PX, "classes": str(path)}
    model |= {"num_classes": 10} if form == "network" else {}
    found = teacher(model, classes=3, px=14)(paddle.to_tensor(small))["logits"].numpy()
    # doubled with half-pixel centres: a pixel is 3/4 of its own and 1/4 of the nearest other one, in each direction
    whole = small
    for axis in (2, 3):
        before = np.concatenate([whole.take([0], axis), whole.take(range(13), axis)], axis)
        after = np.concatenate([whole.take(range(1, 14), axis), whole.take([13], axis)], axis)
        pair = np.stack([0.75 * whole + 0.25 * before, 0.75 * whole + 0.25 * after], axis + 1)
        whole = pair.reshape(*whole.shape[:axis], 28, *whole.shape[axis + 1 :])
    own = softmax(expected(network, paddle.to_tensor(whole.astype(np.float32))).astype(np.float64), axis=1)
    wanted = np.stack([own[:, :4].sum(1), own[:, 5], own[:, [4, 7, 8, 9]].sum(1)], 1)
    np.testing.assert_allclose(softmax(found, axis=1), wanted / wanted.sum(1, keepdims=True), atol=1e-4)


def test_several_teachers_of_different_kinds_are_averaged(network, files, images, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("".join(f"{c} {9 - c}\n" for c in range(10)))  # the other way round
    found = teacher(files["onnx"], {**files["network"], "classes": str(path), "num_classes": 10})
    own = softmax(expected(network, images).astype(np.float64), axis=1)
    np.testing.assert_allclose(softmax(found(images)["logits"].numpy(), axis=1), (own + own[:, ::-1]) / 2, atol=1e-4)
    names = [name for name, _ in found.identity]
    assert names == ["teacher.onnx", "ResNet18_vd", "ResNet18_vd, classes"]
    assert found.identity[0][1] == sha256_of(files["onnx"]["path"])
    assert found.engines[0] == "ONNX Runtime, float32"


# --- other networks -----------------------------------------------------------------------------

WEIGHT = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def write_average(path, shape=("N", 3, "H", "W"), *, last=None, kind=1, inputs=1):
    """Mean colour, linear layer, and one more operator; the input of any shape with an axis of 3 channels."""
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    axes = [1, 2] if shape[-1] == 3 else [2, 3]
    nodes = [
        node("Cast", ["x"], ["values"], to=1),
        node("ReduceMean", ["values"], ["mean"], axes=axes, keepdims=0),
        node("MatMul", ["mean", "w"], ["scores"]),
        *([node(last, ["scores"], ["last"])] if last else []),
    ]
    output = "last" if last else "scores"
    given = [info("x", kind, shape), *(info(f"x{n}", 1, ["N"]) for n in range(1, inputs))]
    graph = onnx.helper.make_graph(
        nodes, "g", given, [info(output, 1, [shape[0], 5])], [onnx.numpy_helper.from_array(WEIGHT, "w")]
    )
    opset = [onnx.helper.make_opsetid("", 13)]
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())
    return {"kind": "onnx", "path": str(path), "normalization": GREY}


def scores(images, normalization=GREY):
    unit = images.numpy().transpose(0, 2, 3, 1)
    return ((unit - normalization["mean"]) / normalization["std"]).mean(axis=(1, 2)) @ WEIGHT


@pytest.mark.parametrize(
    "shape", [("N", 3, PX, PX), ("N", PX, PX, 3), ("N", "H", "W", 3), (1, 3, PX, PX), (4, 3, PX, PX)], ids=str
)
def test_layout_and_a_fixed_batch_are_recognised(tmp_path, images, shape):
    model = write_average(tmp_path / "n.onnx", shape)
    np.testing.assert_allclose(teacher(model, classes=5)(images)["logits"], scores(images), atol=1e-4)


@pytest.mark.parametrize(
    ("given", "normalization"),
    [
        (lambda byte: byte, BYTES),
        (lambda byte: (byte - 127) / 128, {"mean": 3 * [0.498039216], "std": 3 * [0.501960784]}),
        (lambda byte: byte / 127.5 - 1, {"mean": 3 * [0.5], "std": 3 * [0.5]}),
        (lambda byte: byte / 255, {"mean": 3 * [0.0], "std": 3 * [1.0]}),
    ],
)
def test_the_descriptions_ways_to_state_a_preprocessing(tmp_path, images, given, normalization):
    model = write_average(tmp_path / "n.onnx") | {"normalization": normalization}
    wanted = given(images.numpy() * 255).mean(axis=(2, 3)) @ WEIGHT
    np.testing.assert_allclose(teacher(model, classes=5)(images)["logits"], wanted, rtol=1e-3, atol=1e-3)


def test_probabilities_are_recognised_and_their_logarithm_is_taken(tmp_path, images):
    model = write_average(tmp_path / "n.onnx", last="Softmax")
    with pytest.raises(UserError, match="puts out probabilities, each >= 0 and 1 together: state answers: prob"):
        teacher(model, classes=5)
    wanted = softmax(scores(images), axis=1)
    for changes in ({"answers": "probabilities"}, {"logits_output": "scores"}):
        found = teacher(model | changes, classes=5)(images)["logits"].numpy()
        np.testing.assert_allclose(softmax(found, axis=1), wanted, atol=1e-5)
    with pytest.raises(UserError, match="puts out no probabilities: state answers: logits"):
        teacher(model | {"answers": "probabilities", "logits_output": "scores"}, classes=5)


def test_an_answer_that_depends_on_the_batch_is_computed_alone(tmp_path, images):
    """A network that looks at the whole batch stands for kernels that sum in another order."""
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        node("ReduceMean", ["x"], ["mean"], axes=[2, 3], keepdims=0),
        node("ReduceMax", ["mean"], ["largest"], axes=[0]),
        node("Sub", ["mean", "largest"], ["less"]),
        node("MatMul", ["less", "w"], ["scores"]),
        node("MatMul", ["mean", "w"], ["alone"]),
        node("Add", ["scores", "alone"], ["sum"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info("x", 1, ["N", 3, PX, PX])],
        [info("sum", 1, ["N", 5])],
        [onnx.numpy_helper.from_array(WEIGHT, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "n.onnx")
    found = teacher({"kind": "onnx", "path": str(tmp_path / "n.onnx"), "normalization": GREY}, classes=5)
    assert found.engines == ["ONNX Runtime, float32, one image at a time"]
    np.testing.assert_allclose(found(images)["logits"], scores(images), atol=1e-4)


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        ({"shape": ("N", 3, 32, 32)}, {}, "takes images of 32 px, and the view has 28 px: state resize_px: 32"),
        ({"shape": ("N", 3, 32, 32)}, {"resize_px": 16}, "32 px, and the view of 28 px is resized to 16 px: state re"),
        ({"shape": ("N", 3, 32, 40)}, {}, "takes images of 32 x 40 px"),
        ({"shape": ("N", "C", "H", "W")}, {}, r"its input 'x' is float32 \[\?, \?, \?, \?\], expected RGB images"),
        ({"shape": ("N", "C", 28, 28)}, {}, r"its input 'x' is float32 \[\?, \?, 28, 28\]"),
        ({"kind": 11}, {}, r"its input 'x' is double"),
        ({"inputs": 2}, {}, "has 2 inputs, 'x', 'x1', expected one"),
        ({"kind": 2}, {}, "takes bytes, 0 to 255, and normalises them itself: state normalization"),
        ({}, {"logits_output": "score"}, "has no tensor 'score'. Did you mean 'scores'"),
        ({}, {"logits_output": "mean"}, r"the teacher n\.onnx has 3 classes and the student 5: state classes: FILE"),
        ({}, {"logits_output": "values"}, "expected 5|state classes"),
        ({}, {"path": "absent.onnx"}, "absent.onnx does not exist: expected an .onnx file"),
        ({}, {"classes": "absent.txt"}, "Cannot read the map of classes absent.txt"),
        ({}, {"kind": "paddle"}, "n.onnx is not of the kind paddle: expected a program"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(tmp_path, network, changes, message):
    model = write_average(tmp_path / "n.onnx", **network) | changes
    with pytest.raises(UserError, match=message):
        teacher(model, classes=5)


def test_a_map_must_fit_the_files_classes(tmp_path):
    (tmp_path / "map.txt").write_text("0 1\n1 5\n")
    model = write_average(tmp_path / "n.onnx") | {"classes": str(tmp_path / "map.txt")}
    with pytest.raises(UserError, match=r"line 2: class 5 is outside the teacher's 0\.\.4"):
        teacher(model, classes=2)


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        ("onnx folder", {"kind": "paddle"}, "was exported as onnx, expected paddle"),
        ("onnx folder", {"normalization": {"mean": [0, 0, 0], "std": [1, 1, 1]}}, "normalization must be what .* says"),
        ("paddle folder, bytes", {"normalization": GREY}, "which has it inside the network"),
    ],
)
def test_a_folder_says_itself_how_its_images_are_prepared(files, form, changes, message):
    assert teacher(files["onnx folder"] | {"normalization": GREY})  # what it says itself
    with pytest.raises(UserError, match=message):
        teacher(files[form] | changes)


def test_a_folder_that_is_no_export_is_refused(files, tmp_path):
    with pytest.raises(UserError, match=r"expected an \.onnx file, or a folder that `distill export"):
        teacher({"kind": "onnx", "path": str(tmp_path)})
    for suffix in (".json", ".pdiparams"):
        path = Path(files["paddle"]["path"]).with_suffix(suffix)
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="states no preprocessing that is read here: state normalization"):
        teacher({"kind": "paddle", "path": str(tmp_path)})
    assert teacher({"kind": "paddle", "path": str(tmp_path), "normalization": GREY})
    (tmp_path / "teacher.pdiparams").unlink()
    with pytest.raises(UserError, match=r"has its weights in teacher\.pdiparams, which is not beside it"):
        teacher({"kind": "paddle", "path": str(tmp_path / "teacher.json"), "normalization": GREY})


@pytest.mark.parametrize("kind", ["onnx", "paddle"])
def test_a_damaged_file_is_refused(files, tmp_path, kind):
    source = Path(files[kind]["path"])
    (tmp_path / source.name).write_bytes(source.read_bytes()[:300])
    weights = source.with_suffix(".pdiparams")
    (tmp_path / weights.name).write_bytes(weights.read_bytes())
    with pytest.raises(UserError, match="is not a usable"):
        teacher(files[kind] | {"path": str(tmp_path / source.name)})


def test_weights_beside_an_onnx_file_are_part_of_its_identity(network, tmp_path):
    paths = []
    for name, change in (("a", 0.0), ("b", 0.0), ("c", 1.0)):
        path = tmp_path / name / "n.onnx"
        path.parent.mkdir()
        model = onnx_network(fold_batch_norm(network), PX)
        first = model.graph.initializer[0]
        first.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(first) + np.float32(change), first.name))
        onnx.save(model, path, save_as_external_data=True, location="n.data", size_threshold=0)
        paths.append(path)
    assert len({sha256_of(path) for path in paths}) == 1  # the graph alone says nothing
    digests = [digest_of(OnnxTeacher(kind="onnx", path=str(path), normalization=STATED)) for path in paths]
    assert digests[0] == digests[1] != digests[2]
    assert (
        open_file_teacher(
            OnnxTeacher(kind="onnx", path=str(paths[0]), normalization=STATED), view_px=PX, threads=1
        ).num_classes
        == 10
    )


# --- recipes ------------------------------------------------------------------------------------


@pytest.fixture
def taught(digits, tmp_path):
    """Writes a recipe of one epoch with a teacher; keywords replace its keys."""

    def write(*models, name="taught", labels=None, teacher=(), **changes):
        section = {"batch_norm": "stored", "models": list(models)} | dict(teacher)
        content = {
            "epochs": 1,
            "teacher": section if labels is None else section | {"labels": labels},
            "loss": {"kl": {"weight": 1.0, "temperature": 2.0}},
            "mixup": {"alpha": 0.2, "group_size": 4},
        }
        return digits.recipe(tmp_path / f"{name}.yaml", **(content | changes))

    return write


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ({"kind": "onxx", "path": "t.onnx"}, {}, "models.0.kind must be one of network, onnx, paddle, received 'onxx'"),
        ({"kind": 3, "path": "t.onnx"}, {}, "models.0.kind must be one of network, onnx, paddle, received 3"),
        ({"kind": "onnx", "path": "t.onnx"}, {}, "models.0.normalization must be there: a file does not state"),
        ({"kind": "onnx", "normalization": GREY}, {}, "models.0.path is missing"),
        ({"kind": "onnx", "path": "t", "weights": "t"}, {}, "models.0.weights is an unknown key"),
        ({"kind": "paddle", "path": "t", "logits_output": "x"}, {}, "models.0.logits_output is an unknown key"),
        ({"name": "ResNet18", "weights": "t", "num_classes": 5}, {}, "num_classes must come with classes"),
        ({"name": "ResNet18", "weights": "t", "resize_px": 0}, {}, "models.0.resize_px must be >= 1, received 0"),
        ({"kind": "onnx", "path": "t"}, {"teacher": {"batch_norm": "batch"}}, "batch_norm must be 'stored' beside a"),
        ({"kind": "onnx", "path": "t"}, {"teacher": {"precision": "bfloat16"}}, "precision must be 'float32' beside"),
        (
            {"kind": "paddle", "path": "t"},
            {"teacher": {"devices": ["gpu:0"]}, "labels": {"folder": "s"}},
            "devices must be cpu for teachers that are files",
        ),
        (
            {"kind": "onnx", "path": "t"},
            {"loss": {"feature_mse": {"weight": 1.0, "student_layer": "stage1", "teacher_layer": "stage1"}}},
            "loss must have no feature_mse beside a teacher that is a file",
        ),
    ],
)
def test_errors_of_a_recipe_name_the_line(taught, model, changes, message):
    path = taught(model, **changes)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    line = next(line for line in str(caught.value).splitlines() if message in line)
    assert re.search(r"taught\.yaml, line \d+\)", line)


def student(folder):
    return (folder / "student.safetensors").read_bytes()


def test_two_runs_with_stored_answers_end_with_the_same_bits(files, taught, tmp_path, monkeypatch):
    classes = tmp_path / "classes.txt"
    classes.write_text("".join(f"{c} {(c + 3) % 10}\n" for c in range(10)))
    model = files["onnx"] | {"classes": str(classes)}
    labels = {"folder": str(tmp_path / "store"), "top_classes": 4}
    recipe = load_recipe(taught(model, labels=labels))
    run_recipe(recipe, tmp_path / "first", device="cpu")
    monkeypatch.setattr("distill.learner.open_teacher", lambda *_: pytest.fail("a teacher was built"))
    run_recipe(recipe, tmp_path / "second", device="cpu")
    assert student(tmp_path / "first") == student(tmp_path / "second")
    noted = json.loads((tmp_path / "first" / "inputs.json").read_text())["stages"]["train"]["teachers"]
    assert [(each["network"], each["file"]) for each in noted] == [
        ("teacher.onnx", model["path"]),
        ("teacher.onnx, classes", str(classes)),
    ]
    assert noted[0]["sha256"] == sha256_of(model["path"])


def test_a_live_file_teaches_as_its_network_does(digits, files, taught, tmp_path):
    """Compared at the first step: rounding grows fast in a fresh student, whose batch statistics hardly differ."""
    data = {"kind": "idx", "images": str(digits.folder / "train-images.gz"), "range": [0, 64]}
    losses = {}
    for kind in ("network", "onnx", "paddle folder, bytes"):
        short = {"data": {"sources": [data]}, "runtime": {"log_every_steps": 1}, "mixup": None}
        run_recipe(load_recipe(taught(files[kind], **short)), tmp_path / kind, device="cpu")
        entries = read_metrics(tmp_path / kind / "metrics.jsonl")
        losses[kind] = [entry["kl"] for entry in entries if entry["kind"] == "train"]
        assert len(losses[kind]) == 2
    for kind in ("onnx", "paddle folder, bytes"):
        assert losses[kind][0] == pytest.approx(losses["network"][0], rel=1e-4)


@pytest.mark.parametrize("kind", ["onnx", "paddle"])
def test_a_run_killed_beside_a_live_file_ends_with_the_same_bits(files, taught, train_and_kill, tmp_path, kind):
    recipe = taught(files[kind], runtime={"checkpoint_every_steps": 2})
    train_and_kill(recipe, tmp_path / "whole", -1)
    for kill_at in (3, 2, -1):
        train_and_kill(recipe, tmp_path / "killed", kill_at)
    assert student(tmp_path / "whole") == student(tmp_path / "killed")


def test_the_stores_key_holds_what_answers_depend_on(files, taught, tmp_path, digits):
    from distill.data.sources import open_sources

    classes = tmp_path / "classes.txt"
    copied = tmp_path / "copied.onnx"
    copied.write_bytes(Path(files["onnx"]["path"]).read_bytes())

    def key(model, lines=None):
        classes.write_text("\n".join(lines or [f"{c} {c}" for c in range(10)]))
        recipe = load_recipe(taught(model, labels={"folder": "store"}))
        source = open_sources(recipe.stages[0].data.sources, 10)
        return store_key(recipe, 0, source)["teachers"]

    mapped = files["onnx"] | {"classes": str(classes)}
    lines = [f"{c} {c}" for c in range(10)]
    first = key(mapped)
    assert first == key(mapped | {"path": str(copied)})  # where the file lies is no part of it
    assert first == key(mapped, ["# a remark", *reversed(lines)])
    assert first != key(mapped, [*lines[2:], "0 1", "1 0"])
    for change in (
        {"classes": None},
        {"resize_px": PX},
        {"answers": "probabilities"},
        {"logits_output": "logits"},
        {"normalization": BYTES},
        {"path": files["onnx, bytes"]["path"]},
    ):
        assert key(mapped | change) != first
    of_the_series = {"name", "width", "stem_stride", "arguments", "weights_sha256", "normalization"}
    assert key(files["network"])[0].keys() == of_the_series  # as before there were files: old stores still fit


def test_a_dry_run_says_what_a_file_is_and_what_is_wrong(files, taught, tmp_path, run_cli, monkeypatch):
    monkeypatch.setattr("distill.rehearsal.trial.SECONDS", 0.1)
    (tmp_path / "map.txt").write_text("".join(f"{c} {c}\n" for c in range(10)))
    path = taught(files["paddle"] | {"classes": str(tmp_path / "map.txt")})
    run = ("train", path, "--dry-run", "--device", "cpu", "--output", tmp_path / "run")
    status, said, errors = run_cli(*run)
    assert status == 0, errors
    assert re.search(r"teacher\.json answers with 10 classes \(Paddle Inference, oneDNN, float32\), SHA-256 ", said)
    assert "map.txt maps 10 of 10 classes to the student's 10, SHA-256 " in said
    (tmp_path / "map.txt").write_text("0 10\n")
    status, _, errors = run_cli(*run)
    assert status == 2
    assert "teacher.models.0.classes: " in errors
    assert "line 1: class 10 is outside the teacher's 0..9" in errors


def test_in_small_a_network_stands_for_a_file(digits, taught, tmp_path, run_cli):
    path = taught({"kind": "onnx", "path": "absent.onnx", "normalization": GREY, "classes": "no.txt", "resize_px": 64})
    folder = tmp_path / "images"
    folder.mkdir()
    for kind in ("images", "labels"):
        for part, name in (("train", "train"), ("test", "t10k")):
            source = digits.folder / f"{part}-{kind}.gz"
            (folder / f"{name}-{kind}-idx{3 if kind == 'images' else 1}-ubyte.gz").write_bytes(source.read_bytes())
    status, said, errors = run_cli(
        "train", path, "--scale-down", "--scale-down-data", folder, "--device", "cpu", "--output", tmp_path / "run"
    )
    assert status == 0, said + errors
    small = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    model = small["stages"][0]["teacher"]["models"][0]
    assert (model["kind"], model["name"], model["resize_px"]) == ("network", "ResNet18_vd", 64)
    assert model["normalization"] == GREY
    assert "classes" not in model


def test_a_store_is_built_by_other_processes_and_verified(files, taught, tmp_path):
    labels = {"folder": str(tmp_path / "store"), "top_classes": 4}
    path = taught(files["onnx folder, bytes"], labels=labels)
    for command in (["build"], ["verify"], ["info"]):
        done = subprocess.run(
            [sys.executable, "-m", "distill", "labels", *command, str(path), "--device", "cpu"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        if command == ["verify"]:
            assert re.search(r"(\d+) of \1 sampled answers are the teacher's, bit for bit", done.stdout + done.stderr)
