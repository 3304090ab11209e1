"""How host 0 decides what becomes of an attempt, from what the hosts report."""

import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distill.distributed.hosts import Membership
from distill.distributed.local_ranks import Failure
from distill.errors import UserError

_SETTLE_SECONDS = 2.0  # a failed rank makes others fail: the first to report need not be the first that failed
_LATE_SECONDS = 5.0
_INTERRUPTIONS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended.

    Attributes:
        status: The job's exit status, should it end here: 0, 1, 2 or 128 + a signal.
        restart: Whether the ranks are started again.
        reason: For people; empty where all went well.
    """

    status: int
    restart: bool = False
    reason: str = ""


class Judge:
    """Judges one attempt.

    Args:
        hosts: How many there are.
        grace_seconds: How long ranks that were asked to end may save.
        objection: Why the job is not to be started again; None where it is. Asked when it would be.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        hosts: int,
        grace_seconds: float,
        objection: Callable[[], str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hosts, self._grace_seconds, self._objection, self._clock = hosts, grace_seconds, objection, clock
        self._failures: list[Failure] = []
        self._ended: set[int] = set()
        self._signal: int | None = None
        self._deadline = float("inf")

    def judge(self, reports: Iterable[tuple[Membership, Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """Returns the orders that follow from new reports: {"signal": 15}, {"verdict": {...}}."""
        orders: list[dict[str, Any]] = []
        for member, report in reports:
            if "ended" in report:
                self._ended.add(member.number)
            elif "lost" in report:
                self._ended.add(member.number)
                self._fails(Failure(member.described, None))
            elif "failure" in report:
                self._fails(Failure(**report["failure"]))
            elif "signal" in report and self._signal is None:
                self._signal = int(report["signal"])
                self._deadline = self._clock() + self._grace_seconds + _LATE_SECONDS
                orders.append({"signal": self._signal})
        if len(self._ended) == self._hosts or self._clock() > self._deadline:
            orders.append({"verdict": asdict(self._verdict())})
        return orders

    def _fails(self, failure: Failure) -> None:
        self._failures.append(failure)
        if self._signal is None:
            patience = _SETTLE_SECONDS if _interruption(failure) is None else self._grace_seconds
            self._deadline = min(self._deadline, self._clock() + patience)

    def _verdict(self) -> Verdict:
        if self._signal is not None and (self._failures or len(self._ended) < self._hosts):
            others = [each for each in self._failures if _interruption(each) is None]
            saved = "the last checkpoint is intact" if others else "the state is saved"
            told = "".join(f"\n{_described(each)}" for each in others[:1])
            name = signal.Signals(self._signal).name
            return Verdict(128 + self._signal, reason=f"stopped by {name}; {saved}, --resume goes on from there{told}")
        if not self._failures:
            return Verdict(0)
        cause = min(self._failures, key=_followed)
        interruption = _interruption(cause)
        if interruption is not None:
            return Verdict(128 + interruption, reason=_described(cause))
        if cause.status == UserError.exit_status:
            return Verdict(UserError.exit_status, reason=_described(cause))
        objection = self._objection()
        if objection is None:
            return Verdict(1, restart=True, reason=_described(cause))
        return Verdict(1, reason=f"{_described(cause)}\n{objection}")


def _interruption(failure: Failure) -> int | None:
    """The signal by which somebody asked a rank to end; None where it failed."""
    return next((number for number in _INTERRUPTIONS if failure.status in (128 + number, -number)), None)


def _followed(failure: Failure) -> bool:
    """Whether another failure may have caused this one, rather than the system or a person."""
    by_the_system = failure.status is None or failure.status < 0
    return not by_the_system or _interruption(failure) is not None


def _described(failure: Failure) -> str:
    """Who failed, how, and the end of its log."""
    killed = " (the system does that when memory runs out: see dmesg)" if failure.status == -signal.SIGKILL else ""
    return "\n  ".join([f"{failure.who} {failure.how}{killed}", *failure.log])
