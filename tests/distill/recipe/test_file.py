import math
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.recipe import Recipe
from distill.recipe.file import load_recipe, parse_recipe, resolved_yaml
from distill.recipe.yaml_nodes import MAX_BYTES

EXAMPLE = Path(__file__).with_name("example_recipe.yaml").read_text()
ONE_STAGE = EXAMPLE[: EXAMPLE.index("stages:")] + "epochs: 4\n"


def changed(*replacements, text=EXAMPLE):
    for old, new in replacements:
        assert text.count(old) == 1, (old, text.count(old))
        text = text.replace(old, new)
    return text


def line_of(fragment, text=EXAMPLE):
    return text[: text.index(fragment)].count("\n") + 1


# --- stages -------------------------------------------------------------------------------------


def test_stages_share_what_stands_at_the_top_and_state_what_differs():
    distill, finetune = parse_recipe(EXAMPLE, "r.yaml").stages
    assert (distill.epochs, finetune.epochs) == (4, 2)
    assert (distill.optimizer.learning_rate, finetune.optimizer.learning_rate) == (0.1, 0.01)
    assert finetune.optimizer.momentum == 0.9  # merged key by key
    assert distill.view == finetune.view
    assert finetune.optimizer.weight_decay == 1e-4  # a float in YAML 1.2


def test_null_removes_a_shared_section():
    distill, finetune = parse_recipe(EXAMPLE, "r.yaml").stages
    assert distill.teacher is not None
    assert finetune.teacher is None
    assert list(finetune.loss.terms) == ["cross_entropy"]


def test_a_section_of_another_kind_replaces_the_shared_one():
    text = changed(("    schedule: {kind: constant, warmup_epochs: 0}", "    schedule: {warmup_epochs: 0}"))
    assert parse_recipe(text, "r.yaml").stages[1].schedule.kind == "cosine"
    constant = parse_recipe(EXAMPLE, "r.yaml").stages[1].schedule
    assert (constant.kind, hasattr(constant, "end_learning_rate")) == ("constant", False)


def test_a_list_replaces_the_shared_one():
    text = changed(("    epochs: 2\n", "    epochs: 2\n    data: {sources: [{kind: class_folders, root: train}]}\n"))
    assert [s.kind for s in parse_recipe(text, "r.yaml").stages[1].data.sources] == ["class_folders"]


def test_a_file_without_stages_has_one_named_train():
    recipe = parse_recipe(ONE_STAGE, "r.yaml")
    assert [stage.name for stage in recipe.stages] == ["train"]
    assert recipe.stages[0].epochs == 4


def test_the_recipe_is_frozen():
    recipe = parse_recipe(EXAMPLE, "r.yaml")
    with pytest.raises(ValueError, match="frozen"):
        recipe.stages[0].optimizer.learning_rate = 3.0


# --- overrides ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.momentum=0.8", ["distill", "finetune"]),
        ("stages.finetune.optimizer.momentum=0.8", ["finetune"]),
        ("stages.1.optimizer.momentum=8e-1", ["finetune"]),
        (" optimizer.momentum =0.8", ["distill", "finetune"]),
    ],
)
def test_set_reaches_shared_keys_and_a_stages_own(override, expected):
    recipe = parse_recipe(EXAMPLE, "r.yaml", [override])
    assert [stage.name for stage in recipe.stages if stage.optimizer.momentum == 0.8] == expected


def test_set_takes_yaml_lists_new_sections_and_null():
    overrides = [
        "mixup={alpha: 0.2, group_size: 8}",
        "data.sources.0.range=[5, 7]",
        "expected=null",
        "optimizer.clip_norm=3",
    ]
    recipe = parse_recipe(EXAMPLE, "r.yaml", overrides)
    assert recipe.stages[1].mixup.alpha == 0.2
    assert recipe.stages[0].data.sources[0].range == (5, 7)
    assert recipe.stages[0].optimizer.clip_norm == 3.0
    assert recipe.expected is None


