import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from distill.data.mix import MixPlan, keep_samples, mix_plan, paste_boxes


@pytest.fixture(scope="module")
def mixing(make_stage):
    """A stage that mixes in groups, with the alphas and probabilities that are given; views of 32 px."""

    def make(group_size, *, mixup=None, cutmix=None, mixup_probability=None, cutmix_probability=None):
        def section(alpha, probability):
            return {"alpha": alpha, "group_size": group_size, "probability": probability} if alpha else None

        return make_stage(
            global_batch_size=group_size,
            device_batch_size=group_size,
            mixup=section(mixup, mixup_probability),
            cutmix=section(cutmix, cutmix_probability),
        )

    return make


@pytest.fixture(scope="module")
def both(mixing):
    return mixing(4, mixup=0.2, cutmix=1.0, mixup_probability=0.5, cutmix_probability=0.3)


@given(st.integers(2, 9), st.integers(0, 5), st.integers(1, 40), st.integers(0, 2**62), st.booleans())
def test_partners_are_a_permutation_inside_the_groups(mixing, group_size, first_group, count, seed, cut):
    stage = mixing(group_size, cutmix=0.2) if cut else mixing(group_size, mixup=0.2)
    first = first_group * group_size
    plan = mix_plan(stage, seed, 0, 1, first, first + count)
    partner, lam = plan.partner, plan.lam
    assert partner.dtype == np.int64 and lam.dtype == np.float32
    assert sorted(partner) == list(range(count))
    assert (partner // group_size == np.arange(count) // group_size).all()
    assert ((lam >= 0) & (lam <= 1)).all()
    alone = np.arange(count) == (count - 1 if count % group_size == 1 else -1)
    np.testing.assert_array_equal(partner == np.arange(count), alone)
    assert (lam[alone] == 1).all()
    assert (plan.boxes is not None) == cut


@given(st.integers(1, 8), st.data())
def test_a_plan_does_not_depend_on_where_micro_batches_begin(both, groups, data):
    border = data.draw(st.integers(0, groups)) * 4
    end = groups * 4
    whole = mix_plan(both, 3, 1, 2, 0, end)
    left, right = mix_plan(both, 3, 1, 2, 0, border), mix_plan(both, 3, 1, 2, border, end)
    np.testing.assert_array_equal(np.concatenate([left.partner, right.partner + border]), whole.partner)
    np.testing.assert_array_equal(np.concatenate([left.lam, right.lam]), whole.lam)
    np.testing.assert_array_equal(np.concatenate([left.boxes, right.boxes]), whole.boxes)


def test_weights_follow_the_beta_distribution(mixing):
    lam = mix_plan(mixing(4, mixup=0.4), 0, 0, 0, 0, 20_000).lam
    assert abs(lam.mean() - 0.5) < 0.01
    assert abs(lam.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.003  # Var Beta(a, a) = 1 / (4 (2a + 1))


def test_boxes_are_those_of_the_published_code(mixing):
    """Written down from the authors' code, with its own generator: the same distribution of places and weights."""
    random = np.random.default_rng(1)

    def published():
        lam, size = random.beta(1.0, 1.0), 32
        side = int(size * np.sqrt(1.0 - lam))
        x, y = random.integers(size), random.integers(size)
        left, right = np.clip(x - side // 2, 0, size), np.clip(x + side // 2, 0, size)
        top, bottom = np.clip(y - side // 2, 0, size), np.clip(y + side // 2, 0, size)
        return left, top, right, bottom, 1 - (right - left) * (bottom - top) / (size * size)

    expected = np.array([published() for _ in range(6000)])
    plan = mix_plan(mixing(4, cutmix=1.0), 0, 0, 0, 0, 6000)
    received = np.column_stack([plan.boxes, plan.lam])
    for column in range(5):
        assert stats.ks_2samp(expected[:, column], received[:, column]).pvalue > 0.001


@given(st.integers(0, 2**62), st.floats(0.05, 5.0))
def test_lam_is_the_share_that_the_box_leaves(mixing, seed, alpha):
    plan = mix_plan(mixing(4, cutmix=alpha), seed, 0, 0, 0, 40)
    left, top, right, bottom = plan.boxes.T
    assert (plan.boxes >= 0).all() and (plan.boxes <= 32).all()
    assert (left <= right).all() and (top <= bottom).all()
    np.testing.assert_array_equal(plan.lam, (1 - (right - left) * (bottom - top) / 1024).astype(np.float32))
    np.testing.assert_array_equal(plan.cut, plan.lam < 1)


def test_each_group_is_mixed_in_one_way_as_often_as_stated(both):
    plan = mix_plan(both, 7, 0, 0, 0, 8000)
    unmixed = (plan.partner == np.arange(8000)).reshape(-1, 4)
    boxes = plan.cut.reshape(-1, 4)
    assert (unmixed.all(axis=1) == unmixed.any(axis=1)).all()
    cut = boxes.any(axis=1)
    assert not (cut & unmixed.any(axis=1)).any()
    assert (plan.lam.reshape(-1, 4)[unmixed] == 1).all()
    # a box of a cut group may be too small to hold a pixel; four of them hardly ever
    for count, probability in ((cut.sum(), 0.3), (unmixed.all(axis=1).sum(), 0.2)):
        assert abs(count - 2000 * probability) < 4 * (2000 * probability * (1 - probability)) ** 0.5


def test_mixup_draws_the_same_alone_and_beside_cutmix(mixing, both):
    mixed = mix_plan(both, 7, 0, 0, 0, 400)
    mixed_up = mix_plan(mixing(4, mixup=0.2), 7, 0, 0, 0, 400)
    assert mixed_up.boxes is None and mixed_up.cut is None
    is_cut = np.repeat(mixed.cut.reshape(-1, 4).any(axis=1), 4)
    is_mixed_up = ~is_cut & (mixed.partner != np.arange(400))
    assert is_mixed_up.sum() > 100
    for name in ("partner", "lam"):
        np.testing.assert_array_equal(getattr(mixed, name)[is_mixed_up], getattr(mixed_up, name)[is_mixed_up])


def test_mixup_draws_partners_and_then_weights(mixing):
    """The order of the draws is part of a run's identity, and of its stored labels'."""
    plan = mix_plan(mixing(4, mixup=0.2), 5, 1, 2, 8, 12)
    bits = np.random.Philox(key=np.array([5, (1 << 32) | 2], np.uint64), counter=np.array([0, 0, 2, 2], np.uint64))
    random = np.random.Generator(bits)
    cycle = random.permutation(4)
    for place in range(4):
        assert plan.partner[cycle[place]] == cycle[place - 1]
    np.testing.assert_array_equal(plan.lam, random.beta(0.2, 0.2, 4).astype(np.float32))


def test_another_epoch_has_another_plan(both):
    first, second = (mix_plan(both, 0, 0, epoch, 0, 64) for epoch in (0, 1))
    for name in ("partner", "lam", "boxes"):
        assert (getattr(first, name) != getattr(second, name)).any()


def test_a_split_group_is_refused(mixing):
    with pytest.raises(ValueError, match="first must be a multiple of group_size 4, received 6"):
        mix_plan(mixing(4, mixup=0.2), 0, 0, 0, 6, 12)


@given(st.integers(1, 30), st.data())
def test_kept_samples_keep_their_partner_or_stay_unmixed(both, count, data):
    plan = mix_plan(both, 1, 0, 0, 0, count)
    kept = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1)))), dtype=np.int64)
    new = keep_samples(plan, kept)
    assert new.partner.dtype == new.boxes.dtype == np.int64 and new.lam.dtype == np.float32
    for place, old in enumerate(kept):
        if plan.partner[old] in kept:
            assert kept[new.partner[place]] == plan.partner[old] and new.lam[place] == plan.lam[old]
            assert (new.boxes[place] == plan.boxes[old]).all()
        else:
            assert new.partner[place] == place and new.lam[place] == 1 and not new.cut[place]


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_boxes_are_pasted_from_the_untouched_partner(data_format):
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 7, 3), dtype=np.uint8)
    plan = MixPlan(
        partner=np.array([1, 2, 0]),
        lam=np.ones(3, np.float32),
        boxes=np.array([[2, 1, 6, 4], [0, 0, 7, 6], [3, 3, 3, 5]]),  # a part, everything, nothing
    )
    expected = images.copy()
    for y in range(6):
        for x in range(7):
            if 2 <= x < 6 and 1 <= y < 4:
                expected[0, y, x] = images[1, y, x]
            expected[1, y, x] = images[2, y, x]
    given_images = images if data_format == "NHWC" else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    before = given_images.copy()
    received = paste_boxes(given_images, plan, data_format)
    received = received if data_format == "NHWC" else received.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(received, expected)
    np.testing.assert_array_equal(given_images, before)


def test_without_boxes_nothing_is_copied():
    images = np.zeros((2, 3, 4, 4), np.uint8)
    for boxes in (None, np.zeros((2, 4), np.int64)):
        assert paste_boxes(images, MixPlan(np.array([1, 0]), np.ones(2, np.float32), boxes), "NCHW") is images
