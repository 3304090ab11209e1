"""Names of networks outside the series: `module:function`, a factory in Python. Nothing is imported here.

A name of this kind runs code where the network is built, so Python's own modules are refused: otherwise a recipe alone,
with no file beside it, could name `os:system` or `subprocess:run`.
"""

import re
import sys

FACTORY_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"


def is_factory(name: str) -> bool:
    """Whether a network's name means a factory; no network of the series has a colon in its name."""
    return ":" in name


def is_pythons_own(module: str) -> bool:
    """Whether a module belongs to Python itself, or is the running program."""
    return module.partition(".")[0] in {*sys.stdlib_module_names, "__main__"}


def check_factory_name(name: str) -> None:
    """Refuses what cannot or must not be imported, as far as the name alone tells.

    Raises:
        ValueError: It has another form, is a file's name, or of a module of Python itself.
    """
    if not re.fullmatch(FACTORY_PATTERN, name):
        raise ValueError(
            "must be a name that `distill zoo` lists or module:function, such as mynets:tiny or "
            f"paddle.vision.models:mobilenet_v3_small, received {name!r}"
        )
    module, function = name.split(":")
    if module.endswith(".py"):
        raise ValueError(
            f"must name the module, not its file: {module.removesuffix('.py')}:{function}, received {name!r}"
        )
    if is_pythons_own(module):
        raise ValueError(
            f"must not be of a module of Python itself, received {name!r}: a factory is a function of yours or of an "
            "installed package that returns a network"
        )
