from pathlib import Path

import pytest

from distill.errors import UserError
from distill.models.specs import SPECS
from distill.recipe import Recipe, Stage
from distill.recipe.file import parse_recipe, resolved_yaml

EXAMPLE = Path(__file__).with_name("example_recipe.yaml").read_text()


def errors(*replacements):
    """The errors' lines, after replacements that each keep the number of lines."""
    text = EXAMPLE
    for old, new in replacements:
        assert text.count(old) == 1, (old, text.count(old))
        text = text.replace(old, new)
    with pytest.raises(UserError) as error:
        parse_recipe(text, "r.yaml")
    message = str(error.value).splitlines()
    return message if len(message) == 1 else [line.strip() for line in message[1:]]


def line_of(fragment):
    return EXAMPLE[: EXAMPLE.index(fragment)].count("\n") + 1


KL = "  kl: {weight: 1.0, temperature: 2.0}"
MODELS = list(SPECS)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("temperature: 2.0", "temperature: 0.0", "loss.kl.temperature must be > 0, received 0.0 ({}). Typical: 1-4."),
        ("width: 0.25", "width: 5", "model.width must be <= 4, received 5 ({}). Multiplier of every channel count."),
        ("seed: 1\n", "seed: yes\n", "seed must be a whole number, received 'yes' ({})."),
        ("seed: 1\n", "seed: true\n", "seed must be a whole number, received true ({})."),
        ("nesterov: false", "nesterov: no", "optimizer.nesterov must be true or false, received 'no' ({})."),
        (
            "weight_decay: 1e-4",
            "weight_decay: .nan",
            "optimizer.weight_decay must be a finite number, received nan ({}).",
        ),
        (
            "horizontal_flip: 0.5",
            "horizontal_flip: '0.5'",
            "view.horizontal_flip must be a number, received '0.5' ({}). Probability.",
        ),
        ("name: example", "name: 12", "name must be text, received 12 ({})."),
        (
            "batch_norm: stored",
            "batch_norm: store",
            "teacher.batch_norm must be 'stored' or 'batch', received 'store' ({}). Did you mean 'stored'?",
        ),
        ("stem_stride: 1", "stem_stride: 3", "model.stem_stride must be 1, 2 or 4, received 3 ({})."),
        (
            "kind: padded",
            "kind: paded",
            "view.crop.kind must be one of random_area, padded, center, received 'paded' ({}). Did you mean 'padded'?",
        ),
        ("kind: padded, ", "", "view.crop.kind is missing ({}). Valid: random_area, padded, center."),
        (
            "{kind: padded, padding_px: 2}",
            "padded",
            "view.crop must be a section, lines of `key: value`, received 'padded' ({}).",
        ),
        (KL, "  kl: 3", "loss.kl must be a section, lines of `key: value`, received 3 ({})."),
        (
            "mean: [0.286, 0.286, 0.286]",
            "mean: [0.286, 0.286]",
            "normalization.mean must be a list of 3, received 2: [0.286, 0.286] ({}).",
        ),
        (
            "mean: [0.286, 0.286, 0.286]",
            "mean: [1, 2, 3, 4]",
            "normalization.mean must be a list of 3, received 4: [1, 2, 3, 4] ({}).",
        ),
        (
            "mean: [0.286, 0.286, 0.286]",
            "mean: 0.286",
            "normalization.mean must be a list, [...] or lines that begin with '- ', received 0.286",
        ),
        ("std: [0.353, 0.353, 0.353]", "std: [0.353, 0, 0.353]", "normalization.std.1 must be > 0, received 0 ({})."),
        (
            "sources: [{kind: idx, images: test-images, labels: test-labels}]",
            "sources: []",
            "evaluation.sources must be a list of at least 1, received 0: [] ({}).",
        ),
        (
            "  - name: distill",
            "  - name: dis till",
            "name must be text that matches ^[A-Za-z0-9_-]+$, received 'dis till' ({}).",
        ),
        ("temperature: 2.0", "tau: 2.0", "loss.kl.tau is an unknown key ({}). Valid here: weight, temperature."),
        (
            "learning_rate: 0.1\n",
            "learning_rat: 0.1\n",
            "optimizer.learning_rat is an unknown key ({}). Did you mean 'learning_rate'? Valid here: kind,",
        ),
        (
            "horizontal_flip",
            "horizontalflip",
            "view.horizontalflip is an unknown key ({}). Did you mean 'horizontal_flip'?",
        ),
        (
            "global_batch_size",
            "globl_batch_size",
            "globl_batch_size is an unknown key ({}). Did you mean 'global_batch_size'?",
        ),
        (
            "    epochs: 2",
            "    seed: 2",
            "stages.finetune.seed is not a key of a stage ({}). It holds for the whole recipe: put it at the top.",
        ),
        (
            "ResNet18, ",
            "ResNet19, ",
            "model.name: unknown model 'ResNet19'. Did you mean 'ResNet18'? Valid: " + ", ".join(MODELS),
        ),
    ],
)
def test_an_error_says_key_expected_received_line_and_what_to_do(old, new, expected):
    found = errors((old, new))
    assert any(expected.format(f"r.yaml, line {line_of(old)}") in line for line in found), found


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "device_batch_size: 32",
            "device_batch_size: 30",
            "device_batch_size must divide global_batch_size 64, received 30 (r.yaml, line {}).",
        ),
        (
            "crop_px: 28",
            "crop_px: 32",
            "evaluation.crop_px must not exceed resize_short_px 28, received 32 (r.yaml, line {}).",
        ),
        (
            "range: [0, 1000]",
            "range: [5, 5]",
            "data.sources.0.range must be [first, end) with first < end, received [5, 5] (r.yaml, line {}).",
        ),
        (
            "kind: padded, padding_px: 2",
            "kind: random_area, scale: [0.5, 2], ratio: [1, 1], sampling: usual",
            "view.crop.scale must not exceed 1, received [0.5, 2.0] (r.yaml, line {}).",
        ),
        (
            "kind: padded, padding_px: 2",
            "kind: random_area, scale: [0.5, 1], ratio: [2, 1], sampling: usual",
            "view.crop.ratio must be [low, high] with low <= high, received [2.0, 1.0] (r.yaml, line {}).",
        ),
        (
            "schedule: {kind: cosine, warmup_epochs: 1",
            "schedule: {kind: cosine, warmup_epochs: 5",
            "schedule must not warm up for longer than the stage's 4 epochs, "
            "received warmup_epochs 5 (r.yaml, line {}).",
        ),
    ],
)
def test_a_rule_between_keys_is_reported_on_its_line_and_beside_other_errors(old, new, expected):
    found = errors((old, new), ("seed: 1\n", "seed: -1\n"))
    assert expected.format(line_of(old)) in found
    assert len(found) == 2


