#!/usr/bin/env python3
"""Gives every reader of files that somebody else made damaged and hostile ones, for as long as you like.

    python scripts/faults/fuzz.py --seconds 300                 # each reader for so long; --target NAME: one of them
    python scripts/faults/fuzz.py --examples 10000 --seed 7 --output table.md

An example is a valid file that is damaged: bits flipped, cut off, parts doubled, exchanged, inserted or left out,
numbers replaced by huge ones, texts by what means something in YAML or nests deeply. A reader may read it or refuse it
with its own error. Anything else is a finding: another exception, more than 10 seconds, or 1 GiB of memory. Findings
are kept in --findings, one file each. Prints a table in Markdown; exit status 1 where something was found.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_readers import TARGETS, Target

from distill.files import write_atomically

LONGEST_SECONDS = 10
MEMORY_BYTES = 2**30
"""Beyond what the process has when it begins."""

TEXTS = [
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e999",
    b".nan",
    b"9" * 60,
    b"''",
    b'"\\0"',
    b"!!python/name:os",
    b"*x",
    b"&x",
    b"<<: *x",
]
TEXTS += [
    b"[" * 200,
    b"{a: " * 200,
    b"- " * 200,
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\0",
    b"\r",
    b"\xe2\x80\xa8",
    b"../" * 30,
    b"@99+99",
]
TEXTS += [b"9223372036854775808", b"-9223372036854775809", b"1" * 5000, b"%s%n", b"\n\n", b": ", b"?\n", b"|\n", b"#"]
NUMBERS = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


@dataclass
class Tally:
    """What became of the examples of one reader."""

    examples: int = 0
    read: int = 0
    refused: int = 0
    slowest_seconds: float = 0.0
    findings: dict[str, str] = field(default_factory=dict)  # where it was raised, and the file that is kept


# --- damage -----------------------------------------------------------------------------------


def damaged(content: bytes, draw: random.Random, most: int = 4) -> bytes:
    """A few random changes one after the other."""
    for _ in range(draw.randint(1, most)):
        content = draw.choice(CHANGES)(content, draw)
    return content


def _span(content: bytes, draw: random.Random, longest: int) -> tuple[int, int]:
    first = draw.randint(0, len(content))
    return first, min(len(content), first + draw.choice([1, 2, 4, 8, draw.randint(0, longest)]))


def flip_bits(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        if data:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def cut_off(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randint(0, len(content))]


def leave_out(content: bytes, draw: random.Random) -> bytes:
    first, end = _span(content, draw, 200)
    return content[:first] + content[end:]


def double(content: bytes, draw: random.Random) -> bytes:
    first, end = _span(content, draw, 400)
    return content[:end] + content[first:end] * draw.choice([1, 1, 2, 50]) + content[end:]


def exchange(content: bytes, draw: random.Random) -> bytes:
    first, end = _span(content, draw, 100)
    at = draw.randint(end, len(content))
    return content[:first] + content[end:at] + content[first:end] + content[at:]


def insert_text(content: bytes, draw: random.Random) -> bytes:
    at, text = draw.randint(0, len(content)), draw.choice(TEXTS)
    return content[:at] + text + content[at:]


def replace_word(content: bytes, draw: random.Random) -> bytes:
    """The value of a text's line, or whatever lies between two blanks."""
    first = max(content.rfind(b" ", 0, draw.randint(0, len(content))), 0)
    ends = [end for end in (content.find(b" ", first + 1), content.find(b"\n", first + 1)) if end > 0]
    return content[: first + 1] + draw.choice(TEXTS) + content[min(ends, default=len(content)) :]


def replace_number(content: bytes, draw: random.Random) -> bytes:
    width, order = draw.choice([1, 2, 4, 8]), draw.choice(["little", "big"])
    number = (draw.choice(NUMBERS) + draw.choice([0, 0, -1, 1])) % 2 ** (8 * width)
    at = draw.randint(0, min(len(content), draw.choice([64, 1024, len(content)])))  # often in a header
    return content[:at] + number.to_bytes(width, order) + content[at + width :]


