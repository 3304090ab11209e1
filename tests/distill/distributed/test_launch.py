"""`distill launch`: what it refuses, what it would start, and a real job on two ranks."""

import contextlib
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.distributed import launch as launching
from distill.distributed.local_ranks import Place, launcher_command, launcher_environment
from distill.distributed.machine import Devices, Machine, choose_devices
from distill.distributed.master import check_master, parse_master
from distill.errors import UserError
from distill.files import owned
from distill.recipe.file import load_recipe
from distill.stages import run_recipe

CPU = Machine("3.3.1", cuda=False, gpus=0)
EIGHT_GPUS = Machine("3.3.1", cuda=True, gpus=8)


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "distill", "launch", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "kind", "names", "ranks", "visible", "expected"),
    [
        (CPU, "auto", (), None, None, Devices("cpu", 1)),
        (CPU, "auto", (), 2, None, Devices("cpu", 2)),
        (EIGHT_GPUS, "auto", (), None, None, Devices("gpu", 8, tuple("01234567"))),
        (EIGHT_GPUS, "gpu", ("0", "3"), None, None, Devices("gpu", 2, ("0", "3"))),
        (EIGHT_GPUS, "cpu", (), None, None, Devices("cpu", 1)),
        (EIGHT_GPUS, "auto", (), 4, None, Devices("cpu", 4)),
        (Machine("3.3.1", True, 2), "auto", (), None, "5, 6", Devices("gpu", 2, ("5", "6"))),
        (Machine("3.3.1", True, 2), "auto", ("6",), None, "5,6", Devices("gpu", 1, ("6",))),
    ],
)
def test_devices_are_those_that_were_asked_for(machine, kind, names, ranks, visible, expected):
    assert choose_devices(machine, kind, names, ranks, visible) == expected


@pytest.mark.parametrize(
    ("machine", "kind", "names", "ranks", "visible", "message"),
    [
        (CPU, "gpu", (), None, None, "was built without CUDA"),
        (Machine("3.3.1", True, 0), "auto", ("0",), None, None, "sees no GPU"),
        (EIGHT_GPUS, "auto", ("7", "8"), None, None, "no 8. This host shows 0, 1, 2, 3, 4, 5, 6, 7"),
        (EIGHT_GPUS, "auto", ("1", "1"), None, None, "one of them twice"),
        (EIGHT_GPUS, "auto", ("0",), 2, None, "Give one of them"),
        (EIGHT_GPUS, "gpu", (), 2, None, "Give one of them"),
        (Machine("3.3.1", True, 1), "auto", (), None, "0,9", "CUDA_VISIBLE_DEVICES is '0,9', but PaddlePaddle sees 1"),
        (Machine("3.3.1", True, 2), "auto", ("0",), None, "5,6", "no 0. This host shows 5, 6"),
    ],
)
def test_devices_that_do_not_exist_are_refused(machine, kind, names, ranks, visible, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        choose_devices(machine, kind, names, ranks, visible)


# --- what is started ------------------------------------------------------------------------------


def test_paddles_launcher_gets_hosts_and_devices():
    place = Place(number=3, hosts=4, address="10.0.0.3", master=("10.0.0.0", 4567), ranks=2)
    said = " ".join(launcher_command(place, ("0", "5"), "/logs"))
    assert "--nnodes 4 --nproc_per_node 2 --host 10.0.0.3 --master 10.0.0.0:4567 --rank 3 --devices 0,5" in said
    alone = Place(0, 1, "127.0.0.1", ("127.0.0.1", 0), 2)
    assert "--master" not in launcher_command(alone, (), "/logs")


def test_paddles_launcher_is_kept_from_what_a_platform_sets():
    place = Place(0, 2, "10.0.0.0", ("10.0.0.0", 4567), 3)
    given = {"PADDLE_TRAINER_ID": "7", "POD_IP": "1.2.3.4", "HOME": "/root", "NO_PROXY": "example.org"}
    found = launcher_environment(given, place, hide_gpus=True)
    assert found == {
        "HOME": "/root",
        "CUDA_VISIBLE_DEVICES": "-1,-1,-1",
        "no_proxy": "example.org,10.0.0.0",
        "NO_PROXY": "example.org,10.0.0.0",
    }


def test_a_rank_runs_distill_train(digits, tmp_path):
    path = digits.recipe(tmp_path / "digits.yaml")
    wanted = launching.Launch(
        path, load_recipe(path), tmp_path / "run", overrides=["seed=2"], accept_changes=["epochs"]
    )
    first = launching.rank_command(wanted, Devices("cpu", 2), resume=False)
    again = launching.rank_command(wanted, Devices("cpu", 2), resume=True)
    assert first[2:] == [
        *("-m", "distill", "train", str(path), "--output", str(tmp_path / "run"), "--set", "seed=2", "--device", "cpu")
    ]
    assert again == [*first[:-2], "--resume", "--accept-change", "epochs", *first[-2:]]


# --- what is refused before anything starts -------------------------------------------------------


def test_every_stage_must_have_work_for_all_ranks(digits, tmp_path):
    recipe = load_recipe(digits.recipe(tmp_path / "digits.yaml"))
    launching.check_work(recipe, 2)
    with pytest.raises(UserError, match=r"stages\.train: .* has work for 2 devices .*, but there are 3"):
        launching.check_work(recipe, 3)


@pytest.mark.parametrize("text", ["host", ":29500", "host:", "host:0", "host:65536", "::1:29500", "http://host:1"])
def test_a_master_is_a_host_and_a_port(text):
    with pytest.raises(UserError, match="--master must be HOST:PORT"):
        parse_master(text)


def test_a_masters_name_and_port_are_checked():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = ("localhost", other.getsockname()[1])
        assert "is in use" in check_master(taken, 0)[0]
        assert check_master(taken, 1) == []
    assert "does not resolve" in check_master(("no-such-host.invalid", 29500), 1)[0]
    assert "must be an address of this host" in check_master(("192.0.2.1", 29500), 0)[0]
    assert "above 1023" in check_master(("127.0.0.1", 1), 0)[0] if os.geteuid() else True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nnodes", "2"], "--nnodes 2 needs --node-rank"),
        (["--nnodes", "2", "--node-rank", "1"], "--nnodes 2 needs --master HOST:PORT"),
        (["--master", "localhost:1234"], "say how many with --nnodes"),
        (["--nnodes", "2", "--node-rank", "2", "--master", "localhost:1234"], "--node-rank must be 0..1"),
        (["--accept-change", "epochs"], "add --resume"),
    ],
)
def test_options_that_make_no_sense_are_refused(digits, tmp_path, options, message):
    found = run(digits.recipe(tmp_path / "digits.yaml"), "--output", tmp_path / "run", *options)
    assert found.returncode == 2 and message in found.stderr
    assert not (tmp_path / "run").exists()


