"""A teacher whose answers are not finite from some image on: it is named, and nothing of it is kept."""

import gzip
import hashlib
import json

import numpy as np
import paddle
import pytest

from distill import checkpoint
from distill.data.sources import open_sources
from distill.errors import RunError
from distill.labels.build import build_labels
from distill.labels.manifest import label_store
from distill.labels.records import with_checks
from distill.labels.store import DamagedShard
from distill.labels.verify import verify_labels
from distill.models import create_model
from distill.parallel import Device
from distill.recipe.file import load_recipe
from distill.stages import run_recipe
from distill.weights import write_weights

CPU = Device("cpu", 2)
# Bright inputs: the answers of a fresh network grow with them, and its last weights can stay within float32.
BRIGHT = {"mean": [0.5, 0.5, 0.5], "std": [1e-3, 1e-3, 1e-3]}
NETWORK = {"name": "ResNet18_vd", "width": 0.125, "normalization": BRIGHT}


def write_teacher(path, images, overflowing):
    """Finite weights of which a share `overflowing` of the images is too much: a logit leaves float32's range.

    The classifier looks at the one feature that the noise, with which an engine is checked, has least of.
    """
    paddle.seed(0)
    model = create_model("ResNet18_vd", 10, width=0.125)
    model.eval()
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    (classifier,) = (name for name, value in state.items() if value.ndim == 2)
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, 28, 28), dtype=np.uint8)
    of_noise, of_images = (embedding(model, each) for each in (noise, np.repeat(images[:, None], 3, axis=1)))
    limits = np.quantile(of_images, 1 - overflowing, axis=0)
    feature = int(np.argmax(limits / np.maximum(of_noise.max(axis=0), 1e-6)))
    assert of_noise[:, feature].max() < 0.9 * limits[feature]
    weight = np.zeros_like(state[classifier])
    weight[feature, 3] = float(np.finfo(np.float32).max) / limits[feature]
    state[classifier] = weight
    assert all(np.isfinite(value).all() for value in state.values())
    write_weights(path, state)


def embedding(model, images):
    with paddle.no_grad():
        inputs = (paddle.to_tensor(images.astype(np.float32) / 255) - BRIGHT["mean"][0]) / BRIGHT["std"][0]
        return model.taps(inputs, ["embedding"])["embedding"].numpy().astype(np.float64)


@pytest.fixture(scope="session")
def overflowing_teacher(digits, tmp_path_factory):
    data = gzip.decompress((digits.folder / "train-images.gz").read_bytes())
    path = tmp_path_factory.mktemp("overflow") / "teacher.safetensors"
    write_teacher(path, np.frombuffer(data, np.uint8, offset=16).reshape(-1, 28, 28)[:64], overflowing=0.04)
    return path


@pytest.fixture
def taught(small_recipe, overflowing_teacher):
    """A recipe: one stage on labels alone, one with the teacher; keywords replace keys of `teacher`."""

    def write(**changes):
        teacher = {"batch_norm": "stored", "models": [NETWORK | {"weights": str(overflowing_teacher)}]} | changes
        distil = {"name": "distil", "teacher": teacher, "loss": {"kl": {"weight": 1.0, "temperature": 2.0}}}
        return load_recipe(small_recipe(stages=[{"name": "labels", "epochs": 1}, distil]))

    return write


def check_what_is_left(run):
    """The last checkpoint of each stage is whole and finite."""
    folders = [run / "stages" / name / "checkpoints" for name in ("0-labels", "1-distil")]
    assert checkpoint.latest(folders[0]).step == 4
    for folder in folders:
        for path in folder.glob("step-*"):
            saved = checkpoint.load(path)
            assert all(np.isfinite(each).all() for each in saved.tensors.values() if each.dtype.kind == "f")
    assert not (run / "student.safetensors").exists()


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_a_live_teacher_that_overflows_is_named_with_stage_and_step(taught, overflowing_teacher, tmp_path, engine):
    with pytest.raises(RunError) as stopped:
        run_recipe(taught(engine=engine), tmp_path / "run", device="cpu")
    said = str(stopped.value)
    assert "stage distil: the loss is not finite at step " in said
    assert f"ResNet18_vd ({overflowing_teacher}) to " in said and "check the teacher's weights" in said
    assert "The last checkpoint is intact" in said
    check_what_is_left(tmp_path / "run")


