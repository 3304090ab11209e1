"""Every recipe in the repository is valid, says where it comes from, and says so truly."""

import re
from pathlib import Path

import pytest

from distill.benchmark.count import multiply_accumulates
from distill.benchmark.tables import published_models
from distill.models.plan import plan_network
from distill.models.specs import SPECS
from distill.recipe.file import load_recipe
from distill.teachers.classes import read_class_map

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "mining")
IMAGENET = [path for path in RECIPES if path.parent.name == "imagenet1k"]
SERIES = {row.model: row for row in published_models() if not row.model.endswith("_wsl")}

# What the estimates of the headers rest on. Images: ImageNet-1k's training set and what mining chooses at most.
IMAGES = {"data/ILSVRC2012/train_list.txt": 1_281_167, "runs/imagenet22k_ssld/selected.txt": 4_000_000}
# Images a second on 8 V100 (Paddle EDL): ResNet50_vd alone, and taught by ResNeXt101_32x16d_wsl.
ALONE, TAUGHT = 1828.0, 656.0


def header(path):
    return [line for line in path.read_text().splitlines()[1:] if line.startswith("#")]


def fact(path, name):
    """What the header says under a name, its lines joined."""
    lines = header(path)
    first = next(i for i, line in enumerate(lines) if line.startswith(f"# {name}:"))
    more = []
    for line in lines[first + 1 :]:
        if not line.startswith("#   "):
            break
        more.append(line.lstrip("# "))
    return " ".join([lines[first].partition(":")[2].strip(), *more])


def test_there_are_as_many_as_we_think():
    assert len(RECIPES) == 36


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_its_header_complete(path):
    recipe = load_recipe(path)
    assert path.read_text().splitlines()[0] == "# yaml-language-server: $schema=../recipe.schema.json"
    for name in ("Source:", "Command:", "Hardware:", "Measured:"):
        assert sum(name in line for line in header(path)) == 1, name
    command = next(line for line in header(path) if "Command:" in line)
    assert command.split()[-1] == str(path.relative_to(ROOT))
    measured = next(line for line in header(path) if "Measured:" in line)
    if recipe.measured is None:
        assert measured.endswith("not yet run")
    else:
        assert f"{recipe.measured.top1:.2%}".replace("%", " %") in measured


def test_names_differ():
    names = [load_recipe(path).name for path in RECIPES]
    assert len(set(names)) == len(names)


# --- ImageNet-1k --------------------------------------------------------------------------------


def test_every_row_of_the_series_has_its_recipe():
    assert len(SERIES) == 18
    assert {path.stem for path in IMAGENET} >= set(SERIES)


@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.stem)
def test_name_and_network_are_those_of_the_row_and_the_accuracy_is_the_published_one(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    row = SERIES.get(recipe.name)
    if row is None:
        assert recipe.expected is None
        assert fact(path, "Expected").startswith("not published")
        return
    assert recipe.model.name == row.network
    assert recipe.stages[-1].evaluation.crop_px == row.crop_px
    assert (recipe.expected.top1, recipe.expected.top5) == (row.top1, row.top5)
    stated = f"{100 * row.top1:.1f} % top-1, {100 * row.top5:.1f} % top-5 (published)"
    assert fact(path, "Expected") == stated


@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.stem)
def test_images_are_prepared_as_published(path):
    for stage in load_recipe(path).stages:
        assert stage.normalization.mean == (0.485, 0.456, 0.406)
        assert stage.normalization.std == (0.229, 0.224, 0.225)
        assert [source.path for source in stage.evaluation.sources] == ["data/ILSVRC2012/val_list.txt"]
        resize = {224: 256, 320: 320}
        assert stage.evaluation.resize_short_px == resize[stage.evaluation.crop_px]
        assert stage.view.size_px == stage.evaluation.crop_px


@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.stem)
def test_the_header_names_the_batch_that_the_recipe_has(path):
    gpus, images = map(int, re.match(r"(\d+) GPUs with (\d+) images each", fact(path, "Hardware")).groups())
    for stage in load_recipe(path).stages:
        assert stage.device_batch_size == images
        assert stage.global_batch_size == gpus * images
    other = re.search(r"--set device_batch_size=(\d+)", fact(path, "Hardware"))
    if other is not None:
        load_recipe(path, [f"device_batch_size={other[1]}"])


