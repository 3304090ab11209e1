"""One implementation of the ResNet family: base, vc, vd and ResNeXt, from a `NetworkPlan`.

He et al. 2015 (arXiv 1512.03385), with the stride on the 3x3 convolution; the deep stem and the
average-pooled shortcut (vc, vd) are He et al. 2018 (arXiv 1812.01187), the grouped convolutions Xie et
al. 2016 (arXiv 1611.05431), their weakly supervised weights Mahajan et al. 2018 (arXiv 1805.00932).
"""

import functools
from collections.abc import Callable, Sequence

import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from distill.errors import did_you_mean
from distill.models.kernels import Kernels, PaddleKernels
from distill.models.plan import BlockPlan, ConvPlan, NetworkPlan
from distill.models.specs import KeyNaming

DATA_FORMATS = ("NCHW", "NHWC")


class BatchNorm(nn.BatchNorm2D):
    """`nn.BatchNorm2D` without the warning that Paddle raises in every training step."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalises each channel; in training mode by the batch, and moves the stored statistics."""
        return functional.batch_norm(
            features,
            self._mean,
            self._variance,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self._momentum,
            epsilon=self._epsilon,
            data_format=self._data_format,
        )


class ConvNorm(nn.Layer):
    """Convolution without bias, batch normalisation (momentum 0.9, epsilon 1e-5), ReLU where planned.

    Args:
        plan: Channels, kernel, stride and so on.
        naming: Names of the two sublayers.
        lr_multiplier: Of all its parameters.
        data_format: "NCHW" or "NHWC".
    """

    def __init__(self, plan: ConvPlan, naming: KeyNaming, lr_multiplier: float, data_format: str) -> None:
        super().__init__()
        self._plan = plan
        self._naming = naming
        self.kernels: Kernels = PaddleKernels(data_format)
        convolution = nn.Conv2D(
            plan.in_channels,
            plan.out_channels,
            plan.kernel_px,
            stride=1 if plan.average_pooled else plan.stride,
            padding=plan.kernel_px // 2,
            groups=plan.groups,
            weight_attr=paddle.ParamAttr(initializer=nn.initializer.KaimingNormal(), learning_rate=lr_multiplier),
            bias_attr=False,
            data_format=data_format,
        )
        batch_norm = BatchNorm(
            plan.out_channels,
            momentum=0.9,
            epsilon=1e-5,
            weight_attr=paddle.ParamAttr(learning_rate=lr_multiplier),
            bias_attr=paddle.ParamAttr(learning_rate=lr_multiplier),
            data_format=data_format,
        )
        self.add_sublayer(naming.convolution, convolution)
        self.add_sublayer(naming.batch_norm, batch_norm)

    def forward(self, features: Tensor) -> Tensor:
        """Maps float [N, in, H, W] to [N, out, ceil(H / stride), ceil(W / stride)], in the kernels' layout."""
        convolution, norm = (getattr(self, name) for name in (self._naming.convolution, self._naming.batch_norm))
        return self.kernels.conv_norm(features, self._plan, convolution, norm)


class ResidualBlock(nn.Layer):
    """relu(convolutions(x) + shortcut(x)); basic and bottleneck blocks differ in the plan only."""

    def __init__(self, plan: BlockPlan, naming: KeyNaming, lr_multiplier: float, data_format: str) -> None:
        super().__init__()
        self._plan = plan
        self.kernels: Kernels = PaddleKernels(data_format)
        for conv in plan.layers:
            self.add_sublayer(conv.name, ConvNorm(conv, naming, lr_multiplier, data_format))

    def forward(self, features: Tensor) -> Tensor:
        """Maps float [N, in, H, W] to [N, out, H, W], or half that size (rounded up) where strided; layout alike."""
        shortcut = features
        if self._plan.shortcut is not None:
            shortcut = getattr(self, self._plan.shortcut.name)(features)
        for conv in self._plan.convs:
            features = getattr(self, conv.name)(features)
        return self.kernels.add_relu(features, shortcut)


