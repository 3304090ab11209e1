import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_mining.recipe import MiningRecipe, RuntimeSection, parse_bytes
from data_mining.recipe_file import find_mining_recipe, load_mining_recipe
from distill.errors import UserError
from distill.recipe.file import parse_sections, resolved_yaml

TEXT = """\
name: small
description: ""
pool:
  sources: [{kind: folder, root: pool}]
protected:
  - name: test
    sources: [{kind: tar, path: "test/*.tar"}]
teacher:
  kind: network
  name: ResNet18_vd
  weights: teacher.safetensors
  num_classes: 10
  resize_short_px: 256
  crop_px: 224
  normalization: {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}
leaks: {min_cosine: 0.6, max_hash_bits: 8}
select: {kind: by_class, images_per_class: 100}
"""


@pytest.fixture
def load(tmp_path):
    """Loads the recipe above after replacements, given as (old, new)."""

    def loaded(*replacements, overrides=()):
        text = TEXT
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "small.yaml").write_text(text)
        return load_mining_recipe(tmp_path / "small.yaml", overrides)

    return loaded


def test_a_recipe_comes_back_from_its_resolved_form(load):
    recipe = load(overrides=["leaks.min_cosine=0.5", "runtime.memory='500 MB'"])
    assert recipe.leaks.min_cosine == 0.5 and recipe.runtime.memory_bytes == 5 * 10**8
    assert recipe.score.top_classes == 10 and recipe.duplicates is None
    assert parse_sections(resolved_yaml(recipe), "resolved", MiningRecipe) == recipe


def test_every_error_at_once_with_its_line(load):
    with pytest.raises(UserError) as error:
        load(
            ("name: small", "name: no good"),
            ("kind: folder", "kind: floder"),
            ("name: ResNet18_vd", "name: ResNet18_dv"),
            ("min_cosine: 0.6", "min_cosin: 0.6"),
            ("images_per_class: 100", "images_per_class: 0"),
        )
    lines = str(error.value).splitlines()
    assert len(lines) == 7 and lines[0].startswith("6 errors")
    for expected in (
        "name must be text that matches",
        "pool.sources.0.kind must be one of image_list, folder, tar, received 'floder'",
        "Did you mean 'folder'?",
        "Did you mean 'ResNet18_vd'?",
        "leaks.min_cosin is an unknown key",
        "Did you mean 'min_cosine'?",
        "leaks.min_cosine is missing",
        "select.images_per_class must be >= 1, received 0",
    ):
        assert any(expected in line for line in lines), expected
    assert all("small.yaml, line " in line for line in lines[1:])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'protected:\n  - name: test\n    sources: [{kind: tar, path: "test/*.tar"}]\n',
            "",
            "add the section `protected`",
        ),
        (
            "images_per_class: 100",
            "images_per_class: 1, classes_per_image: 11",
            "at most score.top_classes 10, received 11",
        ),
        ("by_class, images_per_class: 100", "by_retrieval, neighbours: 4", "add the section `labelled`"),
        (
            "images_per_class: 100",
            "images_per_class: 1, backfill: {neighbours: 4, min_cosine: 0.5}",
            "add the section `labelled`",
        ),
        (
            "max_hash_bits: 8",
            "max_hash_bits: 8, verification: {drop_inliers: 10, review_inliers: 11}",
            "must not exceed drop_inliers 10, received 11",
        ),
        ("leaks:", "runtime: {memory: 4 apples}\nleaks:", "runtime.memory must be a number with a unit such as 4GiB"),
        (
            "teacher:",
            '  - {name: test, sources: [{kind: tar, path: "x.tar"}]}\nteacher:',
            "must have names that differ, received twice: test",
        ),
    ],
)
def test_rules_between_keys(load, old, new, message):
    with pytest.raises(UserError, match="small") as error:
        load((old, new))
    assert message in str(error.value)


@pytest.mark.parametrize(("text", "size"), [("4GiB", 2**32), ("1.5 MiB", 3 * 2**19), ("2GB", 2 * 10**9), ("7B", 7)])
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["4", "4G", "-1GiB", "GiB", "", "0GiB", "4gib", "1e3MB", "nan GB"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="such as 4GiB"):
        parse_bytes(text)
    with pytest.raises(ValueError, match="such as 4GiB"):
        RuntimeSection(memory=text)


def test_recipes_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "mining").mkdir(parents=True)
    (tmp_path / "recipes" / "mining" / "small.yaml").write_text(TEXT)
    (tmp_path / "mine.yaml").write_text(TEXT)
    assert find_mining_recipe("mine.yaml").name == "mine.yaml"
    assert load_mining_recipe(find_mining_recipe("small")).name == "small"
    with pytest.raises(
        UserError, match=r"no mining recipe 'smal', expected a file or one of: small\. Did you mean 'small'"
    ):
        find_mining_recipe("smal")


@given(data=st.data())
def test_any_damage_is_a_recipe_or_a_user_error(data):
    lines = TEXT.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        column = data.draw(st.integers(0, len(lines[at])))
        piece = data.draw(
            st.characters() | st.sampled_from(["&a ", "*a", "!!python/name:os.system ", "[", "{", "-1", "1e400", ": "])
        )
        lines[at] = lines[at][:column] + piece + lines[at][column + data.draw(st.integers(0, 8)) :]
    try:
        recipe = parse_sections("\n".join(lines), "damaged.yaml", MiningRecipe)
    except UserError as error:
        assert "damaged.yaml" in str(error)
        return
    assert parse_sections(resolved_yaml(recipe), "resolved", MiningRecipe) == recipe
