"""Protocols as users name them, and protocols of their own, which need no second edit anywhere."""

import json
import re
import sys

import pytest
from commands import hope_eval

from hope_eval.errors import OptionError
from hope_eval.protocols import parse_protocol, protocol_class, protocol_named, protocol_names, settings_of

# Perplexity of the second half of each length, beside how much worse the first half is.
HALVES = '''
"""The second half of the first L tokens."""

from dataclasses import dataclass

from hope_eval.protocols import Cell, Column, Protocol, Window, parameter


@dataclass(frozen=True)
class Halves(Protocol):
    """The second half of the first L tokens of each document."""

    title = "Perplexity of the second half"

    skip: int = parameter(0, "tokens between the halves", least=0)

    def cells(self, lengths):
        return [self._cell(length) for length in lengths]

    def _cell(self, length):
        stop, middle, first = length - self.prefixed, length // 2, int(not self.prefixed)
        late = lambda n: [Window(0, stop, middle + self.skip, stop, self.prefixed)]
        early = lambda n: [Window(0, stop, first, middle, self.prefixed)]
        columns = (Column("late_gain", of=early, minus=late),)
        return Cell(self._id(f"L={length}", f"skip={self.skip}"), length, late, "document", "", columns)
'''


def forget_files():
    """Forget which files were run, as a new command does."""
    for name in [name for name in sys.modules if name.startswith("hope_eval_protocols.")]:
        del sys.modules[name]


@pytest.fixture
def halves(tmp_path):
    forget_files()
    file = tmp_path / "mine" / "halves.py"
    file.parent.mkdir()
    file.write_text(HALVES)
    return file


@pytest.fixture
def fixed(checkpoint, stories, tmp_path):
    return ("--model", checkpoint, "--data", stories, "--out", tmp_path / "runs", "--device", "cpu")


def rows_of(result):
    return {(row["length"], row["metric"]): row for row in json.loads(result.stdout)}


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("sliding:stride=512", {"stride": 512}),
        ("sliding:stride=1k,weighting=window,tokens=0", {"stride": 1024, "weighting": "window", "tokens": 0}),
        ("bucket:smallest=64", {"smallest": 64}),
        ("paired:shortest=32,k=16", {"shortest": 32, "k": 16}),
        ("last-k:k=128", {"k": 128}),
        ("windows:tokens=4k", {"tokens": 4096}),
        ("prefix", {}),
    ],
)
def test_a_protocol_is_written_as_it_is_read(text, parameters):
    protocol = parse_protocol(text)
    assert protocol == protocol_named(text.split(":")[0], **parameters)
    assert parse_protocol(str(protocol)) == protocol


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("slidng", "no protocol is called `slidng`", "did you mean `sliding`"),
        ("lastk", "no protocol is called `lastk`", "did you mean `last-k`"),
        ("last_k", "no protocol is called `last_k`", "did you mean `last-k`"),
        ("sliding:strid=3", "`sliding` has no parameter `strid`", "did you mean `stride`"),
        ("prefix:k=3", "`prefix` has no parameter `k`", "it has none"),
        ("prefix:prefixed=no", "`prefix` has no parameter `prefixed`", "it has none"),
        ("sliding:stride=far", "`far` is not a valid `stride` of `sliding`", "512 or 4k"),
        ("sliding:stride=0", "`stride` of `sliding` must be at least 1, got 0", "sliding:stride="),
        ("sliding:weighting=word", "`weighting` of `sliding` cannot be `word`", "token, window"),
        ("my/none.py", "there is no file `my/none.py`", "--protocol"),
    ],
)
def test_what_is_wrong_with_a_protocol_is_named(text, message, hint):
    with pytest.raises(OptionError, match=re.escape(message)) as caught:
        parse_protocol(text)
    assert hint in caught.value.hint


def test_every_protocol_and_parameter_is_explained_by_help():
    text = " ".join(hope_eval("ppl", "--help").stdout.split())
    for name in protocol_names():
        cls = protocol_class(name)
        assert cls.name == name
        assert cls.title != f"Perplexity, {name}"
        assert f"{name} {cls.one_line}" in text
        for setting in settings_of(cls):
            assert f"{setting.name}= {setting.metadata['about']}" in text


def test_parameters_are_the_same_in_the_protocol_and_as_options(fixed, tmp_path):
    grid = ("--lengths", "64", "--format", "csv")
    new = hope_eval("ppl", *fixed, *grid, "--protocol", "sliding:stride=16,weighting=window")
    old = hope_eval("ppl", *fixed, *grid, "--protocol", "sliding", "--stride", "16", "--weighting", "window")
    assert old.stdout == new.stdout
    assert "already done" in old.stderr
    result = hope_eval("ppl", *fixed, *grid, "--protocol", "sliding:stride=16", "--stride", "16", code=1)
    assert "--stride and `stride` of `--protocol sliding:stride=16` set the same parameter" in result.stderr