class ResNet(nn.Layer):
    """A network of the series; `distill.models.create_model` builds one by name.

    Sublayers carry the published names, some of them with dots ("stem.0"), so they are added by
    `add_sublayer` and read by `getattr`.

    Initialised as published: convolutions Kaiming normal (fan in), the classifier's weight uniform in
    +-1 / sqrt(inputs), its bias 0.

    Args:
        plan: The layers.
        stage_lr_multipliers: Five values >= 0 for the stem and stages 1-4, in this order, as the published
            finetuning uses them (0.1, 0.1, 0.2, 0.2, 0.3); the classifier always learns at the full rate.
            They are the parameters' `optimize_attr["learning_rate"]`, which Paddle's optimizers obey.
        data_format: "NCHW" or "NHWC", of images and maps.

    Raises:
        ValueError: Not five multipliers, a negative one, or an unknown data format.
    """

    def __init__(
        self, plan: NetworkPlan, *, stage_lr_multipliers: Sequence[float] | None = None, data_format: str = "NCHW"
    ) -> None:
        super().__init__()
        if data_format not in DATA_FORMATS:
            raise ValueError(f"data_format must be one of {DATA_FORMATS}, received {data_format!r}")
        stem_lr, *stage_lrs = _checked_multipliers(stage_lr_multipliers)
        self.plan = plan
        self.data_format = data_format
        self.kernels: Kernels = PaddleKernels(data_format)
        for conv in plan.stem:
            self.add_sublayer(conv.name, ConvNorm(conv, plan.naming, stem_lr, data_format))
        for blocks, lr_multiplier in zip(plan.stages, stage_lrs, strict=True):
            for block in blocks:
                self.add_sublayer(block.name, ResidualBlock(block, plan.naming, lr_multiplier, data_format))
        inputs = plan.tap_channels["embedding"]
        bound = inputs**-0.5
        weight = paddle.ParamAttr(initializer=nn.initializer.Uniform(-bound, bound))
        self.add_sublayer(plan.naming.classifier, nn.Linear(inputs, plan.num_classes, weight_attr=weight))

    published_names = True
    """Its weights are read under any of the published names."""
    draws_at_random = False
    """In training mode."""
    vector_taps = frozenset({"embedding", "logits"})
    """Those that are no maps."""

    @property
    def tap_channels(self) -> dict[str, int]:
        """Channels of every tap by name: "stem", "stage1" to "stage4", "embedding", "logits"."""
        return self.plan.tap_channels

    @property
    def classifier(self) -> str:
        """Name of the layer that makes logits of the embedding."""
        return self.plan.naming.classifier

    @property
    def architecture(self) -> str:
        """What it computes besides its weights and its classifier."""
        return repr((self.plan.stem, self.plan.max_pool, self.plan.stages))

    def classify(self, features: Tensor) -> Tensor:
        """The logits [N, C] of the tap "embedding" [N, D]."""
        return getattr(self, self.classifier)(features)

    def use_kernels(self, kernels: Kernels) -> None:
        """Computes every layer but the classifier with other kernels; weights, answers and taps keep their layout."""
        self.kernels = kernels
        for layer in self.sublayers():
            if isinstance(layer, ConvNorm | ResidualBlock):
                layer.kernels = kernels

    def forward(self, images: Tensor) -> Tensor:
        """Maps normalised images, float [N, 3, H, W] or [N, H, W, 3] by data format, to logits [N, C].

        Height and width are free, 28 px and more.
        """
        return self.taps(images, ("logits",))["logits"]

    def taps(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Answers and features of one forward pass.

        Args:
            images: As for `forward`.
            names: Of `tap_channels`: "stem" (behind its max-pooling, if any) and "stage1" to "stage4" are
                maps [N, C, h, w] or [N, h, w, C] by data format, "embedding" [N, D] is the mean over
                the last map's pixels, "logits" [N, num_classes].

        Raises:
            ValueError: An unknown name.
        """
        for name in names:
            if name not in self.tap_channels:
                valid = ", ".join(self.tap_channels)
                raise ValueError(f"unknown tap {name!r}.{did_you_mean(name, self.tap_channels)} Valid: {valid}")
        taps = {}
        value = self.kernels.enter(images)
        for name, step in self._steps():
            value = step(value)
            if name in names:
                taps[name] = self.kernels.leave(value) if value.ndim == 4 else value
        return taps

    def _steps(self) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
        """What happens to the images, in order, each step under the name of the tap behind it."""
        stages = [
            (f"stage{number}", functools.partial(self._stage, blocks))
            for number, blocks in enumerate(self.plan.stages, 1)
        ]
        return [("stem", self._stem), *stages, ("embedding", self.kernels.mean), ("logits", self.classify)]

    def _stem(self, images: Tensor) -> Tensor:
        for conv in self.plan.stem:
            images = getattr(self, conv.name)(images)
        return self.kernels.max_pool(images) if self.plan.max_pool else images

    def _stage(self, blocks: tuple[BlockPlan, ...], features: Tensor) -> Tensor:
        for block in blocks:
            features = getattr(self, block.name)(features)
        return features


def _checked_multipliers(multipliers: Sequence[float] | None) -> list[float]:
    values = [1.0] * 5 if multipliers is None else [float(value) for value in multipliers]
    if len(values) != 5 or not all(value >= 0 for value in values):
        raise ValueError(
            f"stage_lr_multipliers must be five values >= 0 (stem, stages 1-4), received {list(multipliers or ())}"
        )
    return values
