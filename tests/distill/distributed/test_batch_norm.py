import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn

from distill.distributed.batch_norm import MovingStatistics
from distill.distributed.rank import Rank

pytestmark = pytest.mark.filterwarnings("ignore:When training, we now always track")


def network() -> nn.Layer:
    with paddle.utils.unique_name.guard():
        paddle.seed(0)
        return nn.Sequential(nn.BatchNorm2D(3, momentum=0.8), nn.Conv2D(3, 2, 1), nn.BatchNorm2D(2))


def statistics(model: nn.Layer) -> np.ndarray:
    return np.concatenate([s.numpy() for layer in (model[0], model[2]) for s in (layer._mean, layer._variance)])


@given(
    computed=st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=3),
    size=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_ranks_move_the_statistics_as_one_rank_does(computed, size, seed):
    """Steps of any number of micro-batches, any of them without an image."""
    random = np.random.default_rng(seed)
    alone, ranks = network(), [network() for _ in range(size)]
    moving = [MovingStatistics(model, Rank(number, size)) for number, model in enumerate(ranks)]
    expected = statistics(alone)
    momentum = np.repeat(np.float32([0.8, 0.9]), [6, 4])
    for step in computed:
        turns = -(-len(step) // size)
        slots = [*step, *[False] * (turns * size - len(step))]
        for slot, has_images in enumerate(slots):
            rank = slot % size
            if has_images:
                images = paddle.to_tensor(random.normal(1, 2, (4, 3, 5, 5)).astype(np.float32))
                alone(images)
                moving[rank].before_forward()
                ranks[rank](images)
                expected = momentum * expected + (1 - momentum) * by_numpy(alone, images)
            moving[rank].after_micro_batch(computed=has_images)
        rows = sum(each.rows()[0] for each in moving)
        for each in moving:
            each.replay([rows] if any(step) else [])
        for model in ranks:
            np.testing.assert_allclose(statistics(model), statistics(alone), rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(statistics(model), expected, rtol=1e-4, atol=1e-5)
    assert all((statistics(model) == statistics(ranks[0])).all() for model in ranks)


def by_numpy(model: nn.Layer, images: paddle.Tensor) -> np.ndarray:
    """The statistics of a batch, from its images and the first layers' weights alone."""
    x = images.numpy().astype(np.float64)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    y = (x - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None]
    z = np.einsum("oi,nihw->nohw", model[1].weight.numpy()[:, :, 0, 0], y) + model[1].bias.numpy()[:, None, None]
    return np.concatenate([mean, variance, z.mean((0, 2, 3)), z.var((0, 2, 3))])


def test_frozen_layers_and_a_rank_alone_stay_as_they_are():
    model = network()
    model[0].eval()
    moving = MovingStatistics(model, Rank(0, 2))
    moving.after_micro_batch(computed=False)
    assert [list(rows.shape) for rows in moving.rows()] == [[2, 1 + 4]]  # of the second layer alone
    assert [layer._momentum for layer in (model[0], model[2])] == [0.8, 0.0]
    alone = network()
    moving = MovingStatistics(alone, Rank())
    moving.after_micro_batch(computed=True)
    assert moving.rows() == []
    assert alone[2]._momentum == 0.9
