"""`distill recipes`, `validate` and `schema`: parse, call, print."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.commands.command_line import console, load_named
from distill.commands.options import DebugOption, RecipeArgument, ScaleDownDataOption, SetOption
from distill.errors import UserError

if TYPE_CHECKING:
    from distill.recipe import Recipe

recipes_app = typer.Typer(rich_markup_mode=None)
FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="Where the recipes are. Default: ./recipes, else the checkout's.")
]


def validate(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE", help="Files, or names in `recipes`.")],
    overrides: SetOption = None,
    small: Annotated[
        bool, typer.Option("--scale-down", help="Print what `distill train --scale-down` would run, in full.")
    ] = False,
    small_data: ScaleDownDataOption = None,
    debug: DebugOption = False,
) -> None:
    """Check recipes without running them.

    States every error at once: the key, what was expected and received, the line.

    \b
    Examples:
      distill validate recipes/fashion_mnist/distilled.yaml
      distill validate distilled --scale-down
      distill validate distilled --set optimizer.learning_rate=0.2
    """
    errors = []
    for name in recipes:
        try:
            path, recipe = load_named(name, overrides)
        except UserError as error:
            errors.append(str(error))
            continue
        if small or small_data is not None:
            typer.echo(f"# {path} in small\n{_scaled_down_yaml(recipe, small_data)}", nl=False)
        else:
            stages = ", ".join(stage.name for stage in recipe.stages)
            typer.echo(f"{path} is valid: {recipe.name}, {recipe.model.name}, stages: {stages}")
    if errors:
        raise UserError("\n".join(errors))


@recipes_app.callback(invoke_without_command=True)
def _recipes(context: typer.Context, folder: FolderOption = None) -> None:
    """List the recipes, or show one.

    The list has teacher, student, data, expected and measured top-1 of each.

    \b
    Examples:
      distill recipes
      distill recipes show distilled
    """
    if context.invoked_subcommand is None:
        list_recipes(folder)


@recipes_app.command("list")
def list_recipes(folder: FolderOption = None, debug: DebugOption = False) -> None:
    """Print the table of all recipes."""
    from distill.recipe.index import print_table, read_entries, recipe_files, recipes_folder

    print_table(read_entries(recipe_files(folder or recipes_folder())), console())


@recipes_app.command("show")
def show_recipe(recipe: RecipeArgument, folder: FolderOption = None, debug: DebugOption = False) -> None:
    """Print a recipe's file; copy it to write your own.

    \b
    Example:
      distill recipes show distilled > my_recipe.yaml
    """
    from distill.recipe.index import find_recipe

    path = find_recipe(recipe, folder)
    try:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def schema(
    output: Annotated[Path | None, typer.Option(help="Write to this file. Default: standard output.")] = None,
    debug: DebugOption = False,
) -> None:
    """Write the JSON schema of recipes.

    Editors complete and check from it; a recipe names it in its first line.

    \b
    Example:
      distill schema --output recipes/recipe.schema.json
    """
    from distill.recipe.json_schema import schema_text

    if output is None:
        typer.echo(schema_text(), nl=False)
        return
    try:
        output.write_text(schema_text(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}. Choose another file with --output") from error
    typer.echo(f"wrote {output}", err=True)


def _scaled_down_yaml(recipe: "Recipe", data: Path | None) -> str:
    """The recipe in small, in full; writes nothing."""
    from distill.recipe.file import resolved_yaml
    from distill.rehearsal.scale_down import scale_down, scaled_down_name
    from distill.rehearsal.small_inputs import SmallImages

    inputs = Path("runs") / scaled_down_name(recipe) / "inputs"
    return resolved_yaml(scale_down(recipe, SmallImages(data, inputs).data, inputs))
