import os
import socket

import pytest

from distill.distributed.loopback import loopback_only, meet_on_loopback


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [("127.0.0.1:1,127.0.0.1:2", True), ("127.0.0.1:1,10.0.0.3:2", False), ("10.0.0.3:1", False), ("", False)],
)
def test_ranks_meet_on_loopback_where_all_have_its_addresses(endpoints, expected):
    assert meet_on_loopback({"PADDLE_TRAINER_ENDPOINTS": endpoints} if endpoints else {}) is expected


def device_of(listener):
    return listener.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0")


def can_connect(address, port):
    try:
        socket.create_connection((address, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture
def other_address():
    """An address of this host that is not the loopback interface's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks the kernel which way it would go
        except OSError:
            pytest.skip("this host has no address but the loopback interface's")
        return probe.getsockname()[0]


def test_what_begins_to_listen_is_closed_to_other_addresses(other_address, monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with socket.create_server(("", 0)) as before:
        with loopback_only():
            opened = socket.create_server(("", 0))
            own = socket.create_server((other_address, 0))
            silent = socket.socket()
            assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
        with opened, own, silent:
            if device_of(opened) != b"lo":
                pytest.skip("this kernel wants a privilege for it")
            port = opened.getsockname()[1]
            assert can_connect("127.0.0.1", port) and not can_connect(other_address, port)
            assert can_connect(other_address, own.getsockname()[1])
            assert can_connect(other_address, before.getsockname()[1])
            assert device_of(silent) == b""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    with loopback_only():
        assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"  # what a person set stays
