"""`distill launch`: parse, call, print."""

# "\b" in a docstring keeps the lines of the examples apart; a raw docstring would not hold it.
# ruff: noqa: D301

import sys
from pathlib import Path
from typing import Annotated

import typer

from distill.commands.command_line import load_named
from distill.commands.options import (
    DebugOption,
    DeviceName,
    DeviceOption,
    OutputOption,
    RecipeArgument,
    ResumeOption,
    SetOption,
)
from distill.errors import UserError


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
