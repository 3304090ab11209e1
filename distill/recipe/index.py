"""The recipes of a folder: finding one by name, and the table of all."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from distill.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

    from distill.recipe import AnySource, Recipe, Result

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        file: The recipe's file.
        recipe: What it holds, None where it is not valid.
    """

    file: Path
    recipe: "Recipe | None"


def recipes_folder() -> Path:
    """The folder `recipes` here, or else the checkout's.

    Raises:
        UserError: There is neither.
    """
    for folder in (Path("recipes"), CHECKOUT / "recipes"):
        if folder.is_dir():
            return folder
    raise UserError(f"no folder `recipes` in {Path.cwd()} or {CHECKOUT}: name one with --folder")


def recipe_files(folder: Path) -> list[Path]:
    """All recipes under a folder, sorted, ResNet18 before ResNet101; a folder `mining` belongs to `data-mining`.

    Raises:
        UserError: The folder is not there or holds none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    found = sorted((path for path in folder.rglob("*.yaml") if path.is_file()), key=_numbers_by_size)
    files = [path for path in found if "mining" not in path.relative_to(folder).parts[:-1]]
    if not files:
        raise UserError(f"{folder} holds no recipe (*.yaml)")
    return files


def _numbers_by_size(path: Path) -> list[tuple[str, int]]:
    return [(text, int(number or 0)) for text, number in re.findall(r"([^0-9]*)([0-9]*)", str(path))]


def find_recipe(name: str, folder: Path | None = None) -> Path:
    """The file that is meant by a path, a file's name without `.yaml`, or the `name` that a recipe states.

    Raises:
        UserError: There is no such file, or several; names the nearest recipe.
    """
    if Path(name).is_file():
        return Path(name)
    if "/" in name or name.endswith((".yaml", ".yml")):
        raise UserError(f"there is no recipe {name}. `distill recipes` lists those there are")
    files = recipe_files(folder or recipes_folder())
    found = [file for file in files if file.stem == name]
    if not found:
        named = {entry.file: entry.recipe.name for entry in read_entries(files) if entry.recipe}
        found = [file for file in named if named[file] == name]
        if not found:
            valid = [*named.values()]
            near = did_you_mean(name, [*valid, *(file.stem for file in files)])
            raise UserError(f"there is no recipe {name!r}, expected a path or one of: {', '.join(valid)}.{near}")
    if len(found) > 1:
        raise UserError(f"several recipes are named {name!r}, give a path: {', '.join(map(str, found))}")
    return found[0]


def read_entries(files: Iterable[Path]) -> list[Entry]:
    """Reads recipes; a file that is not valid becomes an entry without one."""
    from distill.recipe.file import load_recipe

    entries = []
    for file in files:
        try:
            entries.append(Entry(file, load_recipe(file)))
        except UserError:
            entries.append(Entry(file, None))
    return entries


def print_table(entries: Sequence[Entry], console: "Console") -> None:
    """Prints a row for each recipe, by folder: what is taught by what on which images, and the accuracies."""
    from rich.table import Table

    for folder, group in groupby(entries, key=lambda entry: entry.file.parent):
        # not the table's title, which is broken where the table is narrower
        console.print(f"{folder}/", style="bold", soft_wrap=True, markup=False, highlight=False)
        table = Table(box=None, pad_edge=False)
        for header in ("recipe", "teacher", "student", "data"):
            table.add_column(header, overflow="fold", header_style="dim")
        for header in ("expected", "measured"):
            table.add_column(header, overflow="fold", header_style="dim", justify="right")
        for entry in group:
            table.add_row(*_cells(entry))
        console.print(table)
        console.print()
    console.print("expected, measured: top-1 (%); -: not stated, not yet run", style="dim")


def _cells(entry: Entry) -> tuple[str, ...]:
    recipe = entry.recipe
    if recipe is None:
        return entry.file.stem, "not valid:", f"distill validate {entry.file}"
    return (
        recipe.name,
        teachers(recipe),
        recipe.model.name if recipe.model.width == 1 else f"{recipe.model.name} x{recipe.model.width:g}",
        data(recipe),
        _top1(recipe.expected),
        _top1(recipe.measured),
    )


def teachers(recipe: "Recipe") -> str:
    """The teachers of all stages, "-" without any."""
    names = [model.name for stage in recipe.stages if stage.teacher for model in stage.teacher.models]
    return ", ".join(dict.fromkeys(names)) or "-"


def data(recipe: "Recipe") -> str:
    """The training images' files or folders, each by its last two parts, a line each."""
    sources = [source for stage in recipe.stages for source in stage.data.sources]
    return "\n".join(dict.fromkeys("/".join(_where(source).parts[-2:]) for source in sources))


def _where(source: "AnySource") -> Path:
    match source.kind:
        case "image_list":
            return Path(source.path)
        case "class_folders":
            return Path(source.root)
        case "idx":
            return Path(source.images)


def _top1(result: "Result | None") -> str:
    return f"{result.top1:.1%}".rstrip("%") if result else "-"
