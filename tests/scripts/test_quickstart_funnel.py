"""The quick start's funnel, of a pool of handwritten digits that is polluted and mined in small."""

import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from sklearn.datasets import load_digits

from data_mining.recipe import MiningRecipe
from data_mining.stages import run_stages
from data_mining.workspace import Workspace
from distill.models import create_model
from distill.weights import write_weights

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


@pytest.fixture(scope="module")
def scripts():
    """The modules `pollute` and `quickstart_funnel`, which are in no package."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import quickstart_funnel
        from experiments import pollute
    finally:
        sys.path.remove(str(SCRIPTS))
    return pollute, quickstart_funnel


@pytest.fixture
def mined(tmp_path, scripts):
    """The output of mining a pool of 40 digits, 5 of them twice, 6 mirrored test images and 4 of noise."""
    pollute, _ = scripts
    digits = (load_digits().images * 15).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32), dtype=np.uint8)
    groups = {"pool": digits[:40], "test": digits[40:46], "noise": noise}
    pictures = {
        name: [pollute.array_picture(image, f"{name}/{number}.png") for number, image in enumerate(images)]
        for name, images in groups.items()
    }
    entries = pollute.plan_pool(
        pictures["pool"], pictures["test"], pictures["noise"], duplicates=5, copies_per_edit=6, edits=["flip"], seed=0
    )
    pollute.write_pool(tmp_path / "pool", entries, seed=0)
    (tmp_path / "test").mkdir()
    for number, picture in enumerate(pictures["test"]):
        (tmp_path / "test" / f"{number}.png").write_bytes(picture.encoded())
    paddle.seed(0)
    model = create_model("ResNet18_vd", 10, width=0.0625, stem_stride=2)
    write_weights(tmp_path / "teacher.safetensors", {k: v.numpy() for k, v in model.state_dict().items()}, {})
    recipe = MiningRecipe.model_validate(
        {
            "name": "digits",
            "description": "",
            "pool": {"sources": [{"kind": "folder", "root": str(tmp_path / "pool" / "images")}]},
            "protected": [{"name": "test", "sources": [{"kind": "folder", "root": str(tmp_path / "test")}]}],
            "teacher": {
                "kind": "network",
                "name": "ResNet18_vd",
                "width": 0.0625,
                "stem_stride": 2,
                "weights": str(tmp_path / "teacher.safetensors"),
                "num_classes": 10,
                "resize_short_px": 32,
                "crop_px": 32,
                "normalization": {"mean": [0.3, 0.3, 0.3], "std": [0.38, 0.38, 0.38]},
            },
            "score": {"top_classes": 2, "embedding_dim": 8},
            "leaks": {"min_cosine": 0.999, "max_hash_bits": 0, "certain_hash_bits": 0, "review_hash_bits": -1},
            "duplicates": {"min_cosine": 1.0, "max_hash_bits": 0},
            "select": {"kind": "by_class", "images_per_class": 3},
            "runtime": {"device": "cpu", "workers": 1},
        }
    )
    with Workspace(tmp_path / "out") as workspace:
        run_stages(workspace, recipe, ["index", "score", "leaks", "duplicates", "select"], tell=lambda line: None)
    return tmp_path


def test_every_step_says_what_is_left(scripts, mined):
    steps = scripts[1].read_funnel(mined / "out", mined / "pool")
    facts = [(step.images, step.topic, step.leaks, step.twins, step.off_topic) for step in steps]
    assert facts[:3] == [(55, 40, 6, 5, 4), (49, 40, 0, 5, 4), (44, 40, 0, 0, 4)]
    lines = (mined / "out" / "selected.txt").read_text().splitlines()
    assert steps[3].images == len(lines) <= 30 and steps[3].leaks == steps[3].twins == 0
    assert steps[0].cells == ("the pool", "55", "40", "6", "5", "4", "27.3 %")
    assert all(len(step.cells) == len(scripts[1].HEADINGS) for step in steps)


def test_of_equal_files_either_may_be_the_one_that_stays(scripts):
    pollute, funnel = scripts
    first = pollute.Truth("1.png", "clean", "", "pool/7.png")
    second = pollute.Truth("2.png", "duplicate", "", "pool/7.png")
    assert (funnel.count("", [first]).topic, funnel.count("", [second]).topic) == (1, 1)
    assert (funnel.count("", [first, second]).topic, funnel.count("", [first, second]).twins) == (1, 1)
    assert funnel.count("", []).cells[-1] == "0.0 %"
