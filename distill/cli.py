"""The command line: parse, call, print. Whatever takes time to import is imported inside its command."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.commands.board import board
from distill.commands.card import card
from distill.commands.command_line import load_named, require_paddle, run_command
from distill.commands.export import export
from distill.commands.labels import labels_app
from distill.commands.latency import latency
from distill.commands.options import (
    DebugOption,
    DeviceName,
    DeviceOption,
    JsonOption,
    RecipeArgument,
    RunOrRecipeArgument,
    SetOption,
    VersionOption,
    WeightsOption,
)
from distill.commands.report import report
from distill.commands.weights import weights_app
from distill.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from distill.recipe import Recipe

app = typer.Typer(
    name="distill",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich takes longer than everything else of `distill --help`
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="""Train small image classifiers that learn from large ones, on PaddlePaddle.

    A recipe (YAML) states a whole experiment; these commands list, check and run it. A run is a folder that
    describes itself.

    \b
    Begin with:
      distill recipes                      what there is
      distill validate RECIPE              every error of a recipe, with its line
      distill train RECIPE                 run it
      distill launch RECIPE                run it on several GPUs or hosts
      distill labels info RECIPE           what storing the teacher's answers would need
      distill evaluate runs/NAME           its accuracy
      distill predict IMAGE --run runs/NAME
      distill export runs/NAME --format onnx    its student for other programs
      distill report runs/NAME             a page about it
      distill card runs/NAME               its model card, which training leaves too
    """,
)
recipes_app = typer.Typer(rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")
app.add_typer(labels_app, name="labels")
app.add_typer(weights_app, name="weights")
benchmark_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Measure what a recipe needs, and networks."
)
app.add_typer(benchmark_app, name="benchmark")


OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="The run's folder. Default: runs/<the recipe's name>.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in the folder from its last checkpoint, or start it.")
]
RecordsOption = Annotated[
    Path, typer.Option("--records", metavar="FILE", help="Where measured accuracies are kept, a JSON object a line.")
]
DEFAULT_RECORDS = Path("runs/measured.jsonl")
ScaleDownOption = Annotated[
    bool,
    typer.Option(
        "--scale-down",
        help="All stages in small, in seconds: narrow networks, small views, teachers with random weights. It shows "
        "that every stage runs; accuracy means nothing.",
    ),
]
ScaleDownDataOption = Annotated[
    Path | None,
    typer.Option(
        "--scale-down-data",
        metavar="FOLDER_OR_LIST",
        help="Images for --scale-down, which it implies: a folder with a sub-folder a class, or an image list with "
        "labels whose paths are relative to its folder. Default: data/fashion-mnist.",
    ),
]
FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="Where the recipes are. Default: ./recipes, else the checkout's.")
]


@app.callback()
def _options(version: VersionOption = False) -> None:
    """The options that belong to no command."""


@app.command()
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

    print_table(read_entries(recipe_files(folder or recipes_folder())), _console())


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


@app.command()
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


@app.command()
def zoo(
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="FOLDER", help="Draw accuracy against FLOPs, parameters and latency there."),
    ] = None,
    records: RecordsOption = DEFAULT_RECORDS,
    debug: DebugOption = False,
) -> None:
    """Print the networks of the series.

    Published accuracy, FLOPs and parameters beside what we count ourselves; then what `distill evaluate --record`
    measured here. The figures (PNG and SVG) show what is published; stars in them are what was measured here on
    ImageNet-1k's whole validation set.

    \b
    Examples:
      distill zoo
      distill zoo --figures runs/figures
    """
    from distill.benchmark.measurements import read_measurements
    from distill.benchmark.zoo import zoo_table

    measured = read_measurements(records)
    zoo_table(_console(), measured)
    if figures is not None:
        from distill.benchmark.figures import draw_figures

        for path in draw_figures(figures, measured):
            typer.echo(f"wrote {path}", err=True)


@benchmark_app.command("data")
def benchmark_data(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="NAME", help="Whose images and views. Default: the first stage.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="For each measurement, > 0.")] = 10.0,
    threads: Annotated[
        str, typer.Option("--threads", metavar="N,...", help="Numbers of loader threads to measure.")
    ] = "1,2",
    student: Annotated[
        float, typer.Option("--student", min=0.0, help="How many images/s the student takes, to say what it needs.")
    ] = 1000.0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure how fast a recipe's images can be prepared, and what limits it.

    Reads, decodes and crops the recipe's own images as its training does; teacher and student take no part. First
    one thread, part by part; then the loader, as often as --threads has numbers, in images/s. Says in words what the
    bottleneck is and how many cores a student of a given speed needs. Leave the machine alone meanwhile.

    \b
    Examples:
      distill benchmark data recipes/cifar10/teacher.yaml
      distill benchmark data mine.yaml --threads 1,2,4,8 --student 2500
      distill benchmark data mine.yaml --threads 1 --set runtime.loader_processes=4 --json
    """
    _, loaded = load_named(recipe, overrides)
    try:
        counts = [int(count) for count in threads.split(",")]
    except ValueError:
        raise UserError(f"--threads must be numbers such as 1,2, received {threads!r}") from None
    from distill.benchmark import data, data_report

    report = data.benchmark_data(loaded, stage=stage, seconds=seconds, threads=counts)
    if as_json:
        typer.echo(json.dumps(data_report.report_dict(report)))
    else:
        data_report.print_report(report, _console(), student)