def test_a_rule_of_a_whole_section_points_at_the_sections_line():
    text = EXAMPLE.replace("      kl: null\n      cross_entropy: {weight: 1, label_smoothing: 0.1}", "      kl: null")
    with pytest.raises(UserError) as error:
        parse_recipe(text, "r.yaml")
    place = f"(r.yaml, line {line_of('    loss:')})"
    assert str(error.value).startswith("stages.finetune.loss must have at least one of: cross_entropy, kl,")
    assert place in str(error.value)


def test_teacher_and_loss_must_go_together():
    assert errors(("    teacher: null\n", "\n")) == [
        "stages.finetune.loss does not use the section `teacher`: add a term such as kl, or remove the section "
        f"(r.yaml, line {line_of('    loss:')})."
    ]
    assert errors(("    epochs: 4", "    epochs: 4\n    teacher: null"))[0].startswith(
        "loss compares with a teacher (kl): add the section `teacher`"
    )


STORED = "batch_norm: stored\n  labels: {folder: store}"


def test_answers_that_depend_on_the_batch_or_are_maps_cannot_be_stored():
    text = EXAMPLE.replace("batch_norm: stored", STORED.replace("stored", "batch"))
    place = f"(r.yaml, line {line_of('  batch_norm: stored') + 1})"
    with pytest.raises(UserError, match=r"teacher\.labels does not go with batch_norm 'batch': the answer to") as error:
        parse_recipe(text, "r.yaml")
    assert place in str(error.value)
    maps = KL + "\n  feature_mse: {weight: 1, student_layer: stage4, teacher_layer: stage4}"
    text = EXAMPLE.replace("batch_norm: stored", STORED).replace(KL, maps)
    with pytest.raises(UserError, match=r"loss must have no feature_mse beside teacher\.labels: the store keeps"):
        parse_recipe(text, "r.yaml")


@pytest.mark.parametrize("value", ["0", "-1", "true", "1.5", "al"])
def test_how_many_classes_are_stored(value):
    with pytest.raises(UserError, match=r"teacher\.labels\.top_classes must be a whole number >= 1 or 'all', "):
        parse_recipe(EXAMPLE, "r.yaml", ["teacher.labels={folder: x}", f"teacher.labels.top_classes={value}"])
    for good in ("1", "all", "2000"):
        recipe = parse_recipe(EXAMPLE, "r.yaml", ["teacher.labels={folder: x}", f"teacher.labels.top_classes={good}"])
        assert str(recipe.stages[0].labels.top_classes) == good
        assert parse_recipe(resolved_yaml(recipe), "resolved.yaml") == recipe


