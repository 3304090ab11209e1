"""`distill launch`: everything that can be known before a rank starts, then the supervisor."""

import hashlib
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import distill
from distill.data.sampler import MicroBatchPlan
from distill.distributed.hosts import FollowingHost, Hosts, LeadingHost, Membership
from distill.distributed.local_ranks import Place, launcher_command, launcher_environment
from distill.distributed.machine import Devices, Machine, choose_devices, probe
from distill.distributed.master import check_master, parse_master
from distill.distributed.supervisor import Job, supervise
from distill.errors import UserError
from distill.files import owned
from distill.parallel import DeviceKind, import_paddle
from distill.recipe import Recipe
from distill.recipe.file import resolved_yaml
from distill.report import git_commit

LOGS = "logs"
"""Folder in the run's folder: rank-N.log, launcher-N.log and supervisor-N.log of host N."""


@dataclass(frozen=True)
class Launch:
    """What a person asked for, on one host.

    Attributes:
        path: The recipe's file.
        recipe: What it says, with `overrides`.
        output: The run's folder.
        overrides: KEY=VALUE, as `distill train --set`.
        accept_changes: As `distill train --accept-change`.
        resume: Go on with the run in `output`, or start it.
        kind: As `distill train --device`.
        hosts: How many there are.
        number: Of this host, from 0.
        master: HOST:PORT of host 0; None with one host.
        devices: GPUs of this host; none: all.
        ranks: Ranks on the CPU; None: as many as GPUs.
        max_restarts: How often all ranks may be started again.
        grace_seconds: How long ranks that were asked to end may save.
        wait_seconds: How long a host waits for the others.
    """

    path: Path
    recipe: Recipe
    output: Path
    overrides: Sequence[str] = ()
    accept_changes: Sequence[str] = ()
    resume: bool = False
    kind: DeviceKind = "auto"
    hosts: int = 1
    number: int = 0
    master: str | None = None
    devices: Sequence[str] = ()
    ranks: int | None = None
    max_restarts: int = 0
    grace_seconds: float = 60.0
    wait_seconds: float = 300.0


def launch(wanted: Launch, show: BinaryIO) -> None:
    """Runs this host's part of a job to its end.

    Args:
        wanted: What was asked for.
        show: Takes what rank 0 writes, on host 0.

    Raises:
        Interrupted, UserError, RunError: See `supervise`.
    """
    machine, devices = _checked(wanted)
    membership = Membership(wanted.number, wanted.hosts, socket.gethostname(), _facts(wanted, machine, devices))
    hosts: Hosts = LeadingHost(membership)
    if wanted.master is not None and wanted.hosts > 1:
        master = parse_master(wanted.master)
        hosts = LeadingHost(membership, master) if wanted.number == 0 else FollowingHost(membership, master)
    job = Job(
        command=lambda resume: rank_command(wanted, devices, resume=resume),
        ranks=devices.ranks,
        logs=wanted.output / LOGS,
        progress=lambda: newest_checkpoints(wanted.output),
        resume=wanted.resume,
        devices=devices.gpus,
        hide_gpus=_hides_gpus(machine, devices),
        max_restarts=wanted.max_restarts,
        grace_seconds=wanted.grace_seconds,
        wait_seconds=wanted.wait_seconds,
    )
    name = f"supervisor-{wanted.number}.lock"
    refusal = f"another `distill launch` runs in {wanted.output}: wait for it, stop it, or name another --output"
    try:
        job.logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {job.logs}: {error.strerror}. Choose another folder with --output") from error
    with owned(job.logs / name, refusal):
        supervise(job, hosts, membership, show)


