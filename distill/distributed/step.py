"""What the ranks tell each other behind the micro-batches of a step, before they sum: all then do the same."""

from collections.abc import Sequence
from dataclasses import dataclass

from distill.data.types import Failure
from distill.distributed.world import World


@dataclass(frozen=True)
class StepNews:
    """What happened in a step.

    Attributes:
        samples: Images that were learnt from.
        failures: Those that could not be decoded.
        signal: What asked to stop behind this step.
        save: Whether a checkpoint is due by the clock.
    """

    samples: int
    failures: Sequence[Failure]
    signal: int | None
    save: bool


def exchange_news(world: World, own: StepNews) -> tuple[StepNews, list[Failure]]:
    """The news of all ranks together, the same on all of them; and, of its failures, those of the other ranks.

    The first rank that was asked to stop says by which signal; the clock is that of rank 0.

    Raises:
        RunError: A rank failed or ended.
    """
    failures = [(failure.name, failure.reason) for failure in own.failures]
    news = world.gather((own.samples, failures, own.signal, own.save))
    by_rank = [[Failure(*failure) for failure in each[1]] for each in news]
    signals = [each[2] for each in news if each[2] is not None]
    together = StepNews(
        samples=sum(each[0] for each in news),
        failures=[failure for failures in by_rank for failure in failures],
        signal=signals[0] if signals else None,
        save=news[0][3],
    )
    return together, [f for number, some in enumerate(by_rank) if number != world.rank.number for f in some]
