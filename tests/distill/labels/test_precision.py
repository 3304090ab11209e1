"""Answers in bfloat16 are not those in float32."""

import pytest

from distill.data.sources import open_sources
from distill.errors import UserError
from distill.labels.manifest import label_store
from distill.recipe.file import load_recipe


def test_a_store_computed_in_another_precision_is_refused(taught):
    path = taught()
    half, full = load_recipe(path, ["teacher.precision=bfloat16"]), load_recipe(path)
    images = open_sources(half.stages[0].data.sources, half.num_classes)
    label_store(half, 0, images, create=True)
    assert label_store(half, 0, images, create=True).positions == len(images)
    with pytest.raises(UserError, match="precision: bfloat16 in the store, float32 in the recipe"):
        label_store(full, 0, images, create=True)
