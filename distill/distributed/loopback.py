"""Ranks of one host talk among themselves: what Paddle listens at is closed to everybody else.

Paddle's store listens at all addresses of the host and knows no setting for it; gloo takes the address of the host's
name, or of the interface that GLOO_SOCKET_IFNAME names.
"""

import os
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

ANY_ADDRESS = ("0.0.0.0", "::")
INTERFACE = "lo"


def meet_on_loopback(environment: Mapping[str, str]) -> bool:
    """Whether all ranks were told addresses of the loopback interface, as `distill launch` does on a single host."""
    endpoints = environment.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")
    return all(endpoint.startswith("127.") for endpoint in endpoints)


@contextmanager
def loopback_only() -> Iterator[None]:
    """What starts to listen in the block listens on the loopback interface alone when the block ends.

    Until then, for the second that ranks need to meet, Paddle's store is open to all addresses. Linux before 5.7 wants
    a privilege for it; without it the store stays so.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", INTERFACE)
    before = set(_descriptors())
    yield
    for descriptor in set(_descriptors()) - before:
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as its:
            listens = its.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if listens and its.family != socket.AF_UNIX and its.getsockname()[0] in ANY_ADDRESS:
                its.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, INTERFACE.encode())


def _descriptors() -> Iterator[int]:
    """Those of this process that are sockets."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                yield int(name)
