"""Suites, and lengths as people write them."""

import re

import pytest

from hope_eval.analysis import headline
from hope_eval.errors import HopeEvalError, LengthError, OptionError, TaskError
from hope_eval.evaluation.suites import parse_measure, suite_named, suites
from hope_eval.lengths import (
    DEFAULT,
    OF_TASKS,
    Times,
    lengths_text,
    parse_count,
    parse_length,
    parse_lengths,
    resolved,
    short_length,
)
from hope_eval.protocols import Protocol
from hope_eval.runs.kinds import PPL
from hope_eval.task import FAMILIES, Task, parse_task

SUITE = """
[{name}]
about = "a few"
lengths = "1x,2x"
samples = 8
tasks = ["copy", {{ task = "needle:n_needles=4", lengths = "2k", samples = 3 }}, {{ task = "ppl:bucket" }}, "ppl"]
"""


def written(tmp_path, content, name="my.toml"):
    path = tmp_path / name
    path.write_text(content)
    return str(path)


# Suites


def test_the_suites_of_this_project_measure_what_there_is():
    known = suites()
    assert {"quick", "standard", "paper"} <= set(known)
    for name, suite in known.items():
        assert suite.name == name
        assert suite is not suite_named(name)
        assert suite_named(name) == suite
        assert 10 < len(suite.about) < 120
        assert all(isinstance(entry.what, Task | Protocol) for entry in suite.entries)
        assert all(entry.samples is None or entry.samples > 0 for entry in suite.entries)
        # Every pillar, and perplexity first: it fails soonest.
        assert isinstance(suite.entries[0].what, Protocol)
        pillars = {entry.what.family for entry in suite.entries if isinstance(entry.what, Task)}
        assert {"copy", "retrieve" if name == "demo" else "fewshot"} <= pillars <= set(FAMILIES)
        whats = [str(entry.what) for entry in suite.entries]
        assert len(set(whats)) == len(whats)


def test_the_demo_measures_what_its_headline_shows():
    entries = suite_named("demo").entries
    assert {PPL if isinstance(entry.what, Protocol) else str(entry.what) for entry in entries} == {
        pillar.task for pillar in headline.PILLARS
    }
    assert all({*map(Times, headline.TIMES)} <= {*entry.lengths} for entry in entries)


def test_an_entry_has_what_it_says_and_else_what_its_suite_says(tmp_path):
    suite = suite_named(written(tmp_path, SUITE.format(name="few")))
    assert (suite.name, suite.about) == ("few", "a few")
    copy, needle, bucket, ppl = suite.entries
    assert copy.what == parse_task("copy")
    assert (copy.lengths, copy.samples) == ((Times(1), Times(2)), 8)
    assert needle.what == parse_task("needle:n_needles=4")
    assert (needle.lengths, needle.samples) == ((2048,), 3)
    assert (bucket.what, ppl.what) == (parse_measure("ppl:bucket"), parse_measure("ppl:prefix"))
    assert bucket.what != ppl.what


def test_a_suite_that_says_nothing_has_the_default_lengths_and_samples(tmp_path):
    (entry,) = suite_named(written(tmp_path, '[x]\ntasks = ["copy"]')).entries
    assert entry.lengths is None
    assert entry.all_lengths is OF_TASKS
    (entry,) = suite_named(written(tmp_path, '[x]\ntasks = ["ppl"]')).entries
    assert entry.all_lengths is DEFAULT
    assert entry.samples is None
    suite = suite_named(written(tmp_path, '[x]\nlengths = 512\ntasks = ["copy"]'))
    assert suite.entries[0].lengths == (512,)


def test_a_suite_can_be_measured_at_other_lengths(tmp_path):
    suite = suite_named(written(tmp_path, SUITE.format(name="few")))
    changed = suite.with_changes((64, 128), 2)
    assert {entry.lengths for entry in changed.entries} == {(64, 128)}
    assert {entry.samples for entry in changed.entries} == {2}
    assert [entry.what for entry in changed.entries] == [entry.what for entry in suite.entries]
    assert suite.with_changes(None, None) == suite
    assert suite.with_changes(None, 5).entries[1].lengths == (2048,)