def dry_run(wanted: Launch) -> list[str]:
    """Checks what can be checked on this host alone; starts nothing.

    Args:
        wanted: What would be launched.

    Returns:
        What would be started, for people.

    Raises:
        UserError: It would fail.
    """
    machine, devices = _checked(wanted)
    import_paddle()
    from distill.rehearsal.checks import check_run  # imports Paddle, too, which a supervisor must not

    check_run(wanted.recipe, wanted.output, resume=wanted.resume, accept_changes=wanted.accept_changes)
    names = f"the GPUs {', '.join(devices.gpus)}" if devices.gpus else "the CPU"
    count = f"{wanted.hosts} host{'s' * (wanted.hosts > 1)} x {devices.ranks} rank{'s' * (devices.ranks > 1)}"
    lines = [f"{count} on {names}, PaddlePaddle {machine.paddle}; images, weights and folder are fine on this host"]
    place = Place(0, 1, "127.0.0.1", ("127.0.0.1", 0), devices.ranks)
    if wanted.hosts > 1 and wanted.master is not None:
        place = Place(wanted.number, wanted.hosts, "<this host>", ("<host 0>", 0), devices.ranks)
        lines.append(
            f"host {wanted.number} of {wanted.hosts}; they meet at {wanted.master}, --node-rank 0 listens there"
        )
        for problem in check_master(parse_master(wanted.master), wanted.number):
            lines.append(f"not yet: {problem} (it would wait for {wanted.wait_seconds:.0f} s)")
    after = launcher_environment(os.environ, place, hide_gpus=_hides_gpus(machine, devices))
    removed = [f"-u {name}" for name in sorted(set(os.environ) - set(after))]
    changed = [f"{name}={value}" for name, value in sorted(after.items()) if os.environ.get(name) != value]
    rank = rank_command(wanted, devices, resume=wanted.resume)
    lines += [
        f"logs: {wanted.output / LOGS}",
        "command: "
        + shlex.join(
            ["env", *removed, *changed, *launcher_command(place, devices.gpus, "<temporary>"), "<keeper>", *rank]
        ),
        f"a failed rank restarts all, {wanted.max_restarts} times at most; SIGTERM gives {wanted.grace_seconds:.0f} s",
    ]
    return lines


def rank_command(wanted: Launch, devices: Devices, *, resume: bool) -> list[str]:
    """What each rank runs: `distill train`, of this very Python."""
    command = [sys.executable, "-u", "-m", "distill", "train", str(wanted.path), "--output", str(wanted.output)]
    command += [part for override in wanted.overrides for part in ("--set", override)]
    if resume:
        command += ["--resume", *(part for key in wanted.accept_changes for part in ("--accept-change", key))]
    return [*command, "--device", devices.kind]


def newest_checkpoints(run: Path) -> list[str]:
    """The checkpoints and results in a run's folder: what changes when training gets somewhere."""
    stages = run / "stages"
    return sorted(str(path) for pattern in ("*/checkpoints/step-*", "*/result.json") for path in stages.glob(pattern))


def check_work(recipe: Recipe, ranks: int) -> None:
    """Checks that every stage has work for so many ranks.

    Raises:
        UserError: One has not.
    """
    for stage in recipe.stages:
        try:
            MicroBatchPlan(1, stage.global_batch_size, stage.device_batch_size, 0, ranks, stage.mix_group_size)
        except UserError as error:
            raise UserError(f"stages.{stage.name}: {error}") from error


def _checked(wanted: Launch) -> tuple[Machine, Devices]:
    """What this host computes on, where nothing that can be known now is wrong.

    Raises:
        UserError: Something is.
    """
    if wanted.hosts > 1 and wanted.master is None:
        raise UserError(
            f"--nnodes {wanted.hosts} needs --master HOST:PORT: a name or address of host 0, and a free port"
        )
    if wanted.hosts == 1 and wanted.master is not None:
        raise UserError("--master is where several hosts meet: say how many with --nnodes, or leave it out")
    if not 0 <= wanted.number < wanted.hosts:
        raise UserError(
            f"--node-rank must be 0..{wanted.hosts - 1} with --nnodes {wanted.hosts}, received {wanted.number}"
        )
    if wanted.master is not None:
        parse_master(wanted.master)
    machine = probe()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = choose_devices(machine, wanted.kind, wanted.devices, wanted.ranks, visible)
    check_work(wanted.recipe, wanted.hosts * devices.ranks)
    return machine, devices


def _facts(wanted: Launch, machine: Machine, devices: Devices) -> dict[str, object]:
    """What must be the same on all hosts."""
    recipe = hashlib.sha256(resolved_yaml(wanted.recipe).encode()).hexdigest()
    return {
        "the number of ranks": devices.ranks,
        "the kind of device": devices.kind,
        "PaddlePaddle": machine.paddle,
        "distill": distill.__version__,
        "distill's commit": git_commit(),
        "the recipe's SHA-256": recipe[:16],
        "--accept-change": list(wanted.accept_changes),
        "--max-restarts": wanted.max_restarts,
    }


def _hides_gpus(machine: Machine, devices: Devices) -> bool:
    return machine.cuda and devices.kind == "cpu"