def test_of_several_teachers_the_one_at_fault_is_named(taught, overflowing_teacher, teacher_of_noise, tmp_path):
    models = [NETWORK | {"weights": str(path)} for path in (teacher_of_noise, overflowing_teacher)]
    with pytest.raises(RunError) as stopped:
        run_recipe(taught(models=models), tmp_path / "run", device="cpu")
    assert str(overflowing_teacher) in str(stopped.value) and str(teacher_of_noise) not in str(stopped.value)


@pytest.fixture(scope="session")
def teacher_of_noise(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "teacher.safetensors"
    write_weights(path, {k: v.numpy() for k, v in create_model("ResNet18_vd", 10, width=0.125).state_dict().items()})
    return path


def test_a_student_that_diverges_is_not_blamed_on_its_teacher(taught, teacher_of_noise, tmp_path):
    recipe = taught(models=[NETWORK | {"weights": str(teacher_of_noise)}])
    stage = recipe.stages[1]
    wild = stage.model_copy(update={"optimizer": stage.optimizer.model_copy(update={"learning_rate": 1e30})})
    with pytest.raises(RunError, match="stage distil: the loss is not finite at step") as stopped:
        run_recipe(recipe.with_stage(1, wild), tmp_path / "run", device="cpu")
    assert "try a lower learning rate" in str(stopped.value) and "teacher" not in str(stopped.value)


@pytest.mark.parametrize("top_classes", [3, "all"])
def test_nothing_of_it_goes_into_the_store(taught, tmp_path, top_classes):
    recipe = taught(labels={"folder": str(tmp_path / "store"), "top_classes": top_classes})
    with pytest.raises(RunError) as stopped:
        run_recipe(recipe, tmp_path / "run", device="cpu")
    said = str(stopped.value)
    assert "stage distil, step " in said and "teacher ResNet18_vd, positions " in said
    assert "images is not finite: check its weights" in said and "Nothing of them went into" in said
    check_what_is_left(tmp_path / "run")
    with pytest.raises(RunError, match=r"teacher ResNet18_vd, positions .* is not finite"):
        build_labels(recipe, 1, CPU)
    store = store_of(recipe)
    assert store.stored_in_all() < 128
    assert not verify_labels(recipe, 1, CPU, samples=64, repair=False).problems(False)


def store_of(recipe):
    return label_store(recipe, 1, open_sources(recipe.stages[1].data.sources, 10), create=False)


def test_a_store_that_somebody_filled_with_nan_is_refused(taught, teacher_of_noise, tmp_path):
    """Not damage, which checksums tell: whole shards whose checksums are right and whose values are not."""
    labels = {"folder": str(tmp_path / "store"), "top_classes": 3}
    recipe = taught(models=[NETWORK | {"weights": str(teacher_of_noise)}], labels=labels)
    build_labels(recipe, 1, CPU)
    store = store_of(recipe)
    shard = store.shards(0)[0]
    rows, _ = store.read(0, 0, 64)
    rows = rows.copy()
    rows[40, 3 + 3] = np.float16(np.nan).view(np.uint16)
    store.remove_shard(shard)
    # As another program would write it; `add` itself does not seal what it would not read.
    store.add(0, 0, rows)
    assert not store.is_sealed(shard) and store.empty(0, 0, 64).tolist() == [place == 40 for place in range(64)]
    seal_as_it_is(store, shard, with_checks(rows, 0, 0))
    with pytest.raises(DamagedShard, match="a record is no teacher's answer"):
        run_recipe(recipe, tmp_path / "run", device="cpu")
    verified = verify_labels(recipe, 1, CPU, samples=0, repair=True)
    assert list(verified.damaged) == [store.path(shard, ".labels")]
    run_recipe(recipe, tmp_path / "run", resume=True, device="cpu")
    assert store.is_sealed(shard) and np.isfinite(store.read(0, 0, 64)[0][:, 6:].view(np.float16)).all()


def seal_as_it_is(store, shard, rows):
    partial, sealed = store.path(shard, ".partial"), store.path(shard, ".labels")
    data = partial.read_bytes()[:64] + rows.astype("<u2").tobytes()
    partial.unlink()
    sealed.write_bytes(data)
    store.path(shard, ".json").write_text(json.dumps({"sha256": hashlib.sha256(data).hexdigest()}))
