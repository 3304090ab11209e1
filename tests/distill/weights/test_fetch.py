"""Downloads from a local HTTPS server that has the faults of real ones."""

import hashlib
import json
from dataclasses import replace

import pytest

from distill.errors import RunError, UserError
from distill.weights.fetch import fetch, remembered
from distill.weights.published import find_file, published_files

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(https_server):
    https_server.files["/w.pdparams"] = CONTENT
    return https_server


@pytest.fixture
def file(server):
    return replace(find_file("ResNet50_vd"), url=f"https://localhost:{server.server_port}/w.pdparams")


NAME = "ResNet50_vd_pretrained.pdparams"


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_is_remembered(tmp_path, server, file):
    seen = []
    path, sha256 = fetch(file, tmp_path / "weights", progress=lambda done, total: seen.append((done, total)))
    assert (path.name, path.read_bytes(), sha256) == (NAME, CONTENT, SHA256)
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))
    note = remembered(path)
    assert (note["sha256"], note["url"], note["bytes"]) == (SHA256, file.url, len(CONTENT))
    assert leftovers(path.parent) == [NAME, f"{NAME}.json"]
    assert fetch(file, tmp_path / "weights") == (path, SHA256)
    assert len(server.requests) == 1


def test_a_cut_connection_is_resumed(tmp_path, server, file):
    server.cuts = [300_000, 500_000]
    path, _ = fetch(file, tmp_path)
    assert path.read_bytes() == CONTENT
    assert [headers.get("Range") for headers in server.requests] == [None, "bytes=300000-", "bytes=800000-"]


def test_another_process_goes_on_with_what_came(tmp_path, server, file):
    server.cuts = [300_000] + [0] * 9
    with pytest.raises(RunError, match=r"the connection ended early\. 300 kB are kept: the same command goes on"):
        fetch(file, tmp_path)
    assert NAME not in leftovers(tmp_path)
    server.cuts.clear()
    path, _ = fetch(file, tmp_path)
    assert path.read_bytes() == CONTENT and server.requests[-1]["Range"] == "bytes=300000-"


@pytest.mark.parametrize("etag", ['"two"', 'W/"one"', ""])
def test_a_file_that_changed_meanwhile_or_has_no_version_starts_anew(tmp_path, server, file, etag):
    server.cuts = [300_000] + [0] * 9
    server.etag = etag if etag != '"two"' else '"one"'
    with pytest.raises(RunError):
        fetch(file, tmp_path)
    server.cuts.clear()
    server.files["/w.pdparams"], server.etag = CONTENT[::-1], etag
    path, _ = fetch(file, tmp_path)
    assert path.read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_starts_anew(tmp_path, server, file):
    server.ranges, server.cuts = False, [300_000]
    path, _ = fetch(file, tmp_path)
    assert path.read_bytes() == CONTENT


def test_a_server_that_refuses_the_range_starts_anew(tmp_path, server, file):
    server.refuses_ranges, server.cuts = True, [300_000]
    path, _ = fetch(file, tmp_path)
    assert path.read_bytes() == CONTENT


def test_a_wrong_length_never_becomes_a_file(tmp_path, server, file):
    server.missing_bytes, server.ranges = 10, False
    with pytest.raises(RunError, match="the connection ended early"):
        fetch(file, tmp_path)
    assert NAME not in leftovers(tmp_path)


def test_a_length_that_is_not_told_is_refused(tmp_path, server, file):
    server.tells_length = False
    with pytest.raises(RunError, match="does not say how long"):
        fetch(file, tmp_path)
    assert NAME not in leftovers(tmp_path)