def test_the_last_of_two_options_holds():
    assert parse_recipe(EXAMPLE, "r.yaml", ["seed=2", "seed=3"]).seed == 3


def test_the_only_stage_of_a_file_without_stages_has_its_name_too():
    assert parse_recipe(ONE_STAGE, "r.yaml", ["stages.train.epochs=7"]).stages[0].epochs == 7


def test_an_option_on_a_shared_key_that_some_stages_override_holds_for_the_others():
    recipe = parse_recipe(EXAMPLE, "r.yaml", ["optimizer.learning_rate=0.4"])
    assert [stage.optimizer.learning_rate for stage in recipe.stages] == [0.4, 0.01]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "epochs=3",
            "epochs would change nothing, every stage states its own. "
            "Set instead stages.distill.epochs or stages.finetune.epochs (--set epochs=3).",
        ),
        ("stages.finetun.epochs=3", "no stage 'finetun', expected one of distill, finetune. Did you mean 'finetune'?"),
        (
            "optimizer.momentun=1",
            "optimizer.momentun is an unknown key (--set optimizer.momentun=1). Did you mean 'momentum'?",
        ),
        ("optimizer.momentum=1", "optimizer.momentum must be < 1, received 1 (--set optimizer.momentum=1)."),
        (
            "stages.finetune.epochs=0",
            "stages.finetune.epochs must be >= 1, received 0 (--set stages.finetune.epochs=0)",
        ),
        ("seed.x=1", "seed is not a section, it is 1"),
        ("data.sources.2.repeat=2", "data.sources is a list of 2, expected a number from 0, received '2'"),
        ("data.sources.x.repeat=2", "data.sources is a list of 2"),
        ("seed", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("a..b=3", "expected KEY=VALUE"),
        ("model.name=[", "not valid YAML"),
        ("seed=!!int 3", "tags are not allowed"),
        ("mixup.alpha=0.2", "mixup.group_size is missing (--set mixup.alpha=0.2)"),
    ],
)
def test_a_wrong_option_is_explained(override, message):
    with pytest.raises(UserError) as error:
        parse_recipe(EXAMPLE, "r.yaml", [override])
    assert message in str(error.value)


def test_wrong_options_are_reported_beside_the_files_errors():
    with pytest.raises(UserError) as error:
        parse_recipe(changed(("seed: 1\n", "seed: -1\n")), "r.yaml", ["foo", "loss.kl.temperature=0"])
    lines = str(error.value).splitlines()
    assert lines[0] == "3 errors in r.yaml:"
    assert len(lines) == 4


# --- files --------------------------------------------------------------------------------------


def test_a_file_is_read(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + EXAMPLE.encode())  # a byte order mark, as some editors write
    assert load_recipe(path, ["seed=5"]).seed == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: \xff\n", "not UTF-8 text ({path}, line 2)"),
        (b"", "a recipe is a mapping of keys to values, received null"),
        (b"- a\n", "received ['a'] ({path}, line 1)"),
        (b"#" * (MAX_BYTES + 1), "too large for a recipe"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, content, message):
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert message.format(path=path) in str(error.value)


@pytest.mark.parametrize("name", ["absent.yaml", ".", "nul\0.yaml"])
def test_a_file_that_cannot_be_read(tmp_path, name):
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(tmp_path / name)


# --- writing ------------------------------------------------------------------------------------


def test_the_resolved_recipe_is_read_back_equal_and_states_the_defaults():
    recipe = parse_recipe(EXAMPLE, "r.yaml")
    text = resolved_yaml(recipe)
    assert parse_recipe(text, "resolved") == recipe
    assert yaml.safe_load(text)["runtime"]["loader_threads"] == 2
    assert resolved_yaml(parse_recipe(text, "resolved")) == text


