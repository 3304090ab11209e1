"""Mean squared error between features, with a learnt projection of the student's."""

import math
from typing import Literal

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from distill.errors import UserError


def feature_mse(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean over all elements of (student - teacher)^2.

    Args:
        student_features: [N, ...], any float type; projected to the teacher's width already.
        teacher_features: The same shape, any float type; receives no gradient.

    Returns:
        float32 scalar, >= 0: the mean over N, channels and places, so that the term's weight does not
        depend on the size of the features.

    Raises:
        UserError: The shapes differ.

    Source: Romero et al. 2015 (FitNets), arXiv 1412.6550, equation 3, there a sum and not a mean.
    """
    if list(student_features.shape) != list(teacher_features.shape):
        raise UserError(
            f"loss.feature_mse: the student's projected features {list(student_features.shape)} and the teacher's "
            f"{list(teacher_features.shape)} must have one shape: choose layers of the same resolution"
        )
    return (student_features.astype("float32") - teacher_features.detach().astype("float32")).square().mean()


class Projection(nn.Layer):
    """A learnt linear map over the channels, the same at every place: [N, S, ...] -> [N, T, ...].

    Part of the loss, not of the student: it is trained with the student and dropped afterwards.
    Initialised with N(0, 1 / S), which keeps the features' variance.

    Args:
        student_channels: S.
        teacher_channels: T.
        channel_axis: 1 for NCHW maps and vectors, -1 for NHWC maps.
    """

    def __init__(self, student_channels: int, teacher_channels: int, channel_axis: Literal[1, -1]) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        # A fixed name: optimiser state is kept by name, and an automatic one depends on what was built
        # before. The guard lets several live in one process, as the stages of a recipe need.
        with paddle.utils.unique_name.guard():
            self.weight = self.create_parameter(
                [student_channels, teacher_channels],
                attr=paddle.ParamAttr(name="feature_projection.weight"),
                default_initializer=nn.initializer.Normal(0.0, 1.0 / math.sqrt(student_channels)),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Maps [N, S], [N, S, H, W] or [N, H, W, S] (float) to the same with T channels (float32)."""
        features = features.astype("float32")
        if features.ndim == 4 and self.channel_axis == 1:
            return F.conv2d(features, self.weight.t().unsqueeze([2, 3]))
        return paddle.matmul(features, self.weight)
