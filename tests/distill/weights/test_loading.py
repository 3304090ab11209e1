import logging

import numpy as np
import pytest

from distill.errors import UserError
from distill.models import create_model
from distill.weights import load_into, write_weights
from distill.weights.loading import fit

SMALL = {"width": 0.125, "stem_stride": 1}


def small(name="ResNet18_vd", num_classes=4, **arguments):
    return create_model(name, num_classes, **SMALL | arguments)


def state(model):
    return {key: value.numpy().copy() for key, value in model.state_dict().items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key, array in left.items():
        np.testing.assert_array_equal(array, right[key], err_msg=key)


@pytest.mark.parametrize("suffix", [".safetensors", ".pdparams"])
def test_a_model_takes_the_weights_of_its_twin(tmp_path, suffix):
    import paddle

    twin, model = small(), small()
    path = tmp_path / f"w{suffix}"
    if suffix == ".pdparams":
        paddle.save(twin.state_dict(), str(path))
    else:
        write_weights(path, state(twin), {})
    assert any((state(twin)[key] != array).any() for key, array in state(model).items())
    load_into(model, path)
    assert_same(state(model), state(twin))
    images = paddle.rand([2, 3, 32, 32])
    twin.eval(), model.eval()
    np.testing.assert_array_equal(model(images).numpy(), twin(images).numpy())


@pytest.mark.parametrize(("file", "model"), [("ResNet50_vc", "ResNet50_vd"), ("ResNet50_vd", "ResNet50_vc")])
def test_a_model_takes_another_naming_style(tmp_path, file, model):
    source, target = small(file), small(model)
    write_weights(tmp_path / "w.safetensors", state(source), {})
    load_into(target, tmp_path / "w.safetensors")
    assert_same(dict(zip(state(target), state(source).values(), strict=True)), state(target))


def test_everything_that_does_not_fit_is_listed_and_the_model_left_alone(tmp_path):
    model = small()
    before = state(model)
    arrays = state(small())
    del arrays["stem.1.conv.weight"]
    arrays["epoch"] = np.ones(1, "f4")
    arrays["stem.0.conv.weight"] = np.ones((8, 3, 5, 5), "f4")
    arrays["fc.bias"] = np.arange(4)
    arrays["stem.2.bn._mean"][1] = np.nan
    write_weights(tmp_path / "w.safetensors", arrays, {})
    with pytest.raises(UserError) as caught:
        load_into(model, tmp_path / "w.safetensors")
    message = str(caught.value)
    for line in (
        f"{tmp_path / 'w.safetensors'} does not fit the model",
        "missing in the file: stem.1.conv.weight",
        "in the file, not in the model: epoch",
        "stem.0.conv.weight (expected [8, 3, 3, 3], received [8, 3, 5, 5])",
        "fc.bias (expected floating point, received int64)",
        "stem.2.bn._mean (holds NaN or infinity)",
        "current style. Check model.name, model.width",
    ):
        assert line in message
    assert_same(state(model), before)


def test_a_foreign_file_lists_a_few_names_only():
    with pytest.raises(UserError, match=r"and 12 more\n.*None of its names is of this series"):
        fit({f"layer{i}": np.ones(1, "f4") for i in range(20)}, {"fc.bias": (1,)}, source="file")


def test_a_librarys_file_says_what_to_do():
    theirs = dict.fromkeys(("layer1.0.conv1.weight", "layer4.0.bn2.running_mean"), np.ones(1, "f4"))
    with pytest.raises(UserError, match=r"those of a PyTorch library: convert it with `distill weights convert`"):
        fit(theirs, {"fc.bias": (1,)}, source="file")


def test_other_classes_are_refused_unless_allowed(tmp_path, caplog):
    source, model = small(num_classes=7), small(num_classes=4)
    path = tmp_path / "w.safetensors"
    write_weights(path, state(source), {})
    with pytest.raises(UserError, match=r"fc\.weight \(expected \[64, 4\], received \[64, 7\]\)"):
        load_into(model, path)
    fresh = state(model)
    with caplog.at_level(logging.WARNING):
        load_into(model, path, allow_other_classes=True)
    assert "another number of classes: fc.bias and fc.weight start afresh" in caplog.text
    expected = state(source) | {key: fresh[key] for key in ("fc.weight", "fc.bias")}
    assert_same(state(model), expected)


def test_allowing_other_classes_takes_a_fitting_classifier_and_no_other_network(tmp_path, caplog):
    same, wider, model = small(), small(width=0.25, num_classes=7), small()
    write_weights(tmp_path / "same.safetensors", state(same), {})
    load_into(model, tmp_path / "same.safetensors", allow_other_classes=True)
    assert_same(state(model), state(same))
    assert not caplog.records
    write_weights(tmp_path / "wider.safetensors", state(wider), {})
    with pytest.raises(UserError, match=r"fc\.weight \(expected \[64, 4\], received \[128, 7\]\)"):
        fit(state(wider), {"fc.weight": (64, 4), "fc.bias": (4,)}, source="file", allow_other_classes=True)


def test_half_precision_files_are_widened():
    loaded = fit({"fc.bias": np.array([1.5], "f2")}, {"fc.bias": (1,)}, source="file")
    assert loaded["fc.bias"].dtype == np.float32
