import zlib

import numpy as np
import pytest

from distill.data.sources import open_sources
from distill.errors import RunError
from distill.features import FeatureFolder, FeatureStore
from distill.recipe import ViewSection
from distill.recipe.file import load_recipe

WIDTH = 5


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "x.features", 100, WIDTH)


def some_features(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def test_what_was_added_is_read_bit_for_bit_in_any_order(store):
    values = some_features(4)
    store.add(np.array([70, 3, 99, 0]), values)
    known = store.read(np.array([0, 1, 99, 3, 70]))
    assert known.usable.tolist() == [True, False, True, True, True]
    assert known.values[known.usable].tobytes() == values[[3, 2, 1, 0]].tobytes()
    assert not known.values[1].any()
    assert store.path.stat().st_size == store.full_bytes == 100 * (4 + 4 * WIDTH)
    part = known.select(np.array([2, 1]))
    assert part.usable.tolist() == [True, False] and part.values[0].tobytes() == values[2].tobytes()


def test_nothing_is_known_before_something_is_added(store):
    assert not store.read(np.array([0, 99])).usable.any()
    assert store.read(np.array([], dtype=np.int64)).values.shape == (0, WIDTH)
    assert not store.path.exists()


def test_a_record_is_its_check_and_its_values(store):
    values = some_features(1)
    store.add(np.array([2]), values)
    record = store.path.read_bytes()[2 * store.record_bytes :]
    assert record == zlib.crc32(values.tobytes(), 2).to_bytes(4, "little") + values.tobytes()


@pytest.mark.parametrize("damage", ["a bit", "torn", "moved", "cut"])
def test_a_damaged_record_counts_as_absent(store, damage):
    indices = np.arange(4)
    store.add(indices, some_features(4))
    content, size = bytearray(store.path.read_bytes()), store.record_bytes
    if damage == "a bit":
        content[2 * size + 9] ^= 1
    elif damage == "torn":
        content[2 * size + 10 : 3 * size] = bytes(size - 10)
    elif damage == "moved":
        content[2 * size : 3 * size] = content[size : 2 * size]
    else:
        content = content[: 3 * size]
    store.path.write_bytes(content)
    lost = 3 if damage == "cut" else 2
    assert store.read(indices).usable.tolist() == [index != lost for index in range(4)]
    store.add(np.array([lost]), some_features(1))
    assert store.read(indices).usable.all()


def test_a_full_disk_is_told_with_what_to_do(store, small_files_only):
    with small_files_only(3 * store.record_bytes), pytest.raises(RunError) as error:
        store.add(np.array([1, 5]), some_features(2))
    assert "All of them take 2.4 kB" in str(error.value)
    assert "runtime.features_folder" in str(error.value) and "runtime.reuse_features=false" in str(error.value)
    assert store.read(np.array([1, 5])).usable.tolist() == [True, False]
    with pytest.raises(ValueError, match=r"must be \[1, 5\], received \[1, 4\]"):
        store.add(np.array([1]), some_features(1)[:, :4])


# --- which store belongs to what ------------------------------------------------------------------

CENTER = {"size_px": 36, "crop": {"kind": "center", "resize_short_px": 40}, "horizontal_flip": 0.0}


@pytest.fixture
def stores(digits, tmp_path):
    def opened(*overrides, network="a", mixup=None):
        recipe = load_recipe(digits.recipe(tmp_path / "r.yaml", view=CENTER, mixup=mixup), overrides)
        stage = recipe.stages[0]
        folder = FeatureFolder(tmp_path / "f", {"sha256": network}, WIDTH)
        training = folder.training(open_sources(stage.data.sources, 10), stage)
        return training, folder.evaluation(open_sources(stage.evaluation.sources, 10), stage.evaluation)

    return opened


def test_a_store_is_for_one_network_one_view_and_the_same_images(stores):
    training, evaluation = stores()
    assert (training.count, evaluation.count) == (200, 297)
    assert stores()[0] == training and stores("optimizer.learning_rate=9", "epochs=7")[0] == training
    others = [
        stores(network="b")[0],
        stores("view.size_px=40")[0],
        stores("view.crop.resize_short_px=41")[0],
        stores("view.horizontal_flip=1")[0],
        stores("data.sources.0.range=[1, 201]")[0],
        stores("data.sources.0.repeat=2")[0],
        evaluation,
    ]
    assert len({store.path for store in [training, *others]}) == 8
    assert stores("evaluation.resize_short_px=30")[1].path != evaluation.path
    assert all(store.path.with_suffix(".json").exists() for store in others)


def test_equal_images_in_equal_views_share_a_store(stores, digits):
    same = [f"evaluation.{key}={value}" for key, value in {"resize_short_px": 40, "crop_px": 36}.items()]
    train = f"{{kind: idx, images: {digits.folder}/train-images.gz, labels: {digits.folder}/train-labels.gz"
    training, evaluation = stores(*same, f"evaluation.sources=[{train}, range: [0, 200]}}]")
    assert training == evaluation


@pytest.mark.parametrize(
    "override",
    [
        "view.horizontal_flip=0.5",
        "view.crop={kind: padded, padding_px: 4}",
        "view.policy={kind: autoaugment}",
        "mixup={alpha: 1, group_size: 2}",
        "cutmix={alpha: 1, group_size: 2}",
    ],
)
def test_views_that_change_have_no_store(stores, override):
    assert stores(override)[0] is None


def test_all_that_a_view_consists_of_is_asked_whether_it_is_random():
    """A new key of a view that draws something must make `is_random` true."""
    assert set(ViewSection.model_fields) == {"size_px", "crop", "horizontal_flip", "policy", "erasing"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path, digits):
    (tmp_path / "file").write_text("")
    stage = load_recipe(digits.recipe(tmp_path / "r.yaml", view=CENTER)).stages[0]
    folder = FeatureFolder(tmp_path / "file" / "f", {}, WIDTH)
    with pytest.raises(RunError, match=r"cannot make .*file/f: .*runtime\.features_folder"):
        folder.training(open_sources(stage.data.sources, 10), stage)
