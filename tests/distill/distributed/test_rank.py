import pytest

from distill.distributed.rank import Rank, rank_of_environment
from distill.errors import UserError
from distill.parallel import THREADS_VARIABLE, setup_process

FOUR = {
    "PADDLE_TRAINERS_NUM": "4",
    "PADDLE_TRAINER_ID": "3",
    "PADDLE_TRAINER_ENDPOINTS": "a:1,b:1,a:2,b:2",
}


def test_without_a_launcher_a_process_is_alone():
    assert rank_of_environment({}) == rank_of_environment({"PADDLE_TRAINERS_NUM": "1"}) == Rank(0, 1, 0, 1)


def test_the_launcher_says_which_rank_it_is():
    assert rank_of_environment(FOUR) == Rank(3, 4, 1, 2)
    assert rank_of_environment(FOUR | {"PADDLE_LOCAL_RANK": "0", "PADDLE_LOCAL_SIZE": "1"}) == Rank(3, 4, 0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"PADDLE_TRAINER_ID": "4"}, "does not make sense"),
        ({"PADDLE_TRAINER_ID": ""}, "does not make sense"),
        ({"PADDLE_TRAINER_ENDPOINTS": "a:1"}, "PADDLE_TRAINER_ENDPOINTS 'a:1'"),
        ({"PADDLE_TRAINERS_NUM": "two"}, "must be a whole number >= 0, received 'two'"),
    ],
)
def test_a_contradictory_environment_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        rank_of_environment(FOUR | change)


def test_ranks_share_the_cores_of_their_host(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    try:
        assert setup_process("cpu", rank=Rank(1, 6, 1, 3)).threads == 2
        assert setup_process("cpu", rank=Rank(1, 20, 1, 20)).threads == 1
        monkeypatch.setenv(THREADS_VARIABLE, "5")
        assert setup_process("cpu", rank=Rank(1, 6, 1, 3)).threads == 5
        monkeypatch.setenv(THREADS_VARIABLE, "0")
        with pytest.raises(UserError, match="DISTILL_CPU_THREADS must be a whole number >= 1, received '0'"):
            setup_process("cpu")
    finally:
        monkeypatch.undo()
        setup_process("cpu")
