import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_mining import index, score, select
from data_mining.index import location
from data_mining.neighbours import Neighbours
from data_mining.ranking import Ranking
from data_mining.recipe import ByClass, MiningRecipe
from data_mining.select import Choice, PoolPart, choose_by_class, fill_classes, joined, repeated, retrieve
from data_mining.shards import shards_of
from data_mining.workspace import Workspace, write_array, write_table
from distill.data.image_list import open_image_list
from distill.errors import UserError

PREDICTED, NEIGHBOUR, REPEAT = range(3)


def choice(rows):
    """Rows (label, image, score, source)."""
    label, image, scores, source = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Choice(
        np.array(image, np.int64), np.array(label, np.int32), np.array(scores, np.float32), np.array(source, np.int8)
    )


def as_rows(chosen):
    columns = chosen.label, chosen.image, chosen.score.round(4), chosen.source
    return list(zip(*(column.tolist() for column in columns), strict=True))


def neighbours(rows):
    """Rows (query, image, tie, cosine)."""
    query, image, tie, cosine = zip(*rows, strict=True)
    return Neighbours(np.array(query), np.array(image), np.array(tie, np.uint64), np.array(cosine, np.float32))


def parts_of(classes, probabilities, ties, size):
    rest = np.zeros(len(ties), np.float32)
    for first in range(0, len(ties), size):
        here = slice(first, first + size)
        ranking = Ranking(np.array(classes, np.uint16)[here], np.array(probabilities, np.float32)[here], rest[here])
        yield PoolPart(first, np.array(ties, np.uint64)[here], ranking)


@pytest.mark.parametrize("size", [1, 2, 6])
def test_the_best_of_each_class_whatever_the_parts(size):
    classes = [[0, 1], [0, 1], [0, 1], [1, 0], [1, 0], [0, 1]]
    probabilities = [[0.9, 0.1], [0.8, 0.2], [0.8, 0.1], [0.6, 0.4], [0.3, 0.2], [0.99, 0.0]]
    ties = [5, 9, 7, 1, 1, 1]
    kept = np.array([True] * 5 + [False])
    section = ByClass(kind="by_class", images_per_class=2, classes_per_image=1, min_confidence=0.5)
    chosen = choose_by_class(parts_of(classes, probabilities, ties, size), kept, section, 3, 2**24)
    # 1 and 2 are equally probable: 2 has the lower hash; 4 is not confident enough; 5 was removed
    assert as_rows(chosen) == [
        (0, 0, pytest.approx(0.9), PREDICTED),
        (0, 2, pytest.approx(0.8), PREDICTED),
        (1, 3, pytest.approx(0.6), PREDICTED),
    ]


def test_an_image_that_one_class_has_no_room_for_competes_in_its_next():
    classes, probabilities = [[0, 1], [0, 1], [1, 0]], [[0.9, 0.05], [0.8, 0.2], [0.15, 0.1]]
    section = ByClass(kind="by_class", images_per_class=1, classes_per_image=2)
    chosen = choose_by_class(parts_of(classes, probabilities, [1, 2, 3], 2), np.ones(3, bool), section, 2, 2**24)
    assert as_rows(chosen) == [(0, 0, pytest.approx(0.9), 0), (1, 1, pytest.approx(0.2), 0)]


def test_more_classes_per_image_than_the_teacher_has():
    section = ByClass(kind="by_class", images_per_class=1, classes_per_image=9)
    chosen = choose_by_class(parts_of([[1, 0]], [[0.6, 0.4]], [1], 1), np.ones(1, bool), section, 2, 2**24)
    assert as_rows(chosen) == [(1, 0, pytest.approx(0.6), 0)]


