import json
from pathlib import Path

from distill.weights import sha256_of
from distill.weights.licences import is_non_commercial, licence_of


def test_the_note_of_a_fetched_file_is_believed_while_it_is_of_this_content(tmp_path):
    file = tmp_path / "weights.pdparams"
    file.write_bytes(b"weights")
    note = {"sha256": sha256_of(file), "licence": "CC-BY-NC-4.0", "url": "https://example.org/w"}
    (tmp_path / "weights.pdparams.json").write_text(json.dumps(note))
    assert licence_of(file, sha256_of(file)) == {
        "licence": "CC-BY-NC-4.0",
        "says": "fetched from https://example.org/w",
    }
    assert licence_of(file, "0" * 64) is None
    assert licence_of(file, None) is None


def test_a_published_file_is_known_by_its_name_alone(tmp_path):
    known = licence_of(tmp_path / "ResNeXt101_32x16d_wsl_pretrained.pdparams", "0" * 64)
    assert known is not None
    assert known["licence"] == "CC-BY-NC-4.0"
    assert "its content is not known" in known["says"]
    other = licence_of(tmp_path / "ResNet50_vd_ssld_v2_pretrained.pdparams", None)
    assert other is not None
    assert other["licence"].startswith("Apache-2.0")


def test_what_is_not_known_is_not_guessed(tmp_path):
    (tmp_path / "mine.safetensors.json").write_text("damaged")
    assert licence_of(tmp_path / "mine.safetensors", "0" * 64) is None


def test_networks_whose_published_weights_exclude_commercial_use():
    assert is_non_commercial("ResNeXt101_32x8d_wsl")
    assert not is_non_commercial("ResNet50_vd")
    assert not is_non_commercial("my.module:network")


def test_the_teacher_that_comes_with_the_project_has_its_licence():
    teacher = Path(__file__).parents[3] / "recipes" / "fashion_mnist" / "teacher.safetensors"
    known = licence_of(teacher, sha256_of(teacher))
    assert known == {
        "licence": "Apache-2.0 (of Paddle Distill, which trained it)",
        "says": "as noted beside the file",
    }