@app.command()
def train(
    recipe: RecipeArgument,
    output: OutputOption = None,
    resume: ResumeOption = False,
    accept_changes: Annotated[
        list[str] | None,
        typer.Option(
            "--accept-change",
            metavar="KEY",
            help="With --resume: this key of the recipe has changed on purpose; repeatable. A section's key accepts "
            "all that is in it.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Start nothing: check data, weights and disk, train a few steps of each stage in a temporary folder, "
            "and say what time, memory and disk the run will need.",
        ),
    ] = False,
    small: ScaleDownOption = False,
    small_data: ScaleDownDataOption = None,
    overrides: SetOption = None,
    device: DeviceOption = DeviceName.AUTO,
    debug: DebugOption = False,
) -> None:
    """Run a recipe, all its stages in order.

    Ctrl-C or SIGTERM saves and leaves; --resume goes on as if nothing had happened.

    \b
    Examples:
      distill train recipes/fashion_mnist/distilled.yaml
      distill train distilled --output runs/seed2 --set seed=2
      distill train distilled --resume --set epochs=90 --accept-change epochs
      distill train distilled --dry-run
      distill train distilled --scale-down        # all stages in small, in seconds
    """
    if accept_changes and not resume:
        raise UserError("--accept-change says what may differ from the run that --resume goes on with: add --resume")
    _, loaded = load_named(recipe, overrides)
    require_paddle()
    with contextlib.ExitStack() as temporary:
        if small or small_data is not None:
            inputs = Path(temporary.enter_context(tempfile.TemporaryDirectory())) if dry_run else None
            loaded = _scaled_down(loaded, small_data, output, inputs, device)
        folder = output or Path("runs") / loaded.name
        if dry_run:
            from distill.rehearsal.report import dry_run as rehearsed

            lines = rehearsed(loaded, folder, resume=resume, device=device.value, accept_changes=accept_changes or [])
            typer.echo("\n".join([*lines, "nothing was started, and nothing is left behind"]))
            return
    from distill.distributed.rank import rank_of_environment
    from distill.stages import run_recipe

    result = run_recipe(loaded, folder, resume=resume, device=device.value, accept_changes=accept_changes or [])
    if not rank_of_environment().is_first:
        return
    for name, stage in result.stages.items():
        typer.echo(f"{name}: top-1 {stage.evaluation.top1:.2%}, top-5 {stage.evaluation.top5:.2%}")
    typer.echo(f"the run is in {folder}, the student in {folder / 'student.safetensors'}")


