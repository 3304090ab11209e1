"""Fetching a published file (see `distill.download`), whose SHA-256 is remembered.

Beside a file FILE lies FILE.json with the SHA-256, the address and the licence. PaddleClas publishes no checksums:
what is compared later is what came first.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distill.download import Progress, download
from distill.errors import UserError
from distill.files import cannot_write, locked, write_atomically
from distill.weights.files import sha256_of
from distill.weights.published import NON_COMMERCIAL, PublishedFile


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
                download(file.url, path, sha256=sha256, progress=progress)
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
