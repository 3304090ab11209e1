"""What stands around Paddle's launcher on each host: it starts the ranks, notices when one dies, and starts all again.

On every host a supervisor runs the same loop, and that of host 0 judges besides. An attempt begins when all hosts have
met and ends on all of them together: when every rank has ended well, one has failed, a host is gone, or a signal asked
for the end. Nothing of a failed attempt is left but its checkpoints and logs.
"""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from distill.display import Display
from distill.distributed.hosts import Hosts, Membership
from distill.distributed.judge import Judge, Verdict
from distill.distributed.local_ranks import LocalRanks, Place
from distill.errors import RunError, UserError
from distill.signals import Interrupted, StopRequest, stop_signals

LONGEST_PAUSE_SECONDS = 60.0

_POLL_SECONDS = 0.1
_ATTEMPTS_WITHOUT_PROGRESS = 2


@dataclass(frozen=True)
class Job:
    """What runs on all hosts; all but `devices` and `logs` is the same on each.

    Attributes:
        command: The command of a rank; takes whether it resumes.
        ranks: On each host.
        logs: Folder of this host's logs.
        progress: How far the checkpoints have come; another value means that there is a new one. Asked on host 0.
        resume: Whether the first attempt resumes; later ones do.
        devices: GPUs of this host, by the names that CUDA_VISIBLE_DEVICES has for them; none: ranks on the CPU.
        hide_gpus: Whether the ranks must not see the GPUs that there are.
        max_restarts: How often all ranks may be started again.
        grace_seconds: How long ranks that were asked to end may save.
        wait_seconds: How long a host waits for the others.
        pause_seconds: Before the first restart; doubled each time, up to `LONGEST_PAUSE_SECONDS`.
    """

    command: Callable[[bool], Sequence[str]]
    ranks: int
    logs: Path
    progress: Callable[[], object]
    resume: bool = False
    devices: Sequence[str] = ()
    hide_gpus: bool = False
    max_restarts: int = 0
    grace_seconds: float = 60.0
    wait_seconds: float = 300.0
    pause_seconds: float = 5.0


def supervise(job: Job, hosts: Hosts, membership: Membership, show: BinaryIO | None = None) -> None:
    """Runs a job to its end. To be called by the main thread: signals, and the kernel that ends orphans, ask for it.

    Args:
        job: What to run.
        hosts: All hosts.
        membership: Of this one.
        show: Takes what rank 0 writes, on host 0.

    Raises:
        Interrupted: SIGTERM or SIGINT arrived here, on another host or at a rank; ranks were given time to save.
        UserError: The hosts do not fit together, or the ranks say that their input is wrong.
        RunError: The job failed, and was started again in vain or not at all.
    """
    with stop_signals() as stop:
        _Supervisor(job, hosts, membership, stop, show).run()


