"""Hosts that meet: who is let in, who is turned away, and what they tell each other."""

import json
import socket
import threading

import pytest

from distill.distributed.channel import LONGEST_LINE_BYTES, Channel, ChannelClosed
from distill.distributed.hosts import FollowingHost, LeadingHost, Membership
from distill.errors import DistillError

FACTS = {"PaddlePaddle": "3.3.1", "the recipe's SHA-256": "ab"}


@pytest.fixture
def master():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()


def meet_all(hosts, during=lambda: None):
    """What each host gets out of the meeting: a meeting or an error."""
    found = [None] * len(hosts)

    def meet(place):
        try:
            found[place] = hosts[place].meet(resume=place == 0, wait_seconds=20.0, check=lambda: None)
        except DistillError as error:
            found[place] = error

    threads = [threading.Thread(target=meet, args=(place,)) for place in range(len(hosts))]
    threads[0].start()
    during()
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(60)
    parting = [threading.Thread(target=host.part) for host in hosts]
    for thread in parting:
        thread.start()
    for thread in parting:
        thread.join(60)
    return found


def of(master, number, hosts=2, **facts):
    member = Membership(number, hosts, f"machine-{number}", FACTS | facts)
    return LeadingHost(member, master) if number == 0 else FollowingHost(member, master)


def connect(master):
    while True:
        try:
            return socket.create_connection(master)
        except ConnectionRefusedError:
            continue


def test_hosts_agree_on_a_port_and_on_what_host_0_says(master):
    meetings = meet_all([of(master, number, 3) for number in range(3)])
    assert {meeting.master for meeting in meetings} == {meetings[0].master}
    assert meetings[0].master[0] == "127.0.0.1" and meetings[0].master[1] != master[1]
    assert all(meeting.resume and meeting.address == "127.0.0.1" for meeting in meetings)


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x80\x04\x95junk\n",
        b"x" * (LONGEST_LINE_BYTES + 2),
        b"[" * 60_000 + b"\n",
        b'{"number": "1", "hosts": 2, "name": "x", "facts": {}}\n',
        b'{"number": true, "hosts": 2, "name": "x", "facts": {}}\n',
        b"",
    ],
)
def test_strangers_are_turned_away_and_the_hosts_meet(master, junk):
    def disturb():
        with connect(master) as stranger:
            stranger.sendall(junk)

    meetings = meet_all([of(master, 0), of(master, 1)], during=disturb)
    assert not any(isinstance(meeting, DistillError) for meeting in meetings)


def test_hosts_that_differ_are_all_refused_and_told_in_what(master):
    errors = meet_all([of(master, 0), of(master, 1, PaddlePaddle="2.6.2")])
    for error in errors:
        assert error.exit_status == 2
        assert "PaddlePaddle is '3.3.1' on host 0 (machine-0) and '2.6.2' on host 1 (machine-1)" in str(error)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([(1, 3)], "host 0 (machine-0) was started with --nnodes 2, host 1 (machine-1) with --nnodes 3"),
        ([(2, 2)], "machine-2 was started with --node-rank 2, of 2 hosts"),
    ],
)
def test_hosts_that_were_started_wrongly_are_told(master, others, message):
    for error in meet_all([of(master, 0), *(of(master, number, hosts) for number, hosts in others)]):
        assert error.exit_status == 2 and message in str(error)


def test_two_hosts_with_one_number_are_told(master):
    errors = meet_all([of(master, 0, 3), of(master, 1, 3), of(master, 1, 3)])
    assert all("two hosts were started with --node-rank 1: machine-1 and machine-1" in str(error) for error in errors)


def test_a_port_in_use_is_told_at_once(master):
    with socket.socket() as other:
        other.bind(master)
        other.listen()
        (error,) = meet_all([of(master, 0)])
    assert error.exit_status == 2 and f"port {master[1]} is in use" in str(error)


def test_a_host_0_that_does_not_come_is_told(master):
    with pytest.raises(DistillError, match=r"waited 1 s for host 0 at 127\.0\.0\.1:\d+: Connection refused"):
        of(master, 1).meet(resume=False, wait_seconds=1.0, check=lambda: None)


def test_a_channel_takes_messages_in_order_and_in_pieces():
    ours, theirs = socket.socketpair()
    channel, other = Channel(ours), Channel(theirs)
    assert channel.receive() == []
    other.send({"a": 1})
    theirs.send(b'{"b"')
    assert channel.receive() == [{"a": 1}]
    theirs.send(b": 2}\n")
    other.close()
    assert channel.receive() == [{"b": 2}]
    with pytest.raises(ChannelClosed):
        channel.receive()
    with pytest.raises(ValueError, match="a message may have"):
        channel.send({"long": "x" * LONGEST_LINE_BYTES})
    with pytest.raises(ChannelClosed):
        for _ in range(3):
            channel.send(json.loads('{"c": 3}'))
    channel.close()
