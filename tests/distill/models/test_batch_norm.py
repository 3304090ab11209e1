"""The older `paddle.nn.BatchNorm` is treated as `BatchNorm2D` is, wherever statistics matter."""

import numpy as np
import paddle
import pytest
from paddle import nn

from distill.distributed.batch_norm import MovingStatistics
from distill.distributed.rank import Rank
from distill.recalibrate import recalibrate
from distill.student import Student
from distill.teachers.teacher import freeze

pytestmark = pytest.mark.filterwarnings("ignore:When training, we now always track")


class Old(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 1)
        self.norm = nn.BatchNorm(4, act="relu")
        self.fc = nn.Linear(4, 2)

    def normalized(self, images):
        return self.norm(self.conv(images))

    def forward(self, images):
        return self.fc(self.normalized(images).mean([2, 3]))


class New(Old):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2D(4)

    def normalized(self, images):
        return nn.functional.relu(self.norm(self.conv(images)))


@pytest.fixture
def twins():
    """Two networks of equal weights and statistics."""
    paddle.seed(0)
    old, new = Old(), New()
    state = {name: value + 0.25 * paddle.rand(value.shape) for name, value in old.state_dict().items()}
    for network in (old, new):
        missing, unexpected = network.set_state_dict(state)
        assert (missing, unexpected) == ([], [])
    return old, new


def images(seed: int = 0) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(seed).standard_normal((6, 3, 5, 5), dtype=np.float32))


def states(networks) -> list[dict[str, np.ndarray]]:
    return [{name: value.numpy() for name, value in network.state_dict().items()} for network in networks]


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_a_frozen_teacher(twins, batch_statistics):
    before = states(twins)
    for network in twins:
        freeze(network, batch_statistics=batch_statistics)
    old, new = (network(images()).numpy() for network in twins)
    np.testing.assert_allclose(old, new, rtol=1e-5, atol=1e-6)
    for kept, network in zip(before, states(twins), strict=True):
        assert all((kept[name] == network[name]).all() for name in kept)
    unlike = New()
    unlike.set_state_dict(twins[1].state_dict())
    unlike.eval()
    assert np.allclose(unlike(images()).numpy(), new, atol=1e-4) != batch_statistics


def test_a_frozen_layer_of_a_student(twins):
    before = states(twins)
    for network in twins:
        student = Student(_with_taps(network), freeze=["norm.*"])
        student.train_mode()
        assert not network.norm.training
        network(images()).mean().backward()
    assert_equal(before[0], states(twins)[0])


def test_statistics_estimated_anew(twins):
    for network in twins:
        recalibrate(network, [images(1), images(2)])
    old, new = states(twins)
    assert_equal(old, new)


def test_statistics_that_several_ranks_move(twins):
    before = states(twins)[0]
    for network in twins:
        network.train()
        moving = MovingStatistics(network, Rank(0, 2))
        moving.before_forward()
        network(images())
        moving.after_micro_batch(computed=True)
        moving.replay(moving.rows())
    old, new = states(twins)
    assert_equal(old, new)
    assert np.abs(old["norm._mean"] - before["norm._mean"]).max() > 1e-3


def _with_taps(network: nn.Layer) -> nn.Layer:
    network.classifier = "fc"
    return network
