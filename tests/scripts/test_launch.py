"""The scripts that start distill launch: what they would start, and two hosts that a fake ssh reaches."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "scripts" / "launch"
COMMAND = f"{sys.executable} -W ignore -m distill"
SCRIPTS = [LAUNCH / "one_host.sh", LAUNCH / "ssh.sh", LAUNCH / "slurm.sbatch"]


def run(script, *arguments, **environment):
    return subprocess.run(
        ["bash", str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


def put_on_path(folder, name, code):
    """A program of that name, and the PATH that finds it."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(code)
    (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_that_stops_at_errors(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=True).stderr == ""
    code = script.read_text()
    assert code.startswith("#!/usr/bin/env bash\n# ") and "\nset -euo pipefail\n" in code and os.access(script, os.X_OK)
    assert not re.search(r"(^|[ =(])\$[A-Za-z_]+( |$)", re.sub(r"#.*|.*<< END(.|\n)*?END", "", code), re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_without_a_recipe_they_say_how_they_are_used(script):
    found = run(script)
    assert found.returncode == 2 and "RECIPE" in found.stderr


def test_one_host_would_start_one_command():
    found = run(SCRIPTS[0], "distilled", "--ranks", "2", DRY_RUN="1")
    assert found.stdout == "distill launch distilled --ranks 2 --max-restarts 3 --resume\n"


def test_ssh_would_start_a_command_a_host(tmp_path):
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("# the machines\nme@gpu0\n\n  gpu1   # the second\n")
    by_file = run(SCRIPTS[1], hosts, "distilled", "--set", "name='it is'", DRY_RUN="1", PORT="4567")
    by_list = run(SCRIPTS[1], "me@gpu0,gpu1", "distilled", "--set", "name='it is'", DRY_RUN="1", PORT="4567")
    assert by_file.stdout == by_list.stdout
    lines = by_file.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["ssh me@gpu0", "ssh gpu1"]
    for number, line in enumerate(lines):
        assert f"'--nnodes' '2' '--master' 'gpu0:4567' '--node-rank' '{number}'" in line
        assert r"'name='\''it is'\'''" in line


def test_slurm_would_start_a_task_a_node(tmp_path):
    path = put_on_path(tmp_path / "bin", "scontrol", '#!/bin/sh\n[ "$3" = "gpu[0-3]" ] && printf "gpu0\\ngpu1\\n"\n')
    slurm = {
        "SLURM_JOB_ID": "1234567",
        "SLURM_JOB_NODELIST": "gpu[0-3]",
        "SLURM_NNODES": "4",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_CPUS_ON_NODE": "96",
    }
    found = run(SCRIPTS[2], "distilled", "--output", "runs/x", DRY_RUN="1", PATH=path, **slurm)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("srun --ntasks 4 --ntasks-per-node 1 --kill-on-bad-exit 0 --cpus-per-task 96 ")
    assert "launch distilled --output runs/x --max-restarts 3 --resume --nnodes 4 --master gpu0:24567" in found.stdout
    alone = run(SCRIPTS[2], "distilled", DRY_RUN="1", PATH=path, **slurm | {"SLURM_NNODES": "1"})
    assert "--master" not in alone.stdout and "--node-rank" not in alone.stdout


def test_slurm_gives_each_task_its_number_and_requeues_what_was_stopped(tmp_path):
    put_on_path(tmp_path / "bin", "scontrol", '#!/bin/sh\n[ "$1" = requeue ] && echo "requeued $2" || echo gpu0\n')
    srun = '#!/bin/sh\nwhile [ "$1" != sh ]; do shift; done\nSLURM_NODEID=1 "$@"\n'
    path = put_on_path(tmp_path / "bin", "srun", srun)
    put_on_path(tmp_path / "bin", "distill", '#!/bin/sh\necho "$@"\nexit 143\n')
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "x", "SLURM_NNODES": "2", "SLURM_SUBMIT_DIR": str(tmp_path)}
    found = run(SCRIPTS[2], "distilled", PATH=path, DISTILL="distill", REQUEUE="1", **slurm)
    assert found.returncode == 143
    assert found.stdout.splitlines() == [
        "launch distilled --max-restarts 3 --resume --nnodes 2 --master gpu0:20007 --node-rank 1",
        "requeued 7",
    ]


def test_kubernetes_files_parts_fit_together():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    hosts = job["spec"]["completions"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completionMode"] == "Indexed" and job["spec"]["parallelism"] == hosts
    assert f"--nnodes={hosts}" in container["args"] and "--node-rank=$(JOB_COMPLETION_INDEX)" in container["args"]
    assert f"--master={name}-0.{service['metadata']['name']}:29500" in container["args"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] > 60
    (wrong_input, _) = job["spec"]["podFailurePolicy"]["rules"]
    assert wrong_input["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    claims = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == claims


# --- ssh, to this machine -------------------------------------------------------------------------

FAKE_SSH = '#!/bin/sh\n[ "$1 $2" = "-o BatchMode=yes" ] && shift 2\nhost=$1; shift\nexec setsid -w sh -c "$*"\n'


@pytest.fixture
def ssh(tmp_path):
    """Starts ssh.sh for two hosts that are this machine; what a test leaves is killed."""
    path = put_on_path(tmp_path / "bin", "ssh", FAKE_SSH)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []

    def start(*arguments, **environment):
        processes.append(
            subprocess.Popen(
                ["bash", str(SCRIPTS[1]), "127.0.0.1,localhost", *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"PATH": path, "PORT": port, "FOLDER": str(tmp_path)} | environment,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.stdout.close()
        process.wait()


def test_ssh_really_trains_on_two_hosts(ssh, digits, tmp_path):
    recipe, output = digits.recipe(tmp_path / "digits.yaml", epochs=1), tmp_path / "run"
    process = ssh(recipe, "--ranks", 1, "--output", output, DISTILL=COMMAND, DISTILL_CPU_THREADS="1")
    said = process.communicate(timeout=250)[0]
    assert process.returncode == 0, said
    assert "train: top-1" in said and "2 ranks on 2 hosts" in said and "localhost: launch: host 1" in said
    assert (output / "student.safetensors").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_end_of_ssh_sh_asks_all_hosts_to_end(ssh, tmp_path, number, status):
    put_on_path(
        tmp_path / "bin",
        "distill",
        '#!/bin/sh\nfor last; do :; done\ntrap "touch saved-$last; exit 143" TERM\ntouch ready-$last\n'
        "while true; do sleep 0.1; done\n",
    )
    process = ssh("distilled", DISTILL="distill")

    def eventually(pattern, count):
        end = time.monotonic() + 120
        while len(list(tmp_path.glob(pattern))) < count:
            assert time.monotonic() < end
            time.sleep(0.05)

    eventually("ready-*", 2)
    process.send_signal(number)
    assert process.wait(120) == status
    eventually("saved-*", 2)