def test_short_classes_are_filled_with_the_nearest():
    labels = np.array([0, 1, 1])
    found = [
        neighbours([(0, 10, 3, 0.9), (0, 11, 1, 0.7), (1, 10, 3, 0.95)]),
        neighbours([(2, 10, 3, 0.2), (2, 12, 5, 0.8), (2, 13, 4, 0.8)]),
    ]
    chosen = choice([(0, 1, 0.5, PREDICTED), (2, 2, 0.5, PREDICTED)])
    filled = fill_classes(found, labels, chosen, 2, 2**24)
    # 10 is nearest to class 1; 12 and 13 are equally near and 13 has the lower hash; class 0 has room for one
    assert as_rows(filled) == [
        (0, 11, pytest.approx(0.7), NEIGHBOUR),
        (1, 10, pytest.approx(0.95), NEIGHBOUR),
        (1, 13, pytest.approx(0.8), NEIGHBOUR),
    ]
    assert as_rows(joined([chosen, filled]))[:2] == [
        (0, 1, 0.5, PREDICTED),
        (0, 11, pytest.approx(0.7), NEIGHBOUR),
    ]


def test_retrieval_takes_each_image_once_under_the_nearest_class():
    labels = np.array([4, 2, -1])
    found = [
        neighbours([(0, 10, 3, 0.9), (1, 10, 3, 0.95), (0, 11, 1, 0.5)]),
        neighbours([(2, 12, 0, 0.5), (2, 10, 3, 0.1)]),
    ]
    assert as_rows(retrieve(found, labels, None)) == [
        (-1, 12, 0.5, NEIGHBOUR),
        (2, 10, pytest.approx(0.95), NEIGHBOUR),
        (4, 11, 0.5, NEIGHBOUR),
    ]
    assert [row[1] for row in as_rows(retrieve(found, labels, 2))] == [12, 10]  # of equal cosines the lower hash


def test_repeating_begins_with_the_best_and_leaves_empty_classes_empty():
    chosen = choice([(0, 7, 0.9, PREDICTED), (0, 8, 0.8, NEIGHBOUR), (3, 9, 0.7, PREDICTED)])
    full = repeated(chosen, 5)
    assert full.label.tolist() == [0] * 5 + [3] * 5
    assert full.image.tolist() == [7, 8, 7, 8, 7] + [9] * 5
    assert full.source.tolist() == [PREDICTED, NEIGHBOUR, REPEAT, REPEAT, REPEAT, PREDICTED] + [REPEAT] * 4
    assert as_rows(repeated(full, 5)) == as_rows(full)
    assert as_rows(repeated(choice([]), 5)) == []


# --- the stage, on artefacts that are made up ------------------------------------------------------

CLASSES = 4


