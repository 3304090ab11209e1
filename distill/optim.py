"""Learning rate, optimiser, and the optimiser's state under the parameters' own names."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import paddle

from distill.recipe import (
    AnySchedule,
    CosineSchedule,
    OptimizerSection,
    PolynomialSchedule,
    StepSchedule,
)

_VELOCITY = "_velocity_0"  # how Paddle's Momentum names its accumulator, after the parameter's name


def learning_rate(step: int, *, steps_per_epoch: int, epochs: int, peak: float, schedule: AnySchedule) -> float:
    """The learning rate of an update, a pure function of its number, so that a resume needs no state.

    Warm-up: peak * (step + 1) / warm-up steps. Afterwards progress runs from 0 at the first step after
    the warm-up to 1 behind the last step; boundaries of a step schedule count from the stage's start.

    Args:
        step: From 0 to steps_per_epoch * epochs - 1.
        steps_per_epoch: Updates an epoch.
        epochs: Of the stage.
        peak: The recipe's learning_rate.
        schedule: The recipe's schedule.
    """
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps_per_epoch * epochs - warmup_steps)
    match schedule:
        case CosineSchedule(end_learning_rate=end):
            return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))
        case PolynomialSchedule(end_learning_rate=end, power=power):
            return float(end + (peak - end) * (1 - progress) ** power)
        case StepSchedule(boundaries_epochs=boundaries, factor=factor):
            return float(peak * factor ** sum(step >= round(b * steps_per_epoch) for b in boundaries))
        case _:
            return peak


def build_optimizer(
    parameters: Iterable[tuple[str, paddle.Tensor]], section: OptimizerSection, *, multi_precision: bool = False
) -> paddle.optimizer.Optimizer:
    """Momentum over groups of equal weight decay and equal multiplier of the learning rate.

    Clipping acts on the gradient before L2 is added.

    Args:
        parameters: Name and parameter of all that is trained. The multiplier is the parameter's
            `optimize_attr["learning_rate"]`.
        section: The recipe's optimizer.
        multi_precision: Keep float32 master weights (AMP O2).
    """
    groups: dict[tuple[float, float], list[paddle.Tensor]] = {}
    for _, parameter in parameters:
        decays = len(parameter.shape) > 1 or section.decay_bias_and_norm  # biases and BN's parameters are vectors
        multiplier = parameter.optimize_attr["learning_rate"]  # a group would overwrite it with its own
        groups.setdefault((section.weight_decay if decays else 0.0, multiplier), []).append(parameter)
    return paddle.optimizer.Momentum(
        learning_rate=section.learning_rate,
        momentum=section.momentum,
        use_nesterov=section.nesterov,
        parameters=[
            {"params": group, "weight_decay": decay, "learning_rate": multiplier}
            for (decay, multiplier), group in groups.items()
        ],
        grad_clip=paddle.nn.ClipGradByGlobalNorm(section.clip_norm) if section.clip_norm else None,
        multi_precision=multi_precision,
    )


def optimizer_tensors(
    optimizer: paddle.optimizer.Optimizer, parameters: Iterable[tuple[str, paddle.Tensor]]
) -> dict[str, np.ndarray]:
    """The optimiser's tensors, keyed by the parameters' structured names.

    Paddle keys them by automatic names that change when another network is built first.
    """
    state = optimizer.state_dict()
    masters = state.get("master_weights", {})
    tensors = {}
    for name, parameter in parameters:
        if parameter.name + _VELOCITY in state:
            tensors[f"velocity.{name}"] = state[parameter.name + _VELOCITY].numpy()
        if parameter.name in masters:
            tensors[f"master.{name}"] = masters[parameter.name].numpy()
    return tensors


def restore_optimizer(
    optimizer: paddle.optimizer.Optimizer,
    parameters: Iterable[tuple[str, paddle.Tensor]],
    tensors: dict[str, np.ndarray],
) -> None:
    """Puts back what `optimizer_tensors` returned."""
    state: dict[str, Any] = {}
    masters = {}
    for name, parameter in parameters:
        if (velocity := tensors.get(f"velocity.{name}")) is not None:
            # set_state_dict finds an accumulator by the name of the tensor, not by the key
            state[parameter.name + _VELOCITY] = paddle.to_tensor(velocity)
        if (master := tensors.get(f"master.{name}")) is not None:
            masters[parameter.name] = paddle.to_tensor(master)
    if masters:
        state["master_weights"] = masters
    optimizer.set_state_dict(state)
