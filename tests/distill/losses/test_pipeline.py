import numpy as np
import paddle
import pytest

from distill.errors import UserError
from distill.losses.cross_entropy import cross_entropy
from distill.losses.dkd import dkd
from distill.losses.kl import kl
from distill.losses.pipeline import LOSSES, DistillationLoss, Targets
from distill.recipe import LossSection

CHANNELS = {"stage4": 6, "embedding": 6, "logits": 5}
TEACHER_CHANNELS = {"stage3": 4, "stage4": 8, "embedding": 8, "logits": 5}
EVERY_TERM = {
    "cross_entropy": {"weight": 0.5, "label_smoothing": 0.1},
    "kl": {"weight": 2.0, "temperature": 2.0},
    "symmetric_kl": {"weight": 1.0, "temperature": 1.0},
    "jensen_shannon": {"weight": 1.0, "temperature": 1.0},
    "dkd": {"weight": 1.0, "temperature": 4.0, "alpha": 1.0, "beta": 8.0},
    "dist": {"weight": 3.0, "temperature": 1.0, "beta": 1.0, "gamma": 1.0},
    "feature_mse": {"weight": 0.25, "student_layer": "stage4", "teacher_layer": "stage4"},
}


def build(terms: dict, data_format: str = "NCHW") -> DistillationLoss:
    return DistillationLoss(
        terms, student_channels=CHANNELS, teacher_channels=TEACHER_CHANNELS, data_format=data_format
    )


def answers(seed: int, channels: dict[str, int]) -> dict[str, paddle.Tensor]:
    rng = np.random.default_rng(seed)
    shapes = {name: (4, c, 3, 3) if name.startswith("stage") else (4, c) for name, c in channels.items()}
    return {
        name: paddle.to_tensor(rng.standard_normal(shape), dtype="float32", stop_gradient=False)
        for name, shape in shapes.items()
    }


@pytest.fixture
def student() -> dict[str, paddle.Tensor]:
    return answers(0, CHANNELS)


@pytest.fixture
def teacher() -> dict[str, paddle.Tensor]:
    return answers(1, TEACHER_CHANNELS)


LABELS = np.array([1, -1, 4, 0])
PARTNER, LAM = np.array([1, 0, 3, 2]), np.array([0.7, 0.3, 0.5, 1.0], np.float32)


def test_knows_every_term_of_the_recipe() -> None:
    assert list(LOSSES) == list(LossSection.model_fields) == list(EVERY_TERM)
    section = LossSection.model_validate(EVERY_TERM)
    build({name: term.model_dump() for name, term in section.terms.items()})


def test_each_term_by_its_name_unweighted(student, teacher) -> None:
    terms = build(EVERY_TERM)(student, teacher, Targets.of_batch(LABELS, PARTNER, LAM))
    assert list(terms) == list(EVERY_TERM)
    assert all(value.shape == [] and value.dtype == paddle.float32 for value in terms.values())

    s, t = student["logits"], teacher["logits"]
    partner_labels = paddle.to_tensor(LABELS[PARTNER])
    expected = cross_entropy(
        s, paddle.to_tensor(LABELS), label_smoothing=0.1, partner_labels=partner_labels, lam=paddle.to_tensor(LAM)
    )
    assert terms["cross_entropy"].item() == expected.item()
    assert terms["kl"].item() == kl(s, t, temperature=2.0).item()
    # Label 1 (share 0.7); label 1 of the partner (0.7); label 4 (0.5 against 0.5); label 0, unmixed.
    expected = dkd(s, t, paddle.to_tensor([1, 1, 4, 0]), temperature=4.0, alpha=1.0, beta=8.0)
    assert terms["dkd"].item() == expected.item()


def test_total_is_the_weighted_sum(student, teacher) -> None:
    loss = build(EVERY_TERM)
    terms = loss(student, teacher, Targets.of_batch(LABELS))
    expected = sum(EVERY_TERM[name]["weight"] * value.item() for name, value in terms.items())
    assert loss.total(terms).item() == pytest.approx(expected, rel=1e-6)


def test_the_weight_of_a_single_term_counts(student) -> None:
    loss = build({"cross_entropy": {"weight": 0.5, "label_smoothing": 0.0}})
    terms = loss(student, None, Targets.of_batch(LABELS))
    assert loss.total(terms).item() == pytest.approx(0.5 * terms["cross_entropy"].item())


def test_gradients_reach_student_and_projection_but_not_the_teacher(student, teacher) -> None:
    loss = build(EVERY_TERM)
    assert (loss.student_taps, loss.teacher_taps) == (("stage4",), ("stage4",))
    loss.total(loss(student, teacher, Targets.of_batch(LABELS))).backward()
    assert [name for name, _ in loss.named_parameters()] == ["projection.weight"]
    assert loss.projection.weight.grad is not None
    assert all(student[name].grad is not None for name in ("logits", "stage4"))
    assert all(value.grad is None for value in teacher.values())


def test_without_features_there_is_nothing_to_train_and_no_tap() -> None:
    loss = build({"kl": EVERY_TERM["kl"]})
    assert loss.parameters() == []
    assert (loss.student_taps, loss.teacher_taps) == ((), ())


@pytest.mark.parametrize("layers", [("stage4", "stage4"), ("embedding", "embedding")])
def test_features_in_nhwc_give_the_same_value(student, teacher, layers: tuple[str, str]) -> None:
    terms = {"feature_mse": {"weight": 1.0, "student_layer": layers[0], "teacher_layer": layers[1]}}
    first, last = build(terms, "NCHW"), build(terms, "NHWC")
    last.set_state_dict(first.state_dict())
    moved = [
        {name: x.transpose([0, 2, 3, 1]) if x.ndim == 4 else x for name, x in each.items()}
        for each in (student, teacher)
    ]
    targets = Targets.of_batch(LABELS)
    expected = first(student, teacher, targets)["feature_mse"].item()
    assert last(*moved, targets)["feature_mse"].item() == pytest.approx(expected, rel=1e-5)


def test_errors_say_what_is_valid(student) -> None:
    with pytest.raises(ValueError, match=r"unknown loss term 'jensen_shanon'.*Did you mean 'jensen_shannon'"):
        build({"jensen_shanon": {"weight": 1.0}})
    with pytest.raises(UserError, match=r"feature_mse.teacher_layer: the teacher has no layer 'stage5'.*stage4"):
        build({"feature_mse": {"weight": 1.0, "student_layer": "stage4", "teacher_layer": "stage5"}})
    with pytest.raises(UserError, match="one is a map, the other a vector"):
        build({"feature_mse": {"weight": 1.0, "student_layer": "stage4", "teacher_layer": "embedding"}})
    with pytest.raises(ValueError, match=r"loss.kl compares with a teacher"):
        build({"kl": EVERY_TERM["kl"]})(student, None, Targets.of_batch(LABELS))
    with pytest.raises(ValueError, match="both partner and lam"):
        Targets.of_batch(LABELS, PARTNER)