def test_of_a_file_with_several_suites_one_is_named(tmp_path):
    path = written(tmp_path, SUITE.format(name="one") + SUITE.format(name="two"))
    assert set(suites(tmp_path / "my.toml")) == {"one", "two"}
    assert suite_named(f"{path}:two").name == "two"
    with pytest.raises(OptionError) as caught:
        suite_named(path)
    assert "one, two" in caught.value.hint
    with pytest.raises(OptionError, match="no suite is called `tow`") as caught:
        suite_named(f"{path}:tow")
    assert "`two`" in caught.value.hint


def test_an_unknown_suite_gets_a_hint():
    with pytest.raises(OptionError, match="no suite is called `quik`") as caught:
        suite_named("quik")
    assert "did you mean `quick`?" in caught.value.hint
    with pytest.raises(OptionError, match="`xyz`") as caught:
        suite_named("xyz")
    assert "standard" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "error", "message", "hint"),
    [
        ('[x]\ntask = ["copy"]', OptionError, "`x` has no key `task`", "did you mean `tasks`"),
        ('[x]\ntasks = ["copy"]\nlength = "2k"', OptionError, "no key `length`", "did you mean `lengths`"),
        ('[x]\ntasks = [{ task = "copy", sample = 3 }]', OptionError, "no key `sample`", "did you mean `samples`"),
        ('[x]\ntasks = [{ task = "copy", about = "a" }]', OptionError, "no key `about`", "task, lengths, samples"),
        ('[x]\ntasks = ["coppy"]', TaskError, "no task is called `coppy`", "did you mean `copy`"),
        ('[x]\ntasks = ["copy:symbols=3"]', TaskError, "no parameter `symbols`", "`n_symbols`"),
        ('[x]\ntasks = ["ppl:prefx"]', OptionError, "prefx", "prefix"),
        ("[x]\ntasks = []", OptionError, "`x` has no tasks", "tasks ="),
        ('[x]\nabout = "a"', OptionError, "`x` has no tasks", "tasks ="),
        ('[x]\ntasks = "copy"', OptionError, "`x` has no tasks", "tasks ="),
        ("[x]\ntasks = [{ samples = 3 }]", OptionError, "a task of the suite `x` has no name", "task ="),
        ("[x]\ntasks = [3]", OptionError, "a task of the suite `x` has no name", "task ="),
        ('[x]\nsamples = 0\ntasks = ["copy"]', OptionError, "`samples` of `copy`", "from 1 on"),
        ('[x]\nsamples = "8"\ntasks = ["copy"]', OptionError, "`samples` of `copy`", "from 1 on"),
        ('[x]\nsamples = true\ntasks = ["copy"]', OptionError, "`samples` of `copy`", "from 1 on"),
        ('[x]\nlengths = "2x,1k,1x"\ntasks = ["copy"]', LengthError, "lengths must ascend, got 1x after 2x", "1x,2x"),
        ('[x]\nlengths = [512, 1024]\ntasks = ["copy"]', LengthError, "is not a valid length", "2k"),
        ('tasks = ["copy"]', OptionError, "`tasks` of .* is not inside a suite", r"[my]"),
        ("[x", OptionError, "cannot read the suites", "TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_suite_is_named(content, error, message, hint, tmp_path):
    path = written(tmp_path, content)
    with pytest.raises(error, match=message) as caught:
        suite_named(path)
    assert hint in caught.value.hint


def test_a_file_of_suites_that_is_not_there_or_empty_is_an_error(tmp_path):
    with pytest.raises(OptionError, match="cannot read the suites"):
        suite_named(str(tmp_path / "none.toml"))
    with pytest.raises(OptionError) as caught:
        suite_named(written(tmp_path, "# nothing\n"))
    assert re.search(r"\w", caught.value.hint.removeprefix("one of"))


# Lengths


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("512", (512,)), ("4k", (4096,)), ("2k,8k,32K", (2048, 8192, 32768)), ("1m", (1 << 20,)), ("2, 3", (2, 3)),
        ("1x", (Times(1),)), ("1x,2X, 4x", (Times(1), Times(2), Times(4))), ("0.5x,1.5x", (Times(0.5), Times(1.5))),
        ("1x,64,2x", (Times(1), 64, Times(2))),
    ],
)  # fmt: skip
def test_lengths_are_tokens_or_training_lengths(text, lengths):
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0x", "0x is not"), ("0.0x,1x", "0x is not"), ("2k,1x,1k", "must ascend"), ("99999999999", "nothing reads"),
        ("2x,1x", "must ascend, got 1x after 2x"), ("1x,1x", "must ascend"), ("1x,1.0x", "must ascend"),
        ("4k,2k", "must ascend, got 2k after 4k"), ("1x,", "is not a valid length"), ("1,2", "at least 2 tokens"),
        *((text, f"`{text}` is not a valid length") for text in ("", "x", "-1x", "4g", "1xx")),
    ],
)  # fmt: skip
def test_what_is_no_length_is_an_error_with_a_hint(text, message):
    with pytest.raises(LengthError, match=message) as caught:
        parse_lengths(text)
    assert caught.value.hint