@app.command()
def launch(
    recipe: RecipeArgument,
    output: OutputOption = None,
    nnodes: Annotated[
        int, typer.Option("--nnodes", metavar="N", min=1, help="How many hosts; run this command on each.")
    ] = 1,
    master: Annotated[
        str | None,
        typer.Option("--master", metavar="HOST:PORT", help="Where the hosts meet: host 0, and a port that is free."),
    ] = None,
    node_rank: Annotated[
        int | None, typer.Option("--node-rank", metavar="R", help="The number of this host, 0..N-1.")
    ] = None,
    devices: Annotated[
        str | None, typer.Option("--devices", metavar="0,1,...", help="GPUs of this host. Default: all of them.")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option("--ranks", metavar="N", min=1, help="So many ranks on this host's CPU, without GPUs.")
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts",
            metavar="K",
            min=0,
            help="How often all ranks start again from the last checkpoint when one fails, unless twice in a row no "
            "new checkpoint came. A wrong input, SIGTERM and Ctrl-C restart nothing.",
        ),
    ] = 0,
    resume: ResumeOption = False,
    accept_changes: Annotated[
        list[str] | None,
        typer.Option("--accept-change", metavar="KEY", help="As `distill train` has it; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Start nothing: check this host, and print what would be started, in full."),
    ] = False,
    wait_seconds: Annotated[
        float, typer.Option("--wait-seconds", min=1.0, help="How long a host waits for the others.")
    ] = 300.0,
    grace_seconds: Annotated[
        float, typer.Option("--grace-seconds", min=0.0, help="How long the ranks may save after SIGTERM or Ctrl-C.")
    ] = 60.0,
    overrides: SetOption = None,
    device: DeviceOption = DeviceName.AUTO,
    debug: DebugOption = False,
) -> None:
    """Run a recipe on several GPUs, or several hosts, as one.

    Starts `distill train` once for each GPU, through Paddle's launcher, and watches: what rank 0 says is shown, all
    ranks write logs into the run's folder, no process is left however this command ends. SIGTERM and Ctrl-C let the
    ranks save; the exit status is then 143 or 130. global_batch_size is kept whatever the number of ranks.

    \b
    Examples:
      distill launch RECIPE                                    # all GPUs of this host, be it 1 or 8
      distill launch RECIPE --devices 0,1 --max-restarts 3
      distill launch RECIPE --ranks 2                          # two ranks on the CPU, to try it
      distill launch RECIPE --dry-run                          # what would be started
    \b
    4 hosts with 8 GPUs each: the same on each of them, but for --node-rank 0, 1, 2, 3
      distill launch RECIPE --nnodes 4 --master host0:29500 --node-rank 0 --max-restarts 3 --resume
    \b
    Slurm and other schedulers: scripts/launch has files to start from, for instance
      sbatch --nodes 4 --gpus-per-node 8 scripts/launch/slurm.sbatch RECIPE
    """
    if accept_changes and not resume:
        raise UserError("--accept-change says what may differ from the run that --resume goes on with: add --resume")
    if nnodes > 1 and node_rank is None:
        raise UserError(f"--nnodes {nnodes} needs --node-rank: 0 on the host that --master names, 1.. on the others")
    path, loaded = load_named(recipe, overrides)
    from distill.distributed import launch as launching

    wanted = launching.Launch(
        path=path,
        recipe=loaded,
        output=output or Path("runs") / loaded.name,
        overrides=overrides or [],
        accept_changes=accept_changes or [],
        resume=resume,
        kind=device.value,
        hosts=nnodes,
        number=node_rank or 0,
        master=master,
        devices=[name.strip() for name in devices.split(",")] if devices is not None else [],
        ranks=ranks,
        max_restarts=max_restarts,
        grace_seconds=grace_seconds,
        wait_seconds=wait_seconds,
    )
    if dry_run:
        typer.echo("\n".join([*launching.dry_run(wanted), "nothing was started, and nothing is left behind"]))
        return
    launching.launch(wanted, sys.stdout.buffer)


