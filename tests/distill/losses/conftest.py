from collections.abc import Callable

import numpy as np
import paddle
import pytest

Reference = Callable[[np.ndarray], float]
Loss = Callable[[paddle.Tensor], paddle.Tensor]


def central_differences(function: Reference, at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    gradient = np.zeros(at.shape)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


@pytest.fixture(scope="session")
def assert_agrees() -> Callable[[Loss, Reference, np.ndarray], None]:
    """Value and gradient of a loss in `at` against a float64 reference and its finite differences."""

    def check(loss: Loss, reference: Reference, at: np.ndarray) -> None:
        at = at.astype(np.float32).astype(np.float64)
        tensor = paddle.to_tensor(at, dtype="float32", stop_gradient=False)
        value = loss(tensor)
        value.backward()
        assert value.shape == [] and value.dtype == paddle.float32
        numeric = central_differences(reference, at)
        assert np.abs(numeric).max() > 1e-3, "a reference that is constant proves nothing"
        np.testing.assert_allclose(value.item(), reference(at), rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(tensor.grad.numpy(), numeric, rtol=1e-3, atol=3e-6)

    return check


@pytest.fixture
def logit_pair() -> tuple[np.ndarray, np.ndarray]:
    """Student's and teacher's logits, float64 [5, 7]."""
    rng = np.random.default_rng(3)
    return 2 * rng.standard_normal((5, 7)), 3 * rng.standard_normal((5, 7))
