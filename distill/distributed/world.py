"""All ranks that train together: what each has to say, and sums of tensors over all of them.

Tensors are summed by Paddle's own engine, `paddle.distributed`: gloo on a CPU, NCCL on GPUs. What else the ranks tell
each other goes through a connection of each rank to rank 0, for two reasons (measured with Paddle 3.3.1): a gloo
collective gives up after 30 s, and its group is dead then, so that nobody may wait in one for a rank that reads a slow
disk, saves or evaluates; and a request to Paddle's own store takes 45 ms. Besides, a rank that ends closes its
connection, so that the others know at once.
"""

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any

import numpy as np

from distill.distributed.loopback import loopback_only, meet_on_loopback
from distill.distributed.rank import Rank
from distill.errors import DistillError, RunError
from distill.parallel import Device

LOG = logging.getLogger(__name__)

SAY_SECONDS = 60.0

_POLL_SECONDS = 1.0
_KEY_WORDS = 4


class FailedElsewhere(RunError):
    """Another rank failed, and said why; the exit status is that rank's."""

    def __init__(self, failure: dict[str, Any]) -> None:
        super().__init__(f"rank {failure['rank']} on {failure['host']}: {failure['message']}")
        self.failure = failure
        self.exit_status = failure["status"]


class World:
    """The ranks; without arguments a process that trains alone, for which nothing is ever sent.

    Args:
        rank: This process.
        connections: On rank 0 those to the ranks 1, 2, ...; on the others the one to rank 0.
    """

    def __init__(self, rank: Rank | None = None, connections: Sequence[Connection] = ()) -> None:
        self.rank = rank or Rank()
        self._connections = {number: each for number, each in enumerate(connections, 1 if self.rank.is_first else 0)}

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes the run's folder and speaks."""
        return self.rank.is_first

    def gather(self, value: Any) -> list[Any]:
        """What every rank gives here, in the order of the ranks; waits for all of them, however long they work.

        Args:
            value: What JSON can hold; tuples come back as lists.

        Raises:
            FailedElsewhere: A rank failed.
            RunError: A rank ended without a word.
        """
        if self.rank.size == 1:
            return [value]
        if not self.is_first:
            with suppress(OSError):  # rank 0 has ended; perhaps it left a word, which is read next
                _send(self._connections[0], {"value": value})
            received: list[Any] = self._receive_from({0})[0]
            return received
        values = self._receive_from(set(self._connections)) | {0: value}
        together = [values[number] for number in range(self.rank.size)]
        self._tell_all({"value": together})
        return together

    def share(self, value: Any) -> Any:
        """What rank 0 gives here; the others' value is ignored. Raises as `gather`."""
        return self.gather(value if self.is_first else None)[0]

    def wait(self) -> None:
        """Returns when all ranks have come here. Raises as `gather`."""
        self.gather(None)

    def sum_(self, tensor: Any) -> None:
        """Replaces a tensor of Paddle by its sum over all ranks: the same bits on all of them.

        Call it behind a `gather`: gloo waits 30 s for the slowest rank at most.

        Raises:
            RunError: A rank could not be reached.
        """
        if self.rank.size > 1:
            self.begin_sum(tensor).wait()

    def begin_sum(self, tensor: Any) -> Any:
        """Begins what `sum_` does, on several ranks; NCCL goes on beside what is computed meanwhile.

        Returns:
            Paddle's task: behind its `wait()` the tensor holds the sum.

        Raises:
            RunError: A rank could not be reached.
        """
        from paddle import distributed

        try:
            return distributed.all_reduce(tensor, sync_op=False)
        except (RuntimeError, OSError, ValueError) as error:
            first_line = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise RunError(
                f"rank {self.rank.number} could not sum with the other ranks: {first_line}. One of them has ended, or "
                "the network between them has failed. The last checkpoint is intact"
            ) from error

    def tell_failure(self, error: BaseException) -> None:
        """Lets the other ranks know why this one ends; they learn it when they next wait for it."""
        if isinstance(error, FailedElsewhere):
            failure = error.failure
        else:
            failure = {"rank": self.rank.number, "host": socket.gethostname(), **_described(error)}
        if self.is_first:
            self._tell_all({"failure": failure})
        elif not isinstance(error, FailedElsewhere):
            with suppress(OSError):
                _send(self._connections[0], {"failure": failure})

    def _tell_all(self, message: dict[str, Any]) -> None:
        for connection in self._connections.values():
            with suppress(OSError):  # one that has ended is noticed when something is expected of it
                _send(connection, message)

    def _receive_from(self, numbers: set[int]) -> dict[int, Any]:
        """The next value of each of these ranks."""
        values: dict[int, Any] = {}
        waiting = {self._connections[number]: number for number in numbers}
        began = said = time.monotonic()
        while waiting:
            for connection in wait(list(waiting), _POLL_SECONDS):
                number = waiting.pop(connection)  # type: ignore[call-overload]
                values[number] = _receive(connection, number)  # type: ignore[arg-type]
            now = time.monotonic()
            if waiting and self.is_first and now - said >= SAY_SECONDS:
                said = now
                LOG.warning("Waiting for rank %s since %.0f s.", ", ".join(map(str, waiting.values())), now - began)
        return values


