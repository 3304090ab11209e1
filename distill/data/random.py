"""The one source of randomness: a counter-based generator keyed by what is being decided, not by who asks."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a generator decides. Values are part of a run's identity: never renumber them."""

    ORDER = 0
    VIEW = 1
    MIX = 2


def generator(seed: int, stage: int, epoch: int, index: int, stream: Stream) -> np.random.Generator:
    """The generator of one decision: the same wherever and whenever it is asked for.

    Philox 4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with
    key = (seed, stage * 2**32 + epoch) and counter = (0, 0, index, stream). Drawing moves the lowest
    two words only, so that two decisions share no number before 2**128 of them are drawn.

    Args:
        seed: The recipe's seed, [0, 2**63).
        stage: The stage's place in the recipe, [0, 2**31).
        epoch: [0, 2**32).
        index: The sample's index in the sources, or the mixup group's number; [0, 2**63).
        stream: What is decided.
    """
    key = np.array([seed, (stage << 32) | epoch], dtype=np.uint64)
    counter = np.array([0, 0, index, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
