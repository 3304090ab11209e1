"""The supervisors of all hosts: meeting before an attempt, comparing what they have, and talking while it runs.

Host 0 listens at the address that every host was given with --master, and at no other; the others connect to it. They
exchange JSON objects of limited length, and nothing of it is executed. Nobody proves who he is, as with Paddle's own
meeting and with gloo and NCCL: only the job's hosts may reach each other's ports.
"""

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from distill.distributed.channel import Channel, ChannelClosed
from distill.distributed.master import free_port, ipv4, listening, resolved
from distill.errors import DistillError, RunError, UserError

_POLL_SECONDS = 0.05
_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 0.5
_HELLO_SECONDS = 10.0
_PART_SECONDS = 10.0
_MOST_STRANGERS = 64
_SHOWN = 3

Said = Mapping[str, Any]


@dataclass(frozen=True)
class Membership:
    """What a host says of itself when it comes.

    Attributes:
        number: Of this host, 0..hosts-1.
        hosts: How many it expects, itself included.
        name: For people.
        facts: What must be the same on all hosts: a name for people -> JSON value.
    """

    number: int
    hosts: int
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def described(self) -> str:
        """For people."""
        return f"host {self.number} ({self.name})"


@dataclass(frozen=True)
class Meeting:
    """What the hosts agreed on.

    Attributes:
        address: IPv4 address of this host, as the others see it.
        master: Where Paddle's launchers shall meet: host 0's address, and a port that was free there.
        resume: Whether the ranks go on with a run that has begun: host 0 knows.
    """

    address: str
    master: tuple[str, int]
    resume: bool


class Hosts(Protocol):
    """The other hosts, seen from one of them.

    Reports go to host 0, orders come from it; host 0 itself takes part in both.
    """

    @property
    def leads(self) -> bool:
        """Whether this is host 0."""

    def meet(self, *, resume: bool, wait_seconds: float, check: Callable[[], None]) -> Meeting:
        """Waits until all hosts are there.

        Args:
            resume: What the meeting shall say of that; host 0's counts.
            wait_seconds: How long.
            check: Called while it waits; may raise.

        Raises:
            UserError: The address cannot be used, or the hosts do not fit together.
            RunError: Fewer came.
        """

    def report(self, report: Said) -> None:
        """Tells host 0 something."""

    def reports(self) -> list[tuple[Membership, Said]]:
        """On host 0: what the hosts have reported; {"lost": true} where one is gone. Elsewhere nothing."""

    def order(self, order: Said) -> None:
        """On host 0: tells all hosts something."""

    def orders(self) -> list[Said]:
        """What host 0 has ordered; {"lost": true} where it is gone."""

    def part(self) -> None:
        """Ends the connections of an attempt."""


