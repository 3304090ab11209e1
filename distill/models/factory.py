"""Networks outside the series: built by a Python function that a recipe names as `module:function`.

The function takes the number of classes as the keyword `num_classes` and returns a `paddle.nn.Layer` that maps images,
float32 [N, 3, H, W], normalised, to logits, float32 [N, num_classes]. What it returns gets the interface of
`distill.models.resnet.ResNet` and keeps its own names: files of its weights load into it anywhere else.
"""

import contextlib
import difflib
import importlib
import inspect
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from distill.errors import RunError, UserError, did_you_mean
from distill.models.factory_names import is_factory, is_pythons_own
from distill.models.kernels import Kernels, PaddleKernels
from distill.weights.files import sha256_of

Value = bool | int | float | str
_OUR_TAPS = ("embedding", "logits")
_NOISE_IMAGES = 2
_SHOWN = 8  # names of layers in a message


class FactoryNetwork(nn.Layer):
    """A network of somebody's own, seen as one of the series.

    Parameters, buffers and layers keep the names that they have in the network itself. It always computes with Paddle's
    kernels, in the layout [N, 3, H, W].

    Taps are "logits", "embedding" (what goes into the classifier, float [N, D]) and, by name, every layer that
    computes one float tensor once in a forward pass: maps [N, C, h, w], tokens [N, T, C] or vectors [N, C]. They are
    found by one pass on noise in evaluation mode.

    Args:
        network: In whatever mode, with fresh weights.
        name: `module:function`, for messages.
        arguments: It was made with, besides the number of classes.
        num_classes: Of its logits.
        classifier: Name of its last layer; None: the last `nn.Linear`, if its answer is the network's.
        size_px: Side of the noise.

    Attributes:
        name: As given.
        classifier: Name of the layer that makes logits of the embedding; None where none does.
        tap_channels: Channels of every tap by name.
        vector_taps: Those that are no maps: [N, C] or [N, T, C], channels last.

    Raises:
        UserError: It fails, returns something else than logits, or has no such classifier.
    """

    data_format = "NCHW"
    published_names = False
    """Its weights are read under its own names alone."""
    draws_at_random = True
    """In training mode, by dropout and the like: at least nobody knows that it does not."""

    def __init__(
        self,
        network: nn.Layer,
        *,
        name: str,
        arguments: Mapping[str, Value],
        num_classes: int,
        classifier: str | None,
        size_px: int,
    ) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.kernels: Kernels = PaddleKernels(self.data_format)
        self._arguments = dict(arguments)
        self.classifier = classifier or self._last_linear()
        self._classifier_layer: tuple[nn.Layer, ...] = ()  # a tuple, lest it become a second sublayer
        if self.classifier is not None:
            self._classifier_layer = (self._layer(self.classifier, "model.classifier"),)
        self._look(num_classes, size_px, required=classifier is not None)

    # What follows makes all that walks through layers see the network's own names.

    def named_sublayers(
        self, prefix: str = "", include_self: bool = False, layers_set: Any = None, **later: bool
    ) -> Iterator[tuple[str, nn.Layer]]:
        """The network's own layers; `later` is what versions of Paddle behind 2.6 add."""
        yield from self.network.named_sublayers(prefix, include_self, layers_set, **later)

    def state_dict(self, *arguments: Any, **named: Any) -> dict[str, Tensor]:
        """The network's own."""
        state: dict[str, Tensor] = self.network.state_dict(*arguments, **named)
        return state

    def set_state_dict(self, state_dict: Mapping[str, Any], *arguments: Any) -> Any:
        """The network's own."""
        return self.network.set_state_dict(state_dict, *arguments)

    def train(self, *mode: bool) -> "FactoryNetwork":
        """Puts the network into training mode, in its own way."""
        self.network.train(*mode)
        self.training = self.network.training
        return self

    def eval(self) -> "FactoryNetwork":
        """Puts the network into evaluation mode, in its own way."""
        self.network.eval()
        self.training = False
        return self

    def use_kernels(self, kernels: Kernels) -> None:
        """Nothing: its layers call Paddle themselves."""

    def forward(self, images: Tensor) -> Tensor:
        """Maps normalised images, float [N, 3, H, W], to logits [N, C]; what else it can take is the network's own."""
        return self.network(images)

    def taps(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Answers and features of one forward pass; nothing of it is kept.

        Args:
            images: As for `forward`.
            names: Of `tap_channels`.

        Raises:
            ValueError: An unknown name.
            RunError: A layer that evaluation mode computes was not computed.
        """
        self._check_names(names)
        caught: dict[str, Tensor] = {}
        hooks = _hook(self.network, names, self.classifier, caught.__setitem__)
        try:
            logits = self.network(images)
        finally:
            _release(hooks)
        chosen: dict[str, Tensor] = _chosen(names, caught, logits)
        return chosen

    def classify(self, features: Tensor) -> Tensor:
        """The logits [N, C] of the tap "embedding" [N, D]."""
        logits: Tensor = self._classifier_layer[0](features)
        return logits

    @property
    def architecture(self) -> str:
        """What it computes besides its weights, as far as can be told: factory, arguments, the module's bytes."""
        code = imported_code([self.name])
        return repr(
            (self.name, sorted(self._arguments.items()), self.classifier, [digest for _, digest in code.values()])
        )

    def _layer(self, name: str, key: str) -> nn.Layer:
        layers = dict(self.network.named_sublayers())
        if name not in layers:
            raise UserError(
                f"{key}: the network of {self.name} has no layer {name!r}.{did_you_mean(name, layers)} Its last ones: "
                f"{', '.join([*layers][-_SHOWN:])}"
            )
        return layers[name]

    def _last_linear(self) -> str | None:
        names = [name for name, layer in self.network.named_sublayers() if isinstance(layer, nn.Linear)]
        return names[-1] if names else None

    def _look(self, num_classes: int, size_px: int, *, required: bool) -> None:
        """Finds the taps by a pass on noise, and checks the answer."""
        noise = np.random.default_rng(0).standard_normal((_NOISE_IMAGES, 3, size_px, size_px), dtype=np.float32)
        found: dict[str, Any] = {}
        repeated: set[str] = set()

        def note(name: str, value: Any) -> None:
            if name in found:
                repeated.add(name)
            found[name] = value

        names = [name for name, _ in self.network.named_sublayers()]
        with self._evaluating(), paddle.no_grad():
            hooks = _hook(self.network, [name for name in names if name not in _OUR_TAPS], self.classifier, note)
            try:
                logits = self.network(paddle.to_tensor(noise))
            except Exception as error:
                raise UserError(
                    f"the network of {self.name} fails on images float32 {list(noise.shape)}: "
                    f"{type(error).__name__}: {_first_lines(error)}"
                ) from error
            finally:
                _release(hooks)
            self._check_logits(logits, num_classes)
            embedding = found.pop("embedding", None)
            problem = self._classifier_problem(embedding, "embedding" in repeated, logits)
        if problem is not None:
            if required:
                raise UserError(f"model.classifier {self.classifier!r} of {self.name} {problem}")
            self.classifier, self._classifier_layer = None, ()
        taps = {name: value for name, value in found.items() if name not in repeated and _is_tap(value)}
        if self.classifier is not None:
            taps["embedding"] = embedding
        taps["logits"] = logits
        self.tap_channels = {name: int(value.shape[1 if value.ndim == 4 else -1]) for name, value in taps.items()}
        self.vector_taps = frozenset(name for name, value in taps.items() if value.ndim != 4)

    def _check_logits(self, logits: Any, num_classes: int) -> None:
        expected = f"logits float32 [{_NOISE_IMAGES}, {num_classes}] of {_NOISE_IMAGES} images"
        if not isinstance(logits, Tensor):
            raise UserError(f"the network of {self.name} must return {expected}, received a {type(logits).__name__}")
        if list(logits.shape) != [_NOISE_IMAGES, num_classes] or logits.dtype != paddle.float32:
            received = f"{str(logits.dtype).removeprefix('paddle.')} {list(logits.shape)}"
            raise UserError(f"the network of {self.name} must return {expected}, received {received}")

    def _classifier_problem(self, embedding: Any, repeated: bool, logits: Tensor) -> str | None:
        """Why the classifier does not make the logits of a vector an image."""
        if embedding is None or repeated:
            return f"is computed {'more than once' if repeated else 'never'} in a forward pass, expected once"
        if not isinstance(embedding, Tensor) or embedding.ndim != 2:
            shape = list(embedding.shape) if isinstance(embedding, Tensor) else type(embedding).__name__
            return f"takes {shape}, expected a vector of each image, [N, D]"
        answer = self.classify(embedding)
        if list(answer.shape) != list(logits.shape) or not bool(paddle.allclose(answer, logits, 1e-4, 1e-5)):
            return "does not make the logits: something comes behind it. Name the last layer"
        return None

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode; afterwards every layer has its own again."""
        modes = [(layer, layer.training) for layer in self.network.sublayers(include_self=True)]
        self.network.eval()
        try:
            yield
        finally:
            self.network.train()  # also Paddle's own, hidden flag
            for layer, mode in modes:
                layer.training = mode

    def _check_names(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.tap_channels:
                valid = ", ".join([*self.tap_channels][-_SHOWN:])
                raise ValueError(f"unknown tap {name!r}.{did_you_mean(name, self.tap_channels)} The last ones: {valid}")


@paddle.jit.not_to_static  # type: ignore[untyped-decorator]
def _hook(
    network: nn.Layer, names: Sequence[str], classifier: str | None, note: Callable[[str, Any], None]
) -> list[Any]:
    """Has `note` called with the output of each layer named, and with what goes into the classifier as "embedding"."""
    layers = dict(network.named_sublayers())
    hooks = []
    for name in names:
        if name not in _OUR_TAPS:
            hooks.append(
                layers[name].register_forward_post_hook(lambda _layer, _given, output, name=name: note(name, output))
            )
    if classifier is not None:
        hooks.append(
            layers[classifier].register_forward_pre_hook(
                lambda _layer, given: note("embedding", given[0] if given else None)
            )
        )
    return hooks


@paddle.jit.not_to_static  # type: ignore[untyped-decorator]
def _release(hooks: Sequence[Any]) -> None:
    for hook in hooks:
        hook.remove()


@paddle.jit.not_to_static  # type: ignore[untyped-decorator]
def _chosen(names: Sequence[str], caught: Mapping[str, Tensor], logits: Tensor) -> dict[str, Tensor]:
    taps = {**caught, "logits": logits}
    for name in names:
        if name not in taps:
            raise RunError(f"the network's layer {name!r} was not computed in this pass, as it is in evaluation mode")
    # One value that is asked for twice, a last layer's and the logits, would be one output of an exported network.
    chosen: dict[str, Tensor] = {}
    for name in names:
        value = taps[name]
        chosen[name] = paddle.assign(value) if any(value is other for other in chosen.values()) else value
    return chosen


def _is_tap(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dtype == paddle.float32
        and 2 <= value.ndim <= 4
        and value.shape[0] == _NOISE_IMAGES
    )


# --- calling the factory ------------------------------------------------------------------------


def build_factory_network(
    name: str, num_classes: int, *, arguments: Mapping[str, Value], classifier: str | None, size_px: int
) -> FactoryNetwork:
    """Imports the module, calls the function and checks what it returns; the code of both runs here.

    Fresh weights come from Paddle's global generator, if the function draws from it as Paddle's layers do.

    Args:
        name: `module:function`, checked by `check_factory_name`; the current folder is searched first.
        num_classes: Given to it as the keyword of this name.
        arguments: Further keywords.
        classifier: See `FactoryNetwork`.
        size_px: Likewise.

    Raises:
        UserError: Module or function is not there, fails, or gives something else than a network; says which.
    """
    function = find_factory(name)
    _check_call(name, function, {"num_classes": num_classes, **arguments})
    # Paddle's BN layers warn in every training step that they do what they always do.
    warnings.filterwarnings("ignore", message="When training, we now always track global mean and variance")
    # Optimizer states are keyed by automatic parameter names; the guard starts their numbering anew.
    with paddle.utils.unique_name.guard():
        try:
            network = function(num_classes=num_classes, **arguments)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{name} of {module_file(name)} failed: {type(error).__name__}: {_first_lines(error)}"
            ) from error
        if not isinstance(network, nn.Layer):
            raise UserError(f"{name} must return a network, a paddle.nn.Layer, received a {type(network).__name__}")
        return FactoryNetwork(
            network,
            name=name,
            arguments=arguments,
            num_classes=num_classes,
            classifier=classifier,
            size_px=size_px,
        )


def module_file(name: str) -> str:
    """The file that a factory's function is from, once it was imported; of its module where there is no function."""
    module_name, _, function_name = name.partition(":")
    module = sys.modules.get(module_name)
    origin = getattr(getattr(module, function_name, None), "__module__", None)  # a package may only pass it on
    return str(getattr(sys.modules.get(origin or module_name, module), "__file__", None) or "no file")


def imported_code(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """File and SHA-256 of the module of each factory among `names` that was imported, by the factory's name.

    It is the module that the function is written in; what that imports itself is no part of it.
    """
    files = {name: module_file(name) for name in names if is_factory(name) and name.partition(":")[0] in sys.modules}
    return {name: (file, sha256_of(file) if Path(file).is_file() else "unknown") for name, file in files.items()}


def find_factory(name: str) -> Callable[..., Any]:
    """Imports what a factory's name means; its module's code runs.

    Raises:
        UserError: There is no such module or function, its import fails, or it is one of Python's own.
    """
    module_name, function_name = name.split(":")
    module = _import(name, module_name)
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if function is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{name}: {module_file(name)} has no {function_name!r}.{did_you_mean(function_name, known)}")
    if not callable(function):
        raise UserError(f"{name} must be a function that returns a network, received a {type(function).__name__}")
    origin = str(getattr(function, "__module__", None) or type(function).__module__)
    if is_pythons_own(origin):
        raise UserError(f"{name} is {getattr(function, '__qualname__', function_name)} of Python's own module {origin}")
    return function


def _import(name: str, module_name: str) -> Any:
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)  # and stays: the module may import its neighbours later
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(f"{name}: importing {module_name} failed: {error}") from error
        raise UserError(
            f"{name}: there is no module {error.name!r}.{_near_module(error.name)} Looked in the current folder, "
            f"{folder}, and among the installed packages"
        ) from error
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{name}: importing {module_name} failed: {type(error).__name__}: {_first_lines(error)}"
        ) from error


def _near_module(missing: str) -> str:
    parent, _, own = missing.rpartition(".")
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    names = [module.name for module in pkgutil.iter_modules(path)] if path or not parent else []
    near = difflib.get_close_matches(own, names, n=1)
    return f" Did you mean {f'{parent}.{near[0]}'.lstrip('.')!r}?" if near else ""


def _check_call(name: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuses before the call what the function does not take."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be a Python function that takes num_classes: {error}") from error
    named = {
        key: parameter
        for key, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    for key in arguments:
        if key not in named and not takes_any:
            what = "num_classes" if key == "num_classes" else f"model.arguments.{key}"
            raise UserError(
                f"{name}{signature} does not take {what}.{did_you_mean(key, named)} It must take num_classes, and each "
                "of model.arguments, as a keyword"
            )
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UserError(f"{name}{signature}: {error}. Give it in model.arguments") from error


def _first_lines(error: BaseException) -> str:
    """Of an exception's message: Paddle's are pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:400]
