"""All stages on a small pool: what they choose, and that nothing which interrupts them shows in the result."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from data_mining.stages import STAGES, run_stages, stages_of
from data_mining.workspace import Part, Workspace
from distill.data.image_list import open_image_list
from distill.errors import UserError
from distill.recipe.file import resolved_yaml

# They hold times; the recipe how it was run; and what a killed worker had not finished goes with the next run.
NEVER_EQUAL = ("report.json", "report.html", "lock", "recipe.yaml", "tmp-")

RUN = """
import os, signal, sys
from data_mining import cli

renames, target = int(sys.argv[1]), os.replace

def replace(source, place):
    global renames
    renames -= 1
    if renames == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    target(source, place)

os.replace = replace
cli.main(sys.argv[2:])
"""
"""A run that is killed at its n-th rename, which is where a file becomes visible; 0: never."""


def run(root, recipe, names=None, part=None):
    told = []
    with Workspace(root, part) as workspace:
        run_stages(workspace, recipe, names or stages_of(recipe), tell=told.append)
    return told


def artefacts(root):
    """The bytes of everything that must not depend on how the run went."""
    files = [path for path in root.rglob("*") if path.is_file() and not path.name.lstrip(".").startswith(NEVER_EQUAL)]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def lists(root):
    """The artefacts whose content holds no path of the output folder."""
    return {name: data for name, data in artefacts(root).items() if not name.startswith("packed")}


@pytest.fixture(scope="module")
def reference():
    """Filled by the first test that needs it: the artefacts of an undisturbed run."""
    return {}


@pytest.fixture
def undisturbed(reference, small, tmp_path_factory):
    if not reference:
        root = tmp_path_factory.mktemp("reference") / "out"
        reference.update(told=run(root, small()), files=lists(root), root=root)
    return reference


def test_the_whole_way_from_a_pool_to_a_list(undisturbed, world):
    root = undisturbed["root"]
    assert [line.split(":")[0] for line in undisturbed["told"]] == list(STAGES)
    selected = pq.read_table(root / "selected.parquet").to_pylist()
    names = [os.path.basename(row["path"]) for row in selected]
    assert len(set(names)) == len(names) > 8
    assert not {"leak.jpg", "mirrored.png", "broken.jpg"} & set(names)
    assert len({"03.png", "twin.bmp"} & set(names)) <= 1
    assert max(np.bincount([row["label"] for row in selected])) <= 4
    images = open_image_list(root / "selected.txt", world, 4)
    packed = open_image_list(root / "packed.txt", world, 4)
    assert images.labels.tolist() == packed.labels.tolist() == [row["label"] for row in selected]
    for row in range(len(images)):
        small = cv2.resize(images.read(row), packed.read(row).shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - packed.read(row)).mean() < 14
    assert json.loads((root / "report.json").read_text())
    assert "</html>" in (root / "report.html").read_text()
    assert not [path for path in root.rglob(".tmp-*")]


def test_memory_and_batches_do_not_show(undisturbed, small, tmp_path):
    runtime = {"device": "cpu", "workers": 1, "memory": "300MiB", "batch_size": 5}
    run(tmp_path / "out", small(runtime=runtime))
    assert lists(tmp_path / "out") == undisturbed["files"]


def test_parts_do_not_show(undisturbed, small, tmp_path):
    recipe, out = small(), tmp_path / "out"
    for stage in ("index", "score"):
        for number in (1, 0):
            run(out, recipe, [stage], Part(number, 2))
    run(out, recipe)
    assert lists(out) == undisturbed["files"]


def test_what_needs_all_images_cannot_be_shared(small, tmp_path):
    with pytest.raises(UserError, match=r"--part: leaks, select needs all images .* index, score, pack"):
        run(tmp_path / "out", small(), ["index", "leaks", "select"], Part(0, 2))


def test_a_changed_threshold_computes_only_what_depends_on_it(undisturbed, small, tmp_path):
    out = tmp_path / "out"
    run(out, small())
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    run(out, small(select={"kind": "by_class", "images_per_class": 2}))
    new = {path.relative_to(out).parts[0] for path in out.rglob("*") if path.is_file() and path not in before}
    assert new == {"select", "pack"}
    kept = [path for path in before if path.suffix in (".parquet", ".npy", ".tar") and path.parent != out]
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)
    run(out, small())
    assert {name: artefacts(out)[name] for name in undisturbed["files"]} == undisturbed["files"]


def mine(small, root, *arguments, kill_at=0, workers=1):
    """Starts `data-mining run` in a process of its own."""
    recipe = small(runtime={"device": "cpu", "workers": workers})
    root.mkdir(exist_ok=True)
    (root.parent / "recipe.yaml").write_text(resolved_yaml(recipe))
    command = [sys.executable, "-c", RUN, str(kill_at), "run", str(root.parent / "recipe.yaml"), "--output", str(root)]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_at_random_renames_it_goes_on_to_the_same_bytes(undisturbed, small, tmp_path):
    out, numbers = tmp_path / "out", random.Random(5)
    for kill_at in (numbers.randint(1, 12) for _ in range(4)):
        process = mine(small, out, kill_at=kill_at)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = mine(small, out)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert lists(out) == undisturbed["files"]
    assert not [path for path in out.rglob(".tmp-*")]


def test_killed_at_random_times_two_workers_go_on_to_the_same_bytes(undisturbed, small, tmp_path):
    out, numbers = tmp_path / "out", random.Random(6)
    for _ in range(2):
        process = mine(small, out, workers=2)
        time.sleep(numbers.uniform(1.0, 4.0))
        process.kill()
        process.communicate()
    process = mine(small, out, workers=2)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert lists(out) == undisturbed["files"]


def test_a_pool_of_identical_images_gives_one(small, draw, write, tmp_path):
    for number in range(6):
        write(tmp_path / "pool" / f"{number}.png", draw(7))
    pool = {"sources": [{"kind": "folder", "root": str(tmp_path / "pool")}]}
    run(tmp_path / "out", small(pool=pool))
    assert len((tmp_path / "out" / "selected.txt").read_text().splitlines()) == 1


def test_a_pool_that_is_nothing_but_leaks_gives_no_list(small, world, tmp_path):
    pool = {"sources": [{"kind": "folder", "root": str(world / "test")}]}
    with pytest.raises(UserError, match="no image is chosen: 0 images are left of the pool after leaks"):
        run(tmp_path / "out", small(pool=pool))
    assert not (tmp_path / "out" / "selected.txt").exists()


def test_a_teacher_that_knows_one_class_only(small, teacher_file, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(teacher_file)
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros(list(weight.dims), np.float32), weight.name))
    onnx.save(model, tmp_path / "teacher.onnx")
    teacher = small().teacher.model_dump() | {"path": str(tmp_path / "teacher.onnx")}
    run(tmp_path / "out", small(teacher=teacher, select={"kind": "by_class", "images_per_class": 5}))
    rows = pq.read_table(tmp_path / "out" / "selected.parquet").to_pylist()
    assert [row["label"] for row in rows] == [0] * 5
    assert {row["confidence"] for row in rows} == {0.25}


def test_new_shards_add_to_what_is_there(world, small, draw, write, tmp_path):
    shutil.copytree(world / "pool", tmp_path / "pool")
    source = {"kind": "folder", "root": str(tmp_path / "pool")}
    recipe = small(pool={"sources": [source], "max_undecodable_fraction": 0.1})
    out = tmp_path / "out"
    run(out, recipe)
    before = artefacts(out)
    for number in range(300, 306):
        write(tmp_path / "pool" / "a0" / f"{number}.png", draw(number))  # sorts before what was there
    write(tmp_path / "pool" / "a0" / "leak.png", draw(102))
    run(out, recipe)
    after = artefacts(out)
    new = sorted(name for name in after if name.startswith(("index", "score")) and name not in before)
    parts = ["index/failures", "index/images", "score/classes", "score/embeddings"]
    assert [name.rpartition("-")[0] for name in new] == parts  # of the new shard alone
    assert all(after[name] == before[name] for name in before if name.startswith(("index", "score")))
    names = {os.path.basename(row["path"]) for row in pq.read_table(out / "selected.parquet").to_pylist()}
    assert names & {f"{number}.png" for number in range(300, 306)}
    assert not names & {"leak.png", "leak.jpg"}


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def is_worker(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"spawn_main" in file.read()
    except OSError:
        return False


def test_a_worker_that_dies_does_not_show(undisturbed, small, tmp_path):
    process, killed, numbers = mine(small, tmp_path / "out", workers=2), 0, random.Random(7)
    while process.poll() is None and killed < 2:
        workers = [pid for pid in children(process.pid) if is_worker(pid)]
        if workers:
            time.sleep(numbers.uniform(0.0, 1.0))
            with contextlib.suppress(ProcessLookupError):
                os.kill(numbers.choice(workers), signal.SIGKILL)
                killed += 1
        time.sleep(0.02)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert killed
    assert lists(tmp_path / "out") == undisturbed["files"]


def test_ray_does_not_show(undisturbed, small, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    process = mine(small, tmp_path / "out", "--executor", "ray", workers=2)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert lists(tmp_path / "out") == undisturbed["files"]