def test_not_found_is_said_at_once(tmp_path, server, file):
    with pytest.raises(RunError, match=r"the server answers 404 Not Found for https://localhost:\d+/other"):
        fetch(replace(file, url=file.url.replace("w.pdparams", "other")), tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize("target", ["http://localhost/w.pdparams", "ftp://localhost/w", "file:///etc/passwd"])
def test_a_redirect_off_https_is_not_followed(tmp_path, server, file, target):
    server.redirect_to = target
    with pytest.raises(RunError, match=r"which is not https: not followed|is not allowed"):
        fetch(file, tmp_path)
    assert NAME not in leftovers(tmp_path)
    with pytest.raises(UserError, match="is not an https address"):
        fetch(replace(file, url=target), tmp_path)


def test_a_certificate_of_nobody_is_refused(tmp_path, server, file, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(RunError, match=r"(?i)certificate"):
        fetch(file, tmp_path)


def test_a_wrong_hash_leaves_nothing(tmp_path, server, file):
    with pytest.raises(RunError, match=f"has the SHA-256 {SHA256}, expected {'0' * 64}: nothing was kept"):
        fetch(file, tmp_path, sha256="0" * 64)
    assert leftovers(tmp_path) == []
    assert fetch(file, tmp_path, sha256=SHA256.upper())[1] == SHA256


def test_a_file_that_changed_on_the_disk_is_noticed(tmp_path, server, file):
    path, _ = fetch(file, tmp_path)
    path.write_bytes(CONTENT + b"x")
    with pytest.raises(UserError, match=f"expected {SHA256}: it was changed or damaged"):
        fetch(file, tmp_path)


def test_a_damaged_note_is_named(tmp_path, server, file):
    path, _ = fetch(file, tmp_path)
    (tmp_path / f"{NAME}.json").write_text("[]")
    with pytest.raises(UserError, match=r"pdparams\.json cannot be read"):
        fetch(file, tmp_path)
    assert path.read_bytes() == CONTENT


def test_the_same_name_from_another_address_is_not_mistaken(tmp_path, server, file):
    fetch(file, tmp_path)
    with pytest.raises(UserError, match=r"came from https://localhost.*choose another --folder"):
        fetch(replace(file, url="https://localhost/else.pdparams"), tmp_path)


def test_without_a_network_a_file_put_there_by_hand_is_taken(tmp_path, server, file):
    nowhere = replace(file, url="https://nowhere.invalid/w.pdparams")
    with pytest.raises(RunError, match=rf"cannot fetch {nowhere.url}: .*put it here as .*{NAME}, and run the same"):
        fetch(nowhere, tmp_path)
    (tmp_path / NAME).write_bytes(CONTENT)
    assert fetch(nowhere, tmp_path) == (tmp_path / NAME, SHA256)
    assert json.loads((tmp_path / f"{NAME}.json").read_text())["url"] == nowhere.url


def test_the_wsl_licence_must_be_accepted(tmp_path, server, file):
    wsl = replace(find_file("ResNeXt101_32x16d_wsl"), url=file.url)
    with pytest.raises(UserError, match=r"CC-BY-NC-4\.0: free for non-commercial use only.*--accept-license"):
        fetch(wsl, tmp_path)
    assert server.requests == []
    path, _ = fetch(wsl, tmp_path, accept_license=True)
    assert path.name == "ResNeXt101_32x16d_wsl_pretrained.pdparams"


def test_a_full_disk_is_a_clear_error(tmp_path, server, file, small_files_only):
    with small_files_only(100_000), pytest.raises(RunError, match=r"Cannot write .*Free some space"):
        fetch(file, tmp_path)


# --- the table ----------------------------------------------------------------------------------


def test_every_row_is_complete_and_unambiguous():
    files = published_files()
    assert len({(file.model, file.variant, file.release) for file in files}) == len(files)
    assert len({file.url for file in files}) == len(files)
    for file in files:
        assert file.url.startswith("https://") and file.url.endswith(".tar" if file.release == "1.x" else ".pdparams")
        assert file.source.startswith("PaddleClas ") and 70 < float(file.top1) < 87
        assert (file.licence == "CC-BY-NC-4.0") == ("wsl" in file.name)


def test_the_two_meanings_of_resnet50_vd_ssld_have_names_of_their_own():
    first, second = find_file("ResNet50_vd", "ssld"), find_file("ResNet50_vd", "ssld_v2")
    assert (first.top1, second.top1) == ("82.4", "83.0")
    assert "legendary_models" not in first.url and "legendary_models" in second.url
    assert first.url.rpartition("/")[2] == second.url.rpartition("/")[2]
    assert first.file_name != second.file_name


def test_files_are_found_by_model_or_row():
    assert find_file("Fix_ResNet50_vd_ssld_v2").variant == "fix_ssld_v2"
    assert find_file("ResNet18", release="1.x").file_name == "ResNet18_pretrained.tar"
    with pytest.raises(UserError, match=r"unknown model 'ResNet51'\. Did you mean"):
        find_file("ResNet51")
    with pytest.raises(UserError, match=r"ResNet18 is not published as ssld\. There is: plain \(2\.1\)"):
        find_file("ResNet18", "ssld")
