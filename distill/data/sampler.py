"""Who sees which sample when: the order of an epoch and its division into steps, micro-batches and ranks."""

from dataclasses import dataclass
from functools import lru_cache

from distill.data.random import Stream, generator
from distill.data.types import IntArray
from distill.errors import UserError


@lru_cache(maxsize=2)  # a pure function; two, because prefetching crosses the border between epochs
def epoch_order(seed: int, stage: int, epoch: int, n: int) -> IntArray:
    """The order in which an epoch visits the n samples: int64 [n], a permutation, read-only."""
    order: IntArray = generator(seed, stage, epoch, 0, Stream.ORDER).permutation(n)
    order.setflags(write=False)
    return order


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one rank: the positions [first, end) of the epoch's order; none where first == end."""

    epoch: int
    step: int
    first: int
    end: int
    ends_step: bool
    global_count: int


@dataclass(frozen=True)
class MicroBatchPlan:
    """Divides epochs into steps of global_batch_size, and steps into micro-batches dealt out to the ranks in turn.

    A step's micro-batches do not depend on the world size, so neither do batch-norm statistics and mixup
    partners. Every sample occurs once an epoch. The last step of an epoch takes what is left, in as few
    micro-batches as device_batch_size allows, evenly filled: a batch of one sample is bad for batch norm.

    Attributes:
        n: Samples in an epoch, >= 1.
        global_batch_size: Samples in a step, over all ranks.
        device_batch_size: Most samples in a micro-batch; divides global_batch_size.
        rank: This process, 0..world_size-1.
        world_size: Number of processes.
        group_size: Consecutive positions that no micro-batch splits; divides device_batch_size.
    """

    n: int
    global_batch_size: int
    device_batch_size: int
    rank: int = 0
    world_size: int = 1
    group_size: int = 1

    def __post_init__(self) -> None:
        if self.n < 1 or self.global_batch_size % self.device_batch_size or self.device_batch_size % self.group_size:
            raise ValueError(f"need n >= 1, group size | device batch size | global batch size; received {self}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"need 0 <= rank < world_size, received {self.rank} of {self.world_size}")
        if self.world_size * self.device_batch_size > self.global_batch_size:
            raise UserError(
                f"global_batch_size {self.global_batch_size} has work for "
                f"{self.global_batch_size // self.device_batch_size} devices of device_batch_size "
                f"{self.device_batch_size}, but there are {self.world_size}. "
                "Start fewer, or lower device_batch_size (which changes the batch-norm statistics)."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Updates an epoch; the last may be short."""
        return -(-self.n // self.global_batch_size)

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of each rank in each step, empty ones included: the same on all ranks."""
        return -(-self.global_batch_size // (self.device_batch_size * self.world_size))

    def micro_batch(self, number: int) -> MicroBatch:
        """This rank's micro-batch `number`, counted from 0 through the whole stage."""
        step, turn = divmod(number, self.micro_batches_per_step)
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        begin = step_of_epoch * self.global_batch_size
        count = min(self.global_batch_size, self.n - begin)
        first, end = self._share(count, turn * self.world_size + self.rank)
        ends_step = turn == self.micro_batches_per_step - 1
        return MicroBatch(epoch, step, begin + first, begin + end, ends_step, count)

    def _share(self, count: int, slot: int) -> tuple[int, int]:
        """The part of a step's `count` samples that micro-batch `slot` gets."""
        slots = -(-count // self.device_batch_size)
        if slot >= slots:
            return 0, 0
        groups = -(-count // self.group_size)
        first, end = (min((slot + i) * groups // slots * self.group_size, count) for i in (0, 1))
        return first, end