def make_up(root, pool_order=("a", "b"), **section):
    """A workspace as `index` and `score` leave it: 2 shards of 30 images, and 6 labelled images of classes 0..2."""
    files = root / "files"
    for folder in ("pool/a", "pool/b", "labelled/0", "labelled/1", "labelled/2"):
        (files / folder).mkdir(parents=True, exist_ok=True)
        for number in range(30 if "pool" in folder else 2):
            (files / folder / f"{number:02d}.png").write_bytes(b"not looked at")
    recipe = MiningRecipe.model_validate(
        {
            "name": "t",
            "description": "",
            "pool": {"sources": [{"kind": "folder", "root": str(files / "pool" / name)} for name in pool_order]},
            "labelled": {
                "name": "train",
                "sources": [{"kind": "folder", "root": str(files / "labelled"), "labels": "sub_folders"}],
            },
            "teacher": {
                "kind": "onnx",
                "path": str(root / "teacher.onnx"),
                "num_classes": CLASSES,
                "resize_short_px": 8,
                "crop_px": 8,
                "normalization": {"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]},
            },
            "score": {"top_classes": 2, "embedding_dim": 3},
            "select": section,
        }
    )
    (root / "teacher.onnx").write_bytes(b"not looked at")
    with Workspace(root / "out") as workspace:
        write_array(score._projection_path(workspace, recipe), np.zeros((5, 3), np.float32))
        for name in ("pool", "labelled"):
            for shard in shards_of(workspace, recipe, name):
                make_up_shard(workspace, recipe, shard, name)
    return recipe


def make_up_shard(workspace, recipe, shard, name):
    members = pq.read_table(workspace.root / "shards" / f"members-{shard.key}.parquet")
    seeds = [zlib.crc32(path[-8:].encode()) for path in members["path"].to_pylist()]
    rows, logits, vectors = [], [], []
    for seed, path, label in zip(seeds, members["path"].to_pylist(), members["label"].to_pylist(), strict=True):
        random = np.random.default_rng(seed)  # everything depends on the file, not on its place
        hashed = random.bytes(32)
        rows.append((path, None, 0, 13, label, 8, 8, hashed, 0))
        logits.append(random.choice([0.0, 1.0, 2.0], CLASSES))
        vectors.append(random.normal(size=3))
    write_table(index.index_path(workspace, shard), index._table(rows, index.SCHEMA))
    unit = np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    write_array(score.embeddings_path(workspace, recipe, shard), unit.astype(np.float16))
    ranking = score.rank_classes(np.array(logits, np.float32), 2)
    write_table(score.scores_path(workspace, recipe, shard), score._table([ranking], 2))


def run(root, recipe):
    with Workspace(root / "out") as workspace:
        report = select.run(workspace, recipe)
    return report, pq.read_table(root / "out" / "selected.parquet").to_pylist()


BY_CLASS = {"kind": "by_class", "images_per_class": 4, "classes_per_image": 2, "min_confidence": 0.2}


def test_the_list_is_one_that_training_reads(tmp_path):
    report, rows = run(tmp_path, make_up(tmp_path, **BY_CLASS))
    assert report.counts == {"images": 16, "lines": 16, "by predicted": 16, "by neighbour": 0, "by repeat": 0}
    assert [row["label"] for row in rows] == sorted(row["label"] for row in rows)
    lines = (tmp_path / "out" / "selected.txt").read_text().splitlines()
    assert lines == [f"{row['path']} {row['label']}" for row in rows]
    for name in ("selected.txt", "selected.parquet"):
        images = open_image_list(tmp_path / "out" / name, tmp_path, CLASSES)
        assert images.labels.tolist() == [row["label"] for row in rows]
        assert images.name(3) == rows[3]["path"]


def test_rows_state_the_prediction_and_the_right_file(tmp_path):
    recipe = make_up(tmp_path, **BY_CLASS)
    _, rows = run(tmp_path, recipe)
    with Workspace(tmp_path / "out") as workspace:
        pool = index.read_index(workspace, recipe, "pool").to_pylist()
        parts = [
            score.read_ranking(score.scores_path(workspace, recipe, s)) for s in shards_of(workspace, recipe, "pool")
        ]
    classes = np.concatenate([part.classes for part in parts])
    probabilities = np.concatenate([part.probabilities for part in parts])
    for row in rows:
        number = row["image"]
        assert row["path"] == pool[number]["path"]
        assert row["predicted"] == classes[number, 0] and row["confidence"] == probabilities[number, 0]
        assert row["score"] == probabilities[number][classes[number].tolist().index(row["label"])]


@pytest.mark.parametrize(
    "section",
    [
        BY_CLASS,
        BY_CLASS | {"classes_per_image": 1, "images_per_class": 3},
        BY_CLASS
        | {"images_per_class": 25, "min_confidence": 0.4, "backfill": {"neighbours": 3, "min_cosine": 0.1}}
        | {"fill_by_repeating": True},
        {"kind": "by_retrieval", "neighbours": 2, "max_images": 9},
    ],
    ids=["competition", "predicted only", "filled", "retrieval"],
)
def test_the_order_of_the_shards_does_not_show(tmp_path, section):
    lists = []
    for order in (("a", "b"), ("b", "a")):
        (tmp_path / order[0]).mkdir()
        recipe = make_up(tmp_path / order[0], order, **section)
        rows = run(tmp_path / order[0], recipe)[1]
        names = [row | {"path": row["path"].split("/files/")[1]} for row in rows]
        lists.append([{key: value for key, value in row.items() if key != "image"} for row in names])
    assert len(lists[0]) > 5
    assert lists[0] == lists[1]


def test_filled_classes(tmp_path):
    section = BY_CLASS | {"images_per_class": 25, "min_confidence": 0.4, "fill_by_repeating": True}
    report, rows = run(tmp_path, make_up(tmp_path, **section, backfill={"neighbours": 3, "min_cosine": 0.1}))
    assert report.counts["by neighbour"] > 0 and report.counts["by repeat"] > 0
    assert report.counts["lines"] == len(rows) == 25 * CLASSES
    once = [row["image"] for row in rows if row["source"] != "repeat"]
    assert len(once) == len(set(once)) == report.counts["images"]
    assert {row["label"] for row in rows if row["source"] == "neighbour"} <= {0, 1, 2}  # 3 has no labelled image
    repeats = {(row["label"], row["image"]) for row in rows if row["source"] == "repeat"}
    assert repeats <= {(row["label"], row["image"]) for row in rows if row["source"] != "repeat"}


def test_what_was_removed_is_not_chosen(tmp_path, monkeypatch):
    recipe = make_up(tmp_path, **BY_CLASS)
    best = {row["image"] for row in run(tmp_path, recipe)[1]}
    kept = np.ones(60, bool)
    kept[list(best)] = False
    monkeypatch.setattr("data_mining.removal.kept_images", lambda *_: kept)
    monkeypatch.setattr("data_mining.removal.result_key", lambda *_: "other")
    assert not best & {row["image"] for row in run(tmp_path, recipe)[1]}


def test_a_second_run_chooses_nothing_anew(tmp_path, monkeypatch):
    recipe = make_up(tmp_path, **BY_CLASS)
    first = run(tmp_path, recipe)
    monkeypatch.setattr(select, "_choose", lambda *_: pytest.fail("it is there"))
    again = run(tmp_path, recipe)
    assert again[1] == first[1] and again[0].key == first[0].key


def test_nothing_chosen_is_an_error(tmp_path):
    recipe = make_up(tmp_path, **BY_CLASS | {"min_confidence": 1.0})
    with pytest.raises(UserError, match=r"no image is chosen: 60 images are left.*min_confidence"):
        run(tmp_path, recipe)


def test_filling_needs_labels(tmp_path):
    recipe = make_up(tmp_path, **BY_CLASS, backfill={"neighbours": 3, "min_cosine": 0.1})
    source = recipe.labelled.sources[0].model_copy(update={"labels": "none"})
    recipe = recipe.model_copy(update={"labelled": recipe.labelled.model_copy(update={"sources": (source,)})})
    with Workspace(tmp_path / "out") as workspace:
        for shard in shards_of(workspace, recipe, "labelled"):
            make_up_shard(workspace, recipe, shard, "labelled")
    with pytest.raises(UserError, match=r"has the label -1, expected a class in 0\.\.3"):
        run(tmp_path, recipe)


def test_locations_of_a_whole_table():
    rows = [("/a b.jpg", None, 0, 9), ("in/m.jpg", "/x/s.tar", 512, 77)]
    names = ["path", "tar", "offset", "bytes"]
    table = pa.table(
        [list(column) for column in zip(*rows, strict=True)], schema=pa.schema([index.SCHEMA.field(n) for n in names])
    )
    assert select.locations(table).to_pylist() == [location(*row) for row in rows]


def test_ties_are_the_first_bytes_of_the_hash():
    hashes = [bytes(range(i, i + 32)) for i in (0, 100, 200)]
    column = pa.chunked_array([pa.array(hashes, pa.binary(32))]).slice(1)
    assert select.pixel_ties(column).tolist() == [int.from_bytes(each[:8], "big") for each in hashes[1:]]


def test_only_settings_that_matter_are_in_the_key(tmp_path):
    recipe = make_up(tmp_path, **BY_CLASS)
    other = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"memory": "1GiB", "workers": 7})})
    more = recipe.model_copy(update={"select": recipe.select.model_copy(update={"images_per_class": 5})})
    with Workspace(tmp_path / "out") as workspace:
        keys = [select.result_key(workspace, each) for each in (recipe, other, more)]
    assert keys[0] == keys[1] != keys[2]
