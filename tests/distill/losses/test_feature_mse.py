import numpy as np
import paddle
import pytest

from distill.errors import UserError
from distill.losses.feature_mse import Projection, feature_mse


def test_value_and_gradient(assert_agrees) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, 3, 2, 2)), rng.standard_normal((2, 3, 2, 2))
    assert_agrees(
        lambda features: feature_mse(features, paddle.to_tensor(teacher, dtype="float32")),
        lambda features: np.mean((features - teacher) ** 2),
        student,
    )


def test_half_precision_does_not_overflow() -> None:
    student, teacher = (paddle.full([1, 2], value).astype("float16") for value in (3000.0, -3000.0))
    assert feature_mse(student, teacher).item() == 3.6e7  # float16 ends at 65504


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = (paddle.to_tensor([[x]], stop_gradient=False) for x in (1.0, 3.0))
    feature_mse(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.item() == -4


def test_refuses_features_of_another_resolution() -> None:
    with pytest.raises(UserError, match="choose layers of the same resolution"):
        feature_mse(paddle.zeros([2, 3, 4, 4]), paddle.zeros([2, 3, 2, 2]))


def test_projection_is_the_same_map_in_every_layout() -> None:
    features = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    nchw, nhwc = Projection(3, 6, 1), Projection(3, 6, -1)
    nhwc.set_state_dict(nchw.state_dict())
    expected = np.einsum("nshw,st->nthw", features, nchw.weight.numpy())
    np.testing.assert_allclose(nchw(paddle.to_tensor(features)).numpy(), expected, rtol=1e-4, atol=1e-5)
    last = nhwc(paddle.to_tensor(features.transpose(0, 2, 3, 1))).numpy()
    np.testing.assert_allclose(last.transpose(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-5)
    vector = nchw(paddle.to_tensor(features[:, :, 0, 0])).numpy()
    np.testing.assert_allclose(vector, expected[:, :, 0, 0], rtol=1e-4, atol=1e-5)


def test_projection_has_a_name_of_its_own_and_keeps_the_variance() -> None:
    paddle.seed(0)
    projection = Projection(256, 512, 1)
    assert [p.name for p in projection.parameters()] == ["feature_projection.weight"]
    assert projection.weight.numpy().std() == pytest.approx(1 / 16, rel=0.02)
