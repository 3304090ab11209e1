#!/usr/bin/env python3
"""Puts Fashion-MNIST into a folder: four IDX files, 31 MB, 70,000 grey images of 28 px in 10 classes.

Taken from the first of these that works: the folder itself; the Debian package dataset-fashion-mnist
where it is installed; that package fetched with apt-get (no root needed); the copy that PaddlePaddle downloads.

Usage: python scripts/fashion_mnist.py [FOLDER]      (default: data/fashion-mnist in the checkout)
"""

import gzip
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# SHA-256 of the content without gzip: those who pack the files compress them differently.
CONTENTS = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
URL = "https://dataset.bj.bcebos.com/fashion_mnist/"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("usr/share/datasets/fashion-mnist")


def main() -> int:
    default = Path(__file__).resolve().parent.parent / "data" / "fashion-mnist"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    if is_complete(folder):
        return 0
    failures = []
    for source, fetch in SOURCES.items():
        print(f"Fashion-MNIST: trying {source} ...", flush=True)
        try:
            fetch(folder)
        except Exception as error:  # whatever it is, the next source may work
            failures.append(f"  {source}: {error}")
            continue
        if is_complete(folder):
            print(f"Fashion-MNIST is in {folder}")
            return 0
        failures.append(f"  {source}: the files are not complete, or not those expected (SHA-256)")
    print("Fashion-MNIST could not be had:", *failures, sep="\n", file=sys.stderr)
    print(f"Put these four files into {folder} by hand:", *CONTENTS, sep="\n  ", file=sys.stderr)
    return 1


def is_complete(folder: Path) -> bool:
    """Whether all four files are there with the right content."""
    return all(_content_sha256(folder / name) == expected for name, expected in CONTENTS.items())


def _content_sha256(path: Path) -> str | None:
    try:
        with gzip.open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except (OSError, EOFError):
        return None


def from_installed_package(folder: Path, root: Path = Path("/")) -> None:
    """Copies the files that the Debian package puts below `root`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CONTENTS:
        shutil.copyfile(root / DEBIAN_FOLDER / name, folder / name)


def from_apt(folder: Path) -> None:
    """Fetches the Debian package and unpacks it in a temporary folder."""
    with tempfile.TemporaryDirectory() as temporary:
        _quietly(["apt-get", "download", DEBIAN_PACKAGE], temporary)
        package = next(Path(temporary).glob("*.deb"))
        _quietly(["dpkg-deb", "-x", str(package), "unpacked"], temporary)
        from_installed_package(folder, Path(temporary) / "unpacked")


def from_paddle(folder: Path) -> None:
    """Fetches the files that PaddlePaddle downloads, as far as they are not there; their content is compared."""
    from distill.download import download, progress_bar

    folder.mkdir(parents=True, exist_ok=True)
    for name, expected in CONTENTS.items():
        if _content_sha256(folder / name) != expected:
            with progress_bar(name) as progress:
                download(URL + name, folder / name, progress=progress)


def _quietly(command: list[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"{command[0]} failed")


SOURCES: dict[str, Callable[[Path], None]] = {
    "the installed Debian package": from_installed_package,
    "apt-get download": from_apt,
    "PaddlePaddle's copy": from_paddle,
}

if __name__ == "__main__":
    sys.exit(main())
