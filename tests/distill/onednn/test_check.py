import numpy as np
import paddle
import pytest

from distill.errors import RunError
from distill.onednn import check, functions


def test_the_library_that_is_here_passes_and_leaves_the_generator_alone():
    paddle.seed(3)
    expected = paddle.randn([8]).numpy()
    paddle.seed(3)
    assert np.array_equal(paddle.randn([4]).numpy(), expected[:4])
    assert check.compare_with_paddle().startswith("3.")
    assert np.array_equal(paddle.randn([4]).numpy(), expected[4:])


@pytest.mark.parametrize("name", ["conv_norm", "max_pool", "average_pool", "add_relu"])
def test_an_answer_that_is_a_little_off_is_found(monkeypatch, name):
    right = getattr(functions, name)
    monkeypatch.setattr(functions, name, lambda *arguments, **options: right(*arguments, **options) * 1.003)
    with pytest.raises(
        RunError, match=r"oneDNN \S+ differs from Paddle's kernels in .+ by \d\.\de-\d\d of the largest"
    ):
        check.compare_with_paddle()