class _Supervisor:
    def __init__(
        self, job: Job, hosts: Hosts, membership: Membership, stop: StopRequest, show: BinaryIO | None
    ) -> None:
        self._job, self._hosts, self._membership, self._stop, self._show = job, hosts, membership, stop, show
        self._display = Display("launch", 0)
        self._attempt = 0
        self._without_progress = 0
        self._reached: object = None

    def run(self) -> None:
        while True:
            verdict = self._try()
            if verdict.status == 0:
                return
            if not verdict.restart:
                _raise(verdict)
            self._attempt += 1
            pause = min(LONGEST_PAUSE_SECONDS, self._job.pause_seconds * 2 ** (self._attempt - 1))
            self._say(
                f"{verdict.reason}\nrestart {self._attempt} of {self._job.max_restarts} from the last checkpoint, "
                f"in {pause:.0f} s"
            )
            self._wait(pause)

    def _try(self) -> Verdict:
        """One attempt."""
        job, me = self._job, self._membership
        self._reached = job.progress() if self._hosts.leads else None
        resume = job.resume or self._attempt > 0
        try:
            if me.hosts > 1:
                self._say(f"{me.described} waits for all {me.hosts} hosts, up to {job.wait_seconds:.0f} s")
            meeting = self._hosts.meet(resume=resume, wait_seconds=job.wait_seconds, check=self._leave_if_asked)
            place = Place(me.number, me.hosts, meeting.address, meeting.master, job.ranks)
            self._say(f"{me.hosts * job.ranks} ranks on {me.hosts} host{'s' * (me.hosts > 1)}; logs in {job.logs}")
            command = job.command(meeting.resume)
            with LocalRanks(
                command, place, job.logs, devices=job.devices, hide_gpus=job.hide_gpus, show=self._show
            ) as ranks:
                return self._watch(ranks)
        finally:
            self._hosts.part()

    def _watch(self, ranks: LocalRanks) -> Verdict:
        """Reports what happens on this host, and follows orders until the attempt is over."""
        judge = Judge(self._membership.hosts, self._job.grace_seconds, self._objection) if self._hosts.leads else None
        reporter = _Reporter(ranks, self._hosts, self._stop)
        patience_ends = float("inf")
        while True:
            reporter.report()
            if judge is not None:
                for decided in judge.judge(self._hosts.reports()):
                    self._hosts.order(decided)
            for order in self._hosts.orders():
                if "verdict" in order:
                    return Verdict(**order["verdict"])
                if "lost" in order:
                    return Verdict(1, self._attempt < self._job.max_restarts, "host 0 is gone or cannot be reached")
                self._say(
                    f"{signal.Signals(order['signal']).name}: the ranks may save, for {self._job.grace_seconds:.0f} s; "
                    "a second signal ends them at once"
                )
                ranks.signal(order["signal"])
                patience_ends = time.monotonic() + self._job.grace_seconds
            if time.monotonic() > patience_ends:
                ranks.kill()
            time.sleep(_POLL_SECONDS)

    def _objection(self) -> str | None:
        """Why host 0 does not start the job again after a failure."""
        if self._attempt >= self._job.max_restarts:
            used = f"all {self._job.max_restarts} restarts are used up" if self._attempt else "--max-restarts is 0"
            return f"not started again: {used}; the last checkpoint is intact, --resume goes on from it"
        self._without_progress = 0 if self._job.progress() != self._reached else self._without_progress + 1
        if self._without_progress >= _ATTEMPTS_WITHOUT_PROGRESS:
            return f"not started again: {self._without_progress} attempts in a row ended without a new checkpoint"
        return None

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._leave_if_asked()
            time.sleep(_POLL_SECONDS)

    def _leave_if_asked(self) -> None:
        if self._stop.signal is not None:
            name = signal.Signals(self._stop.signal).name
            raise Interrupted(f"stopped by {name} while no rank was running", self._stop.signal)

    def _say(self, text: str) -> None:
        """Tells a person, and the log, which outlives the terminal."""
        self._display.say(f"launch: {text}")
        log = self._job.logs / f"supervisor-{self._membership.number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')} {text}\n")


class _Reporter:
    """Tells host 0 what happens on this host, each thing once."""

    def __init__(self, ranks: LocalRanks, hosts: Hosts, stop: StopRequest) -> None:
        self._ranks, self._hosts, self._stop = ranks, hosts, stop
        self._told: set[str] = set()

    def report(self) -> None:
        if self._stop.signal is not None:
            self._once("signal", self._stop.signal)
        for failure in self._ranks.watch():
            self._hosts.report({"failure": {"who": failure.who, "status": failure.status, "log": failure.log}})
        if self._ranks.ended:
            self._once("ended", True)

    def _once(self, what: str, value: int) -> None:
        if what not in self._told:
            self._told.add(what)
            self._hosts.report({what: value})


def _raise(verdict: Verdict) -> NoReturn:
    if verdict.status > 128:
        raise Interrupted(verdict.reason, verdict.status - 128)
    raise (UserError if verdict.status == UserError.exit_status else RunError)(verdict.reason)
