import shutil

import cv2
import numpy as np
import paddle
import pytest

from data_mining import index, score
from data_mining.recipe import MiningRecipe
from data_mining.shards import shards_of
from data_mining.workspace import Part, Workspace, read_array
from distill.errors import RunError, UserError
from distill.models import create_model
from distill.weights import read_weights, write_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    paddle.seed(1)
    model = create_model("ResNet18_vd", 12, width=0.0625, stem_stride=4)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    write_weights(path, {key: value.numpy() for key, value in model.state_dict().items()}, {})
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Images of noise in two folders, which are two shards, and four protected ones."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for folder, count in {"pool/a": 7, "pool/b": 4, "test": 4}.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            image = cv2.resize(random.integers(0, 256, (5, 5, 3), dtype=np.uint8), (40, 36 + number))
            cv2.imwrite(str(root / folder / f"{number}.png"), image)
    return root


def make_recipe(folders, weights, **runtime):
    return MiningRecipe.model_validate(
        {
            "name": "t",
            "description": "",
            "pool": {"sources": [{"kind": "folder", "root": str(folders / "pool")}]},
            "protected": [{"name": "test", "sources": [{"kind": "folder", "root": str(folders / "test")}]}],
            "leaks": {"min_cosine": 0.9, "max_hash_bits": 8},
            "teacher": {
                "kind": "network",
                "name": "ResNet18_vd",
                "width": 0.0625,
                "weights": str(weights),
                "num_classes": 12,
                "resize_short_px": 36,
                "crop_px": 32,
                "normalization": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
            },
            "score": {"top_classes": 3, "embedding_dim": 4, "pca_images": 8},
            "select": {"kind": "by_class", "images_per_class": 2},
            "runtime": {"device": "cpu", "workers": 1, **runtime},
        }
    )


def run(root, recipe, part=None):
    """Index and score; returns the bytes of every artefact of `score` by name."""
    with Workspace(root, part) as workspace:
        index.run(workspace, recipe)
        report = score.run(workspace, recipe)
    return report, {path.name: path.read_bytes() for path in (root / "score").iterdir()}


@pytest.fixture(scope="module")
def done(folders, weights, tmp_path_factory):
    root = tmp_path_factory.mktemp("done")
    report, files = run(root, make_recipe(folders, weights))
    return root, report, files


def test_scores_against_the_model_itself(done, folders, weights):
    root, report, _ = done
    recipe = make_recipe(folders, weights)
    model = create_model("ResNet18_vd", 12, width=0.0625, stem_stride=4)
    model.set_state_dict({key: paddle.to_tensor(value) for key, value in read_weights(weights).items()})
    model.eval()
    with Workspace(root) as workspace:
        shards = shards_of(workspace, recipe, "pool")
        rankings = [score.read_ranking(score.scores_path(workspace, recipe, shard)) for shard in shards]
        rows = index.read_index(workspace, recipe, "pool").to_pylist()
    assert [len(each.rest) for each in rankings] == [7, 4]
    for number, row in enumerate(rows):
        image = cv2.imread(row["path"])[:, :, ::-1]
        height, width = image.shape[:2]
        factor = 36 / min(height, width)
        image = cv2.resize(image, (round(width * factor), round(height * factor)))
        top, left = (image.shape[0] - 32) // 2, (image.shape[1] - 32) // 2
        unit = (image[top : top + 32, left : left + 32] / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
        logits = model(paddle.to_tensor(unit.transpose(2, 0, 1)[None].astype(np.float32)))
        expected = paddle.nn.functional.softmax(logits).numpy()[0]
        shard, at = (0, number) if number < 7 else (1, number - 7)
        best = np.argsort(-expected)[:3]
        assert rankings[shard].classes[at].tolist() == best.tolist()
        np.testing.assert_allclose(rankings[shard].probabilities[at], expected[best], rtol=1e-4)
        np.testing.assert_allclose(rankings[shard].rest[at], 1 - expected[best].sum(), atol=1e-5)
    assert report.counts == {"images": 11}
    assert report.facts["engine"] == "Paddle Inference, oneDNN, float32"
    assert report.facts["embedding_dim"] == 4


def test_embeddings_lie_row_by_row_and_mirrored_ones_for_protected_sets(done, folders, weights):
    root, _, files = done
    recipe = make_recipe(folders, weights)
    with Workspace(root) as workspace:
        pool = score.read_embeddings(workspace, recipe, "pool")
        plain, mirrored = (
            score.read_embeddings(workspace, recipe, "protected-test", mirrored=m) for m in (False, True)
        )
    assert [array.shape for array in pool] == [(7, 4), (4, 4)] and pool[0].dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(np.concatenate(pool).astype(np.float32), axis=1), 1, atol=2e-3)
    assert plain[0].shape == mirrored[0].shape == (4, 4)
    assert not np.array_equal(plain[0], mirrored[0])
    assert sum(name.startswith("mirrored") for name in files) == 1
    assert not any(name.startswith("sample") for name in files)


