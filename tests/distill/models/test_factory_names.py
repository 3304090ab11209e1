import pytest

from distill.models.factory_names import check_factory_name, is_factory
from distill.models.specs import SPECS


def test_what_is_a_factory():
    assert not any(is_factory(name) for name in SPECS)
    for name in ("mynets:tiny", "a.b.c:d_1", "paddle.vision.models:mobilenet_v3_small"):
        assert is_factory(name)
        check_factory_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mynets:", "must be a name that `distill zoo` lists or module:function"),
        (":tiny", "module:function"),
        ("my nets:tiny", "module:function"),
        ("mynets:tiny()", "module:function"),
        ("mynets:os.system", "module:function"),
        ("../mynets:tiny", "module:function"),
        ("mynets:tiny\n", "module:function"),
        ("mynets.py:tiny", "must name the module, not its file: mynets:tiny"),
        ("os:system", "must not be of a module of Python itself"),
        ("os.path:join", "must not be of a module of Python itself"),
        ("subprocess:run", "must not be of a module of Python itself"),
        ("builtins:eval", "must not be of a module of Python itself"),
        ("posix:system", "must not be of a module of Python itself"),
        ("_posixsubprocess:fork_exec", "must not be of a module of Python itself"),
        ("__main__:main", "must not be of a module of Python itself"),
    ],
)
def test_names_that_are_refused(name, message):
    with pytest.raises(ValueError, match=message.replace("`", ".")):
        check_factory_name(name)
