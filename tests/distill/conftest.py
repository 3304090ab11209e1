import contextlib
import resource

import pytest


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
