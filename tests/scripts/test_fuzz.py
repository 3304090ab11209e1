"""The fuzzer: a few of its examples on every reader, and that it notices what it is there for."""

import random
import resource
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "scripts" / "faults"


@pytest.fixture(scope="module")
def fuzz():
    sys.path.insert(0, str(FOLDER))
    try:
        import fuzz
    finally:
        sys.path.remove(str(FOLDER))
    return fuzz


def test_every_reader_reads_or_refuses(fuzz, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_AS)
    tallies = fuzz.run(list(fuzz.TARGETS), seconds=0, examples=25, seed=1, findings=tmp_path / "findings")
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert not {title: tally.findings for title, tally in tallies.items() if tally.findings}
    assert len(tallies) == len(fuzz.TARGETS) and not (tmp_path / "findings").exists()
    assert {tally.examples for tally in tallies.values()} == {25}
    assert all(tally.read + tally.refused == 25 for tally in tallies.values())
    assert sum(tally.read > 0 for tally in tallies.values()) > len(tallies) / 2  # not all is refused at the first byte


def test_the_same_seed_gives_the_same_examples(fuzz):
    first, second = ([fuzz.damaged(b"a: 1\nb: [2]\n", random.Random(7)) for _ in range(3)] for _ in range(2))
    assert first == second and first[0] != b"a: 1\nb: [2]\n"


def take_memory():
    return bytearray(3 * 2**30)


def take_time():
    time.sleep(5)


FAULTY = {
    "KeyError": lambda path, _: {}["x"],
    "MemoryError": lambda path, _: take_memory(),
    "TookTooLong": lambda path, _: take_time(),
}


@pytest.mark.parametrize("name", FAULTY)
def test_what_a_reader_must_not_do_is_found_and_kept(fuzz, tmp_path, monkeypatch, name):
    monkeypatch.setattr(fuzz, "LONGEST_SECONDS", 0.2)
    target = fuzz.Target("faulty", [b"valid"], FAULTY[name])
    monkeypatch.setitem(fuzz.TARGETS, "faulty", lambda folder: target)
    tallies = fuzz.run(["faulty"], seconds=0, examples=2, seed=0, findings=tmp_path)
    (found,) = tallies["faulty"].findings
    assert found.startswith(f"{name} at test_fuzz.py:")
    (kept,) = tmp_path.glob("*.json")
    assert found in kept.read_text() and kept.with_suffix("").exists()
    assert "| faulty | 2 | 0 | 0 |" in fuzz.table(tallies)
