"""Converted weights answer as the libraries' own networks answered (scripts/record_torch_outputs.py)."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from distill.errors import UserError
from distill.models import create_model
from distill.models.plan import plan_network, state_shapes
from distill.models.specs import SPECS
from distill.weights import read_weights, write_weights
from distill.weights.convert import convert_file
from distill.weights.describe import describe, verify
from distill.weights.files import read_metadata
from distill.weights.loading import load_into
from distill.weights.recognize import recognize

RECORDED = Path(__file__).parent / "recorded"
FILES = sorted(path.stem for path in RECORDED.glob("t*_ResNe*.npz"))
SCRIPT = Path(__file__).parents[3] / "scripts" / "record_torch_outputs.py"
_spec = importlib.util.spec_from_file_location("record_torch_outputs", SCRIPT)
recorder = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recorder)


def model_of(file):
    return file.partition("_")[2]


def library_weights(file):
    """The state dict that the recorded network had."""
    with np.load(RECORDED / f"{file}.npz") as recorded:
        rows = [line.split(" ") for line in recorded["shapes"]]
    shapes = {key: tuple(int(size) for size in shape.split("x")) for key, shape in rows if shape}
    counters = {key: np.array(7) for key, shape in rows if not shape}
    return {key: recorder.values(key, shape) for key, shape in shapes.items()} | counters


@pytest.fixture
def converted(tmp_path):
    def convert(file, model=None, to="ours"):
        write_weights(tmp_path / "theirs.safetensors", library_weights(file))
        return convert_file(tmp_path / "theirs.safetensors", tmp_path / f"{to}.safetensors", model=model, to=to)

    return convert


def test_every_library_is_recorded():
    assert {file.partition("_")[0] for file in FILES} == {"timm", "torchvision", "transformers"}


@pytest.mark.parametrize("file", FILES)
def test_answers_are_the_librarys_at_even_and_odd_sizes(tmp_path, converted, file):
    import paddle

    match, _ = converted(file)
    assert (match.model, match.width, match.num_classes) == (model_of(file), 0.25, 5)
    model = create_model(match.model, 5, width=0.25)
    load_into(model, tmp_path / "ours.safetensors")
    model.eval()
    with np.load(RECORDED / f"{file}.npz") as recorded:
        for height, width in recorder.SIZES_PX:
            expected = recorded[f"{height}x{width}"]
            with paddle.no_grad():
                answer = model(paddle.to_tensor(recorder.values("images", (2, 3, height, width)))).numpy()
            np.testing.assert_allclose(answer, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("file", FILES)
def test_the_way_back_gives_the_same_bits(tmp_path, converted, file):
    library = file.partition("_")[0]
    converted(file)
    convert_file(tmp_path / "ours.safetensors", tmp_path / "back.safetensors", to=library)
    back, original = read_weights(tmp_path / "back.safetensors"), library_weights(file)
    assert back.keys() == {key for key in original if not key.endswith("num_batches_tracked")}
    for key, array in back.items():
        np.testing.assert_array_equal(array, original[key], err_msg=key)


def test_the_header_says_where_weights_came_from(tmp_path, converted):
    _, result = converted("timm_ResNet18_vd")
    assert "blocks.0.short, which ResNet18_vd has and the file has not, was made an identity" in result.remarks[0]
    notes = read_metadata(tmp_path / "ours.safetensors")
    assert (notes["model"], notes["names"], notes["converted_from"]) == ("ResNet18_vd", "ours", "theirs.safetensors")
    assert "identity" in notes["remarks"]


def random_weights(model, **arguments):
    shapes = state_shapes(plan_network(SPECS[model], 5, **arguments))
    return {key: recorder.values(key, shape) for key, shape in shapes.items()}


def test_a_trained_first_shortcut_has_no_place_elsewhere(tmp_path):
    write_weights(tmp_path / "ours.safetensors", random_weights("ResNet18", width=0.25))
    with pytest.raises(UserError) as caught:
        convert_file(tmp_path / "ours.safetensors", tmp_path / "out.safetensors", to="torchvision")
    for key in ("blocks.0.short.conv.weight [16, 16, 1, 1]", "blocks.0.short.bn._variance [16]"):
        assert key in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("model", "arguments", "options", "message"),
    [
        ("ResNet50_vd", {"width": 0.25}, {}, r"fits several networks alike \(ResNet50_vc x 0.25, ResNet50_vd x 0.25\)"),
        ("ResNet50_vd", {"width": 0.25}, {"model": "ResNet50", "to": "timm"}, "does not fit ResNet50; its shapes are"),
        ("ResNet50_vd", {"width": 0.25}, {"model": "ResNet5", "to": "timm"}, "unknown model 'ResNet5'. Did you mean"),
        (
            "ResNet50_vd",
            {"width": 0.25},
            {"model": "ResNet50_vd", "to": "torchvision"},
            "torchvision has no network like ResNet50_vd.*--to timm",
        ),
        ("ResNet50", {"width": 0.25, "stem_stride": 1}, {"to": "timm"}, "no ResNet50 with a 3x3 stem"),
    ],
)
def test_what_cannot_be_converted_is_said(tmp_path, model, arguments, options, message):
    write_weights(tmp_path / "in.safetensors", random_weights(model, **arguments))
    with pytest.raises(UserError, match=message):
        convert_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", **options)


def test_foreign_networks_and_other_suffixes_are_refused(tmp_path):
    write_weights(tmp_path / "in.safetensors", {"features.0.weight": np.ones((4, 3, 3, 3), "f4")})
    with pytest.raises(
        UserError, match=r"fits no network of this series \(1 arrays, names: unknown; features.0.weight"
    ):
        convert_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    with pytest.raises(UserError, match=r"out\.pth: converted weights are written as \.safetensors"):
        convert_file(tmp_path / "in.safetensors", tmp_path / "out.pth")


# --- inspect and verify -----------------------------------------------------------------------


@pytest.mark.parametrize("model", [name for name in SPECS if name != "ResNeXt101_32x48d_wsl"])
def test_published_shapes_are_recognised(model):
    arrays = {key: np.broadcast_to(np.float32(0), shape) for key, shape in _published(model).items()}
    expected = {"ResNet50_vc", "ResNet50_vd"} if model in ("ResNet50_vc", "ResNet50_vd") else {model}
    assert {match.model for match in recognize(arrays)} == expected
    assert all((match.width, match.num_classes) == (1.0, 1000) for match in recognize(arrays))


def _published(model):
    return state_shapes(plan_network(SPECS[model]))


def test_a_description_has_all_that_is_known(tmp_path):
    arrays = random_weights("ResNet18_vd", width=0.25)
    write_weights(tmp_path / "w.safetensors", arrays, {"origin": "a test"})
    found = describe(tmp_path / "w.safetensors")
    assert (found.format, found.names, len(found.sha256)) == ("safetensors", "this series, current style", 64)
    assert [str(match) for match in found.matches] == ["ResNet18_vd x 0.25"]
    assert found.arrays["fc.weight"] == ((128, 5), "float32")
    assert found.remarks == ["origin: a test"]


@pytest.mark.parametrize(("model", "words"), [("ResNet50_vc", r"82\.4 %"), ("ResNet50_vd", r"83\.0 %")])
def test_the_two_files_called_resnet50_vd_ssld_are_told_apart(tmp_path, model, words):
    path = tmp_path / "ResNet50_vd_ssld_pretrained.safetensors"
    write_weights(path, random_weights(model, width=0.25))
    (remark,) = describe(path).remarks
    assert words.replace("\\", "") in remark
    write_weights(tmp_path / "ResNet50_vd_ssld_v2.safetensors", random_weights(model, width=0.25))
    assert describe(tmp_path / "ResNet50_vd_ssld_v2.safetensors").remarks == []


def test_verify_lists_what_differs(tmp_path):
    arrays = random_weights("ResNet18_vd", width=0.25)
    path = tmp_path / "w.safetensors"
    write_weights(path, arrays)
    assert verify(path, "ResNet18_vd", width=0.25).num_classes == 5
    with pytest.raises(UserError, match=r"(?s)unlike the model.*in the file are those of ResNet18_vd x 0\.25\."):
        verify(path, "ResNet18_vd")
    with pytest.raises(UserError, match="unknown model 'ResNet'"):
        verify(path, "ResNet")
    with pytest.raises(UserError, match=r"has the SHA-256 [0-9a-f]{64}, expected abc"):
        verify(path, "ResNet18_vd", width=0.25, sha256="abc")
    arrays["stem.0.bn._mean"] = arrays["stem.0.bn._mean"] * np.float32(np.nan)
    write_weights(path, arrays)
    with pytest.raises(UserError, match=r"stem\.0\.bn\._mean \(holds NaN or infinity\)"):
        verify(path, "ResNet18_vd", width=0.25)


def test_verify_names_a_librarys_arrays_that_have_no_place(tmp_path):
    theirs = library_weights("timm_ResNet18_vd")
    path = tmp_path / "w.safetensors"
    write_weights(path, theirs)
    assert verify(path, "ResNet18_vd", width=0.25).dialect == "timm"
    del theirs["layer3.0.conv1.weight"]
    theirs["layer3.0.se.fc1.weight"] = np.ones((2, 2), "f4")
    write_weights(path, theirs)
    with pytest.raises(UserError, match=r"(?s)missing in the file: blocks\.4\.conv0\.conv\.weight.*layer3\.0\.se\.fc1"):
        verify(path, "ResNet18_vd", width=0.25)


# --- with the libraries themselves, where they are installed -----------------------------------


@pytest.mark.parametrize(
    ("library", "theirs", "ours"),
    [
        ("timm", "resnet18d", "ResNet18_vd"),
        ("timm", "resnet50d", "ResNet50_vd"),
        ("torchvision", "resnet50", "ResNet50"),
    ],
)
def test_live_networks_of_full_width_agree_both_ways(tmp_path, library, theirs, ours):
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("timm" if library == "timm" else "torchvision.models")
    import paddle
    from safetensors.torch import load_file

    torch.manual_seed(0)
    network = (module.create_model(theirs) if library == "timm" else module.resnet50(weights=None)).eval()
    torch.save(network.state_dict(), tmp_path / "theirs.pth")
    convert_file(tmp_path / "theirs.pth", tmp_path / "ours.safetensors")
    model = create_model(ours)
    load_into(model, tmp_path / "ours.safetensors")
    model.eval()
    images = recorder.values("images", (1, 3, 75, 97))
    with torch.no_grad(), paddle.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
        answer = model(paddle.to_tensor(images)).numpy()
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        convert_file(tmp_path / "ours.safetensors", tmp_path / "back.safetensors", to=library)
        network.load_state_dict(load_file(tmp_path / "back.safetensors"))
        np.testing.assert_array_equal(network(torch.from_numpy(images)).numpy(), expected)