CHANGES: list[Callable[[bytes, random.Random], bytes]] = [
    flip_bits,
    cut_off,
    leave_out,
    double,
    exchange,
    insert_text,
    replace_word,
    replace_number,
]


# --- trying ------------------------------------------------------------------------------------


class TookTooLong(BaseException):
    """No `Exception`, which some readers turn into an error of their own."""


def attempt(target: Target, content: bytes, folder: Path, draw: random.Random) -> tuple[str, float]:
    """Gives one example to a reader: "read", "refused", or where something else was raised; and the seconds."""
    path = folder / "example"
    path.write_bytes(content)
    started = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, LONGEST_SECONDS)
    try:
        target.read(path, draw)
        found = "read"
    except target.refusals as error:
        found = "refused" if str(error) and str(error).encode("utf-8", "replace") else "an error without words"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        frame = frames[-2 if isinstance(error, TookTooLong) else -1]  # not the alarm's own
        found = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {error}"[:200]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return found, time.monotonic() - started


def fuzz(
    target: Target, folder: Path, draw: random.Random, going_on: Callable[[int], bool], findings: Path | None
) -> Tally:
    """Tries damaged examples as long as `going_on(examples)` says so."""
    tally = Tally()
    while going_on(tally.examples):
        content = damaged(draw.choice(target.seeds), draw)
        state = draw.getstate()
        found, seconds = attempt(target, content, folder, draw)
        tally.examples += 1
        tally.slowest_seconds = max(tally.slowest_seconds, seconds)
        if found in ("read", "refused"):
            tally.read += found == "read"
            tally.refused += found == "refused"
        elif found not in tally.findings:
            tally.findings[found] = ""
            if findings is not None:
                findings.mkdir(parents=True, exist_ok=True)
                kept = findings / f"{hashlib.sha256(content).hexdigest()[:16]}"
                kept.write_bytes(content)
                kept.with_suffix(".json").write_text(
                    json.dumps({"target": target.title, "found": found, "draw": state})
                )
                tally.findings[found] = str(kept)
    return tally


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Time and memory of an example; what libraries say about what they read is no finding, and is not shown."""

    def too_long(_number: int, _frame: object) -> None:
        raise TookTooLong(f"more than {LONGEST_SECONDS} seconds")

    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before, alarm = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, before[1]))
    shown, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)
        os.close(nowhere)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, alarm)


def run(
    names: Sequence[str], seconds: float, examples: int | None, seed: int, findings: Path | None
) -> dict[str, Tally]:
    """Each target in turn; see the options."""
    tallies = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="distill-fuzz-") as folder:
            target = TARGETS[name](Path(folder))
            end = time.monotonic() + seconds
            going_on = (
                (lambda count: count < examples) if examples is not None else lambda _, end=end: time.monotonic() < end
            )
            with limits():
                tallies[target.title] = fuzz(target, Path(folder), random.Random(f"{name} {seed}"), going_on, findings)
        print(f"{target.title}: {tallies[target.title]}", file=sys.stderr)
    return tallies


def table(tallies: dict[str, Tally]) -> str:
    """What was tried, in Markdown."""
    lines = ["| reader | examples | read | refused | slowest, s | findings |", "|---|---|---|---|---|---|"]
    for title, tally in tallies.items():
        counts = f"{tally.examples:,} | {tally.read:,} | {tally.refused:,} | {tally.slowest_seconds:.2f}"
        lines.append(f"| {title} | {counts} | {len(tally.findings)} |")
    found = [
        f"- {title}: {where} ({kept or 'not kept'})"
        for title, tally in tallies.items()
        for where, kept in tally.findings.items()
    ]
    return "\n".join([*lines, "", *found]).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each reader")
    parser.add_argument("--examples", type=int, help="for each reader, instead of --seconds")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="repeatable; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("runs/fuzz"), help="folder for what was found")
    parser.add_argument("--output", type=Path, help="file for the table")
    options = parser.parse_args()
    tallies = run(options.target or list(TARGETS), options.seconds, options.examples, options.seed, options.findings)
    print(text := table(tallies))
    if options.output is not None:
        write_atomically(options.output, text)
    sys.exit(any(tally.findings for tally in tallies.values()))


if __name__ == "__main__":
    main()
