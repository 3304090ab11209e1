"""A download: over HTTPS only, resumed, complete or not there at all, compared with a SHA-256 where one is known."""

import contextlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from distill.display import Display, readable_bytes
from distill.errors import RunError, UserError
from distill.files import TEMPORARY_PREFIX, cannot_write, sync_folder
from distill.weights.files import sha256_of

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0
_ATTEMPTS = 5  # in a row without a new byte
_PAUSE_SECONDS = 1.0

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes of the whole file."""


def download(url: str, path: Path, *, sha256: str | None = None, progress: Progress = lambda done, total: None) -> None:
    """Fetches into a file beside `path`, with which the next call goes on, and renames it when it is whole.

    Args:
        url: An https address; redirects that leave HTTPS are not followed.
        path: Where the file shall be; its folder exists.
        sha256: What it must have, in hexadecimal.
        progress: See `Progress`.

    Raises:
        UserError: The address is not https.
        RunError: It could not be fetched or written, or is another file than expected.
    """
    if not url.startswith("https://"):
        raise UserError(f"{url} is not an https address")
    try:
        _download(url, path, sha256, progress)
    except OSError as error:
        raise cannot_write(path, error) from error


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


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A `Progress` that shows a bar, from the first byte on."""
    with contextlib.ExitStack() as shown:
        display: Display | None = None

        def show(done: int, total: int) -> None:
            nonlocal display
            if display is None:
                display = shown.enter_context(Display(title, total, done=done, unit="byte"))
            display.advance(done, {"": f"{readable_bytes(done)} of {readable_bytes(total)}"})

        yield show


def _download(url: str, path: Path, sha256: str | None, progress: Progress) -> None:
    part = path.with_name(f"{TEMPORARY_PREFIX}{path.name}.part")
    opener = urllib.request.build_opener(_HttpsOnly)
    failures = 0
    while True:
        before = _size(part)
        try:
            complete = _receive(opener, url, part, progress)
        except urllib.error.HTTPError as error:
            raise RunError(f"the server answers {error.code} {error.reason} for {url}") from error
        except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            complete, reason = False, getattr(reason, "strerror", None) or reason
        else:
            reason = "the connection ended early"
        if complete:
            break
        failures = 0 if _size(part) > before else failures + 1
        if failures == _ATTEMPTS or before == _size(part) == 0:
            raise RunError(_unreachable(url, path, part, str(reason) or type(reason).__name__))
        time.sleep(_PAUSE_SECONDS * failures)
    found = sha256_of(part)
    if sha256 is not None and found != sha256.lower():
        _forget(part)
        raise RunError(f"{url} has the SHA-256 {found}, expected {sha256.lower()}: nothing was kept")
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


def _unreachable(url: str, path: Path, part: Path, reason: str) -> str:
    kept = f" {readable_bytes(_size(part))} are kept: the same command goes on." if _size(part) else ""
    return (
        f"cannot fetch {url}: {reason}.{kept} Without a network: fetch it elsewhere, put it here as {path}, "
        "and run the same command"
    )