def test_both_kinds_of_lengths_are_in_order_for_a_model():
    assert resolved(parse_lengths("64,1x,2x"), 256) == (64, 256, 512)
    assert resolved(parse_lengths("1k,1x,2x"), 512) == (512, 1024), "a length is measured once"


def test_a_hint_to_ascend_can_be_used_as_it_is():
    for text, lengths in (("4k,2k,1k", (1024, 2048, 4096)), ("2x,1x,2x", (Times(1), Times(2)))):
        with pytest.raises(LengthError) as caught:
            parse_lengths(text)
        assert parse_lengths(caught.value.hint.removeprefix("--lengths ")) == lengths


@pytest.mark.parametrize("text", ["1x", "0.5x", "1.0000001x", "100x", "1048577x", "0.00001x", "2x,1048576.5x"])
def test_a_length_is_written_so_that_it_reads_as_the_same(text):
    assert lengths_text(parse_lengths(text)) == text


def test_columns_of_two_lengths_have_two_headings():
    headings = {length: Times.heading(length, 1000) for length in (333, 1000, 1001, 2500, 1_024_000, 1_024_001)}
    assert headings[333] == "0.333x"
    assert headings[1001] == "1.001x"
    assert headings[1_024_000] == "1024x"
    assert len(set(headings.values())) == 6


def test_training_lengths_are_tokens_of_one_model():
    assert resolved(DEFAULT, 256) == (128, 256, 512, 1024)
    assert resolved((Times(1.5), Times(3)), 101) == (152, 303)
    assert resolved((512, 1024), 256) == resolved((512, 1024), None) == (512, 1024)
    # A length has two tokens at least, and is measured once.
    assert resolved((Times(0.001), Times(0.002), Times(1)), 256) == (2, 256)
    with pytest.raises(LengthError, match="training length") as caught:
        resolved(DEFAULT, None)
    assert "--lengths" in caught.value.hint
    assert [str(one) for one in DEFAULT] == ["0.5x", "1x", "2x", "4x"]
    assert [str(one) for one in OF_TASKS] == ["0.3x", "0.6x", "1x", "2x", "4x"]


def test_lengths_are_written_as_they_are_read():
    for length in (2, 500, 512, 1024, 1536, 4096, 1 << 20, 3 << 20, 1000):
        assert parse_length(short_length(length)) == length
    assert [short_length(length) for length in (4096, 1000, 1 << 20)] == ["4k", "1000", "1m"]


def test_amounts_are_powers_of_ten():
    for text, n in (("500", 500), ("500k", 500_000), ("100M", 10**8), ("1.5B", 15 * 10**8), ("1_000", 1000)):
        assert parse_count(text) == n
    for text in ("", "0", "-1", "many", "1T", "0.0M"):
        with pytest.raises(HopeEvalError, match="not a valid number of tokens"):
            parse_count(text)
