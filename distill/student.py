"""The network that is trained: freezing by name, the moving average of its weights, its taps."""

import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import paddle
from paddle import Tensor, nn

from distill.errors import UserError
from distill.models.batch_norm import BATCH_NORMS


class Student:
    """A model with a part of it frozen and, where asked for, the moving average of its weights.

    The average (EMA) runs over all parameters **and** BN statistics that move: averaged weights with the
    statistics of the latest ones would fit badly. It starts from the model's weights at construction, without a
    correction, and is kept in float32 whatever the model's type, because a step of (1 - decay) times the
    difference vanishes in float16. Multipliers of the learning rate are the model's own
    (`create_model(stage_lr_multipliers=...)`).

    Args:
        model: With `taps(images, names)` and `state_dict()`. Its `stop_gradient` flags are set here.
        freeze: Glob patterns of `state_dict()` names ("blocks.*"). What they match gets no gradient. A BN
            layer whose weight and bias are frozen, or one of whose statistics is matched, stays in
            evaluation mode: its statistics neither move nor are replaced by the batch's.
        ema_decay: In (0, 1); None: no average.

    Attributes:
        model: The model itself.
        frozen: The frozen names.

    Raises:
        UserError: A pattern matches nothing, only one of a BN layer's weight and bias is frozen, or nothing
            is left to train.
    """

    def __init__(self, model: nn.Layer, *, freeze: Sequence[str] = (), ema_decay: float | None = None) -> None:
        self.model = model
        self.frozen = matching_names(freeze, list(model.state_dict()))
        # Paddle counts the statistics of BN among the parameters; they never want a gradient.
        self._learnable = [(name, p) for name, p in model.named_parameters() if not p.stop_gradient]
        for name, parameter in self._learnable:
            parameter.stop_gradient = name in self.frozen
        if not self.parameters_to_train():
            raise UserError(f"freeze: {list(freeze)} leaves no parameter to train. Remove a pattern")
        self._frozen_batch_norms = [
            layer for name, layer in model.named_sublayers() if isinstance(layer, BATCH_NORMS) and self._is_frozen(name)
        ]
        self._decay = ema_decay
        self._ema: dict[str, Tensor] = {}
        if ema_decay is not None:
            still = self.frozen | self._frozen_statistics()
            self._ema = {
                name: _float32_copy(value)
                for name, value in model.state_dict().items()
                if name not in still and paddle.is_floating_point(value)  # a network's own counters are no weights
            }

    def _is_frozen(self, batch_norm: str) -> bool:
        frozen = {part for part in ("weight", "bias", "_mean", "_variance") if f"{batch_norm}.{part}" in self.frozen}
        if len(frozen & {"weight", "bias"}) == 1:
            # Paddle's kernel computes both gradients or neither (3.3.1): the other one would silently stand still.
            raise UserError(
                f"freeze: of {batch_norm} only {'weight' if 'weight' in frozen else 'bias'} is frozen, expected weight "
                f"and bias or neither. Use '{batch_norm}.*'"
            )
        return bool(frozen)

    def _frozen_statistics(self) -> set[str]:
        layers = [name for name, layer in self.model.named_sublayers() if layer in self._frozen_batch_norms]
        return {f"{name}.{part}" for name in layers for part in ("_mean", "_variance")}

    @property
    def trains_classifier_only(self) -> bool:
        """Whether all but the classifier is frozen, so that an image's features below it never change."""
        classifier = self.model.classifier
        return classifier is not None and all(
            name.startswith(f"{classifier}.") for name, _ in self.parameters_to_train()
        )

    def parameters_to_train(self) -> list[tuple[str, Tensor]]:
        """Name and parameter of all that is not frozen, in the model's order."""
        return [(name, p) for name, p in self._learnable if name not in self.frozen]

    def train_mode(self) -> None:
        """Puts the model into training mode, frozen BN layers into evaluation mode."""
        self.model.train()
        for layer in self._frozen_batch_norms:
            layer.eval()

    def outputs(self, images: Tensor, taps: Sequence[str] = ()) -> dict[str, Tensor]:
        """The logits [N, C] under "logits", and the taps asked for, of normalised images in one pass."""
        outputs: dict[str, Tensor] = self.model.taps(images, [*taps, "logits"])
        return outputs

    def classify(self, features: Tensor) -> dict[str, Tensor]:
        """The logits [N, C] under "logits", of the features [N, D] below the classifier (the tap "embedding")."""
        return {"logits": self.model.classify(features)}

    def features_stay(self, size_px: int) -> bool:
        """Whether training computes below the classifier what evaluation computes: not where dropout draws there.

        Args:
            size_px: Side of the noise that is tried.
        """
        if not self.model.draws_at_random:
            return True
        noise = np.random.default_rng(0).standard_normal((2, 3, size_px, size_px), dtype=np.float32)
        answers = []
        with paddle.no_grad():
            for mode in (self.train_mode, self.model.eval):
                mode()
                answers.append(self.model.taps(paddle.to_tensor(noise), ["embedding"])["embedding"])
        return bool(paddle.allclose(*answers, 1e-4, 1e-5))

    def update_ema(self) -> None:
        """After an update of the weights: ema += (1 - decay) (weights - ema). Nothing without an average.

        In this form a weight that does not change keeps its average to the last bit.
        """
        if self._decay is None:
            return
        state = self.model.state_dict()
        with paddle.no_grad():
            for name, average in self._ema.items():
                self._ema[name] = average + (1.0 - self._decay) * (state[name].astype("float32") - average)

    def ema_state(self) -> dict[str, Tensor]:
        """The average by `state_dict()` name, float32, without what is frozen; empty without an average."""
        return dict(self._ema)

    def restore_ema(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes up what `ema_state` gave.

        Raises:
            ValueError: Names or shapes are not those of this model's average.
        """
        expected = {name: list(value.shape) for name, value in self._ema.items()}
        received = {name: list(array.shape) for name, array in arrays.items()}
        if expected != received:
            wrong = sorted(n for n in {*expected, *received} if expected.get(n) != received.get(n))
            raise ValueError(f"the stored moving average does not fit the student: {', '.join(wrong[:10])}")
        self._ema = {name: paddle.to_tensor(array, dtype="float32") for name, array in arrays.items()}

    @contextmanager
    def with_ema_weights(self) -> Iterator[None]:
        """Within this context the model holds the averaged weights; afterwards its own, bit for bit.

        Without an average the model stays as it is.
        """
        state = self.model.state_dict()
        own = {name: state[name].clone().detach() for name in self._ema}
        try:
            _copy_into(state, self._ema)
            yield
        finally:
            _copy_into(state, own)


def matching_names(patterns: Sequence[str], names: Sequence[str]) -> frozenset[str]:
    """The names that at least one glob pattern matches (case matters, "*" matches dots too).

    Raises:
        UserError: A pattern matches none.
    """
    matched: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            near = difflib.get_close_matches(pattern, [*_module_patterns(names), *names], n=3, cutoff=0.0)
            raise UserError(
                f"freeze: the pattern {pattern!r} matches no parameter. Nearest: {', '.join(map(repr, near))}. "
                "'*' matches any text, dots included"
            )
        matched.update(found)
    return frozenset(matched)


def _module_patterns(names: Sequence[str]) -> list[str]:
    """The patterns that match one module each: "blocks.*", "blocks.0.*", ..."""
    split = [name.split(".") for name in names]
    return sorted({".".join(parts[:depth]) + ".*" for parts in split for depth in range(1, len(parts))})


def _float32_copy(value: Tensor) -> Tensor:
    # clone() first: astype() to the same type may share the storage that training overwrites.
    return value.clone().detach().astype("float32")


def _copy_into(state: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with paddle.no_grad():
        for name, value in values.items():
            state[name].set_value(value.astype(state[name].dtype))