@pytest.mark.parametrize("runtime", [{"workers": 2}, {"batch_size": 3}], ids=str)
def test_workers_and_batches_do_not_show(done, folders, weights, tmp_path, runtime):
    if "workers" in runtime:  # starting workers once takes long enough
        (tmp_path / "score").mkdir()
        for path in (done[0] / "score").glob("projection-*"):
            shutil.copy(path, tmp_path / "score")
    assert run(tmp_path, make_recipe(folders, weights, **runtime))[1] == done[2]


def test_parts_make_the_whole(done, folders, weights, tmp_path):
    recipe = make_recipe(folders, weights)
    with Workspace(tmp_path) as workspace:
        index.run(workspace, recipe)
    for part in (1, 0):
        report, files = run(tmp_path, recipe, Part(part, 2))
        assert report.counts == {}
    assert files == done[2]


def test_a_second_run_computes_nothing_and_a_new_shard_only_itself(folders, weights, tmp_path, monkeypatch):
    pool = tmp_path / "pool"
    (pool / "a").mkdir(parents=True)
    for number in range(3):
        (pool / "a" / f"{number}.png").write_bytes((folders / "pool" / "a" / f"{number}.png").read_bytes())
    recipe = make_recipe(folders, weights)
    source = recipe.pool.sources[0].model_copy(update={"root": str(pool)})
    recipe = recipe.model_copy(update={"pool": recipe.pool.model_copy(update={"sources": (source,)})})
    report, before = run(tmp_path / "out", recipe)
    monkeypatch.setattr(score, "_engine", lambda recipe: pytest.fail("nothing is left to score"))
    again, same = run(tmp_path / "out", recipe)
    assert same == before and again.key == report.key
    monkeypatch.undo()
    (pool / "b").mkdir()
    (pool / "b" / "0.png").write_bytes((folders / "pool" / "b" / "0.png").read_bytes())
    more, after = run(tmp_path / "out", recipe)
    assert more.key != report.key and more.counts == {"images": 4}
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 2


def test_an_answer_that_is_not_finite_names_the_images(folders, weights, tmp_path, monkeypatch):
    def answer(images):
        logits = np.zeros((len(images), 12), np.float32)
        embedding = np.zeros((len(images), 8), np.float32)
        embedding[2] = np.nan
        return {"logits": logits, "embedding": embedding}

    answer.description = "broken"
    monkeypatch.setattr(score, "_engine", lambda recipe: answer)
    with pytest.raises(RunError, match=r"NaN or infinite for 1 of \d images.*pool/a/\d\.png"):
        run(tmp_path, make_recipe(folders, weights))


def test_an_image_that_vanishes_is_named(folders, weights, tmp_path):
    recipe = make_recipe(folders, weights)
    with Workspace(tmp_path / "out") as workspace:
        index.run(workspace, recipe)
        path = folders / "pool" / "b" / "3.png"
        kept = path.read_bytes()
        path.unlink()
        try:
            with pytest.raises(RunError, match=r"3\.png was indexed but cannot be read"):
                score.run(workspace, recipe)
        finally:
            path.write_bytes(kept)


def test_missing_weights_are_named(folders, tmp_path):
    with pytest.raises(UserError, match=r"none\.safetensors does not exist"):
        run(tmp_path, make_recipe(folders, tmp_path / "none.safetensors"))


def test_an_onnx_teacher_scores_as_the_network_it_was_made_of(folders, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weight = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            node("GlobalAveragePool", ["x"], ["pooled"]),
            node("Flatten", ["pooled"], ["flat"]),
            node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "network",
        [info("x", onnx.TensorProto.FLOAT, ["N", 3, 32, 32])],
        [info("logits", onnx.TensorProto.FLOAT, ["N", 12])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opsets = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "t.onnx")
    recipe = make_recipe(folders, "unused").model_dump()
    teacher = {k: v for k, v in recipe["teacher"].items() if k in ("num_classes", "resize_short_px", "crop_px")}
    teacher |= {"normalization": recipe["teacher"]["normalization"], "kind": "onnx"}
    teacher |= {"path": str(tmp_path / "t.onnx"), "embedding_output": "flat"}
    recipe = MiningRecipe.model_validate(recipe | {"teacher": teacher})
    report, _ = run(tmp_path / "out", recipe)
    assert report.facts["engine"] == "ONNX Runtime, float32"
    with Workspace(tmp_path / "out") as workspace:
        shard = shards_of(workspace, recipe, "pool")[0]
        ranking = score.read_ranking(score.scores_path(workspace, recipe, shard))
        embeddings = read_array(score.embeddings_path(workspace, recipe, shard))
    assert ranking.classes.shape == (7, 3) and embeddings.shape == (7, 3)
