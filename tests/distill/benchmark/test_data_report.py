import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from distill.benchmark.data import PARTS, DataReport, LoaderRun, Part, Parts
from distill.benchmark.data_report import bottleneck, print_report


def report_of(cpu_us=(10, 800, 100, 10), waiting_us=0.0, runs=((1, 1000, 1.0), (2, 1900, 0.0)), cores=2):
    parts = {name: Part(cpu, waiting_us if name == "read" else 0.0) for name, cpu in zip(PARTS, cpu_us, strict=True)}
    measured = tuple(LoaderRun(threads, 0, speed, 1.0, idle) for threads, speed, idle in runs)
    return DataReport("r", "s", 224, 5, cores, Parts(parts, 100, 0, 1e5, 2e5), measured)


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (report_of(), "the decoder: 87% of the computing"),
        (report_of((10, 100, 800, 10)), "the view .* 87%"),
        (report_of((800, 100, 10, 10)), "reading: 87%"),
        (report_of((10, 100, 10, 800)), "copying into the batch: 87%"),
        (report_of(waiting_us=900.0), "the disk: 49% of the time reading waits"),
        (report_of(runs=((1, 1000, 3.0), (4, 2000, 2.0)), cores=4), "Python's global lock: each of 4 workers does 50%"),
        (report_of(runs=((1, 1000, 0.0), (2, 1000, 0.0))), "the cores: each of 2 workers does 50%.* no core is idle"),
        (report_of(runs=((1, 1000, 1.0), (4, 2000, 0.0))), "the cores: each of 4 .* there are 2 cores"),
        (report_of(runs=((2, 1000, 0.0),)), "the decoder"),
    ],
)
def test_the_bottleneck_in_words(report, words):
    found = bottleneck(report)
    assert re.match(words, found), found


def test_processes_that_do_not_scale():
    report = report_of(runs=((1, 1000, 3.0), (4, 2000, 2.0)), cores=8)
    runs = tuple(replace(run, processes=2, cores_used=None) for run in report.runs)
    assert bottleneck(replace(report, runs=runs)).startswith("what processes share: each of 8 workers does 50%")


def test_the_printed_report():
    console = Console(file=StringIO(), width=1000)
    report = report_of()
    print_report(replace(report, parts=replace(report.parts, undecodable=7)), console, student=2174.0)
    lines = console.file.getvalue().splitlines()
    assert "r, stage s: 5 images an epoch, 200,000 pixels, 100 kB a file, views of 224 px; 2 cores" in lines
    assert "7 of 107 images could not be decoded" in lines
    assert any(line.split() == ["decode", "800.0", "87%", "0.0"] for line in lines)
    assert any(line.split() == ["2", "threads", "1900", "950", "1.0", "0.0"] for line in lines)
    assert (
        "One core prepares 1087 images/s: a student that takes 2174 images/s needs 2.0 cores for its images." in lines
    )
