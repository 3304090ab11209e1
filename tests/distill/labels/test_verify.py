import numpy as np
import pytest

from distill.data.sources import open_sources
from distill.labels.build import build_labels
from distill.labels.manifest import label_store
from distill.labels.records import Layout, encode
from distill.labels.verify import agreeing, verify_labels
from distill.parallel import Device
from distill.recipe.file import load_recipe

CPU = Device("cpu", 2)


@pytest.fixture
def built(taught):
    """A recipe whose answers are stored, but for the last epoch's."""
    recipe = load_recipe(taught(epochs=3))
    build_labels(recipe, 0, CPU, epochs=range(2))
    return recipe


def test_the_stored_answers_are_the_teachers(built):
    for samples in (0, 1, 100, 10_000):
        found = verify_labels(built, 0, CPU, samples=samples, repair=False)
        assert found.exactly and not found.problems(False)
        assert found.shards == 2 and found.compared >= min(samples, 400) - 16
    assert found.compared == 400


def test_the_eager_teacher_agrees_within_the_tolerance(built):
    stage = built.stages[0]
    eager = stage.teacher.model_copy(update={"engine": "eager"})
    recipe = built.model_copy(update={"stages": (stage.model_copy(update={"teacher": eager}),)})
    found = verify_labels(recipe, 0, CPU, samples=100, repair=False)
    assert not found.exactly and found.compared > 80 and not found.differing


def test_answers_of_something_else_are_found(taught):
    """As if the code that makes views had changed."""
    recipe = load_recipe(taught())
    source = open_sources(recipe.stages[0].data.sources, 10)
    store = label_store(recipe, 0, source, create=True)
    wrong = np.random.default_rng(0).standard_normal((200, 10)).astype(np.float32)
    store.add(0, 0, encode(wrong, store.layout))
    found = verify_labels(recipe, 0, CPU, samples=64, repair=False)
    assert len(found.differing) == found.compared >= 56  # a last span may be short
    [problem] = found.problems(False)
    assert f"{found.compared} of {found.compared} answers are not the teacher's (view epoch:position 0:" in problem


@pytest.mark.parametrize("top", [3, "all"])
def test_agreement_is_bounded_by_the_tolerance(top):
    layout = Layout(10, top)
    random = np.random.default_rng(0)
    logits = (3 * random.standard_normal((500, 10))).astype(np.float32)
    rows = encode(logits, layout)
    assert agreeing(rows, logits, layout, 0.0).all()
    size = 0.01 * np.abs(logits).max(axis=1, keepdims=True)
    near = logits + size * random.uniform(-1, 1, logits.shape).astype(np.float32)
    assert agreeing(rows, near, layout, 0.01).all()
    assert agreeing(rows, near, layout, 1e-4).mean() < 0.1
    assert agreeing(rows, logits[::-1], layout, 0.01).mean() < 0.1
