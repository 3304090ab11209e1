"""A disk that is full for the soft-label store or for the features: one message, and what is stored stays right."""

import pytest

from distill.data.sources import open_sources
from distill.errors import RunError
from distill.labels.build import build_labels
from distill.labels.manifest import label_store
from distill.labels.verify import verify_labels
from distill.models import create_model
from distill.parallel import Device
from distill.recipe.file import load_recipe
from distill.stages import run_recipe
from distill.weights import write_weights

CPU = Device("cpu", 2)
# Each fills up at another place: the description of what is stored, the first records, later ones, evaluation's.
SIZES_KB = [4, 8, 16, 40]


def student_after(recipe, run, **options):
    run_recipe(recipe, run, device="cpu", **options)
    return (run / "student.safetensors").read_bytes()


# --- a teacher's answers ------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Of 16 positions, so that a small disk has room for some."""
    monkeypatch.setattr("distill.labels.store.BLOCK_POSITIONS", 16)
    monkeypatch.setattr("distill.labels.store.SHARD_BLOCKS", 1)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name, width in [("teacher", 0.125), ("student", 0.0625)]:
        model = create_model("ResNet18_vd", 10, width=width, stem_stride=4)
        write_weights(folder / f"{name}.safetensors", {k: v.numpy() for k, v in model.state_dict().items()})
    return folder


@pytest.fixture(scope="session")
def taught(small_recipe, weights):
    def load(folder):
        network = {"name": "ResNet18_vd", "width": 0.125, "stem_stride": 4}
        teacher = {
            "batch_norm": "stored",
            "models": [network | {"weights": str(weights / "teacher.safetensors")}],
            "labels": {"folder": str(folder), "top_classes": 4},
        }
        return load_recipe(small_recipe(teacher=teacher, loss={"kl": {"weight": 1.0, "temperature": 2.0}}))

    return load


@pytest.fixture(scope="session")
def taught_student(taught, tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught")
    return student_after(taught(folder / "store"), folder / "run")


def check_store(recipe):
    """Every sealed shard and sampled answer is what the teacher says."""
    verified = verify_labels(recipe, 0, CPU, samples=200, repair=False)
    assert not verified.problems(False)
    return verified.shards


@pytest.mark.parametrize("size_kb", SIZES_KB)
def test_a_run_whose_store_is_full_loses_nothing(taught, taught_student, small_disk, tmp_path, size_kb):
    recipe = taught(small_disk(size_kb) / "store")
    with pytest.raises(RunError, match=r"Cannot write .*/store/stage-0/.*No space left on device\. Free some space"):
        run_recipe(recipe, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "student.safetensors").exists()
    small_disk(1000, "remount")
    if size_kb > SIZES_KB[0]:  # on the smallest there was no room for the description of the store
        assert check_store(recipe) < 8
    assert student_after(recipe, tmp_path / "run", resume=True) == taught_student
    assert check_store(recipe) == 8


def test_the_builder_on_a_full_disk_ends_with_one_message(taught, taught_student, small_disk, distill, tmp_path):
    recipe = taught(small_disk(16) / "store")
    store_of(recipe, create=True)  # of small shards, which the command takes over
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.model_dump_json())
    status, said = distill("labels", "build", path, "--device", "cpu")
    assert status == 1 and said.count("error:") == 1
    assert "error: Cannot write " in said and "No space left on device. Free some space" in said
    small_disk(1000, "remount")
    assert 0 < check_store(recipe) < 8
    build_labels(recipe, 0, CPU)
    assert check_store(recipe) == 8
    assert student_after(recipe, tmp_path / "run") == taught_student


def test_a_builder_whose_files_may_not_grow_says_so(taught, small_files_only, tmp_path):
    recipe = taught(tmp_path / "store")
    with small_files_only(100), pytest.raises(RunError, match=r"Cannot write .*File too large"):
        build_labels(recipe, 0, CPU)
    build_labels(recipe, 0, CPU)
    assert check_store(recipe) == 8


def store_of(recipe, create=False):
    return label_store(recipe, 0, open_sources(recipe.stages[0].data.sources, 10), create=create)


# --- features -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def fix(small_recipe, weights):
    def load(folder):
        model = {"name": "ResNet18_vd", "width": 0.0625, "stem_stride": 4}
        recipe = small_recipe(
            model=model | {"weights": str(weights / "student.safetensors")},
            freeze=["stem.*", "blocks.*"],
            view={"size_px": 28, "crop": {"kind": "center", "resize_short_px": 28}, "horizontal_flip": 0.0},
            runtime={"log_every_steps": 1, "checkpoint_every_steps": 3, "features_folder": str(folder)},
        )
        return load_recipe(recipe)

    return load


@pytest.fixture(scope="session")
def fixed(fix, tmp_path_factory):
    """The student where nothing happens, and the features that it leaves."""
    folder = tmp_path_factory.mktemp("fix")
    return student_after(fix(folder / "features"), folder / "run"), folder / "features"


@pytest.mark.parametrize("size_kb", SIZES_KB)
def test_a_run_whose_features_have_no_room_loses_nothing(fix, fixed, small_disk, tmp_path, size_kb):
    folder = small_disk(size_kb) / "features"
    with pytest.raises(RunError, match=r"[Cc]annot write .*/features.*No space left on device.*Free some space"):
        run_recipe(fix(folder), tmp_path / "run", device="cpu")
    small_disk(1000, "remount")
    assert student_after(fix(folder), tmp_path / "run", resume=True) == fixed[0]
    assert features_of(folder) == features_of(fixed[1])


def features_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.features")}


def test_features_on_a_device_without_room_say_what_to_do(fix, fixed, tmp_path):
    """Without root: every write to /dev/full fails as on a full disk."""
    folder = tmp_path / "features"
    folder.mkdir()
    for name in features_of(fixed[1]):
        (folder / name).symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"cannot write the features .*No space left on device.*reuse_features=false"):
        run_recipe(fix(folder), tmp_path / "run", device="cpu")
    for path in folder.glob("*.features"):
        path.unlink()
    assert student_after(fix(folder), tmp_path / "run", resume=True) == fixed[0]
