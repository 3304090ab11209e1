import io
import json

import cv2
import numpy as np
import pytest
from rich.console import Console

from distill.errors import UserError
from distill.models import create_model
from distill.prediction import (
    Prediction,
    RankedClass,
    find_images,
    predict,
    predictions_json,
    predictions_table,
    top_classes,
)
from distill.recipe.file import load_recipe, resolved_yaml
from distill.weights import write_weights

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
RECIPE = f"""
name: tiny
description: a run to predict with
seed: 1
num_classes: 4
model: {{name: ResNet18_vd, width: 0.125, stem_stride: 1}}
epochs: 1
global_batch_size: 4
device_batch_size: 4
data: {{sources: [{{kind: class_folders, root: images}}]}}
view: {{size_px: 32, crop: {{kind: center, resize_short_px: 32}}, horizontal_flip: 0.0}}
normalization: {{mean: {MEAN}, std: {STD}}}
evaluation: {{sources: [{{kind: class_folders, root: images}}], resize_short_px: 40, crop_px: 32, batch_size: 2}}
loss: {{cross_entropy: {{weight: 1.0, label_smoothing: 0.0}}}}
optimizer: {{kind: momentum, learning_rate: 0.1, momentum: 0.9, nesterov: false, weight_decay: 0.0,
  decay_bias_and_norm: false}}
schedule: {{kind: constant, warmup_epochs: 0.0}}
"""


@pytest.fixture(scope="module")
def model():
    import paddle

    paddle.seed(0)
    model = create_model("ResNet18_vd", 4, width=0.125, stem_stride=1)
    model.fc.weight.set_value(model.fc.weight / 50)  # untrained logits are so large that the softmax saturates
    return model


@pytest.fixture
def run(tmp_path, model):
    (tmp_path / "given.yaml").write_text(RECIPE)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(resolved_yaml(load_recipe(tmp_path / "given.yaml")))
    write_weights(folder / "student.safetensors", {k: v.numpy() for k, v in model.state_dict().items()})
    return folder


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for number, size in enumerate([(40, 40), (40, 50), (90, 40)]):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), rng.integers(0, 256, (*size, 3), np.uint8))
    return paths


def expected_probabilities(model, path):
    """Short side 40 already, so only the centre crop, the normalisation and the softmax are left."""
    import paddle

    image = cv2.imread(str(path))[:, :, ::-1] / 255.0
    top, left = (image.shape[0] - 32) // 2, (image.shape[1] - 32) // 2
    view = (image[top : top + 32, left : left + 32] - MEAN) / STD
    model.eval()
    logits = model(paddle.to_tensor(view.transpose(2, 0, 1)[None].astype("float32"))).numpy()[0].astype("f8")
    return np.exp(logits) / np.exp(logits).sum()


def test_probabilities_of_every_image_in_order(run, images, model):
    predictions = predict(run, images, top_k=9, device="cpu")
    assert [prediction.image for prediction in predictions] == [str(path) for path in images]
    for prediction, path in zip(predictions, images, strict=True):
        expected = expected_probabilities(model, path)
        assert 0.02 < expected.min() < 0.2 < expected.max() < 0.9
        assert [ranked.index for ranked in prediction.classes] == list(np.argsort(-expected))
        np.testing.assert_allclose([r.probability for r in prediction.classes], np.sort(expected)[::-1], rtol=1e-4)
        assert sum(ranked.probability for ranked in prediction.classes) == pytest.approx(1)
    assert [len(prediction.classes) for prediction in predict(run, images, top_k=2, device="cpu")] == [2, 2, 2]


