"""Small real data for all tests: 1,797 handwritten digits (scikit-learn), enlarged to 28 px."""

import contextlib
import gzip
import http.server
import os
import resource
import ssl
import struct
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import settings

from distill import download
from distill.parallel import THREADS_VARIABLE, setup_process

# The same examples on every machine, so that a test fails for everybody or for nobody; look for new ones with
# scripts/test --hypothesis-profile=search
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=2000, deadline=None)
settings.load_profile("same")

DIGITS_RECIPE = """\
name: digits
description: Digits in small
seed: 3
num_classes: 10
model: {name: ResNet18_vd, width: 0.0625, stem_stride: 4}
epochs: 2
global_batch_size: 32
device_batch_size: 16
data:
  sources:
    - {kind: idx, images: DATA/train-images.gz, labels: DATA/train-labels.gz, range: [0, 200]}
view:
  size_px: 28
  crop: {kind: padded, padding_px: 2}
  horizontal_flip: 0.5
normalization: {mean: [0.3, 0.3, 0.3], std: [0.38, 0.38, 0.38]}
loss:
  cross_entropy: {weight: 1.0, label_smoothing: 0.1}
optimizer:
  kind: momentum
  learning_rate: 0.05
  momentum: 0.9
  nesterov: true
  weight_decay: 1e-4
  decay_bias_and_norm: false
schedule: {kind: cosine, warmup_epochs: 0.5, end_learning_rate: 0.0}
evaluation:
  sources:
    - {kind: idx, images: DATA/test-images.gz, labels: DATA/test-labels.gz}
  resize_short_px: 28
  crop_px: 28
  every_epochs: 1
runtime: {log_every_steps: 3}
"""


@pytest.fixture(scope="session", autouse=True)
def _process() -> None:
    """Threads and MKL's fast path, as in every real run; tests that run side by side share the cores."""
    side_by_side = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if side_by_side > 1:
        share = len(os.sched_getaffinity(0)) // side_by_side
        os.environ.setdefault(THREADS_VARIABLE, str(max(1, share)))  # also of what tests start
    setup_process("cpu")


@dataclass(frozen=True)
class Digits:
    """Where the digits lie, as IDX files."""

    folder: Path

    def recipe(self, target: Path, **changes: object) -> Path:
        """Writes the digits' recipe, with top-level keys replaced (None: left out), to `target`."""
        content = yaml.safe_load(DIGITS_RECIPE.replace("DATA", str(self.folder)).replace("1e-4", "0.0001"))
        content |= changes
        target.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False))
        return target


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """1,500 digits to train on and 297 to test on."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    bunch = load_digits()
    images = np.kron(bunch.images, np.ones((3, 3))) * (255 / 16)
    images = np.pad(images.astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    for part, rows in {"train": slice(0, 1500), "test": slice(1500, None)}.items():
        write_idx(folder / f"{part}-images.gz", images[rows])
        write_idx(folder / f"{part}-labels.gz", bunch.target[rows].astype(np.uint8))
    return Digits(folder)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Writes uint8 as the MNIST files are written: magic number, big-endian sizes, bytes."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=1))


@pytest.fixture
def small_files_only():
    """A real write error, as on a full disk: the system refuses to let files grow beyond some bytes."""

    @contextlib.contextmanager
    def limited(size_bytes):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of some kB, and makes it larger; where root may."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size_kb, *options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size_kb}k", *options]), "none", str(folder)]
        done = subprocess.run(command, capture_output=True)
        if done.returncode:
            pytest.skip("mounting a small file system takes root; the limit on a file's size is tested anyway")
        return folder

    yield mount
    # Lazily: an array of the test may still be mapped from a file there.
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


# --- downloads ------------------------------------------------------------------------------------


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))
        if server.redirect_to:
            self.send_response(302)
            self.send_header("Location", server.redirect_to)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = 0
        wanted = self.headers.get("Range")
        if wanted and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start > len(content) or (wanted and server.refuses_ranges):
            self.send_error(416)
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        if server.tells_length:
            self.send_header("Content-Length", str(len(body) + server.missing_bytes))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        self.wfile.write(body[:cut])
        if cut is not None or server.missing_bytes or not server.tells_length:
            self.close_connection = True


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem"
    try:
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl, which makes the server's certificate, is not installed")
    return folder


@pytest.fixture
def https_server(certificate, monkeypatch):
    """At https://localhost:{server_port}: serves `files`, content by path, with the faults that its attributes set."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 0.0)
    httpd = http.server.ThreadingHTTPServer(("localhost", 0), _Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    httpd.files, httpd.etag, httpd.ranges, httpd.tells_length = {}, '"one"', True, True
    httpd.cuts, httpd.requests, httpd.missing_bytes, httpd.redirect_to = [], [], 0, None
    httpd.refuses_ranges = False
    httpd.handle_error = lambda *_: None  # a client that hangs up is part of the tests
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()
