"""How an attempt is judged: what failed first, whether all start again, how long is waited."""

import pytest

from distill.distributed.hosts import Membership
from distill.distributed.judge import Judge

HOSTS = [Membership(number, 2, f"machine-{number}") for number in (0, 1)]
ENDED = [(host, {"ended": True}) for host in HOSTS]


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def judge(clock):
    return Judge(2, 60.0, lambda: None, clock)


def failure(who, status, host=0):
    return HOSTS[host], {"failure": {"who": who, "status": status, "log": ["last words"]}}


def verdict(orders):
    (order,) = orders
    return order["verdict"]


def test_all_is_well_when_all_ranks_of_all_hosts_have_ended(judge):
    assert judge.judge(ENDED[:1]) == []
    assert verdict(judge.judge(ENDED[1:])) == {"status": 0, "restart": False, "reason": ""}


@pytest.mark.parametrize("status", [-9, -11, -6, None])
def test_what_the_system_ended_is_the_cause_and_others_followed(judge, clock, status):
    assert judge.judge([failure("rank 1", 1), failure("rank 2", status, host=1)]) == []
    clock.seconds = 2.1
    found = verdict(judge.judge([]))
    assert found["restart"] and found["status"] == 1 and found["reason"].startswith("rank 2 ")
    assert "last words" in found["reason"]


def test_a_failure_is_waited_for_by_two_seconds_and_no_longer(judge, clock):
    judge.judge([failure("rank 1", 1)])
    clock.seconds = 1.9
    assert judge.judge([failure("rank 0", 1)]) == []
    clock.seconds = 2.1
    assert verdict(judge.judge([]))["reason"].startswith("rank 1 ended with status 1")


def test_an_objection_keeps_from_a_restart():
    judge = Judge(1, 60.0, lambda: "not again")
    found = verdict(judge.judge([failure("rank 1", 1), (HOSTS[0], {"ended": True})]))
    assert not found["restart"] and found["status"] == 1 and found["reason"].endswith("not again")


@pytest.mark.parametrize(("status", "expected"), [(143, 143), (-15, 143), (130, 130), (-2, 130), (2, 2)])
def test_what_a_person_meant_restarts_nothing(judge, status, expected):
    found = verdict(judge.judge([failure("rank 1", status), *ENDED]))
    assert found["status"] == expected and not found["restart"]


def test_a_signal_is_ordered_once_and_waits_for_the_grace(judge, clock):
    assert judge.judge([(HOSTS[1], {"signal": 15}), (HOSTS[0], {"signal": 15})]) == [{"signal": 15}]
    assert judge.judge([failure("rank 0", 143)]) == []
    clock.seconds = 64.0
    assert judge.judge([]) == []
    clock.seconds = 65.1
    assert verdict(judge.judge([]))["status"] == 143


def test_ranks_that_finished_in_spite_of_a_signal_are_done(judge):
    judge.judge([(HOSTS[0], {"signal": 15})])
    assert verdict(judge.judge(ENDED))["status"] == 0


def test_what_could_not_be_saved_is_told(judge):
    judge.judge([(HOSTS[0], {"signal": 15})])
    found = verdict(judge.judge([failure("rank 0", 1), *ENDED]))
    assert found["status"] == 143 and "the last checkpoint is intact" in found["reason"]
    assert "rank 0 ended with status 1" in found["reason"]


def test_a_lost_host_is_named(judge, clock):
    judge.judge([(HOSTS[1], {"lost": True})])
    clock.seconds = 3.0
    assert "host 1 (machine-1)" in verdict(judge.judge([]))["reason"]