def test_mixup_groups_fill_a_batch():
    [found] = errors(("    epochs: 4", "    epochs: 4\n    mixup: {alpha: 0.2, group_size: 3}"))
    assert found.startswith(
        "stages.distill.mixup must have a group_size that divides device_batch_size 32, received 3 (r.yaml, line "
    )


MIXED_BOTH = "    epochs: 4\n    mixup: {alpha: 0.2, group_size: 4%s}\n    cutmix: {alpha: 1.0, group_size: %d%s}"


@pytest.mark.parametrize(
    ("filling", "problem"),
    [
        (("", 4, ""), "and so must mixup, together at most 1, for a group is mixed in one way; received none and none"),
        ((", probability: 0.5", 4, ""), "received none and 0.5"),
        ((", probability: 0.5", 4, ", probability: 0.6"), "received 0.6 and 0.5. Usual: 0.5 and 0.5"),
        ((", probability: 0.5", 8, ", probability: 0.5"), "must have the group_size of mixup, 4, received 8"),
        ((", probability: 0.5", 3, ", probability: 0.5"), "that divides device_batch_size 32, received 3"),
    ],
)
def test_mixup_and_cutmix_go_together_when_each_has_its_share(filling, problem):
    [found] = errors(("    epochs: 4", MIXED_BOTH % filling))
    assert found.startswith("stages.distill.cutmix must have ") and problem in found
    good = MIXED_BOTH % (", probability: 0.5", 4, ", probability: 0.5")
    assert parse_recipe(EXAMPLE.replace("    epochs: 4", good), "r.yaml").stages[0].mix_group_size == 4


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "view.policy={kind: autoagment}",
            "view.policy.kind must be one of autoaugment, randaugment, received 'autoagment'",
        ),
        ("view.policy={kind: autoaugment, magnitude: 9}", "view.policy.magnitude is an unknown key"),
        ("view.policy={kind: randaugment, operations: 2}", "view.policy.magnitude is missing"),
        ("view.policy={kind: randaugment, operations: 0, magnitude: 9}", "view.policy.operations must be >= 1"),
        ("view.policy={kind: randaugment, operations: 2, magnitude: 28}", "view.policy.magnitude must be <= 10"),
        ("view.erasing={probability: 0, area: [0.1, 0.2], aspect: [0.3, 3]}", "view.erasing.probability must be > 0"),
        ("view.erasing={probability: 1, area: [0.1, 1.2], aspect: [0.3, 3]}", "view.erasing.area must not exceed 1"),
        ("view.erasing={probability: 1, area: [0.4, 0.2], aspect: [0.3, 3]}", "view.erasing.area must be [low, high]"),
        ("view.erasing={probability: 1, area: [0.1, 0.2], aspect: [0, 3]}", "view.erasing.aspect.0 must be > 0"),
        ("cutmix={alpha: 0, group_size: 4}", "cutmix.alpha must be > 0"),
        ("cutmix={alpha: 1, group_size: 4, probability: 1.5}", "cutmix.probability must be <= 1"),
    ],
)
def test_what_a_view_cannot_be(override, problem):
    with pytest.raises(UserError) as error:
        parse_recipe(EXAMPLE, "r.yaml", [override])
    assert problem in str(error.value)


def test_stage_names_differ():
    [found] = errors(("- name: finetune", "- name: distill"))
    assert found == f"stages must have names that differ, received twice: distill (r.yaml, line {line_of('stages:')})."


def test_a_missing_key_names_the_sections_line():
    assert errors((", temperature: 2.0", "")) == [
        f"loss.kl.temperature is missing (r.yaml, line {line_of(KL)}). Typical: 1-4."
    ]
    assert errors(("seed: 1\n", "\n")) == ["seed is missing (r.yaml, line 1)."]


def test_a_required_key_that_a_stage_removes_is_reported_there():
    assert errors(("    epochs: 4", "    epochs: null")) == [
        f"stages.distill.epochs must be there, received null (r.yaml, line {line_of('    epochs: 4')})."
    ]


def test_an_error_in_a_shared_key_is_reported_once():
    assert len(errors(("learning_rate: 0.1\n", "learning_rate: -0.1\n"))) == 1


def test_a_stage_that_is_no_section():
    text = EXAMPLE[: EXAMPLE.index("stages:")] + "stages: [distill]\n"
    with pytest.raises(UserError, match=r"^stages.0 must be a section, lines of `key: value`, received 'distill'"):
        parse_recipe(text, "r.yaml")


