import json
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distill.recipe.yaml_nodes import MAX_DEPTH, MAX_NODES, NOT_PLAIN_TEXT, RecipeError, plain, plain_value, read_yaml


def read(text):
    root, problems = read_yaml(text, "r.yaml")
    assert problems == []
    return root


def test_numbers_and_words_follow_yaml_1_2():
    text = "[1e-4, 1E3, .5, 5., -1_0, 0o17, 0x1F, 010, yes, on, True, ~, null, '1', 12:30:45, 2024-01-01, +.inf]"
    assert plain(read(text)) == (
        *(1e-4, 1e3, 0.5, 5.0, "-1_0", 15, 31, 10, "yes", "on", True, None, None, "1", "12:30:45", "2024-01-01"),
        math.inf,
    )
    assert math.isnan(plain_value(".nan"))


def test_an_integer_too_long_to_convert_stays_text():
    assert plain_value("9" * 40) == int("9" * 40)
    assert plain_value("9" * 41) == "9" * 41


def test_every_value_knows_its_key_and_line():
    root = read("a: 1\nb:\n  c:\n    - x\n    - d: 2\n")
    entry = root.value["b"].value["c"].value[1]
    assert (entry.key, entry.place.line) == ("b.c.1", 5)
    assert (entry.value["d"].key, str(entry.value["d"].place)) == ("b.c.1.d", "r.yaml, line 5")
    assert root.value["b"].place.line == 2


def test_aliases_and_merge_keys_are_copies_under_their_own_key():
    root = read("base: &b {x: 1, y: 2}\nother: &o {y: 3, z: 4}\nuse:\n  <<: [*b, *o]\n  x: 9\nsame: *b\n")
    assert plain(root.value["use"]) == {"x": 9, "y": 2, "z": 4}
    assert root.value["use"].value["y"].key == "use.y"
    assert root.value["use"].value["y"].place.line == 1
    assert (root.value["same"].place.line, root.value["same"].value["x"].key) == (6, "same.x")


def test_a_quoted_merge_key_is_text():
    assert plain(read("'<<': 3")) == {"<<": 3}


def test_equal_keys_and_tags_are_all_reported():
    _, problems = read_yaml("a: 1\nb: !!python/object/apply:os.system [ls]\na: 2\nc: ! x\n", "r.yaml")
    assert [str(problem) for problem in problems] == [
        "b has the tag 'tag:yaml.org,2002:python/object/apply:os.system': tags are not allowed (r.yaml, line 2).",
        "a is there twice, first on line 1 (r.yaml, line 3).",
        "c has the tag '!': tags are not allowed (r.yaml, line 4).",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n b: 2", "not valid YAML: mapping values are not allowed here (r.yaml, line 2)"),
        ("a:\n\t- b", "line 2"),
        ("a: *b", "the alias *b has no anchor before it (r.yaml, line 1)"),
        ("a: &x [*x]", "the alias *x has no anchor before it"),
        ("a: 1\n---\nb: 1", "a second one begins here (r.yaml, line 2)"),
        ("? [a]\n: b", "a key of the recipe is not plain text (r.yaml, line 1)"),
        ("a: {<<: 3}", "<< needs a mapping"),
        ('a: "\\ud800"', "half a character"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ("%YAML " + "1" * 5000 + ".1\n---\na", "not valid YAML"),
        ("a: \0", "not valid YAML"),
        ("[" * 10_000, f"nested deeper than {MAX_DEPTH} levels"),
        ("a: &a [x]\n" + "".join(f"b{i}: &a [*a]\n" for i in range(MAX_DEPTH + 2)), "nested deeper"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_its_line(text, message):
    with pytest.raises(RecipeError) as error:
        read_yaml(text, "r.yaml")
    assert message in str(error.value)


def test_an_alias_bomb_is_refused():
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 12))
    with pytest.raises(RecipeError, match=f"more than {MAX_NODES} values"):
        read_yaml("l0: &l0 [x]\n" + levels, "r.yaml")


def test_a_key_cannot_send_escape_sequences_to_the_terminal():
    _, problems = read_yaml('"\\e[31ma": 1\n"\\e[31ma": 2\n', "r.yaml")
    assert "\x1b" not in str(problems[0])
    assert "\\x1b[31ma is there twice" in str(problems[0])


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_only_texts_named_so_are_not_plain(text):
    assert isinstance(plain_value(text), str) == (NOT_PLAIN_TEXT.fullmatch(text) is None and text != "")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text("a1e-.~0xo"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1), inner, max_size=3),
        max_leaves=10,
    )
)
def test_json_is_read_as_yaml_reads_it(value):
    def as_plain(v):
        if isinstance(v, dict):
            return {key: as_plain(inner) for key, inner in v.items() if inner is not None}
        return tuple(as_plain(inner) for inner in v) if isinstance(v, list) else v

    # Double quotes keep texts texts; the flow style is JSON's.
    text = yaml.safe_dump(value, default_style='"') if isinstance(value, str) else json.dumps(value)
    text = text.replace("Infinity", ".inf")
    assert plain(read(text)) == as_plain(value)
