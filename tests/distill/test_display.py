import pytest

from distill import display as display_module
from distill.display import Display


@pytest.fixture
def every_line(monkeypatch):
    monkeypatch.setattr(display_module, "PLAIN_LINE_SECONDS", 0.0)


def test_plain_lines_where_output_is_no_terminal(every_line, capsys):
    with Display("pool", 10, done=4) as display:
        display.advance(5, {"loss": "0.5", "data wait": "3%"})
    said = capsys.readouterr().err
    assert said.startswith("pool: step 5/10  loss 0.5  data wait 3%  ETA 0:00:0")


def test_plain_lines_are_not_too_many(capsys):
    with Display("pool", 1000) as display:
        for done in range(1000):
            display.advance(done, {})
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Display("pool", 10) as display:
        display.advance(5, {"loss": "0.25"})
    said = capsys.readouterr().err
    assert "5/10" in said
    assert "loss 0.25" in said


def test_names_with_brackets_are_printed_as_they_are(capsys):
    Display("x", 1).say("cannot decode [bold]a.jpg[/bold]")
    assert capsys.readouterr().err == "cannot decode [bold]a.jpg[/bold]\n"