@example(text="\x85", number=1.0)
@example(text="a\u2028 b\u2029", number=1.0)
@given(
    st.text(st.characters(exclude_categories=["Cs"])) | st.from_regex(r"[-+]?[0-9.eEox_]{1,8}", fullmatch=True),
    st.floats(0, 1e300, exclude_min=True),
)
def test_any_text_and_number_survives_writing(text, number):
    recipe = parse_recipe(EXAMPLE, "r.yaml")
    stage = recipe.stages[0].model_copy(
        update={"optimizer": recipe.stages[0].optimizer.model_copy(update={"learning_rate": number})}
    )
    recipe = recipe.model_copy(update={"description": text, "stages": (stage,)})
    assert parse_recipe(resolved_yaml(recipe), "resolved") == recipe


# --- whatever the file holds --------------------------------------------------------------------


def recipe_or_user_error(text, overrides=()):
    try:
        recipe = parse_recipe(text, "r.yaml", overrides)
    except UserError as error:
        assert str(error)
        str(error).encode()
        return None
    assert isinstance(recipe, Recipe)
    return recipe


@given(st.binary(max_size=200))
def test_random_bytes_never_crash(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "random.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError):
        load_recipe(path)


@given(st.text("ab:-[]{}&*!<>|%@?#\"'\\,~ \n\t0", max_size=60))
def test_random_yaml_never_crashes(text):
    assert recipe_or_user_error(text) is None


HOSTILE = [
    "null",
    "[]",
    "{}",
    "-1",
    "1e999",
    ".nan",
    "-.inf",
    "9" * 60,
    "''",
    "'\\0'",
    '"\\0"',
    "!!python/name:os",
    "*x",
    "[[[]]]",
]
HOSTILE += [
    "true",
    "yes",
    "{kind: 1}",
    "{kind: [1]}",
    "{kind: {}}",
    "&x [*x]",
    "{<<: {}}",
    "[null]",
    "1_0",
    '"\\ud800"',
    "-0.0",
]


def mutations():
    lines = EXAMPLE.splitlines()

    @st.composite
    def build(draw):
        text = list(lines)
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(text) - 1))
            match draw(st.sampled_from(["drop", "twice", "value", "key", "cut", "character"])):
                case "drop":
                    text[at] = ""
                case "twice":
                    text.insert(at, text[at])
                case "value":
                    text[at] = text[at].split(":")[0] + ": " + draw(st.sampled_from(HOSTILE))
                case "key":
                    text[at] = text[at].replace(":", draw(st.sampled_from(["x:", ".0:", "", "::", "\\:"])), 1)
                case "cut":
                    text[at] = text[at][: draw(st.integers(0, len(text[at])))]
                case "character":
                    column = draw(st.integers(0, len(text[at])))
                    text[at] = text[at][:column] + draw(st.characters()) + text[at][column:]
        return "\n".join(text)

    return build()


@settings(max_examples=150, deadline=5000)
@given(mutations())
def test_a_damaged_recipe_is_a_recipe_or_a_user_error(text):
    recipe = recipe_or_user_error(text)
    if recipe is not None:
        assert all(math.isfinite(stage.optimizer.learning_rate) for stage in recipe.stages)
        assert parse_recipe(resolved_yaml(recipe), "resolved") == recipe


@settings(max_examples=100, deadline=5000)
@given(
    st.lists(
        st.sampled_from(["stages", "0", "7", "finetune", "optimizer", "loss", "kl", "data", "sources", "name", ""])
    ),
    st.sampled_from(HOSTILE) | st.text("a0[]{}:&*! ", max_size=6),
)
def test_any_option_gives_a_recipe_or_a_user_error(path, value):
    recipe_or_user_error(EXAMPLE, [".".join(path) + "=" + value])


def test_ten_thousand_unknown_keys_are_answered_at_once():
    text = EXAMPLE + "\n".join(f"learning_rate_{i}: 1" for i in range(9000)).join(["runtime:\n  x: 1\n", ""])
    recipe_or_user_error("\n".join(f"key{i}: 1" for i in range(9000)))
    recipe_or_user_error(text)