class LeadingHost:
    """Host 0.

    Args:
        membership: Of this host.
        master: Where it listens; of no interest where there is no other host.
    """

    leads = True

    def __init__(self, membership: Membership, master: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self._self, self._master = membership, master
        self._others: dict[int, tuple[Membership, Channel]] = {}
        self._reports: list[tuple[Membership, Said]] = []
        self._orders: list[Said] = []

    def meet(self, *, resume: bool, wait_seconds: float, check: Callable[[], None]) -> Meeting:
        """See `Hosts`."""
        if self._self.hosts == 1:
            return Meeting("127.0.0.1", ("127.0.0.1", 0), resume)
        address = resolved(self._master[0], wait_seconds, check)
        try:
            with listening(address, self._master) as listener:
                self._gather(listener, wait_seconds, check)
            meeting: dict[str, Any] = {"resume": resume, "address": address, "port": free_port(address)}
        except DistillError as error:
            self.order({"refused": str(error), "status": error.exit_status})
            self.part()
            raise
        self.order({"meeting": meeting})
        self._orders.clear()
        return Meeting(address, (address, meeting["port"]), resume)

    def report(self, report: Said) -> None:
        """See `Hosts`."""
        self._reports.append((self._self, report))

    def reports(self) -> list[tuple[Membership, Said]]:
        """See `Hosts`."""
        found, self._reports = self._reports, []
        for number, (member, channel) in list(self._others.items()):
            try:
                found += [(member, message) for message in channel.receive()]
            except ChannelClosed:
                channel.close()
                del self._others[number]
                found.append((member, {"lost": True}))
        return found

    def order(self, order: Said) -> None:
        """See `Hosts`."""
        self._orders.append(order)
        for _, channel in self._others.values():
            with suppress(ChannelClosed):  # told by `reports`
                channel.send(order)

    def orders(self) -> list[Said]:
        """See `Hosts`."""
        found, self._orders = self._orders, []
        return found

    def part(self) -> None:
        """See `Hosts`. The others leave first, if they are not slow: so none misses the last order."""
        deadline = time.monotonic() + _PART_SECONDS
        while self._others and time.monotonic() < deadline:
            self._drop_those_who_left()
            time.sleep(_POLL_SECONDS)
        for _, channel in self._others.values():
            channel.close()
        self._others, self._reports, self._orders = {}, [], []

    def _gather(self, listener: socket.socket, wait_seconds: float, check: Callable[[], None]) -> None:
        deadline = time.monotonic() + wait_seconds
        strangers: list[tuple[float, Channel]] = []
        while len(self._others) < self._self.hosts - 1:
            check()
            self._drop_those_who_left()
            if time.monotonic() > deadline:
                raise RunError(self._missing(wait_seconds))
            with suppress(BlockingIOError, ConnectionError):
                strangers.append((time.monotonic(), _kept_alive(listener.accept()[0])))
            strangers = [each for each in strangers if self._still_unknown(*each)][-_MOST_STRANGERS:]
            time.sleep(_POLL_SECONDS)

    def _still_unknown(self, since: float, channel: Channel) -> bool:
        """Lets a host in that says who it is; whatever else speaks or is silent for long is turned away."""
        try:
            messages = channel.receive()
            if not messages and time.monotonic() - since < _HELLO_SECONDS:
                return True
            member = _member(messages[0]) if messages else None
        except ChannelClosed:
            member = None
        if member is None:
            channel.close()
        else:
            self._let_in(member, channel)
        return False

    def _let_in(self, member: Membership, channel: Channel) -> None:
        present = self._others.get(member.number, (self._self if member.number == 0 else None, None))[0]
        problem = None
        if member.hosts != self._self.hosts:
            problem = (
                f"{self._self.described} was started with --nnodes {self._self.hosts}, "
                f"{member.described} with --nnodes {member.hosts}"
            )
        elif present is not None:
            problem = f"two hosts were started with --node-rank {member.number}: {present.name} and {member.name}"
        elif not 0 <= member.number < self._self.hosts:
            problem = f"{member.name} was started with --node-rank {member.number}, of {self._self.hosts} hosts"
        else:
            problem = differences(self._self, member)
        if problem is None:
            self._others[member.number] = (member, channel)
            return
        error = UserError(f"the hosts do not fit together: {problem}")
        with suppress(ChannelClosed):
            channel.send({"refused": str(error), "status": error.exit_status})
        channel.close()
        raise error

    def _drop_those_who_left(self) -> None:
        for number, (_, channel) in list(self._others.items()):
            try:
                channel.receive()
            except ChannelClosed:
                channel.close()
                del self._others[number]

    def _missing(self, wait_seconds: float) -> str:
        here = [self._self, *(member for member, _ in self._others.values())]
        absent = sorted(set(range(self._self.hosts)) - {member.number for member in here})
        names = ", ".join(member.described for member in here)
        return (
            f"{len(here)} of {self._self.hosts} hosts came within {wait_seconds:.0f} s: {names}. Missing: --node-rank "
            f"{', '.join(map(str, absent))}. Is `distill launch` running there, with --master "
            f"{self._master[0]}:{self._master[1]}, and does a firewall let it through? --wait-seconds waits longer"
        )


class FollowingHost:
    """Any host but 0.

    Args:
        membership: Of this host.
        master: Where host 0 listens.
    """

    leads = False

    def __init__(self, membership: Membership, master: tuple[str, int]) -> None:
        self._self, self._master = membership, master
        self._channel: Channel | None = None

    def meet(self, *, resume: bool, wait_seconds: float, check: Callable[[], None]) -> Meeting:
        """See `Hosts`."""
        deadline = time.monotonic() + wait_seconds
        reason = ""
        while time.monotonic() < deadline:
            check()
            try:
                address = self._connect()
                if (answer := self._answer(deadline, check)) is not None:
                    return Meeting(address, (answer["address"], answer["port"]), answer["resume"])
                reason = "it did not call the hosts together"
            except OSError as error:
                reason = error.strerror or str(error)
                time.sleep(_RETRY_SECONDS)
            except ChannelClosed:
                reason = "it closed the connection"
                time.sleep(_RETRY_SECONDS)
        host, port = self._master
        raise RunError(
            f"{self._self.described} waited {wait_seconds:.0f} s for host 0 at {host}:{port}: {reason}. Is `distill "
            "launch --node-rank 0` running there, with the same --master, is the name right, and does a firewall let "
            f"port {port} through? --wait-seconds waits longer"
        )

    def report(self, report: Said) -> None:
        """See `Hosts`."""
        if self._channel is not None:
            with suppress(ChannelClosed):  # told by `orders`
                self._channel.send(report)

    def reports(self) -> list[tuple[Membership, Said]]:
        """See `Hosts`."""
        return []

    def order(self, order: Said) -> None:
        """See `Hosts`; not for this host to give."""
        raise NotImplementedError

    def orders(self) -> list[Said]:
        """See `Hosts`."""
        if self._channel is None:
            return [{"lost": True}]
        try:
            return list(self._channel.receive())
        except ChannelClosed:
            self.part()
            return [{"lost": True}]

    def part(self) -> None:
        """See `Hosts`."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def _connect(self) -> str:
        """Connects to host 0, and returns this host's address on the way to it."""
        connection = socket.create_connection((ipv4(self._master[0]), self._master[1]), timeout=_CONNECT_SECONDS)
        address: str = connection.getsockname()[0]
        self._channel = _kept_alive(connection)
        self._channel.send(
            {"number": self._self.number, "hosts": self._self.hosts, "name": self._self.name, "facts": self._self.facts}
        )
        return address

    def _answer(self, deadline: float, check: Callable[[], None]) -> Mapping[str, Any] | None:
        """What host 0 answers when all are there.

        Raises:
            DistillError: It refuses.
            ChannelClosed: It is gone.
        """
        assert self._channel is not None
        while time.monotonic() < deadline:
            check()
            for message in self._channel.receive():
                if "meeting" in message:
                    return dict(message["meeting"])
                if message.get("status") == UserError.exit_status:
                    raise UserError(f"host 0 says: {message['refused']}")
                raise RunError(f"host 0 says: {message['refused']}")
            time.sleep(_POLL_SECONDS)
        return None


def differences(first: Membership, other: Membership) -> str | None:
    """What differs between two hosts though it must not, or None."""
    found = [
        f"{name} is {value!r} on {first.described} and {other.facts.get(name)!r} on {other.described}"
        for name, value in first.facts.items()
        if other.facts.get(name) != value
    ]
    return "; ".join(found[:_SHOWN]) or None


def _member(message: Said) -> Membership | None:
    """Who says this; None where it is no host of ours."""
    number, hosts, name, facts = (message.get(key) for key in ("number", "hosts", "name", "facts"))
    if type(number) is int and type(hosts) is int and isinstance(name, str) and isinstance(facts, dict):
        return Membership(number, hosts, name[:100], facts)
    return None


def _kept_alive(connection: socket.socket) -> Channel:
    """A channel whose end comes within half a minute where the other host loses power or network."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    return Channel(connection)
