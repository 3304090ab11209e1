"""Runs a function over shards: in processes of this machine, or on a Ray cluster.

The function writes what it makes itself, under the shard's key, whole or not at all. So it does not matter who
runs it, how often, or in which order, and a shard whose worker died is simply given to another one.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

from data_mining.recipe import RuntimeSection
from distill.display import Display
from distill.errors import DistillError, RunError, UserError

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class HasTitle(Protocol):
    """What messages need of a shard."""

    @property
    def title(self) -> str:
        """What a person calls it."""


S = TypeVar("S", bound=HasTitle)


def map_shards(function: Callable[[S], None], shards: Sequence[S], runtime: RuntimeSection, *, title: str) -> None:
    """Calls `function` with every shard, in any order, and returns when all are done.

    With one local worker it runs in this process, with this process's threads; a worker of several has one
    BLAS and one OpenCV thread.

    Args:
        function: Picklable: a function of a module, or a functools.partial of one. Calling it twice with a shard
            has the effect of calling it once.
        shards: Picklable.
        runtime: The executor, and how many workers it has.
        title: Of the progress bar.

    Raises:
        DistillError: What the function raised about a shard; shards that were done stay done.
        RunError: A shard's worker died `runtime.attempts` times.
    """
    if not shards:
        return
    with Display(title, len(shards), unit="shard") as display:
        done = _EXECUTORS[runtime.executor](function, shards, runtime)
        for count, shard in enumerate(done, start=1):
            display.advance(count, {"": shard.title})


def worker_count(runtime: RuntimeSection) -> int:
    """How many shards are worked on at a time on this machine."""
    return runtime.workers or len(os.sched_getaffinity(0))


def memory_per_worker(runtime: RuntimeSection) -> int:
    """The share in bytes that each worker has of the run's memory."""
    return runtime.memory_bytes // worker_count(runtime)


def threads_per_worker(runtime: RuntimeSection) -> int:
    """The share of this machine's cores that each worker has."""
    return max(1, len(os.sched_getaffinity(0)) // worker_count(runtime))


# --- processes of this machine ------------------------------------------------------------------


@dataclass
class _Worker:
    """A process, our end of its pipe, and the shard that it has."""

    process: BaseProcess
    pipe: Connection
    shard: Any = None


def _map_locally(function: Callable[[S], None], shards: Sequence[S], runtime: RuntimeSection) -> Iterator[S]:
    count = min(worker_count(runtime), len(shards))
    if worker_count(runtime) == 1:
        for shard in shards:
            function(shard)
            yield shard
        return
    waiting = deque(shards)
    deaths: dict[int, int] = {}
    workers = [_start_worker(function) for _ in range(count)]
    try:
        for worker in workers:
            _give(worker, waiting)
        while busy := [worker for worker in workers if worker.shard is not None]:
            for ready in wait([worker.pipe for worker in busy]):
                worker = next(worker for worker in busy if worker.pipe is ready)
                shard = worker.shard
                if _has_answered(worker):
                    _give(worker, waiting)
                    yield shard
                    continue
                deaths[id(shard)] = deaths.get(id(shard), 0) + 1
                _check_attempts(worker, deaths[id(shard)], runtime.attempts)
                waiting.appendleft(shard)
                workers[workers.index(worker)] = replacement = _start_worker(function)
                _give(replacement, waiting)
    finally:
        _stop(workers)


def _start_worker(function: Callable[[Any], None]) -> _Worker:
    # Not fork: a child would inherit locks of Arrow's, OpenCV's and Paddle's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(function, theirs), daemon=True)
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))  # read when the child imports NumPy: before _work
    try:
        process.start()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    theirs.close()  # so that the pipe ends when the child does
    return _Worker(process, ours)


def _give(worker: _Worker, waiting: "deque[Any]") -> None:
    worker.shard = waiting.popleft() if waiting else None
    if worker.shard is not None:
        with suppress(OSError):  # it has died: `wait` tells
            worker.pipe.send(worker.shard)


def _has_answered(worker: _Worker) -> bool:
    """Whether the worker is done with its shard, rather than dead; raises the error that it met."""
    try:
        error = worker.pipe.recv()
    except (EOFError, OSError):
        return False
    if error is not None:
        raise error
    return True


