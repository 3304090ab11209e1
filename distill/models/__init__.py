"""The networks of the ResNet, ResNet_vd and ResNeXt101_wsl series, and those that a Python function makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill.models.factory_names import is_factory
from distill.models.plan import plan_network
from distill.models.specs import SPECS, check_model_name

if TYPE_CHECKING:
    from distill.models.factory import FactoryNetwork
    from distill.models.resnet import ResNet
    from distill.recipe import ModelSection

    Network = ResNet | FactoryNetwork

__all__ = ["build_model", "create_model", "model_names"]

FACTORY_PX = 64


def model_names() -> list[str]:
    """The names that `create_model` knows, in the order of the published table."""
    return list(SPECS)


def create_model(
    name: str,
    num_classes: int = 1000,
    *,
    width: float = 1.0,
    stem_stride: int = 4,
    stage_lr_multipliers: Sequence[float] | None = None,
    data_format: str = "NCHW",
) -> ResNet:
    """Builds a network with fresh weights, drawn from Paddle's global generator (`paddle.seed`).

    With the defaults, keys and shapes of its `state_dict()` are those of the published weights. Any
    number of networks, equal ones too, live together in one process, and what an optimizer calls a
    network's parameters does not depend on what was built before it.

    Args:
        name: One of `model_names()`.
        num_classes: Outputs, >= 1.
        width: Multiplier of every channel count, > 0; see `plan_network` for the rounding.
        stem_stride: 4 as published; 2: without max-pooling; 1: also a stride-1 first convolution, for
            images of 28-64 px.
        stage_lr_multipliers: Of the learning rate of the stem and stages 1-4; see `ResNet`.
        data_format: "NCHW" or "NHWC", of images and maps; the weights are the same in both.

    Raises:
        ValueError: An unknown name or an argument outside its range.
    """
    plan = plan_network(check_model_name(name), num_classes, width=width, stem_stride=stem_stride)

    import paddle  # here, so that names and specs stay available without it

    from distill.models.resnet import ResNet

    # Optimizer states are keyed by automatic parameter names; the guard starts their numbering anew.
    with paddle.utils.unique_name.guard():
        return ResNet(plan, stage_lr_multipliers=stage_lr_multipliers, data_format=data_format)


def build_model(
    section: ModelSection,
    num_classes: int,
    *,
    stage_lr_multipliers: Sequence[float] | None = None,
    size_px: int = FACTORY_PX,
) -> Network:
    """The network that a section of a recipe states, with fresh weights; see `create_model`.

    Args:
        section: Names a network of the series or a factory, whose module is imported here.
        num_classes: Outputs, >= 1.
        stage_lr_multipliers: As for `create_model`; of a network of the series only.
        size_px: Side of the images that it will be given: a factory's network is tried on such noise.

    Raises:
        UserError: The factory does not make such a network; see `distill.models.factory`.
    """
    if is_factory(section.name):
        from distill.models.factory import build_factory_network

        return build_factory_network(
            section.name,
            num_classes,
            arguments=section.arguments or {},
            classifier=section.classifier,
            size_px=size_px,
        )
    return create_model(
        section.name,
        num_classes,
        width=section.width,
        stem_stride=section.stem_stride,
        stage_lr_multipliers=stage_lr_multipliers,
        data_format=section.data_format,
    )
