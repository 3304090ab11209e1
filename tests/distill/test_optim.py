import math

import numpy as np
import paddle
import pytest

from distill.optim import build_optimizer, learning_rate, optimizer_tensors, restore_optimizer
from distill.recipe import ConstantSchedule, CosineSchedule, OptimizerSection, PolynomialSchedule, StepSchedule


def rates(schedule, *, epochs=10, steps_per_epoch=5, peak=0.4):
    return [
        learning_rate(step, steps_per_epoch=steps_per_epoch, epochs=epochs, peak=peak, schedule=schedule)
        for step in range(epochs * steps_per_epoch)
    ]


def test_warmup_rises_by_equal_steps_to_the_peak():
    values = rates(ConstantSchedule(kind="constant", warmup_epochs=2))
    np.testing.assert_allclose(values[:10], 0.4 * np.arange(1, 11) / 10)
    assert set(values[9:]) == {0.4}


def test_cosine_is_half_a_cosine_between_peak_and_end():
    values = rates(CosineSchedule(kind="cosine", warmup_epochs=0, end_learning_rate=0.1))
    expected = [0.1 + 0.3 * (1 + math.cos(math.pi * step / 50)) / 2 for step in range(50)]
    np.testing.assert_allclose(values, expected)


def test_the_rate_never_rises_again_after_the_warmup():
    values = rates(CosineSchedule(kind="cosine", warmup_epochs=3, end_learning_rate=0.0))
    assert all(np.diff(values[15:]) < 0)
    assert values[-1] > 0


def test_step_schedule_counts_its_boundaries_from_the_start():
    values = rates(StepSchedule(kind="step", warmup_epochs=1, boundaries_epochs=(3, 6), factor=0.1))
    np.testing.assert_allclose([values[14], values[15], values[29], values[30]], [0.4, 0.04, 0.04, 0.004])


def test_polynomial_schedule():
    values = rates(PolynomialSchedule(kind="polynomial", warmup_epochs=0, power=2.0, end_learning_rate=0.0))
    np.testing.assert_allclose(values[25], 0.4 * 0.25)


def section(**changes):
    values = {
        "kind": "momentum",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.01,
        "decay_bias_and_norm": False,
    }
    return OptimizerSection(**values | changes)


def one_parameter(shape, name, value=1.0):
    parameter = paddle.create_parameter(shape, "float32", default_initializer=paddle.nn.initializer.Constant(value))
    return name, parameter


def run_steps(parameters, optimizer, gradients, rate=0.1):
    for gradient in gradients:
        (sum((p * gradient).sum() for _, p in parameters)).backward()
        optimizer.set_lr(rate)
        optimizer.step()
        optimizer.clear_grad()


@pytest.mark.parametrize("nesterov", [False, True])
def test_updates_equal_momentum_written_out_in_numpy(nesterov):
    parameters = [one_parameter([2, 2], "w"), one_parameter([2], "b")]
    optimizer = build_optimizer(parameters, section(nesterov=nesterov))
    gradients = [0.3, -0.2, 0.5]
    run_steps(parameters, optimizer, gradients)
    for (_, parameter), decay in zip(parameters, [0.01, 0.0], strict=True):
        value, velocity = 1.0, 0.0
        for gradient in gradients:
            full = gradient + decay * value
            velocity = 0.9 * velocity + full
            value -= 0.1 * (full + 0.9 * velocity if nesterov else velocity)
        np.testing.assert_allclose(parameter.numpy(), value, rtol=1e-6)


def test_biases_decay_when_the_recipe_says_so():
    parameters = [one_parameter([2], "b")]
    run_steps(parameters, build_optimizer(parameters, section(decay_bias_and_norm=True)), [0.0])
    np.testing.assert_allclose(parameters[0][1].numpy(), 1 - 0.1 * 0.01, rtol=1e-6)


def test_clipping_bounds_the_global_norm():
    parameters = [one_parameter([4, 4], "w")]
    run_steps(parameters, build_optimizer(parameters, section(clip_norm=1.0, weight_decay=0.0)), [100.0])
    np.testing.assert_allclose(np.linalg.norm(parameters[0][1].numpy() - 1.0), 0.1, rtol=1e-5)


def test_state_survives_under_other_automatic_names():
    first = [one_parameter([2, 2], "w"), one_parameter([2], "b")]
    optimizer = build_optimizer(first, section())
    run_steps(first, optimizer, [0.3, 0.1])
    tensors = optimizer_tensors(optimizer, first)
    assert set(tensors) == {"velocity.w", "velocity.b"}

    second = [one_parameter([2, 2], "w"), one_parameter([2], "b")]
    for (_, ours), (_, theirs) in zip(second, first, strict=True):
        ours.set_value(theirs)
    other = build_optimizer(second, section())
    restore_optimizer(other, second, tensors)
    for parameters, its_optimizer in ((first, optimizer), (second, other)):
        run_steps(parameters, its_optimizer, [0.7, -0.4])
    for (_, ours), (_, theirs) in zip(second, first, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
