import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.data.sampler import MicroBatchPlan, epoch_order
from distill.errors import UserError

sizes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 150))


def ranks(n, group_size, groups, micro_batches, world_size):
    device = group_size * groups
    return [
        MicroBatchPlan(n, device * micro_batches, device, rank, world_size, group_size) for rank in range(world_size)
    ]


def one_epoch(plan, epoch=0):
    per_epoch = plan.steps_per_epoch * plan.micro_batches_per_step
    return [plan.micro_batch(number) for number in range(epoch * per_epoch, (epoch + 1) * per_epoch)]


@given(sizes, st.data())
def test_every_sample_once_an_epoch_at_any_world_size(sizes, data):
    group_size, groups, micro_batches, n = sizes
    world_size = data.draw(st.integers(1, micro_batches))
    epoch = data.draw(st.integers(0, 3))
    plans = ranks(n, group_size, groups, micro_batches, world_size)
    seen = [position for plan in plans for m in one_epoch(plan, epoch) for position in range(m.first, m.end)]
    assert sorted(seen) == list(range(n))


@given(sizes, st.data())
def test_micro_batches_do_not_depend_on_the_world_size(sizes, data):
    group_size, groups, micro_batches, n = sizes
    world_size = data.draw(st.integers(1, micro_batches))

    def work(plans):
        return sorted((m.step, m.first, m.end) for plan in plans for m in one_epoch(plan) if m.first < m.end)

    assert work(ranks(n, group_size, groups, micro_batches, world_size)) == work(
        ranks(n, group_size, groups, micro_batches, 1)
    )


@given(sizes, st.data())
def test_steps_groups_and_ends(sizes, data):
    group_size, groups, micro_batches, n = sizes
    world_size = data.draw(st.integers(1, micro_batches))
    plans = ranks(n, group_size, groups, micro_batches, world_size)
    for together in zip(*map(one_epoch, plans), strict=True):
        assert len({(m.epoch, m.step, m.ends_step, m.global_count) for m in together}) == 1
    all_ranks = [m for plan in plans for m in one_epoch(plan)]
    for m in all_ranks:
        assert 0 <= m.end - m.first <= plans[0].device_batch_size
        if m.first < m.end:
            assert m.first % group_size == 0
            assert m.end % group_size == 0 or m.end == n
            assert m.first // plans[0].global_batch_size == m.step
    for step in range(plans[0].steps_per_epoch):
        counts = [m.end - m.first for m in all_ranks if m.step == step and m.first < m.end]
        assert sum(counts) == next(m.global_count for m in all_ranks if m.step == step)
        assert max(counts) - min(counts) < 2 * group_size  # no micro-batch of one sample where it can be avoided
    for plan in plans:
        ends = [m.step for m in one_epoch(plan) if m.ends_step]
        assert ends == list(range(plan.steps_per_epoch))


def test_steps_count_through_the_stage():
    plan = MicroBatchPlan(n=10, global_batch_size=8, device_batch_size=4)
    steps = [(m.epoch, m.step, m.end - m.first) for m in map(plan.micro_batch, range(8))]
    assert steps == [(0, 0, 4), (0, 0, 4), (0, 1, 2), (0, 1, 0), (1, 2, 4), (1, 2, 4), (1, 3, 2), (1, 3, 0)]


def test_an_order_is_a_permutation_of_its_own():
    orders = [epoch_order(5, 0, epoch, 1000) for epoch in (0, 1)] + [epoch_order(6, 0, 0, 1000)]
    for order in orders:
        assert order.dtype == np.int64
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert (orders[0] != orders[1]).mean() > 0.9 and (orders[0] != orders[2]).mean() > 0.9


def test_an_order_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(5, 0, 0, 10)[0] = 3


def test_more_devices_than_work():
    with pytest.raises(UserError, match="has work for 2 devices of device_batch_size 4, but there are 3"):
        MicroBatchPlan(n=100, global_batch_size=8, device_batch_size=4, rank=0, world_size=3)


@pytest.mark.parametrize(
    "changes", [{"n": 0}, {"device_batch_size": 3}, {"group_size": 3}, {"rank": 2}, {"rank": -1}, {"world_size": 0}]
)
def test_impossible_plans(changes):
    with pytest.raises(ValueError, match="need"):
        MicroBatchPlan(**{"n": 9, "global_batch_size": 8, "device_batch_size": 4, "world_size": 2} | changes)