def test_a_table_from_a_run_takes_parameters_and_keeps_those_of_the_run(fixed, tmp_path):
    hope_eval("ppl", *fixed, "--lengths", "64", "--protocol", "sliding:stride=16")
    (run,) = (tmp_path / "runs").iterdir()

    def protocols(*arguments):
        rows = rows_of(hope_eval("ppl", "--from", run, "--format", "json", *arguments))
        return {row["protocol"] for row in rows.values()}

    assert protocols() == {"ppl@sliding:L=64,S=16,T=63"}
    assert protocols("--weighting", "window") == {"ppl@sliding:L=64,S=16,T=63,weighting=window"}
    assert protocols("--protocol", "sliding:tokens=40") == {"ppl@sliding:L=64,S=16,T=40"}
    assert protocols("--protocol", "last-k:k=8") == {"ppl@last-k:L=64,k=8"}


def test_suites_and_plans_take_parameters(fixed, tmp_path):
    suite = tmp_path / "my.toml"
    suite.write_text('[mine]\nlengths = "64"\ntasks = ["ppl:sliding:stride=16"]\n')
    rows = json.loads(hope_eval("run", "--suite", suite, *fixed, "--format", "json").stdout)
    assert {row["protocol"] for row in rows} == {"ppl@sliding:L=64,S=16,T=63"}
    models = [str(word) for word in (*fixed[:4], *fixed[6:])]
    arguments = ("plan", "--task", "ppl:sliding:stride=16", *models, "--lengths", "64", "--no-benchmark")
    plan = hope_eval(*arguments).stdout
    assert "ppl:sliding:stride=16" in plan.split("hope-eval")[0]
    assert "--protocol sliding:stride=16" in plan.splitlines()[-1]


def test_a_protocol_of_ones_own_works_everywhere(halves, fixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = f"{halves}:skip=2"
    result = hope_eval("ppl", *fixed, "--lengths", "32,64", "--protocol", own, "--format", "json")
    rows = rows_of(result)
    assert {metric for _, metric in rows} == {"perplexity", "nll", "bits_per_byte", "late_gain"}
    assert rows[64, "nll"]["protocol"] == "ppl@halves:L=64,skip=2"
    # The mean of the first 32 tokens minus that of the last 29, of the same read.
    whole = rows_of(hope_eval("ppl", *fixed, "--lengths", "33,64", "--format", "json"))
    late, early = rows[64, "nll"]["value"], whole[33, "nll"]["value"]
    assert rows[64, "late_gain"]["value"] == pytest.approx(early - late, rel=1e-5)

    (run,) = [path.parent for path in tmp_path.glob("runs/*/run.json") if '"halves"' in path.read_text()]
    table = hope_eval("ppl", "--from", run)
    assert "the second half" in table.stdout.lower()
    plan = hope_eval("plan", "--task", f"ppl:{own}", *fixed[:4], "--lengths", "32,64", "--no-benchmark").stdout
    assert "--protocol mine/halves.py:skip=2" in plan
    suite = tmp_path / "my.toml"
    suite.write_text(f'[mine]\nlengths = "32,64"\ntasks = ["ppl:{own}"]\n')
    again = hope_eval("run", "--suite", suite, *fixed, "--format", "json")
    assert rows_of(again) == rows
    assert "already done" in again.stderr

    # Nothing below needs the file.
    halves.unlink()
    compared = json.loads(hope_eval("compare", run, "--format", "json").stdout)
    values = {(row["length"], row["metric"]): row["value"] for row in compared["scores"]}
    assert values == {key: row["value"] for key, row in rows.items()}
    assert "late gain" in hope_eval("compare", run).stdout
    for metric in ("nll", "late_gain"):
        picture = tmp_path / f"{metric}.svg"
        hope_eval("plot", run, "--metric", metric, "--out", picture)
        assert "ppl@halves" in picture.read_text()
    hope_eval("report", run, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Perplexity of the second half" in page
    assert "late gain" in page
    error = hope_eval("ppl", "--from", run, "--lengths", "16", code=1).stderr
    assert "other lengths of `halves` need the file of the protocol" in error


def test_two_protocols_of_one_name_do_not_share_a_run(halves, fixed, tmp_path):
    arguments = ("ppl", *fixed, "--lengths", "64", "--protocol", halves, "--format", "json")
    first = rows_of(hope_eval(*arguments))
    other = tmp_path / "other" / "halves.py"
    other.parent.mkdir()
    other.write_text(HALVES.replace("middle + self.skip, stop", "middle + self.skip + 1, stop"))
    forget_files()
    second = rows_of(hope_eval(*arguments[:-3], other, "--format", "json"))
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert first[64, "nll"]["value"] != second[64, "nll"]["value"]


def test_a_file_that_takes_a_name_of_ours_is_refused(tmp_path):
    file = tmp_path / "last_k.py"
    file.write_text(HALVES)
    with pytest.raises(OptionError, match="has the name of the protocol `last-k` of hope-eval"):
        parse_protocol(str(file))


@pytest.mark.parametrize("name", ["sliding", "last-k"])
def test_protocols_of_a_number_of_tokens_fit_the_default_lengths(name):
    """A quarter of the training window; 256 from windows of 1,024 on, as before."""
    short, long = (parse_protocol(name).fitted(trained) for trained in (256, 8192))
    assert len(short.cells((128, 256, 512, 1024))) == 4
    key = "stride" if name == "sliding" else "k"
    assert (getattr(short, key), getattr(long, key)) == (64, 256)
    assert getattr(parse_protocol(f"{name}:{key}=5").fitted(256), key) == 5
