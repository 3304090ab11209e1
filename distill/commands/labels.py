"""`distill labels`: parse, call, print."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

from typing import Annotated

import typer

from distill.commands.command_line import load_named, require_paddle
from distill.commands.options import DebugOption, DeviceName, DeviceOption, RecipeArgument, SetOption
from distill.errors import RunError

labels_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
StageOption = Annotated[
    str | None, typer.Option("--stage", metavar="NAME", help="Default: every stage that has teacher.labels.")
]


@labels_app.callback()
def _labels() -> None:
    """Store a teacher's answers once, for every later run.

    `distill train` reads what is stored, and computes and adds what is not: a rerun, another student or another loss
    needs no teacher. A recipe asks for it in its teacher:

    \b
      teacher:
        labels:
          folder: labels/imagenet    # the store
          top_classes: 10            # or all: what is kept of an answer
          views: 4                   # epoch 4 repeats the views of epoch 0: a fixed disk for any number of epochs
          missing: compute           # or wait, for `distill labels build` on other devices or hosts
        devices: [gpu:6, gpu:7]      # or let the run start them itself, and wait

    \b
    Begin with:
      distill labels info RECIPE
    """


@labels_app.command("build")
def build_labels(
    recipe: RecipeArgument,
    stage: StageOption = None,
    epochs: Annotated[
        str | None, typer.Option("--epochs", metavar="FIRST:END", help="For these epochs of training. Default: all.")
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--part",
            metavar="I/N",
            help="The I-th of N parts, for machines without a common folder: copy the parts together. Builders that "
            "share the folder share the work by themselves.",
        ),
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = DeviceName.AUTO,
    debug: DebugOption = False,
) -> None:
    """Compute and store the answers that are missing.

    In the order in which training needs them. Start it as often as you like, before training or beside it; stop it at
    any time, it goes on where it was.

    \b
    Examples:
      distill labels build distilled
      CUDA_VISIBLE_DEVICES=4 distill labels build distilled --stage pool --epochs 0:10
      distill labels build distilled --part 1/2
    """
    _, loaded = load_named(recipe, overrides)
    require_paddle()
    from distill.labels import build as builder
    from distill.labels.inventory import stages_with_labels
    from distill.parallel import setup_process

    numbers = stages_with_labels(loaded, stage)
    share = builder.parse_share(part) if part is not None else None
    chosen = {n: builder.parse_epochs(epochs, loaded.stages[n]) if epochs is not None else None for n in numbers}
    prepared = setup_process(device.value, seed=loaded.seed)
    for number, wanted in chosen.items():
        built = builder.build_labels(loaded, number, prepared, epochs=wanted, share=share)
        typer.echo(f"{loaded.stages[number].name}: {built}")


@labels_app.command("info")
def labels_info(
    recipe: RecipeArgument,
    stage: StageOption = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure the teacher here for some seconds.")
    ] = True,
    overrides: SetOption = None,
    device: DeviceOption = DeviceName.AUTO,
    debug: DebugOption = False,
) -> None:
    """Say what is stored, and what it takes.

    The disk for all answers, and the teacher's time for those that are missing; before anything exists, too.

    \b
    Examples:
      distill labels info distilled
      distill labels info distilled --no-measure --set teacher.labels.views=10
    """
    _, loaded = load_named(recipe, overrides)
    require_paddle()
    from distill.labels.estimate import describe_store
    from distill.labels.inventory import stages_with_labels
    from distill.parallel import setup_process

    prepared = setup_process(device.value, seed=loaded.seed) if measure else None
    for number in stages_with_labels(loaded, stage):
        typer.echo("\n".join(describe_store(loaded, number, device=prepared)))


@labels_app.command("verify")
def verify_labels(
    recipe: RecipeArgument,
    stage: StageOption = None,
    samples: Annotated[
        int, typer.Option("--samples", min=0, help="How many answers the teacher computes once more to compare.")
    ] = 256,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove damaged shards: the next run computes them again.")
    ] = False,
    overrides: SetOption = None,
    device: DeviceOption = DeviceName.AUTO,
    debug: DebugOption = False,
) -> None:
    """Check what is stored.

    The checksums of all sealed shards, and a random sample of answers against the live teacher. The sample must be
    the same bits where Paddle Inference computes in float32 on a CPU; elsewhere it may differ as much as two engines
    may. The exit status is 1 where anything is wrong.

    \b
    Example:
      distill labels verify distilled --samples 1000
    """
    _, loaded = load_named(recipe, overrides)
    require_paddle()
    from distill.labels import verify
    from distill.labels.inventory import stages_with_labels
    from distill.parallel import setup_process

    prepared = setup_process(device.value, seed=loaded.seed)
    wrong = []
    for number in stages_with_labels(loaded, stage):
        found = verify.verify_labels(loaded, number, prepared, samples=samples, repair=repair)
        typer.echo(f"{loaded.stages[number].name}: {found}")
        wrong += found.problems(repair)
    if wrong:
        raise RunError("\n".join(wrong))