@app.command()
def evaluate(
    recipe_or_run: RunOrRecipeArgument,
    weights: WeightsOption = None,
    overrides: SetOption = None,
    record: Annotated[
        bool, typer.Option("--record", help="Keep the result, with all that says what it means, for `distill zoo`.")
    ] = False,
    records: RecordsOption = DEFAULT_RECORDS,
    device: DeviceOption = DeviceName.AUTO,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure the accuracy of weights.

    On the images and with the preprocessing of the recipe's last stage.

    \b
    Examples:
      distill evaluate runs/distilled
      distill evaluate runs/distilled --record
      distill evaluate distilled --weights runs/seed2/student.safetensors --json
    """
    from distill.trained import find_trained

    loaded, weights = find_trained(recipe_or_run, weights, overrides)
    if record:
        from distill.benchmark.measurements import check_recordable

        check_recordable(loaded)
    require_paddle()
    from distill.evaluation import evaluate_weights

    result = evaluate_weights(loaded, weights, device=device.value)
    if record:
        from distill.benchmark import measurements
        from distill.parallel import setup_process

        found = measurements.measurement(loaded, weights, result, setup_process(device.value))
        measurements.record(records, found)
        typer.echo(f"recorded in {records}", err=True)
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
        return
    undecodable = f", {result.undecodable} could not be decoded" if result.undecodable else ""
    typer.echo(f"top-1 {result.top1:.2%}, top-5 {result.top5:.2%} of {result.images} images{undecodable} ({weights})")


@app.command()
def predict(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE", help="Image files, folders of them, or image lists (.txt, .parquet; paths relative to it)."
        ),
    ],
    run: Annotated[
        Path | None, typer.Option("--run", help="A run's folder, or a recipe's file together with --weights.")
    ] = None,
    exported: Annotated[
        Path | None, typer.Option("--model", metavar="FOLDER_OR_FILE", help="Instead: what `distill export` wrote.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A .safetensors or .pdparams file. Default: the run's student.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="How many classes to print.")] = 5,
    class_names: Annotated[
        Path | None,
        typer.Option(
            "--class-names", help="A text file, the name of one class a line. Default: those of --model, if it has any."
        ),
    ] = None,
    device: DeviceOption = DeviceName.AUTO,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Print the most probable classes of images.

    An image that cannot be decoded is named, the others are classified all the same; the exit status is then 1. An
    exported network computes on the CPU.

    \b
    Examples:
      distill predict shoe.png --run runs/distilled
      distill predict photographs --run runs/distilled --top-k 1 --json
      distill predict list.txt --model runs/distilled/export/onnx-int8
    """
    if (run is None) == (exported is None):
        raise UserError("say what classifies: either --run or --model")
    if exported is not None and (weights is not None or device is DeviceName.GPU):
        raise UserError("--model has its own weights and computes on the CPU: leave out --weights and --device")
    require_paddle()
    from distill import prediction

    found_images = prediction.find_images(images)
    if exported is not None:
        found = prediction.predict_exported(exported, found_images, top_k=top_k, class_names=class_names)
    elif run is not None:
        found = prediction.predict(
            run, found_images, top_k=top_k, weights=weights, class_names=class_names, device=device.value
        )
    if as_json:
        typer.echo(prediction.predictions_json(found))
    else:
        _console().print(prediction.predictions_table(found))
    if any(each.error is not None for each in found):
        raise typer.Exit(1)


app.command("export")(export)
app.command("report")(report)
app.command("board")(board)
app.command("card")(card)
benchmark_app.command("latency")(latency)


def _console() -> "Console":
    """Standard output; where nobody looks at its width (a pipe, a file), no line is broken."""
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=1000)


def _scaled_down(
    recipe: "Recipe", data: Path | None, output: Path | None, inputs: Path | None, device: DeviceName
) -> "Recipe":
    """The recipe in small; writes what it needs to `inputs`, None: into the run's folder, unless that run has it."""
    from distill.parallel import setup_process
    from distill.rehearsal.scale_down import WARNING, scale_down, scaled_down_name
    from distill.rehearsal.small_inputs import SmallImages, write_inputs
    from distill.stages import has_begun

    run = output or Path("runs") / scaled_down_name(recipe)
    begun = has_begun(run)  # it may be resumed, with what it has
    folder = run / "inputs" if inputs is None or begun else inputs
    images = SmallImages(data, folder)
    small = scale_down(recipe, images.data, folder)
    setup_process(device.value, seed=recipe.seed)
    if not begun:
        write_inputs(small, images, folder)
    typer.echo(f"scaled down to {images.description}; teachers have random weights; {WARNING}", err=True)
    return small


def _scaled_down_yaml(recipe: "Recipe", data: Path | None) -> str:
    """The recipe in small, in full; writes nothing."""
    from distill.recipe.file import resolved_yaml
    from distill.rehearsal.scale_down import scale_down, scaled_down_name
    from distill.rehearsal.small_inputs import SmallImages

    inputs = Path("runs") / scaled_down_name(recipe) / "inputs"
    return resolved_yaml(scale_down(recipe, SmallImages(data, inputs).data, inputs))


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and ends the process; see `run_command` for the exit status.

    Args:
        arguments: Default: the process's own.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    run_command(app, "distill", arguments)
