"""The licence of a file of weights, as far as anything here tells it."""

from pathlib import Path, PurePosixPath

from distill.errors import UserError
from distill.weights.fetch import remembered
from distill.weights.published import NON_COMMERCIAL, published_files


def licence_of(path: Path, sha256: str | None) -> dict[str, str] | None:
    """The licence of a file of weights.

    Args:
        path: The file, which need not be there any more.
        sha256: Of its content, if known.

    Returns:
        "licence", and in words what "says" so: the note beside the file (`distill weights fetch` leaves one), where it
        is of this content; else a published file of the same name, for which nobody vouches: PaddleClas publishes no
        checksums. None: nothing is known.
    """
    try:
        note = remembered(path)
    except UserError:
        note = {}
    if sha256 is not None and note.get("sha256") == sha256 and isinstance(note.get("licence"), str):
        url = note.get("url")
        return {"licence": note["licence"], "says": f"fetched from {url}" if url else "as noted beside the file"}
    for file in published_files():
        if path.name in (file.file_name, PurePosixPath(file.url).name):
            return {"licence": file.licence, "says": f"by its name the published {file.name}; its content is not known"}
    return None


def is_non_commercial(network: str) -> bool:
    """Whether the published weights of a network exclude commercial use."""
    return any(file.licence == NON_COMMERCIAL for file in published_files() if file.model == network)
