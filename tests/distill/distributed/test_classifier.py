"""The classifier alone, finetuned on two ranks: what is below it computes by engine, its features are kept by image."""

import numpy as np

from distill.weights import read_weights


def test_the_classifier_alone_is_finetuned_on_two_ranks_as_on_one(digits, teacher_weights, start_ranks, tmp_path):
    path = digits.recipe(
        tmp_path / "fix.yaml",
        model={"name": "ResNet18_vd", "width": 0.125, "stem_stride": 4, "weights": str(teacher_weights)},
        freeze=["stem.*", "blocks.*"],
        recalibrate_bn={"images": 100},
        view={"size_px": 28, "crop": {"kind": "center", "resize_short_px": 28}, "horizontal_flip": 0.0},
    )
    found = []
    for size in (1, 2):
        output = tmp_path / f"ranks-{size}"
        command = ["train", str(path), "--output", str(output), "--device", "cpu"]
        ranks = start_ranks(*[command] * size).ended()
        assert [rank.status for rank in ranks] == [0] * size, ranks
        found.append(read_weights(output / "student.safetensors"))
        assert not (output / "stages/0-train/features").exists()
    before = read_weights(teacher_weights)
    for name, one in found[0].items():
        two = found[1][name]
        if name.startswith("fc."):
            assert np.abs(one - two).max() <= 1e-5 * np.abs(one).max(), name
            assert not np.array_equal(one, before[name]), name
        else:
            assert np.array_equal(one, two), name
            assert np.array_equal(one, before[name]) != name.endswith(("._mean", "._variance")), name
