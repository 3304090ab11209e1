"""A network of a user's own on one rank and on two: real processes."""

import numpy as np

from distill import checkpoint


def test_two_ranks_draw_the_dropout_that_one_draws_and_agree_on_the_code(own_module, digits, start_ranks, tmp_path):
    name = f"{own_module()}:tiny"
    recipe = digits.recipe(
        tmp_path / "ranks.yaml",
        model={"name": name, "arguments": {"dropout": 0.5}},
        global_batch_size=64,
        epochs=1,
        runtime={"checkpoint_every_steps": 1, "keep_checkpoints": 4},
    )
    found = []
    for size in (1, 2):
        command = ["train", str(recipe), "--output", f"run-{size}", "--device", "cpu", "--set", "seed=4"]
        ranks = start_ranks(*[command] * size, folders=[tmp_path] * size).ended()
        assert [rank.status for rank in ranks] == [0] * size, ranks
        assert f"{name} runs the code of {tmp_path}" in ranks[0].said
        found.append(checkpoint.load(tmp_path / f"run-{size}/stages/0-train/checkpoints/step-00000002").tensors)
    alone, together = found
    for key, value in alone.items():
        np.testing.assert_allclose(together[key], value, rtol=1e-4, atol=1e-5 * max(1e-6, np.abs(value).max()))


def test_ranks_with_other_code_are_named(own_module, digits, start_ranks, tmp_path):
    module = own_module()
    recipe = digits.recipe(tmp_path / "ranks.yaml", model={"name": f"{module}:tiny"}, epochs=1)
    folders = [tmp_path, tmp_path / "other"]
    folders[1].mkdir()
    source = (tmp_path / f"{module}.py").read_text()
    (folders[1] / f"{module}.py").write_text(source.replace("functional.relu", "functional.gelu"))
    command = ["train", str(recipe), "--output", str(tmp_path / "run"), "--device", "cpu"]
    ranks = start_ranks(command, command, folders=folders).ended()
    assert [rank.status for rank in ranks] == [2, 2], ranks
    assert f"code of {module}:tiny" in ranks[0].said
    assert "the ranks would not train the same" in ranks[0].said
