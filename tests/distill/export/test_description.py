import pytest
import yaml

from distill.errors import UserError
from distill.export.description import FILE, MAX_BYTES, Description, read_description, to_yaml
from distill.recipe import ModelSection, NormalizationSection


def description(**changes):
    values = {
        "model": ModelSection(name="ResNet18_vd", width=0.25, stem_stride=2),
        "num_classes": 3,
        "format": "onnx",
        "precision": "int8",
        "resize_short_px": 40,
        "crop_px": 32,
        "normalization": NormalizationSection(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 5e-5)),
        "class_names": ("no", "Sandale d'été", "1e-4"),
    }
    return Description(**values | changes)


def test_it_says_how_images_are_prepared_in_paddleclas_words():
    content = yaml.safe_load(to_yaml(description()))
    assert content["PreProcess"]["transform_ops"] == [
        {"ResizeImage": {"resize_short": 40, "interpolation": "bilinear", "backend": "cv2"}},
        {"CropImage": {"size": 32}},
        {
            "NormalizeImage": {
                "scale": "1.0/255.0",
                "mean": [0.1, 0.2, 0.3],
                "std": [1.0, 2.0, 5e-5],
                "order": "",
                "channel_num": 3,
            }
        },
        {"ToCHWImage": None},
    ]
    assert content["PostProcess"] == {"Topk": {"topk": 3, "label_list": ["no", "Sandale d'été", "1e-4"]}}
    assert content["Global"]["model_name"] == "ResNet18_vd"
    assert (content["Input"]["dtype"], content["Input"]["layout"]) == ("float32", "NCHW")
    assert content["Input"]["shape"] == [-1, 3, 32, 32]


def test_a_network_that_normalises_itself_takes_bytes():
    content = yaml.safe_load(to_yaml(description(normalization=None, class_names=None)))
    assert [list(step) for step in content["PreProcess"]["transform_ops"]] == [["ResizeImage"], ["CropImage"]]
    assert (content["Input"]["dtype"], content["Input"]["layout"]) == ("uint8", "NHWC")
    assert content["Input"]["shape"] == [-1, 32, 32, 3]
    assert "label_list" not in content["PostProcess"]["Topk"]


@pytest.mark.parametrize("changes", [{}, {"normalization": None}, {"class_names": None}, {"format": "paddle"}])
def test_it_is_read_back(tmp_path, changes):
    (tmp_path / FILE).write_text(to_yaml(description(**changes)), encoding="utf-8")
    assert read_description(tmp_path / FILE) == description(**changes)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bilinear", "bicubic", "PreProcess is not as `distill export` writes it"),
        ("colours: RGB", "colours: BGR", "Input is not as"),
        ("Global:", "More: 1\nGlobal:", "More is not as"),
        ("ResNet18_vd", "ResNet18_vf", "unknown model 'ResNet18_vf'"),
        ("num_classes: 3", "num_classes: -3", "greater than or equal to 1"),
        ("num_classes: 3", "num_classes: '3'", "valid integer"),
        ("size: 32", "size: .inf", "valid integer"),
        ("Global:", "Globe:", "KeyError 'Global'"),
        ("Global:", "Global: [", "is not YAML"),
        ("model_name: ResNet18_vd", "model_name: !!python/object/apply:os.system [false]", "is not YAML"),
    ],
)
def test_what_it_would_not_do_is_refused(tmp_path, old, new, message):
    text = to_yaml(description())
    (tmp_path / FILE).write_text(text.replace(old, new), encoding="utf-8")
    assert old in text
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        read_description(tmp_path / FILE)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 5000, b"a" * (MAX_BYTES + 1)])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=FILE):
        read_description(tmp_path / FILE)
    with pytest.raises(UserError, match="No such file"):
        read_description(tmp_path / "none.yml")
