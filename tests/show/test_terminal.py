"""Tables on terminals of any width, and names that would do harm."""

import importlib
import io
import re

import pytest
from commands import hope_eval
from frames import frame, row
from rich.console import Console

from hope_eval import zoo
from hope_eval.analysis.compare import Comparison
from hope_eval.analysis.differences import differences
from hope_eval.evaluation import preview
from hope_eval.inspection.encodings import listed
from hope_eval.show import comparison_tables, terminal
from hope_eval.show.tables import csv_text, render

WIDTHS = [*range(60, 131), *range(140, 201, 10), 100_000]

# Numbers with their signs, marks and brackets; names of columns in lengths.
NUMBERS = re.compile(r"\[?[+-]?\d[\d.,:e+-]*[\]%*†k]?")


@pytest.fixture
def screen(monkeypatch):
    """Print to a screen of some width; the tables that were printed, by width."""

    def printed(show):
        texts = {}
        for width in WIDTHS:
            stream = io.StringIO()
            console = Console(file=stream, width=width, highlight=False)
            for module in (terminal, comparison_tables):
                monkeypatch.setattr(module, "plain_console", lambda console=console: console, raising=False)
            show(console)
            texts[width] = stream.getvalue()
        return texts

    return printed


def hard_rows():
    for name, trained in (("zoo:rope", 256), ("a-model-with-quite-a-name/checkpoint-step", 131072)):
        for length, value in ((256, 24.1), (512, 56.789), (1024, 18_900.0), (131072, 1.9e9)):
            numbers = [value, value * 1.1, value * 1.3]
            yield row(name, length, numbers, metric="nll", encoding="yarn:factor=32,beta_fast=64", train_length=trained)


def check(texts):
    wanted = sorted(set(NUMBERS.findall(texts[WIDTHS[-1]])))
    for width, text in texts.items():
        assert "…" not in text, width
        missing = [number for number in wanted if number not in text]
        assert not missing, (width, missing, text)


def test_every_number_of_scores_is_on_a_screen_of_any_width(screen):
    rows = list(hard_rows())
    check(screen(lambda console: render(rows, "table", console=console)))


def test_every_number_of_a_comparison_is_on_a_screen_of_any_width(screen):
    comparison = Comparison(frame(*hard_rows()), "zoo:rope", [], [])

    def show(console):
        blocks = comparison_tables.blocks(comparison, ("scores", "differences", "reach", "wins"))
        comparison_tables.draw_all(blocks, [], "table", console)

    check(screen(show))


@pytest.mark.parametrize(
    "records", [listed(), preview.describe_all(), zoo.describe()], ids=["encodings", "tasks", "zoo"]
)
def test_every_word_of_a_list_is_on_a_screen_of_any_width(screen, records):
    texts = screen(lambda console: terminal.print_records(records))
    check(texts)
    for text in texts.values():
        assert all(str(next(iter(record.values()))) in text for record in records)


def test_every_number_of_a_plan_is_on_a_screen_of_any_width(screen):
    plan = importlib.import_module("hope_eval.cli.plan")

    class Plan:
        def rows(self):
            return [
                {"model": "zoo:hope", "encoding": "hope:multiplier=1.5", "what": what, "lengths": "256,1k,131072",
                 "samples": 30, "tokens": 123_456_789, "flops": 1.234e15, "peak_bytes": 2**31, "seconds": 7623.0}
                for what in ("ppl@sliding:stride=512", "instruction_at_distance")
            ]  # fmt: skip

        def notes(self):
            return []

    check(screen(lambda console: plan._show(Plan(), "table")))


HOSTILE = "x\n\\input{/etc/passwd} \x1b[2J\u202e<img src=x onerror=alert(1)> ![a](http://b) =cmd"


@pytest.mark.parametrize("form", ["table", "markdown", "latex"])
def test_a_name_does_no_harm_in_a_table(form, capsys):
    """Not on a terminal, which obeys control characters, nor in the files that are made of the table."""
    rows = [row("a", 256, [1, 2, 3], metric="nll", headline=True, model=HOSTILE, encoding=HOSTILE)]
    render(rows, form, [f"note on {HOSTILE}"])
    comparison = Comparison(frame(*({**one, "line": HOSTILE, "section": f"ppl@{HOSTILE}"} for one in rows)), "", [], [])
    blocks = comparison_tables.blocks(comparison, ("scores",))
    comparison_tables.draw_all(blocks, [f"about {HOSTILE}"], form, terminal.plain_console())
    text = capsys.readouterr().out
    assert not [c for c in text if c != "\n" and not c.isprintable()]
    if form == "latex":
        assert all(line.startswith("%") or r"\input" not in line for line in text.splitlines())
        assert any(line.startswith("% ") and r"\input" in line for line in text.splitlines())
    if form == "markdown":
        assert "<img" not in text
        assert "](" not in text.replace(r"]\(", "")


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1"])
def test_no_text_of_a_csv_is_a_formula(name):
    text = csv_text([{"model": name, "status": "-", "value": -1.5, name: 1}])
    assert text.splitlines()[1].strip('"').startswith("'")
    assert ",-,-1.5," in text
    assert text.splitlines()[0].split(",")[-1].strip('"').startswith("'")


@pytest.mark.parametrize("verdict", ["better", "not distinguishable"])
def test_an_interval_without_0_beside_a_verdict_of_no_difference_is_explained(verdict):
    scores = frame(row("rope", 256, [3, 3.1, 3.2], metric="nll"), row("hope", 256, [2, 2.2, 2.1], metric="nll"))
    gaps = differences(scores, "rope").assign(verdict=verdict)
    assert (gaps.high < 0).all()
    (block,) = comparison_tables._differences(gaps, "rope")
    assert any("≈ beside an interval without 0" in note for note in block.notes) == (verdict != "better")


def test_an_error_shows_control_characters_and_does_not_send_them():
    error = hope_eval("compare", "no\x1b[2Jrun", code=1).stderr
    assert r"no\x1b[2Jrun" in error
    assert "\x1b" not in error
    assert "\nhint: " in error
