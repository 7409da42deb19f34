"""Progress on standard error: what is left, in words, and what takes long."""

import io

import pytest
from rich.console import Console

from hope_eval.cli import progress
from hope_eval.lengths import duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0.4 s"), (90, "90 s"), (200, "3 min 20 s"), (7623, "2 h 07 min"), (7200, "2 h 00 min")],
)
def test_time_is_written_as_people_do(seconds, words):
    assert duration(seconds) == words


@pytest.fixture
def lines(monkeypatch):
    """The lines of a work of 1,000 tokens, one a call of the clock, each that many seconds after the one before."""

    def shown(seconds_a_token):
        stream = io.StringIO()
        monkeypatch.setattr(progress, "Console", lambda **how: Console(file=stream, width=60))
        clock = [0.0]
        monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
        with progress.progress("ppl \x1b[2J") as report:
            for done in range(0, 1000, 50):
                clock[0] = done * seconds_a_token
                report(done, 1000)
        return stream.getvalue().splitlines()

    return shown


def test_a_work_of_more_than_ten_minutes_says_so_once_at_its_beginning(lines):
    shown = lines(7.0)
    (long,) = [line for line in shown if "about" in line]
    assert "about 110 min 50 s to go" in long
    assert "hope-eval plan" in long
    assert shown.index(long) <= 1
    assert not any("\x1b" in line for line in shown)


def test_a_short_work_says_nothing_of_that(lines):
    assert not [line for line in lines(0.3) if "about" in line]