def test_undecodable_images_are_named_and_the_others_classified(run, images, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    paths = [tmp_path / "text.jpg", images[0], tmp_path / "none.png", tmp_path / "empty.png", tmp_path, images[1]]
    predictions = predict(run, paths, device="cpu")
    assert [prediction.error is None for prediction in predictions] == [False, True, False, False, False, True]
    alone = predict(run, [images[0]], device="cpu")[0]
    assert [r.index for r in predictions[1].classes] == [r.index for r in alone.classes]
    assert predictions[2].error == "No such file or directory"
    assert "empty" in predictions[3].error
    assert predictions[4].error == "not a regular file"
    assert all(prediction.classes == () for prediction in predictions if prediction.error)


def test_folders_and_lists_stand_for_their_images(tmp_path):
    names = ["b.png", "a.JPG", "sub/c.webp", "sub/deeper/a.png", ".hidden/x.png", "sub/.y.png", "notes.md"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "list.txt").write_text("b.png 3\nsub/no such.png 0\n")
    found = find_images([tmp_path / "in" / "list.txt", tmp_path / "none.png", tmp_path / "in"])
    expected = ["in/b.png", "in/sub/no such.png", "none.png", "in/a.JPG", "in/b.png"]
    expected += ["in/sub/c.webp", "in/sub/deeper/a.png"]
    assert found == [tmp_path / name for name in expected]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no images in this folder"):
        find_images([tmp_path / "empty"])
    with pytest.raises(UserError, match=r"none\.txt: the image list cannot be read"):
        find_images([tmp_path / "none.txt"])


def test_class_names(run, images, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("T-shirt\nTrouser\nSandale d'été\nBag\n")
    ranked = predict(run, images[:1], class_names=names, device="cpu")[0].classes
    assert {r.index: r.name for r in ranked} == dict(enumerate(["T-shirt", "Trouser", "Sandale d'été", "Bag"]))
    names.write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"names\.txt must have 4 lines, one for each class, received 2"):
        predict(run, images, class_names=names, device="cpu")
    with pytest.raises(UserError, match=r"Cannot read the class names .*none\.txt"):
        predict(run, images, class_names=tmp_path / "none.txt", device="cpu")


def test_a_recipe_with_weights_serves_as_well_as_a_run(run, images, tmp_path):
    weights = (run / "student.safetensors").rename(tmp_path / "elsewhere.safetensors")
    predictions = predict(tmp_path / "given.yaml", images[:1], weights=weights, device="cpu")
    assert len(predictions[0].classes) == 4


def test_what_is_wrong_is_said(run, images, tmp_path):
    with pytest.raises(UserError, match="no image to classify"):
        predict(run, [], device="cpu")
    with pytest.raises(UserError, match="--top-k must be >= 1, received 0"):
        predict(run, images, top_k=0, device="cpu")
    with pytest.raises(UserError, match=r"nowhere does not exist: expected a folder"):
        predict(tmp_path / "nowhere", images, device="cpu")
    with pytest.raises(UserError, match=r"no weights .*--weights"):
        predict(tmp_path / "given.yaml", images, device="cpu")
    (run / "student.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights .*student\.safetensors"):
        predict(run, images, device="cpu")


def test_equal_probabilities_keep_the_order_of_the_classes():
    ranked = top_classes(np.array([0.2, 0.3, 0.2, 0.3]), 3)
    assert [(r.index, r.probability) for r in ranked] == [(1, 0.3), (3, 0.3), (0, 0.2)]


PREDICTIONS = [
    Prediction("a[b].jpg", (RankedClass(3, "[red]fox", 0.75), RankedClass(0, None, 0.25))),
    Prediction("c.jpg", error="empty"),
]


def test_json():
    assert json.loads(predictions_json(PREDICTIONS)) == [
        {
            "image": "a[b].jpg",
            "classes": [
                {"index": 3, "name": "[red]fox", "probability": 0.75},
                {"index": 0, "name": None, "probability": 0.25},
            ],
            "error": None,
        },
        {"image": "c.jpg", "classes": [], "error": "empty"},
    ]


def test_table():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(predictions_table(PREDICTIONS))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines == [
        ["image", "class", "probability"],
        ["a[b].jpg", "3", "[red]fox", "0.7500"],
        ["0", "0.2500"],
        ["c.jpg", "not", "classified:", "empty"],
    ]
