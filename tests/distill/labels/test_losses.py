"""Every loss against the teacher's whole answer, within the bounds that `distill.labels.records` derives."""

import numpy as np
import paddle
import pytest
from scipy.special import log_softmax, softmax

from distill.labels.records import Layout, encode, expand
from distill.losses.dist import dist
from distill.losses.dkd import dkd
from distill.losses.jensen_shannon import jensen_shannon
from distill.losses.kl import kl
from distill.losses.symmetric_kl import symmetric_kl
from distill.models import create_model
from distill.normalization import to_unit_range

CLASSES = 50
LAYOUTS = [("all", 1.0), (10, 1.0), (10, 4.0), (3, 1.0)]
each_layout = pytest.mark.parametrize(("top", "temperature"), LAYOUTS)


@pytest.fixture(scope="module")
def logits(digits):
    """What two networks answer to real images; the teacher's are spread as a trained one's are."""
    from distill.data.idx import IdxImages

    source = IdxImages(digits.folder / "test-images.gz", None, None)
    images = to_unit_range(np.stack([source.read(i).transpose(2, 0, 1) for i in range(64)]))
    answers = []
    for seed, spread in ((1, 2.0), (2, 5.0)):
        paddle.seed(seed)
        network = create_model("ResNet18_vd", CLASSES, width=0.125)
        network.train()
        answer = network(images).numpy()
        answers.append((answer - answer.mean()) / answer.std() * spread)
    return answers


class Case:
    """Both answers at a temperature, and the quantities of the bounds."""

    def __init__(self, logits, top, temperature):
        self.student, self.teacher = logits
        self.temperature = temperature
        layout = Layout(CLASSES, top)
        self.expanded = expand(encode(self.teacher, layout), layout)
        exact = log_softmax(self.teacher.astype(np.float64), axis=1)
        self.stored = np.zeros(exact.shape, dtype=bool)
        np.put_along_axis(self.stored, np.argsort(-exact, axis=1)[:, : layout.kept], True, axis=1)
        values = np.where(self.stored, np.abs(exact), 0).max(axis=1)
        rest = -np.log(np.where(self.stored, 0, np.exp(exact)).sum(axis=1)) if not layout.keeps_all else 0
        self.r = np.maximum(2.0**-11 * np.maximum(values, rest), 2.0**-25) / temperature
        self.s = softmax(self.student / temperature, axis=1)
        self.t = softmax(exact / temperature, axis=1)
        self.t_stored = softmax(self.expanded.astype(np.float64) / temperature, axis=1)
        self.e = self.distance(np.ones_like(self.stored))

    def distance(self, among):
        """2 (exp(r) - 1 + tau + tau') for the distributions restricted to the classes `among`."""
        tails = [
            np.where(among & ~self.stored, p, 0).sum(1) / np.where(among, p, 0).sum(1) for p in (self.t, self.t_stored)
        ]
        return 2 * (np.expm1(self.r) + sum(tails))

    def change(self, loss, **parameters):
        """By how much the loss changes, without T^2."""
        student = paddle.to_tensor(self.student.astype(np.float32))
        values = [
            loss(student, paddle.to_tensor(np.asarray(answer, np.float32)), temperature=self.temperature, **parameters)
            for answer in (self.teacher, self.expanded)
        ]
        return abs(values[0].item() - values[1].item()) / self.temperature**2


@pytest.fixture
def case(logits, top, temperature):
    return Case(logits, top, temperature)


def entropy_change(e, classes):
    half = np.minimum(e / 2, 0.5)
    binary = -half * np.log(half) - (1 - half) * np.log1p(-half)
    return e / 2 * np.log(max(classes - 1, 1)) + binary


def spread(p, among=None):
    logs = np.log(p)
    among = np.ones_like(p, dtype=bool) if among is None else among
    return np.where(among, logs, -np.inf).max(1) - np.where(among, logs, np.inf).min(1)


@each_layout
def test_the_distance_of_the_distributions(case):
    assert (np.abs(case.t - case.t_stored).sum(axis=1) <= case.e).all()


@each_layout
def test_kl_and_cross_entropy_with_soft_targets(case):
    soft = [-(t * np.log(case.s)).sum(axis=1) for t in (case.t, case.t_stored)]
    assert (np.abs(soft[0] - soft[1]) <= case.e / 2 * spread(case.s)).all()
    bound = case.e / 2 * spread(case.s) + entropy_change(case.e, CLASSES)
    assert case.change(kl) <= bound.mean() + 1e-5


@each_layout
def test_symmetric_kl(case):
    reverse = (case.s * np.abs(np.log(case.t) - np.log(case.t_stored))).sum(axis=1)
    bound = (case.e / 2 * spread(case.s) + entropy_change(case.e, CLASSES) + reverse) / 2
    assert case.change(symmetric_kl) <= bound.mean() + 1e-5


@each_layout
def test_jensen_shannon(case):
    bound = entropy_change(case.e / 2, CLASSES) + entropy_change(case.e, CLASSES) / 2
    assert case.change(jensen_shannon) <= bound.mean() + 1e-5


@each_layout
def test_dkd(case):
    target = np.random.default_rng(0).integers(0, CLASSES, len(case.s))
    target[::2] = case.teacher.argmax(axis=1)[::2]
    others = np.ones_like(case.stored)
    np.put_along_axis(others, target[:, None], False, axis=1)
    own = np.take_along_axis(case.s, target[:, None], axis=1)[:, 0]
    two_class = np.stack([own, 1 - own], axis=1)
    target_part = case.e / 2 * spread(two_class) + entropy_change(case.e, 2)
    e = case.distance(others)
    other_part = e / 2 * spread(case.s, others) + entropy_change(e, CLASSES - 1)
    change = case.change(dkd, target=paddle.to_tensor(target), alpha=1.0, beta=0.5)
    assert change <= (target_part + 0.5 * other_part).mean() + 1e-5


@each_layout
@pytest.mark.parametrize("axis", [1, 0])
def test_dist(case, axis):
    difference = np.linalg.norm(case.t - case.t_stored, axis=axis)
    centred = np.linalg.norm(case.t - case.t.mean(axis=axis, keepdims=True), axis=axis)
    bound = np.minimum(2, 2 * difference / centred).mean()
    weights = {"beta": 1.0, "gamma": 0.0} if axis == 1 else {"beta": 0.0, "gamma": 1.0}
    assert case.change(dist, **weights) <= bound + 1e-5


def test_more_classes_come_nearer(logits):
    changes = {top: [Case(logits, top, 1.0).change(loss) for loss in (kl, symmetric_kl)] for top in (1, 10, "all")}
    assert changes[1] > changes[10] > changes["all"]
    assert max(changes["all"]) < 2e-3
