import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np

from distill.weights import read_weights, write_weights

HEAVY = {"paddle", "numpy", "rich", "safetensors", "urllib.request"}


class Exploit:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def test_its_help_imports_nothing_that_is_slow():
    code = (
        "import sys; from distill.cli import main\ntry: main(['weights', '--help'])\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stderr.split()).isdisjoint(HEAVY)
    assert all(command in done.stdout for command in ("list", "fetch", "convert", "inspect", "verify"))


def test_list_says_where_each_file_is(run_cli):
    status, output, _ = run_cli("weights", "list")
    assert status == 0
    assert "legendary_models/ResNet50_vd_ssld_pretrained.pdparams  (called ResNet50_vd_ssld there" in output
    status, output, _ = run_cli("weights", "list", "--json")
    assert {file["licence"] for file in json.loads(output) if "wsl" in file["name"]} == {"CC-BY-NC-4.0"}


def test_fetch_shows_the_licence_and_refuses_without_acceptance(run_cli, tmp_path):
    status, _, errors = run_cli("weights", "fetch", "ResNeXt101_32x16d_wsl", "--folder", tmp_path)
    assert status == 2
    assert "licence CC-BY-NC-4.0" in errors and "Add --accept-license" in errors
    assert list(tmp_path.iterdir()) == []


def test_fetch_takes_a_file_that_is_there(run_cli, tmp_path):
    (tmp_path / "ResNet50_vd_ssld_v2_pretrained.pdparams").write_bytes(b"weights")
    status, output, errors = run_cli("weights", "fetch", "ResNet50_vd", "--variant", "ssld_v2", "--folder", tmp_path)
    assert status == 0, errors
    assert output.split()[-1] == hashlib.sha256(b"weights").hexdigest()
    assert "83.0 % published" in errors


def test_convert_inspect_and_verify(run_cli, tmp_path, teacher_weights):
    arrays = dict(read_weights(teacher_weights))
    arrays |= {
        "blocks.0.short.conv.weight": np.eye(8, dtype="f4")[:, :, None, None],
        "blocks.0.short.bn.weight": np.full(8, (1 + 1e-5) ** 0.5, "f4"),
    }
    write_weights(tmp_path / "ours.safetensors", arrays)
    status, output, errors = run_cli(
        "weights", "convert", tmp_path / "ours.safetensors", tmp_path / "timm.safetensors", "--to", "timm"
    )
    assert status == 0, errors
    assert "ResNet18_vd x 0.125, 10 classes, 112 arrays, names: timm" in output
    status, output, _ = run_cli("weights", "inspect", tmp_path / "timm.safetensors")
    assert status == 0
    assert "names: torchvision or timm\nnetwork: ResNet18_vd x 0.125\nclasses: 10\nSHA-256: " in output
    assert "network: resnet18d" in output
    status, output, _ = run_cli("weights", "inspect", teacher_weights, "--json")
    found = json.loads(output)
    assert found["matches"][0]["model"] == "ResNet18_vd" and found["arrays"]["fc.bias"] == [[10], "float32"]
    options = ("--model", "ResNet18_vd", "--width", "0.125")
    status, output, _ = run_cli("weights", "verify", tmp_path / "timm.safetensors", *options)
    assert status == 0 and "fits ResNet18_vd x 0.125, 10 classes" in output
    status, _, errors = run_cli("weights", "verify", tmp_path / "timm.safetensors", "--model", "ResNet18_vd")
    assert status == 2 and "unlike the model" in errors


def test_a_hostile_file_is_refused_by_each_command(run_cli, tmp_path):
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps({"w": Exploit(tmp_path / "proof")}, protocol=2))
    target = tmp_path / "o.safetensors"
    for command in (("inspect", evil), ("verify", evil, "--model", "ResNet18"), ("convert", evil, target)):
        status, _, errors = run_cli("weights", *command)
        assert status == 2 and "asks to call 'posix'.'mkdir'" in errors
    assert not (tmp_path / "proof").exists()
