import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.data.mix import keep_samples, mixup_plan


@given(st.integers(2, 9), st.integers(0, 5), st.integers(1, 40), st.integers(0, 2**62))
def test_partners_are_a_permutation_inside_the_groups(group_size, first_group, count, seed):
    first = first_group * group_size
    partner, lam = mixup_plan(seed, 0, 1, first, first + count, group_size, 0.2)
    assert partner.dtype == np.int64 and lam.dtype == np.float32
    assert sorted(partner) == list(range(count))
    assert (partner // group_size == np.arange(count) // group_size).all()
    assert ((lam >= 0) & (lam <= 1)).all()
    alone = np.arange(count) == (count - 1 if count % group_size == 1 else -1)
    np.testing.assert_array_equal(partner == np.arange(count), alone)
    assert (lam[alone] == 1).all()


@given(st.integers(2, 6), st.integers(1, 8), st.data())
def test_a_plan_does_not_depend_on_where_micro_batches_begin(group_size, groups, data):
    border = data.draw(st.integers(0, groups)) * group_size
    end = groups * group_size
    whole_partner, whole_lam = mixup_plan(3, 1, 2, 0, end, group_size, 1.0)
    left = mixup_plan(3, 1, 2, 0, border, group_size, 1.0)
    right = mixup_plan(3, 1, 2, border, end, group_size, 1.0)
    np.testing.assert_array_equal(np.concatenate([left[0], right[0] + border]), whole_partner)
    np.testing.assert_array_equal(np.concatenate([left[1], right[1]]), whole_lam)


def test_weights_follow_the_beta_distribution():
    _, lam = mixup_plan(0, 0, 0, 0, 20_000, 4, 0.4)
    assert abs(lam.mean() - 0.5) < 0.01
    assert abs(lam.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.003  # Var Beta(a, a) = 1 / (4 (2a + 1))


def test_another_epoch_has_another_plan():
    plans = [mixup_plan(0, 0, epoch, 0, 64, 8, 0.2) for epoch in (0, 1)]
    assert (plans[0][0] != plans[1][0]).any() and (plans[0][1] != plans[1][1]).any()


def test_a_split_group_is_refused():
    with pytest.raises(ValueError, match="first must be a multiple of group_size 4, received 6"):
        mixup_plan(0, 0, 0, 6, 12, 4, 0.2)


@given(st.integers(1, 30), st.data())
def test_kept_samples_keep_their_partner_or_stay_unmixed(count, data):
    partner, lam = mixup_plan(1, 0, 0, 0, count, 4, 1.0)
    kept = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1)))), dtype=np.int64)
    new_partner, new_lam = keep_samples(partner, lam, kept)
    assert new_partner.dtype == np.int64 and new_lam.dtype == np.float32
    for place, old in enumerate(kept):
        if partner[old] in kept:
            assert kept[new_partner[place]] == partner[old] and new_lam[place] == lam[old]
        else:
            assert new_partner[place] == place and new_lam[place] == 1
