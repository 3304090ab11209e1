"""The geometric check on bundled photographs under edits, and its consensus on points whose map is known."""

import itertools
import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mining import verify
from data_mining.verify import FeatureCache, Features, describe, inliers, largest_consensus, mutual_matches

RULE = {"ratio": 0.8, "ransac_px": 5.0}


EDITS = (
    "jpeg",
    "half",
    "square",
    "crop 80",
    "crop 50",
    "crop 25",
    "rotation",
    "colour",
    "blur",
    "overlay",
    "border",
)


@pytest.fixture(scope="module")
def described(photos):
    return {name: describe(photos.load(name), 256) for name in photos.names}


@pytest.mark.parametrize("edit", EDITS)
def test_copies_are_recognised(photos, described, edit):
    for name in photos.names[:5]:
        copy = describe(photos.edits[edit](photos.load(name)), 256)
        assert inliers(copy, described[name], **RULE) >= 12, name


def test_unrelated_photographs_are_not(described):
    for one, other in itertools.permutations(described, 2):
        assert inliers(described[one], described[other], **RULE) < 6, (one, other)


def test_mirrored_copies_need_the_mirrored_image(photos, described):
    for name in photos.names[:4]:
        image = photos.load(name)
        copy = describe(photos.mirrored(photos.edits["jpeg"](image)), 256)
        mirrored = describe(photos.mirrored(image), 256)
        assert inliers(copy, mirrored, **RULE) >= 12
        assert inliers(copy, described[name], **RULE) < inliers(copy, mirrored, **RULE) / 2


def test_thumbnails_are_enlarged_until_they_have_keypoints(photos):
    small = cv2.resize(photos.load("chelsea"), (32, 32), interpolation=cv2.INTER_AREA)
    features = describe(small, 128)
    assert len(features.points) >= 30
    assert features.points.max() < 129
    assert inliers(describe(photos.edits["colour"](small), 128), features, **RULE) >= 12


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 300, 3), (5, 4_000, 3), (64, 64, 3)])
def test_images_that_show_nothing_match_nothing(shape):
    features = describe(np.full(shape, 80, np.uint8), 256)
    assert features.points.shape == (len(features.descriptors), 2)
    assert inliers(features, features, **RULE) == 0


def test_another_process_counts_the_same(photos, tmp_path):
    image = photos.load("coffee")
    np.savez(tmp_path / "pair.npz", image, photos.edits["crop 25"](image))
    program = (
        "import sys, numpy, cv2; from data_mining.verify import describe, inliers; cv2.setNumThreads(1);"
        "one, two = (describe(image, 192) for image in numpy.load(sys.argv[1]).values());"
        "print(inliers(one, two, ratio=0.8, ransac_px=5.0))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "pair.npz")]
    elsewhere = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    cv2.setRNGSeed(7)
    one, two = (describe(each, 192) for each in np.load(tmp_path / "pair.npz").values())
    assert [inliers(one, two, **RULE) for _ in range(2)] == [elsewhere] * 2


def reference_matches(first, second, ratio):
    a, b = (
        np.sqrt(each / np.maximum(each.sum(1, keepdims=True), 1))
        for each in (first.descriptors.astype(float), second.descriptors.astype(float))
    )
    distance = np.linalg.norm(a[:, None] - b, axis=2)
    found = []
    for i, row in enumerate(distance):
        nearest, runner_up = np.argsort(row)[:2]
        if distance[:, nearest].argmin() == i and row[nearest] < ratio * row[runner_up]:
            found.append((i, nearest))
    return found


def test_matches_are_mutual_and_pass_the_ratio(described):
    for one, other in (("coffee", "coffee"), ("coffee", "rocket"), ("chelsea", "astronaut")):
        first, second = (
            Features(each.points[:150], each.descriptors[:150]) for each in map(described.get, (one, other))
        )
        assert mutual_matches(first, second, 0.8).tolist() == [list(m) for m in reference_matches(first, second, 0.8)]


def affine(angle, scale, stretch):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ np.diag([scale * stretch, scale])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    good=st.integers(12, 60),
    bad=st.integers(0, 30),
    angle=st.floats(-3.1, 3.1),
    scale=st.floats(0.3, 3.0),
    stretch=st.floats(0.6, 1.7),
)
def test_consensus_finds_the_map(seed, good, bad, angle, scale, stretch):
    rng = np.random.default_rng(seed)
    source = rng.uniform(0, 256, (good + bad, 2))
    target = source @ affine(angle, scale, stretch).T + rng.uniform(-50, 50, 2)
    target[good:] += rng.choice([-1, 1], (bad, 2)) * rng.uniform(60, 900, (bad, 2))
    noisy = (target + rng.normal(0, 0.5, target.shape)).astype(np.float32)
    found = largest_consensus(source.astype(np.float32), noisy, 5.0)
    assert found[:good].mean() > 0.9
    assert found[good:].sum() <= 1 + bad // 5


@pytest.mark.parametrize(
    "linear",
    [np.diag([1.0, -1.0]), np.diag([0.05, 0.05]), np.diag([4.0, 1.0]), np.diag([20.0, 20.0]), np.diag([1.0, 0.0])],
    ids=["mirrored", "collapsed", "stretched", "blown up", "flattened"],
)
def test_no_copy_is_made_so(linear):
    source = np.random.default_rng(0).uniform(0, 256, (40, 2)).astype(np.float32)
    found = largest_consensus(source, (source @ linear.T).astype(np.float32), 5.0)
    assert found.sum() < 15  # by chance, some of a collapsed image lie within 5 px of another map


def test_points_on_a_line_give_no_map():
    source = np.stack([np.arange(20), 2 * np.arange(20)], axis=1).astype(np.float32)
    assert largest_consensus(source, source, 5.0).sum() == 0


def test_keypoints_on_one_spot_count_once(described):
    features = described["coffee"]
    repeated = Features(np.repeat(features.points[:5], 20, axis=0), np.repeat(features.descriptors[:5], 20, axis=0))
    assert inliers(repeated, repeated, **RULE) <= 5


def test_cache_forgets_what_was_not_used_for_longest():
    computed = []

    def compute(key):
        computed.append(key)
        return Features(np.zeros((10, 2), np.float32), np.zeros((10, 128), np.uint8))

    cache = FeatureCache(memory_bytes=3 * 1_360)
    for key in (1, 2, 3, 1, 4, 1, 2):
        cache.get(key, compute)
    assert computed == [1, 2, 3, 4, 2]
    tiny = FeatureCache(memory_bytes=1)
    assert len(tiny.get("a", compute).points) == len(tiny.get("a", compute).points) == 10
    assert computed[-1] == "a"
    assert verify.MAX_FEATURES * 136 < 2**17