ALONE = World()
"""A process that trains alone."""


@contextmanager
def joined(rank: Rank, device: Device) -> Iterator[World]:
    """Joins the ranks; they leave together, and where one fails the others are told why.

    Args:
        rank: This process.
        device: What `setup_process` returned.
    """
    if rank.size == 1:
        yield ALONE
        return
    _join_paddle(device)
    with ExitStack() as open_connections:
        world = World(rank, [open_connections.enter_context(closing(each)) for each in _connect(rank)])
        try:
            yield world
            world.wait()  # rank 0 holds the others' connections: it leaves last
        except BaseException as error:
            world.tell_failure(error)
            raise


def _join_paddle(device: Device) -> None:
    """Lets Paddle build its group of all ranks."""
    if device.kind == "cpu":
        # Otherwise a Paddle that was built for GPUs takes NCCL, and one that was not the gloo of static graphs.
        os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
    from paddle import distributed

    with loopback_only() if meet_on_loopback(os.environ) else nullcontext():
        distributed.init_parallel_env()


def _connect(rank: Rank) -> list[Connection]:
    """The connections that `World` wants; Paddle's group tells all ranks where rank 0 listens, and the key."""
    host = os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[0].rpartition(":")[0]
    if not rank.is_first:
        port, *words = _agreed([0] * (1 + _KEY_WORDS))
        connection = Client((host, port), authkey=_key(words))
        _keep_alive(connection)
        connection.send_bytes(str(rank.number).encode())
        return [connection]
    words = [secrets.randbits(62) for _ in range(_KEY_WORDS)]
    with Listener((host, 0), backlog=rank.size, authkey=_key(words)) as listener:
        _agreed([listener.address[1], *words])
        found: dict[int, Connection] = {}
        while len(found) < rank.size - 1:
            with suppress(AuthenticationError, EOFError, ConnectionError):  # a stranger
                connection = listener.accept()
                _keep_alive(connection)
                found[int(connection.recv_bytes())] = connection
    return [found[number] for number in range(1, rank.size)]


def _agreed(words: Sequence[int]) -> list[int]:
    """Rank 0's words, the others giving zeros."""
    import paddle
    from paddle import distributed

    tensor = paddle.to_tensor(np.array(words, dtype=np.int64))
    distributed.all_reduce(tensor)
    return [int(word) for word in tensor.numpy()]


def _key(words: Sequence[int]) -> bytes:
    return b"".join(word.to_bytes(8, "little") for word in words)


def _keep_alive(connection: Connection) -> None:
    """Lets the kernel find out within minutes that the other host is gone."""
    with socket.socket(fileno=os.dup(connection.fileno())) as its:
        its.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        its.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        its.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20)
        its.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _receive(connection: Connection, number: int) -> Any:
    """The value that rank `number` sent."""
    try:
        message = json.loads(connection.recv_bytes())
    except (EOFError, OSError) as error:
        raise RunError(
            f"rank {number} ended without a word: its own log may say more, or the system killed it (for its memory, "
            "say). The last checkpoint is intact"
        ) from error
    if "failure" in message:
        raise FailedElsewhere(message["failure"])
    return message["value"]


def _described(error: BaseException) -> dict[str, Any]:
    """What a rank says when it ends, and its exit status."""
    if isinstance(error, DistillError):
        return {"message": str(error), "status": error.exit_status}
    if isinstance(error, KeyboardInterrupt):
        return {"message": "interrupted", "status": 130}
    return {"message": " ".join(f"{type(error).__name__}: {error}".split()), "status": 1}