def _check_attempts(worker: _Worker, deaths: int, attempts: int) -> None:
    worker.process.join()
    code = worker.process.exitcode or 0
    how = f"signal {-code}" if code < 0 else f"exit status {code}"
    if deaths >= attempts:
        raise RunError(
            f"{worker.shard.title}: the worker died {deaths} times ({how}). Signal 9 is usually a lack of memory: "
            "use fewer --workers or smaller shards. The finished shards are kept; run again to go on"
        )


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.pipe.close()  # an idle worker leaves at the end of its pipe
        if worker.shard is not None:
            worker.process.terminate()
    for worker in workers:
        worker.process.join(timeout=10)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join(timeout=10)  # one that waits in the kernel for a dead disk cannot be ended


def _work(function: Callable[[Any], None], pipe: Connection) -> None:
    """A worker's life: shards come in, None or an error goes out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends us
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _use_one_thread()
    while True:
        try:
            shard = pipe.recv()
        except EOFError:  # the parent has no more, or has died
            return
        answer = _error_of(function, shard)
        try:
            pipe.send(answer)
        except OSError:
            return


def _leave_with_parent() -> None:
    """Ends this process as soon as its parent has died: nobody waits for its work any more."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _error_of(function: Callable[[Any], None], shard: HasTitle) -> DistillError | None:
    try:
        function(shard)
    except DistillError as error:
        return error
    except Exception as error:
        # The traceback would be lost on the way: --debug shows it as part of the message.
        detail = traceback.format_exc() if os.environ.get("DATA_MINING_DEBUG") else ""
        return RunError(f"{shard.title}: unexpected {type(error).__name__}: {error}\n{detail}".rstrip())
    return None


def _use_one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


# --- Ray ----------------------------------------------------------------------------------------


def _map_on_ray(function: Callable[[S], None], shards: Sequence[S], runtime: RuntimeSection) -> Iterator[S]:
    """Tasks, not actors: a pool of actors over all CPUs leaves none for anything else and hangs (ray #44687)."""
    ray = _import_ray()
    if not ray.is_initialized():
        _start_ray(ray, runtime)
    task = ray.remote(num_cpus=1, max_retries=runtime.attempts - 1)(_ray_task)
    # A few tasks more than CPUs: what is submitted takes memory in Ray, and the next shard is at hand.
    limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    limit = min(limit, runtime.workers or limit)
    waiting = deque(shards)
    running: dict[Any, S] = {}
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                shard = waiting.popleft()
                running[task.remote(function, shard)] = shard
            (ready,), _ = ray.wait(list(running), num_returns=1)
            shard = running.pop(ready)
            error = _ray_answer(ray, ready, shard, runtime.attempts)
            if error is not None:
                raise error
            yield shard
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _ray_task(function: Callable[[Any], None], shard: HasTitle) -> DistillError | None:
    _use_one_thread()
    return _error_of(function, shard)


def _ray_answer(ray: Any, reference: Any, shard: HasTitle, attempts: int) -> DistillError | None:
    try:
        return ray.get(reference)  # type: ignore[no-any-return]
    except ray.exceptions.RayError as error:
        return RunError(
            f"{shard.title}: its Ray worker or node was lost {attempts} times: {error}. The finished shards are "
            "kept; run again to go on"
        )


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"runtime.executor ray: Ray cannot be imported ({error}). pip install 'paddle-distill[ray]', "
            "or use the executor local"
        ) from error
    return ray


def _start_ray(ray: Any, runtime: RuntimeSection) -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts one of this machine's CPUs.

    It stays up for all stages, starting takes seconds; Ray itself ends it with the process.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about a coming default
    options: dict[str, Any] = {"include_dashboard": False, "logging_level": "warning", "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        options["num_cpus"] = worker_count(runtime)
    ray.init(runtime_env={"env_vars": dict.fromkeys(_THREAD_VARIABLES, "1")}, **options)


_EXECUTORS: dict[str, Callable[..., Iterator[Any]]] = {"local": _map_locally, "ray": _map_on_ray}
