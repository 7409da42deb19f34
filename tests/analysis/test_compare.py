"""`hope-eval compare` and what it stands on, on real runs of the zoo."""

import io
import json
import os
import re
import shutil
from pathlib import Path

import pandas
import pytest
from commands import hope_eval

from hope_eval.analysis.compare import compare, readable_runs, tables_of
from hope_eval.errors import ComparisonError, OptionError, StoreError
from hope_eval.runs.store import run_id

MODELS = ("--model", "zoo:rope", "--model", "zoo:hope", "--model", "zoo:learned")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Runs of three models: perplexity, and pass keys; 128 and 512 tokens, which the learned table does not reach."""
    root = tmp_path_factory.mktemp("measured")
    shared = (*MODELS, "--out", root, "--device", "cpu", "--lengths", "128,512")
    hope_eval("ppl", *shared, "--samples", "4")
    hope_eval("retrieve", *shared, "--task", "passkey", "--samples", "8", "--no-controls")
    return root


@pytest.fixture
def runs(measured, tmp_path):
    """A copy that may be spoilt."""
    for number, path in enumerate(sorted(measured.iterdir(), key=lambda run: (run / "run.json").stat().st_mtime)):
        shutil.copytree(path, tmp_path / "runs" / path.name)
        os.utime(tmp_path / "runs" / path.name / "run.json", (number, number))
    return tmp_path / "runs"


def run_of(runs: Path, start: str) -> Path:
    return next(runs.glob(f"{start}-*"))


def changed(path: Path, part: str = "identity", **changes) -> Path:
    """Change the header of a run on disk, and the hash in the name of its folder."""
    header = json.loads((path / "run.json").read_text())
    named = path.name == run_id(header["identity"])
    header[part] |= changes
    (path / "run.json").write_text(json.dumps(header))
    return path.rename(path.with_name(run_id(header["identity"]))) if named else path


def copied(path: Path, to: str, **changes) -> Path:
    """Return a copy of a run beside it, as if it had been made otherwise."""
    return changed(shutil.copytree(path, path.parent / to), **changes)


def comparison(*paths: Path, **options):
    return compare(tables_of(readable_runs(paths), options.get("by") == "encoding"), **options)


def text(*arguments, code: int = 0) -> str:
    return hope_eval("compare", *arguments, code=code).output


def test_one_table_a_pillar_with_lengths_side_by_side(runs):
    printed = text(runs)
    assert (
        printed.index("Perplexity, ppl@prefix") < printed.index("Retrieval") < printed.index("Effective context length")
    )
    lines = [line.split() for line in printed.splitlines()]
    assert ["model", "encoding", "trained", "at", "metric", "128", "512"] in lines
    (learned,) = (line for line in lines if line[:1] == ["zoo:learned"] and "passkey" in line and line[1] == "learned")
    assert learned[-1] == "-"
    assert "minus zoo:rope, on the same contexts" in printed
    assert "in window: minus zoo:rope" in printed


def test_scores_are_those_that_the_runs_print(runs, measured):
    printed = hope_eval("ppl", *MODELS, "--out", measured, "--device", "cpu", "--lengths", "128,512", "--samples", "4",
                        "--format", "csv").stdout  # fmt: skip
    wanted = pandas.read_csv(io.StringIO(printed))
    found = pandas.read_csv(io.StringIO(hope_eval("compare", runs, "--task", "ppl", "--format", "csv").stdout))
    for column in ("model", "metric", "length", "value", "low", "high", "status"):
        pandas.testing.assert_series_equal(found[column], wanted[column])


def test_lines_stand_in_the_order_in_which_they_were_measured(runs):
    found = comparison(runs)
    assert list(dict.fromkeys(found.scores.line)) == ["zoo:rope", "zoo:hope", "zoo:learned"]
    assert found.baseline == "zoo:rope"


def test_rope_falls_apart_and_hope_does_not(runs):
    found = comparison(runs).differences
    row = found[(found.metric == "nll") & (found.line == "zoo:hope")].set_index("column")
    assert row.verdict["512"] == "better"
    assert abs(row.value["128"]) < 0.1 < -row.value["512"], "two trainings, which differ a little inside the window"
    assert row.value["512"] < -0.3


def test_the_baseline_may_be_a_line_its_model_or_its_encoding(runs):
    for name in ("zoo:hope", "hope"):
        assert comparison(runs, baseline=name).baseline == "zoo:hope"
    assert comparison(runs, by="encoding", baseline="zoo:hope").baseline == "hope"
    with pytest.raises(OptionError, match="no line is called `hop`") as caught:
        comparison(runs, baseline="hop")
    assert "zoo:hope" in caught.value.hint


def test_one_model_alone_has_no_differences(runs):
    found = comparison(run_of(runs, "ppl-zoo_hope"))
    assert found.baseline == ""
    assert found.differences.empty
    assert "minus" not in text(run_of(runs, "ppl-zoo_hope"))


def test_columns_may_be_training_lengths(runs):
    found = comparison(runs, columns="multiples")
    assert list(dict.fromkeys(found.scores.column)) == ["0.5x", "2x"]
    assert "2x" in text(runs, "--columns", "multiples")


def test_by_encoding_pools_training_seeds(runs):
    for number, path in enumerate(sorted(runs.glob("ppl-zoo_rope-*"))):
        for seed in (0, 1):
            copied(path, f"ppl-rope-{number}-{seed}", model=f"mine-{seed}", encoding="mine", fingerprint=f"{seed}")
    found = comparison(*runs.glob("ppl-rope-*"), run_of(runs, "ppl-zoo_hope"), by="encoding")
    assert list(dict.fromkeys(found.scores.line)) == ["mine", "hope"]
    assert set(found.scores[found.scores.line == "mine"].n_seeds) == {2}


def test_by_encoding_refuses_two_models_of_one_encoding(runs):
    copied(run_of(runs, "ppl-zoo_rope"), "ppl-other-rope-1", model="other", fingerprint="other")
    with pytest.raises(ComparisonError, match="several models have the encoding `rope`: zoo:rope, other"):
        comparison(runs, by="encoding", tasks=("ppl",))


def test_by_task_makes_a_table_of_each_model(runs):
    printed = text(runs, "--by", "task")
    assert "zoo:hope: Perplexity, ppl@prefix" in printed
    assert "zoo:hope: tasks" in printed
    assert "minus" not in printed.split("Effective context length")[0]


def test_only_some_tasks(runs):
    assert set(comparison(runs, tasks=("passkey",)).scores.task) == {"passkey"}
    with pytest.raises(OptionError, match="no run measures `passky`") as caught:
        comparison(runs, tasks=("passky",))
    assert "passkey" in caught.value.hint


@pytest.mark.parametrize(
    ("start", "changes", "said"),
    [
        ("ppl", {"version": 0}, "version: 1 in"),
        ("ppl", {"corpus": "0123456789abcdef"}, "corpus: python"),
        ("ppl", {"seed": 7}, "seed: 0 in"),
        ("passkey", {"task_fingerprint": "other"}, "version: 1 ("),
        ("passkey", {"version": 0}, "version: 1 ("),
        ("passkey", {"data": "0123456789abcdef"}, "data: generated in"),
        ("passkey", {"seed": 7}, "seed: 0 in"),
    ],
)
def test_what_was_measured_under_other_conditions_is_refused(runs, start, changes, said):
    changed(run_of(runs, f"{start}-zoo_hope"), **changes)
    with pytest.raises(ComparisonError) as caught:
        comparison(runs)
    assert said in caught.value.message
    assert run_of(runs, f"{start}-zoo_hope").name in caught.value.message
    assert "--force" in caught.value.hint
    forced = comparison(runs, force=True)
    assert any(note.startswith("forced: ") for note in forced.notes)


def test_forced_lines_of_other_texts_are_not_paired(runs):
    changed(run_of(runs, "ppl-zoo_hope"), corpus="0123456789abcdef")
    apart = comparison(runs, force=True).differences
    row = apart[(apart.metric == "nll") & (apart.line == "zoo:hope") & (apart.column == "128")].iloc[0]
    assert row.high - row.low > 0.5, "four documents, unpaired"
    result = hope_eval("compare", runs, "--task", "ppl", "--force")
    assert "forced: ppl differs in corpus" in result.stderr
    assert "NOT on the same contexts" in result.stdout


def test_another_protocol_is_another_table(runs):
    hope_eval("ppl", *MODELS[:4], "--out", runs, "--device", "cpu", "--lengths", "512", "--samples", "4",
              "--protocol", "bucket")  # fmt: skip
    found = comparison(runs, tasks=("ppl",))
    assert list(dict.fromkeys(found.scores.section)) == ["ppl@prefix", "ppl@bucket"]
    assert "ppl" in set(found.reach.definition)


def test_other_tokens_of_the_same_protocol_are_refused(runs):
    """The 32 tokens that `paired` scores lie where the longest length puts them."""
    for model, lengths in (("zoo:rope", "256"), ("zoo:hope", "512")):
        hope_eval("ppl", "--model", model, "--out", runs, "--device", "cpu", "--lengths", lengths, "--samples", "2",
                  "--protocol", "paired", "--k", "32")  # fmt: skip
    with pytest.raises(ComparisonError, match=r"protocol: ppl@paired:k=32,at=223 in .*; ppl@paired:k=32,at=479 in"):
        comparison(runs)


def test_one_model_measured_twice_counts_once_in_each_column(runs):
    again = copied(run_of(runs, "ppl-zoo_hope"), "ppl-zoo_hope-again")
    records = (again / "records.jsonl").read_text().splitlines(keepends=True)
    gone = [line for line in records if '"index": 3' in line]
    document = json.loads(gone[0])["document"]
    (again / "records.jsonl").write_text("".join(line for line in records if document not in line))
    found = comparison(runs, tasks=("ppl",))
    assert set(found.scores[found.scores.line == "zoo:hope"].n) == {4}
    assert any("zoo:hope hope: 2 runs of ppl@prefix" in note for note in found.notes)


def test_other_weights_of_the_same_name_are_a_line_of_their_own(runs):
    copied(run_of(runs, "ppl-zoo_hope"), "ppl-zoo_hope-again", fingerprint="abcdefghij", dtype="bfloat16")
    lines = list(dict.fromkeys(comparison(runs, tasks=("ppl",)).scores.line))
    assert "zoo:hope (dtype bfloat16, weights abcdefgh)" in lines
    assert "bfloat16" in text(runs, "--task", "ppl", "--show", "scores")


def test_tokenizers_that_differ_are_told_and_compared_by_byte(runs):
    changed(run_of(runs, "ppl-zoo_hope"), "provenance", tokenizer="another")
    found = comparison(runs, tasks=("ppl",))
    mine = found.differences[found.differences.line == "zoo:hope"]
    assert set(mine.metric) == {"bits_per_byte"}
    assert any("tokenizers differ" in note for note in found.notes)


def test_an_empty_run_is_told_and_left_out(runs):
    (run_of(runs, "ppl-zoo_hope") / "records.jsonl").write_bytes(b"")
    result = hope_eval("compare", runs, "--task", "ppl")
    assert "is empty and left out" in result.stderr
    assert "zoo:hope" not in result.stdout
    with pytest.raises(StoreError, match="no run with records"):
        readable_runs([run_of(runs, "ppl-zoo_hope")])


def test_a_last_line_that_was_cut_is_told(runs):
    path = run_of(runs, "passkey-zoo_hope") / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    result = hope_eval("compare", runs, "--task", "passkey")
    assert "its last record was cut off and is left out" in result.stderr
    assert "to resume" in result.stderr


def test_what_an_interrupted_run_lacks_is_missing(runs):
    path = run_of(runs, "ppl-zoo_hope") / "records.jsonl"
    kept = [line for line in path.read_text().splitlines(keepends=True) if '"window"' not in line]
    path.write_text("".join(kept))
    result = hope_eval("compare", runs, "--task", "ppl")
    assert "was interrupted: numbers that it lacks are `missing`" in result.stderr
    assert "missing" in result.stdout


def test_a_newer_run_is_refused(runs):
    header = run_of(runs, "ppl-zoo_hope") / "run.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), "format": 99}))
    assert "newer hope-eval" in text(runs, code=1)


def test_the_same_run_twice_counts_once_unless_they_differ(runs, tmp_path):
    path = run_of(runs, "ppl-zoo_hope")
    other = shutil.copytree(path, tmp_path / "elsewhere" / path.name)
    assert len(readable_runs([path, other, path])) == 1
    lines = (other / "records.jsonl").read_bytes().splitlines(keepends=True)
    (other / "records.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(StoreError, match="same id with different records"):
        readable_runs([path, other])


def test_a_run_that_lost_an_answer_says_so_and_does_not_verify(runs):
    path = run_of(runs, "passkey-zoo_hope")
    lines = (path / "records.jsonl").read_bytes().splitlines(keepends=True)
    (path / "records.jsonl").write_bytes(b"".join([*lines[:2], *lines[3:]]))
    assert "records that the last session wrote are missing" in hope_eval("runs", "verify", path, code=1).output
    (path / "records.jsonl").write_bytes(re.sub(rb'"nll": \d', b'"nll": 9', b"".join(lines), count=1))
    assert "its records were changed" in hope_eval("runs", "verify", path, code=1).output
    (path / "records.jsonl").write_bytes(b"".join(lines))
    hope_eval("runs", "verify", path)
    (path / "records.jsonl").write_bytes(b"".join(lines) + lines[3])
    assert "left out" in hope_eval("compare", path).stderr


def test_the_commands_of_all_sessions_are_told(runs):
    path = run_of(runs, "passkey-zoo_hope")
    session = json.loads((path / "sessions.jsonl").read_text().splitlines()[0])
    with (path / "sessions.jsonl").open("a") as stream:
        stream.write(json.dumps(session | {"command": "hope-eval again"}) + "\n")
    (run,) = comparison(path).runs
    assert run["command"].split("\n")[1:] == ["hope-eval again"]
    assert run["seconds"] == pytest.approx(2 * session["seconds"])


def test_no_run_is_an_error(tmp_path):
    printed = text(tmp_path / "nothing", code=1)
    assert "no run at" in printed
    assert "hint:" in printed


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet", "md", "tex", "txt"])
def test_the_ending_of_the_file_tells_its_format(suffix, runs, tmp_path):
    path = tmp_path / "deep" / f"scores.{suffix}"
    assert str(path) in text(runs, "--out", path)
    if suffix == "parquet":
        frame = pandas.read_parquet(path)
    elif suffix == "csv":
        frame = pandas.read_csv(path)
    elif suffix == "json":
        content = json.loads(path.read_text())
        assert set(content) == {"baseline", "notes", "runs", "scores", "differences", "reach", "wins"}
        frame = pandas.DataFrame(content["scores"])
        assert content["runs"][0]["command"].startswith("hope-eval")
    else:
        written = path.read_text()
        assert {"md": "| zoo:rope |", "tex": r"\toprule", "txt": "zoo:rope"}[suffix] in written
        return
    assert {"line", "section", "column", "value", "low", "high", "best", "status"} <= set(frame.columns)
    assert not {"clusters", "settings", "stated"} & set(frame.columns)


def test_all_runs_of_a_latex_table_compile_to_ascii_marks(runs):
    written = hope_eval("compare", runs, "--format", "latex").stdout
    assert "≈" not in "".join(line for line in written.splitlines() if not line.startswith("%"))


def test_wide_has_lengths_side_by_side(runs):
    printed = hope_eval("compare", runs, "--task", "passkey", "--format", "csv", "--wide").stdout
    frame = pandas.read_csv(io.StringIO(printed)).set_index(["line", "metric"])
    assert frame.loc[("zoo:hope", "accuracy"), "128"] == 1
    assert frame.loc[("zoo:learned", "accuracy"), "512 status"] == "-"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "scores.xyz"), "is not a known format"),
        (("--format", "parquet"), "parquet needs a file"),
        (("--format", "csv", "--show", "scores", "--show", "wins"), "csv holds one table"),
        (("--format", "json", "--wide"), "--wide is for csv and parquet"),
        (("--format", "csv", "--wide", "--show", "reach"), "--wide is for scores and differences"),
        (("--out", "/proc/nothing/here.csv"), "cannot write"),
    ],
)
def test_options_that_do_not_fit_are_errors(runs, arguments, said):
    printed = text(runs, *arguments, code=1)
    assert said in printed
    assert "hint:" in printed


def test_who_wins_is_a_matrix(runs):
    printed = text(runs, "--task", "passkey", "--show", "wins")
    assert "Probability that the line is better than the column" in printed
    found = comparison(runs, tasks=("passkey",)).wins.set_index(["line", "other"]).probability
    assert found["zoo:hope", "zoo:rope"] + found["zoo:rope", "zoo:hope"] == pytest.approx(1)


def test_a_figure_a_sketch_and_a_page_are_made_of_the_same_runs(runs, tmp_path):
    assert "ppl@prefix perplexity" in hope_eval("plot", runs).stdout
    figure = tmp_path / "curve.png"
    assert "--kind accuracy shows the tasks" in hope_eval("plot", runs, "--out", figure).output
    assert figure.read_bytes().startswith(b"\x89PNG")
    hope_eval("plot", runs, "--kind", "difference", "--section", "retrieve", "--out", tmp_path / "difference.svg")
    hope_eval("plot", runs, "--kind", "heatmap", "--out", tmp_path / "depth.pdf")
    assert "a sketch on the terminal" in hope_eval("plot", runs, "--kind", "heatmap", code=1).output
    assert "a report is an .html file" in hope_eval("report", runs, "--out", tmp_path / "x.pdf", code=1).output
    assert "no run has a table `retreve`" in hope_eval("plot", runs, "--section", "retreve", code=1).output
    page = tmp_path / "report.html"
    hope_eval("report", runs, "--out", page, "--title", "Mine & yours")
    assert "Mine &amp; yours" in page.read_text("utf-8")
