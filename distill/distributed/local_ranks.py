"""The ranks of this host: started through Paddle's launcher, watched, and ended together."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from distill.distributed.channel import Channel, ChannelClosed
from distill.distributed.keeper import ATTEMPT_MARK, log_path
from distill.distributed.tether import start_tethered
from distill.errors import RunError, UserError

START_SECONDS = 300.0
"""How long Paddle's launchers may take to find each other and to start the ranks."""

_PRIVATE_PREFIX = "distill-launch-"
_LOCK = "lock"
_SHOWN_LINES = 8
_LONGEST_SHOWN_LINE = 400
_END_SECONDS = 30.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Place:
    """Where this host stands in the job.

    Attributes:
        number: Of this host, from 0.
        hosts: How many there are.
        address: IPv4 address at which the other hosts reach this one.
        master: Where Paddle's launchers meet: an IPv4 address of host 0, and a port.
        ranks: How many each host has; those of host n are numbered from n * ranks.
    """

    number: int
    hosts: int
    address: str
    master: tuple[str, int]
    ranks: int


@dataclass(frozen=True)
class Failure:
    """A rank, or the launcher of a host, that ended with something else than success.

    Attributes:
        who: For people: "rank 3 on gpu-host-1".
        status: As `subprocess` has it: -9 for SIGKILL; None: unknown.
        log: Last lines of what it wrote.
    """

    who: str
    status: int | None
    log: tuple[str, ...] = ()

    @property
    def how(self) -> str:
        """In words: "was killed by SIGKILL"."""
        if self.status is None:
            return "ended without a word"
        if self.status >= 0:
            return f"ended with status {self.status}"
        return f"was killed by {signal.Signals(-self.status).name}"


def launcher_command(place: Place, devices: Sequence[str], log_folder: str) -> list[str]:
    """Paddle's launcher, but for the program that it starts.

    Args:
        place: Of this host.
        devices: GPUs, by the names that CUDA_VISIBLE_DEVICES has for them; none: ranks on the CPU.
        log_folder: Where the launcher writes what it cannot be kept from writing: the whole environment, for one.
    """
    command = [sys.executable, "-m", "paddle.distributed.launch", "--log_dir", log_folder]
    command += ["--nnodes", str(place.hosts), "--nproc_per_node", str(place.ranks), "--host", place.address]
    if place.hosts > 1:
        address, port = place.master
        command += ["--master", f"{address}:{port}", "--rank", str(place.number)]
    return command + (["--devices", ",".join(devices)] if devices else [])


def launcher_environment(environment: Mapping[str, str], place: Place, *, hide_gpus: bool) -> dict[str, str]:
    """What the launcher gets of this process's environment.

    Without the variables by which Paddle lets a platform override the command line; and its HTTP requests to host 0 are
    kept from a proxy.

    Args:
        environment: Of this process.
        place: Of this host.
        hide_gpus: Whether the ranks compute on the CPU, though Paddle could use GPUs.
    """
    kept = {name: value for name, value in environment.items() if not name.startswith("PADDLE_") and name != "POD_IP"}
    direct = ",".join(filter(None, [environment.get("no_proxy") or environment.get("NO_PROXY"), place.master[0]]))
    kept |= {"no_proxy": direct, "NO_PROXY": direct}
    if hide_gpus:
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(["-1"] * place.ranks)  # the launcher counts the names
    return kept


