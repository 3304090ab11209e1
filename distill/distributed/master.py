"""The address at which the hosts of a job meet, --master HOST:PORT."""

import errno
import socket
import time
from collections.abc import Callable

from distill.errors import UserError

_RETRY_SECONDS = 0.5


def parse_master(text: str) -> tuple[str, int]:
    """Splits HOST:PORT.

    Raises:
        UserError: It is something else.
    """
    host, _, port = text.rpartition(":")
    if not host or ":" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--master must be HOST:PORT, HOST a name or an IPv4 address of host 0, received {text!r}")
    return host, int(port)


def check_master(master: tuple[str, int], number: int) -> list[str]:
    """Says what is wrong with an address now; where a cluster is still starting its hosts, it may be right later.

    Args:
        master: HOST and PORT.
        number: Of this host.
    """
    try:
        address = ipv4(master[0])
    except OSError as error:
        return [f"--master: {master[0]} does not resolve: {error.strerror}"]
    if number:
        return []
    try:
        listening(address, master).close()
    except UserError as error:
        return [str(error)]
    return []


def ipv4(host: str) -> str:
    """Returns the first IPv4 address of a host; Paddle's launcher can use no other kind. Raises OSError without one."""
    return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])


def resolved(host: str, wait_seconds: float, check: Callable[[], None]) -> str:
    """Returns a host's IPv4 address; waits for it, because a cluster may name its hosts after it has started them.

    Args:
        host: Name or address.
        wait_seconds: How long.
        check: Called while it waits; may raise.

    Raises:
        UserError: There is none.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        check()
        try:
            return ipv4(host)
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--master: {host} does not resolve on this host ({error.strerror}), and did not for "
                    f"{wait_seconds:.0f} s. Give a name or an IPv4 address of host 0 that all hosts know"
                ) from error
        time.sleep(_RETRY_SECONDS)


def listening(address: str, master: tuple[str, int]) -> socket.socket:
    """Listens at one address of this host, not at all that it has; the socket never waits.

    Args:
        address: IPv4.
        master: HOST, for people, and PORT.

    Raises:
        UserError: The port is in use or reserved, or the address is not this host's.
    """
    listener = socket.socket(socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or a restart waits for a minute
    try:
        listener.bind((address, master[1]))
        listener.listen()
    except OSError as error:
        listener.close()
        host, port = master
        if isinstance(error, PermissionError):
            advice = "choose a port above 1023"
        elif error.errno == errno.EADDRINUSE:
            advice = f"port {port} is in use, perhaps by another job: choose another one on all hosts"
        else:
            advice = f"{host} ({address}) must be an address of this host, because --node-rank is 0 here"
        raise UserError(f"cannot listen at --master {host}:{port}: {error.strerror}; {advice}") from error
    listener.setblocking(False)
    return listener


def free_port(address: str) -> int:
    """Returns a port that nobody listens at, right now."""
    with socket.socket(socket.AF_INET) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
    return port