def test_a_paddle_that_cannot_be_imported_is_told_in_a_line(digits, tmp_path):
    (tmp_path / "broken" / "paddle").mkdir(parents=True)
    (tmp_path / "broken" / "paddle" / "__init__.py").write_text("raise ImportError('libcudart.so.11.0')")
    recipe = digits.recipe(tmp_path / "digits.yaml")
    found = run(recipe, "--output", tmp_path / "run", PYTHONPATH=str(tmp_path / "broken"))
    assert found.returncode == 2
    assert found.stderr.startswith("error: PaddlePaddle cannot be imported (libcudart.so.11.0). Install it")


# --- real jobs ------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_started_and_starts_nothing(digits, tmp_path):
    recipe, output = digits.recipe(tmp_path / "digits.yaml"), tmp_path / "run"
    found = run(recipe, "--ranks", "2", "--output", output, "--dry-run", PADDLE_MASTER="elsewhere:1")
    assert found.returncode == 0, found.stderr
    assert "1 host x 2 ranks on the CPU" in found.stdout and "-u PADDLE_MASTER" in found.stdout
    assert "-m paddle.distributed.launch" in found.stdout and f"distill train {recipe}" in found.stdout
    assert not output.exists()


def test_two_ranks_train_the_digits_and_a_second_launch_is_refused(digits, tmp_path):
    recipe, output = digits.recipe(tmp_path / "digits.yaml", epochs=1), tmp_path / "run"
    found = run(recipe, "--ranks", "2", "--output", output)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "train: top-1" in found.stdout and f"the student in {output}/student.safetensors" in found.stdout
    assert json.loads((output / "result.json").read_text())["train"]["steps"] == 7
    assert {path.name for path in (output / "logs").glob("rank-*.log")} == {"rank-0.log", "rank-1.log"}
    with owned(Path(output / "logs" / "supervisor-0.lock"), "unused"):
        found = run(recipe, "--ranks", "2", "--output", output, "--resume")
    assert found.returncode == 2 and "another `distill launch` runs in" in found.stderr


def below(pid):
    """A process and all that it started, and they."""
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{found[-1]}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
    return found


def listening(pids):
    """Address and port, as in /proc/net/tcp and tcp6, of every socket of these processes that listens."""
    own = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                own |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(entry)))
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return [line[1] for line in lines if line[3] == "0A" and line[9] in own]


def test_ranks_of_one_host_listen_to_nobody_else(digits, tmp_path):
    recipe, output = digits.recipe(tmp_path / "digits.yaml", epochs=100), tmp_path / "run"
    command = [sys.executable, "-W", "ignore", "-m", "distill", "launch", str(recipe), "--ranks", "2"]
    job = subprocess.Popen([*command, "--output", str(output)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        metrics = output / "metrics.jsonl"
        while job.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.05)
        found = [address.split(":") for address in listening(below(job.pid))]
        anywhere = [int(port, 16) for address, port in found if address != "0100007F"]
        assert len(anywhere) == 1  # Paddle's store, which has no setting for it
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks the kernel for another address of this host
            with socket.socket() as stranger:
                assert stranger.connect_ex((probe.getsockname()[0], anywhere[0])) == errno.ECONNREFUSED
    finally:
        job.terminate()
    assert job.wait(100) == 128 + signal.SIGTERM


def test_two_runs_never_write_into_one_folder(digits, tmp_path):
    recipe, output = digits.recipe(tmp_path / "digits.yaml"), tmp_path / "run"
    output.mkdir()
    with owned(output / ".lock", "unused"), pytest.raises(UserError, match="another process trains in"):
        run_recipe(load_recipe(recipe), output, device="cpu")
    assert not (output / "stages").exists()