class LocalRanks:
    """The ranks of this host, from their start to their end; a context, which ends them.

    Args:
        command: Of each rank.
        place: Of this host.
        logs: A folder for the logs of the ranks and of Paddle's launcher, over all attempts.
        devices: As `launcher_command` takes them.
        hide_gpus: As `launcher_environment` takes it.
        show: Takes what rank 0 writes, as it is written; None: nowhere.
    """

    def __init__(
        self,
        command: Sequence[str],
        place: Place,
        logs: Path,
        *,
        devices: Sequence[str] = (),
        hide_gpus: bool = False,
        show: BinaryIO | None = None,
    ) -> None:
        self._place, self._logs = place, logs
        self._keepers: list[_Keeper] = []
        self._launcher_failed = False
        self._began = time.monotonic()
        try:
            logs.mkdir(parents=True, exist_ok=True)
            self._log = self._launcher_log.open("ab")
        except OSError as error:
            raise UserError(f"cannot write logs to {logs}: {error.strerror}. Choose another --output") from error
        remove_leftovers(Path(tempfile.gettempdir()))
        self._private = Path(tempfile.mkdtemp(prefix=_PRIVATE_PREFIX))  # nobody else may look into it
        self._lock = lock_private(self._private)
        self._listener = _listen(self._private / "socket", place.ranks)
        self._shown = _Follower(log_path(logs, 0), show) if show is not None and place.number == 0 else None
        keeper = [sys.executable, "-u", "-m", "distill.distributed.keeper", str(self._private / "socket"), str(logs)]
        self._launcher = start_tethered(
            [*launcher_command(place, devices, str(self._private / "paddle")), *keeper, *command],
            output=self._log,
            environment=launcher_environment(os.environ, place, hide_gpus=hide_gpus),
            block_signals=True,  # it would end the ranks in its own way
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def ended(self) -> bool:
        """Whether none of them is at work any more."""
        over = [keeper for keeper in self._keepers if keeper.gone or keeper.status is not None]
        return self._launcher_failed or len(over) == self._place.ranks

    def watch(self) -> list[Failure]:
        """Returns who has failed since the last call; never waits."""
        failures = self._watch_launcher()
        self._accept()
        for keeper in self._keepers:
            failures += self._watch_keeper(keeper)
        if self._shown is not None:
            self._shown.show()
        return failures

    def signal(self, number: int) -> None:
        """Sends a signal to every rank that is still at work."""
        for keeper in self._keepers:
            if keeper.status is None:
                with contextlib.suppress(ChannelClosed):
                    keeper.channel.send({"signal": number})

    def kill(self) -> None:
        """Ends the launcher, and with it every rank, at once."""
        self._launcher.kill()

    def end(self) -> None:
        """Kills what is left, and returns when it is gone: the next attempt then finds files and devices free.

        Raises:
            RunError: It does not end, because it hangs in a driver or in a file system.
        """
        self.kill()
        self._launcher.wait()
        deadline = time.monotonic() + _END_SECONDS
        try:
            while True:
                self.watch()
                if all(keeper.gone for keeper in self._keepers):
                    return
                if time.monotonic() > deadline:
                    raise RunError(
                        f"a rank on {socket.gethostname()} was killed {_END_SECONDS:.0f} s ago and has not ended: it "
                        "hangs in a driver or a file system. Look at it with ps and nvidia-smi before you go on"
                    )
                time.sleep(_POLL_SECONDS)
        finally:
            for keeper in self._keepers:
                keeper.channel.close()
            self._listener.close()
            self._log.close()
            shutil.rmtree(self._private, ignore_errors=True)
            self._lock.close()

    @property
    def _launcher_log(self) -> Path:
        return self._logs / f"launcher-{self._place.number}.log"

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._keepers.append(_Keeper(Channel(self._listener.accept()[0])))

    def _watch_launcher(self) -> list[Failure]:
        status = self._launcher.poll()
        late = len(self._keepers) < self._place.ranks and time.monotonic() - self._began > START_SECONDS
        if self._launcher_failed or (status is None and not late):
            return []
        self._launcher_failed = True
        who = f"Paddle's launcher on {socket.gethostname()}"
        if late:
            address, port = self._place.master
            who += f", which started no rank within {START_SECONDS:.0f} s (can the hosts reach {address}:{port}?),"
        return [Failure(who, status, tail(self._launcher_log))]

    def _watch_keeper(self, keeper: "_Keeper") -> list[Failure]:
        if keeper.gone:
            return []
        silent = keeper.status is None
        try:
            for message in keeper.channel.receive():
                keeper.rank = message.get("rank", keeper.rank)
                keeper.status = message.get("status", keeper.status)
        except ChannelClosed:
            keeper.gone = True
        if not silent or keeper.status == 0 or not (keeper.gone or keeper.status):
            return []
        log = tail(log_path(self._logs, keeper.rank)) if keeper.rank is not None else ()
        return [Failure(f"rank {keeper.rank} on {socket.gethostname()}", keeper.status, log)]


@dataclass
class _Keeper:
    """A rank's keeper.

    Attributes:
        channel: To it.
        rank: Its number, once it is known.
        status: Of the rank, once it has ended.
        gone: Whether both have ended.
    """

    channel: Channel
    rank: int | None = None
    status: int | None = None
    gone: bool = False


def lock_private(folder: Path) -> BinaryIO:
    """Marks a private folder as in use for as long as this process lives and the file that it returns is open."""
    lock = (folder / "new").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(folder / "new", folder / _LOCK)  # it appears under its name when it is held
    return lock


def remove_leftovers(temporary: Path) -> None:
    """Removes what supervisors left behind that were killed by SIGKILL: private folders of ours that nobody holds."""
    for folder in temporary.glob(f"{_PRIVATE_PREFIX}*"):
        with contextlib.suppress(OSError), (folder / _LOCK).open("rb") as lock:
            if folder.stat().st_uid == os.getuid() and not folder.is_symlink():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _listen(path: Path, backlog: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
    except OSError as error:
        raise UserError(f"cannot make a socket {path}: {error}. Set TMPDIR to another folder") from error
    listener.listen(backlog)
    listener.setblocking(False)
    return listener


def tail(path: Path) -> tuple[str, ...]:
    """The last lines of a log, shortened; of the last attempt only."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _SHOWN_LINES * 4 * _LONGEST_SHOWN_LINE))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ()
    starts = [number for number, line in enumerate(lines) if line.startswith(ATTEMPT_MARK)]
    lines = lines[starts[-1] + 1 :] if starts else lines
    return tuple(line[-_LONGEST_SHOWN_LINE:] for line in lines if line.strip())[-_SHOWN_LINES:]


class _Follower:
    """Copies what is appended to a file."""

    def __init__(self, path: Path, target: BinaryIO) -> None:
        self._path, self._target = path, target
        self._offset = path.stat().st_size if path.exists() else 0

    def show(self) -> None:
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._offset)
            while data := file.read(65536):
                self._offset += len(data)
                self._target.write(data)
                self._target.flush()