@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.stem)
def test_the_header_names_epochs_and_cost_that_the_recipe_has(path):
    recipe = load_recipe(path)
    cost = fact(path, "Cost")
    stated = set(re.findall(r"(\d+) x (\d\.\d{3}) M", cost))
    assert {(str(passes(recipe, stage)), f"{images(stage) / 1e6:.3f}") for stage in recipe.stages} <= stated
    days = sum(gpu_days(recipe, stage) for stage in recipe.stages)
    assert cost.startswith(f"{days:.2g} GPU days" if days < 10 else f"{days:.0f} GPU days")


def images(stage):
    return sum(IMAGES[source.path] for source in stage.data.sources)


def passes(recipe, stage):
    """How often the student's layers see the images: once where the classifier alone learns and views stay."""
    once = stage.freeze and recipe.runtime.reuse_features and not stage.view.is_random
    return 1 if once else stage.epochs


def macs(network, size_px=224):
    return multiply_accumulates(plan_network(SPECS[network]), size_px)


def gpu_days(recipe, stage):
    """V100 days by the published rates; other networks scaled by multiply-accumulates."""
    student = macs(recipe.model.name, stage.view.size_px) / macs("ResNet50_vd") / ALONE
    if stage.freeze:  # forward alone; backward takes twice as much
        student /= 3
    seconds = passes(recipe, stage) * images(stage) * student
    for model in stage.teacher.models if stage.teacher else ():
        teacher = macs(model.name, stage.view.size_px) / macs("ResNeXt101_32x16d_wsl") * (1 / TAUGHT - 1 / ALONE)
        seconds += len(stage.view_epochs) * images(stage) * teacher
    return 8 * seconds / 86400


def test_only_the_classifier_learns_in_the_fix_finetune():
    from distill.models import create_model
    from distill.student import Student

    recipe = load_recipe(ROOT / "recipes/imagenet1k/Fix_ResNet50_vd_ssld_v2.yaml")
    student = Student(create_model(recipe.model.name, 1000), freeze=recipe.stages[0].freeze)
    assert [name for name, _ in student.parameters_to_train()] == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.stem)
def test_the_table_of_recipes_has_its_row(path):
    recipe = load_recipe(path)
    rows = [line for line in (ROOT / "recipes/README.md").read_text().splitlines() if line.startswith("| ")]
    [cells] = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in rows if f"| imagenet1k/{path.stem} |" in row
    ]
    assert len(cells) == 7
    assert cells[3] == f"`distill launch {path.relative_to(ROOT)}`"
    assert cells[4] == re.match(r"[\d.]+ GPU days", fact(path, "Cost"))[0]
    assert cells[5] == (f"{100 * recipe.expected.top1:.1f} %" if recipe.expected else "-")
    assert cells[6] == (f"{100 * recipe.measured.top1:.2f} %" if recipe.measured else "not yet run")


# --- Fashion-MNIST ------------------------------------------------------------------------------


def test_the_shipped_teacher_fits_its_recipe():
    from distill.models import create_model
    from distill.weights import load_into

    section = load_recipe(ROOT / "recipes/fashion_mnist/distilled.yaml").stages[0].teacher.models[0]
    trained = load_recipe(ROOT / "recipes/fashion_mnist/teacher.yaml").model
    assert (section.name, section.width, section.stem_stride) == (trained.name, trained.width, trained.stem_stride)
    model = create_model(section.name, 10, width=section.width, stem_stride=section.stem_stride)
    load_into(model, ROOT / section.weights)


# --- CIFAR-10 -----------------------------------------------------------------------------------


def test_the_map_of_imagenets_classes_is_one():
    classes = read_class_map(ROOT / "recipes/cifar10/imagenet_classes.txt", students=10, teachers=1000)
    chosen = classes.teacher_classes.tolist()
    assert len(classes.starts) == 10 and len(set(chosen)) == len(chosen) and 0 <= min(chosen) <= max(chosen) <= 999


def test_the_map_of_imagenets_classes_names_what_it_maps():
    text = (ROOT / "recipes/cifar10/imagenet_classes.txt").read_text()
    named = re.findall(r"^(\d)  [\d,-]+ +# (\w+): ", text, re.MULTILINE)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert named == [(str(number), name) for number, name in enumerate(names)]
