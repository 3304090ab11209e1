"""Knowledge distillation for image classification on PaddlePaddle.

    from distill import create_model, evaluate, load_recipe, predict, train

These are what `distill.api` documents. They are imported when they are first asked for, for they import Paddle.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Evaluation", "Recipe", "RunResult", "create_model", "evaluate", "load_recipe", "predict", "train"]

if TYPE_CHECKING:
    from distill.api import Evaluation, Recipe, RunResult, create_model, evaluate, load_recipe, predict, train
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:  # a module of the package, which Python then looks for itself; or nothing
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from distill import api

        return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
