"""Which of the processes that train together this one is, as Paddle's launcher says in the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from distill.errors import UserError


@dataclass(frozen=True)
class Rank:
    """A process among those that train together.

    Attributes:
        number: 0..size-1; rank 0 alone writes the run's folder and speaks.
        size: How many there are.
        local_number: Its place among those on this host.
        local_size: How many there are on this host.
    """

    number: int = 0
    size: int = 1
    local_number: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.number == 0


def rank_of_environment(environment: Mapping[str, str] | None = None) -> Rank:
    """The rank that the launcher made this process; without a launcher the only one.

    Reads PADDLE_TRAINER_ID and PADDLE_TRAINERS_NUM; PADDLE_LOCAL_RANK and PADDLE_LOCAL_SIZE, or in their absence the
    hosts in PADDLE_TRAINER_ENDPOINTS.

    Raises:
        UserError: They contradict each other.
    """
    given = os.environ if environment is None else environment
    size = _whole_number(given, "PADDLE_TRAINERS_NUM", 1)
    if size <= 1:
        return Rank()
    number = _whole_number(given, "PADDLE_TRAINER_ID", -1)
    hosts = [endpoint.rpartition(":")[0] for endpoint in given.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")]
    if not 0 <= number < size or len(hosts) != size:
        raise UserError(
            f"the launcher's environment does not make sense: PADDLE_TRAINERS_NUM is {size}, PADDLE_TRAINER_ID "
            f"{given.get('PADDLE_TRAINER_ID')!r}, PADDLE_TRAINER_ENDPOINTS {given.get('PADDLE_TRAINER_ENDPOINTS')!r}. "
            "Start the ranks with `python -m paddle.distributed.launch`, or remove these variables"
        )
    local_number = _whole_number(given, "PADDLE_LOCAL_RANK", hosts[:number].count(hosts[number]))
    local_size = _whole_number(given, "PADDLE_LOCAL_SIZE", hosts.count(hosts[number]))
    return Rank(number, size, local_number, local_size)


def _whole_number(environment: Mapping[str, str], name: str, absent: int) -> int:
    text = environment.get(name, "")
    if not text:
        return absent
    if not text.isdecimal():
        raise UserError(f"the environment variable {name} must be a whole number >= 0, received {text!r}")
    return int(text)
