"""Fetching a published file: resumed, over HTTPS only, complete or not there at all, its SHA-256 remembered.

Beside a file FILE lies FILE.json with the SHA-256, the address and the licence. PaddleClas publishes no checksums:
what is compared later is what came first.
"""

import contextlib
import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from distill.display import readable_bytes
from distill.errors import RunError, UserError
from distill.files import TEMPORARY_PREFIX, cannot_write, locked, sync_folder, write_atomically
from distill.weights.files import sha256_of
from distill.weights.published import NON_COMMERCIAL, PublishedFile

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0
_ATTEMPTS = 5  # in a row without a new byte
_PAUSE_SECONDS = 1.0

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes of the whole file."""


def fetch(
    file: PublishedFile,
    folder: Path,
    *,
    accept_license: bool = False,
    sha256: str | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[Path, str]:
    """Puts a published file into a folder, unless it is there already; then its SHA-256 is compared.

    Args:
        file: What to fetch.
        folder: Made where missing.
        accept_license: Whether the user has accepted a licence that excludes commercial use.
        sha256: What the file must have, in hexadecimal; None: what is remembered, if anything.
        progress: See `Progress`.

    Returns:
        The file, and its SHA-256.

    Raises:
        UserError: The licence is not accepted, or the file that is there is another.
        RunError: It could not be fetched or written; what has come is kept, and the next call goes on with it.
    """
    if file.licence == NON_COMMERCIAL and not accept_license:
        raise UserError(
            f"the weights {file.name} are licensed {file.licence}: free for non-commercial use only "
            "(creativecommons.org/licenses/by-nc/4.0). Add --accept-license if you accept it"
        )
    path = folder / file.file_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if not path.exists():
                _download(file, path, sha256, progress)
            return path, _checked(file, path, sha256)
    except OSError as error:
        raise cannot_write(path, error) from error


def remembered(path: Path) -> dict[str, Any]:
    """What is known of a file from when it was fetched: "sha256", "url", "licence", ...; {} where nothing is.

    Raises:
        UserError: The note beside the file is damaged.
    """
    note = note_of(path)
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if not isinstance(known, dict) or not isinstance(known.get("sha256"), str):
            raise ValueError("expected an object with sha256")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{note} cannot be read ({error}). Remove it: it is written anew") from error
    return known


def note_of(path: Path) -> Path:
    """The small file beside a file of weights."""
    return path.with_name(f"{path.name}.json")


def _checked(file: PublishedFile, path: Path, sha256: str | None) -> str:
    known, found = remembered(path), sha256_of(path)
    expected = sha256.lower() if sha256 else known.get("sha256", found)
    if found != expected:
        raise UserError(
            f"{path} has the SHA-256 {found}, expected {expected}: it was changed or damaged. Move it away "
            "and fetch it again"
        )
    if known.get("url", file.url) != file.url:
        raise UserError(
            f"{path} came from {known['url']}, not from {file.url}. Move it away, or choose another --folder"
        )
    if not known:
        note = {"name": file.name, "url": file.url, "licence": file.licence, "bytes": path.stat().st_size}
        note |= {"sha256": found, "fetched": datetime.now(UTC).isoformat(timespec="seconds")}
        write_atomically(note_of(path), json.dumps(note, indent=2) + "\n")
    return found


# --- the download -----------------------------------------------------------------------------


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows no redirect that leaves HTTPS: the file could be anybody's."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Returns the next request; see the base class."""
        if not newurl.startswith("https://"):
            raise RunError(f"{req.full_url} redirects to {newurl}, which is not https: not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(file: PublishedFile, path: Path, sha256: str | None, progress: Progress) -> None:
    """Fetches into a file beside `path`, which another process can go on with, and renames it."""
    if not file.url.startswith("https://"):
        raise UserError(f"{file.url} is not an https address")
    part = path.with_name(f"{TEMPORARY_PREFIX}{path.name}.part")
    opener = urllib.request.build_opener(_HttpsOnly)
    failures = 0
    while True:
        before = _size(part)
        try:
            complete = _receive(opener, file.url, part, progress)
        except urllib.error.HTTPError as error:
            raise RunError(f"the server answers {error.code} {error.reason} for {file.url}") from error
        except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            complete, reason = False, getattr(reason, "strerror", None) or reason
        else:
            reason = "the connection ended early"
        if complete:
            break
        failures = 0 if _size(part) > before else failures + 1
        if failures == _ATTEMPTS or before == _size(part) == 0:
            raise RunError(_unreachable(file, path, part, str(reason) or type(reason).__name__))
        time.sleep(_PAUSE_SECONDS * failures)
    found = sha256_of(part)
    if sha256 is not None and found != sha256.lower():
        _forget(part)
        raise RunError(f"{file.url} has the SHA-256 {found}, expected {sha256.lower()}: nothing was kept")
    with open(part, "rb") as written:
        os.fsync(written.fileno())
    os.replace(part, path)
    sync_folder(path.parent)
    _forget(part)


def _receive(opener: urllib.request.OpenerDirector, url: str, part: Path, progress: Progress) -> bool:
    """Makes one request, from where `part` ends; returns whether the file is complete."""
    start, version = _size(part), _version_of(part)
    headers = {"Accept-Encoding": "identity", "User-Agent": "paddle-distill"}
    if start and version:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        _forget(part)  # what is there is no beginning of the file
        return False
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            _forget(part)
            return False
        start = start if resumed else 0
        length = response.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise RunError(f"the server does not say how long {url} is, so that a cut could not be noticed")
        total = start + int(length)
        _version_file(part).write_text(response.headers.get("ETag") or response.headers.get("Last-Modified") or "")
        with open(part, "ab" if resumed else "wb") as target:
            progress(start, total)
            while chunk := response.read(_CHUNK_BYTES):
                target.write(chunk)
                progress(target.tell(), total)
            return target.tell() == total


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _version_of(part: Path) -> str:
    """What the server called the version that `part` is of; without it, or with a weak one, it cannot be resumed."""
    try:
        version = _version_file(part).read_text()
    except (OSError, UnicodeDecodeError):
        return ""
    return "" if version.startswith("W/") or not version.isprintable() else version


def _forget(part: Path) -> None:
    for path in (part, _version_file(part)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _unreachable(file: PublishedFile, path: Path, part: Path, reason: str) -> str:
    kept = f" {readable_bytes(_size(part))} are kept: the same command goes on." if _size(part) else ""
    return (
        f"cannot fetch {file.url}: {reason}.{kept} Without a network: fetch it elsewhere, put it here as {path}, "
        "and run the same command"
    )