def test_all_errors_come_at_once_in_the_order_of_the_lines():
    found = errors(
        ("seed: 1\n", "seed: -1\n"),
        ("device_batch_size: 32", "device_batch_size: 30"),
        ("range: [0, 1000]", "range: [5, 5]"),
        ("kind: padded", "kind: paded"),
        ("ResNet34", "ResNet35"),
        ("temperature: 2.0", "temperature: 0.0"),
        ("learning_rate: 0.1\n", "learning_rat: 0.1\n"),
        ("    epochs: 2", "    epochs: 2.5"),
        ("schedule: {kind: constant,", "schedule: {kind: constant, kind: step,"),
    )
    lines = [int(line.split("r.yaml, line ")[1].split(")")[0]) for line in found]
    assert lines == sorted(lines)
    assert len(found) == 10  # the misspelt key is missing, too


def test_every_key_of_a_stage_but_its_name_may_stand_at_the_top():
    assert set(Stage.model_fields) & set(Recipe.model_fields) == {"name"}


SERIES = "name: ResNet18, width: 0.25, stem_stride: 1"
OWN = "name: mynets:tiny, arguments: {depth: 3, act: relu, scale: 0.5, bias: true}"


def test_a_factory_takes_arguments_and_a_classifier_and_any_layer_of_its_network():
    text = EXAMPLE.replace(SERIES, f"{OWN}, classifier: head.2")
    maps = "{weight: 1, student_layer: a.0, teacher_layer: stage2}"
    recipe = parse_recipe(text, "r.yaml", [f"stages.distill.loss.feature_mse={maps}"])
    assert recipe.model.arguments == {"depth": 3, "act": "relu", "scale": 0.5, "bias": True}
    assert [type(value) for value in recipe.model.arguments.values()] == [int, str, float, bool]
    assert parse_recipe(resolved_yaml(recipe), "resolved.yaml") == recipe


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("name: mynets:tiny, width: 0.5", "model.width must be left out beside the factory mynets:tiny: it means"),
        ("name: mynets:tiny, stem_stride: 1", "model.stem_stride must be left out beside the factory mynets:tiny"),
        ("name: mynets:tiny, data_format: NHWC", "model.data_format must be left out beside the factory mynets:tiny"),
        ("name: ResNet18, arguments: {a: 1}", "model.arguments must be left out beside ResNet18"),
        ("name: ResNet18, classifier: fc", "model.classifier must be left out beside ResNet18"),
        ("name: mynets.py:tiny", "model.name must name the module, not its file: mynets:tiny"),
        ("name: os:system", "model.name must not be of a module of Python itself, received 'os:system'"),
        ("name: 'mynets:'", "model.name must be a name that `distill zoo` lists or module:function"),
        ("name: a:b, arguments: {num_classes: 3}", "model.arguments must not have num_classes"),
        ("name: a:b, arguments: {'x y': 3}", "model.arguments must have the names of a function's arguments as keys"),
        ("name: a:b, arguments: {lambda: 3}", "model.arguments must have the names of a function's arguments as keys"),
        ("name: a:b, arguments: {x: [1]}", "model.arguments.x must be a number, text, true or false, received [1]"),
        ("name: a:b, arguments: {x: .nan}", "model.arguments.x must be a number, text, true or false, received nan"),
        ("name: a:b, arguments: 3", "model.arguments must be a section, lines of `key: value`, received 3"),
        ("name: a:b, classifier: ''", "model.classifier must be text that is not empty, received ''"),
    ],
)
def test_what_does_not_go_with_a_factory_or_without(model, expected):
    (error,) = errors((SERIES, model))
    assert error.startswith(expected)
    assert f"(r.yaml, line {line_of('model:')})" in error


def test_what_stages_and_layers_the_series_has_is_told_at_the_key():
    multipliers = "    epochs: 2\n    stage_lr_multipliers: [0, 0, 0, 0, 1]"
    text = EXAMPLE.replace(SERIES, OWN).replace("    epochs: 2", multipliers)
    with pytest.raises(UserError) as error:
        parse_recipe(text, "r.yaml")
    assert str(error.value) == (
        "stages.finetune.stage_lr_multipliers must be left out beside the factory mynets:tiny: only networks of the "
        f"series have these stages (r.yaml, line {line_of('    epochs: 2') + 1})."
    )
    for student, teacher, wrong in (("stage5", "stage4", "student"), ("stage4", "stage5", "teacher")):
        maps = f"{KL}\n  feature_mse: {{weight: 1, student_layer: {student}, teacher_layer: {teacher}}}"
        with pytest.raises(UserError) as error:
            parse_recipe(EXAMPLE.replace(KL, maps).replace("kl: null", "kl: null\n      feature_mse: null"), "r.yaml")
        assert f"loss.feature_mse.{wrong}_layer must be 'stem', 'stage1', " in str(error.value)
        assert "received 'stage5'. Did you mean 'stage4'?" in str(error.value)
        assert f"(r.yaml, line {line_of(KL) + 1})" in str(error.value)
