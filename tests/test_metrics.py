"""What is known of metrics, and what becomes of one that nobody told the house about."""

import io
import json

import numpy as np
import pytest
from frames import frame, row
from rich.console import Console

from hope_eval.analysis import answers
from hope_eval.analysis.compare import compare
from hope_eval.analysis.differences import differences
from hope_eval.analysis.intervals import Clusters, difference
from hope_eval.analysis.reach import effective_lengths
from hope_eval.analysis.rows import FRAMES
from hope_eval.errors import OptionError
from hope_eval.metrics import Metric, interval_way, is_share, metric_of, ordered
from hope_eval.runs.store import RunStore
from hope_eval.show import plots, report
from hope_eval.show.comparison_tables import blocks
from hope_eval.show.figures.rows import interval_of, records
from hope_eval.show.tables import draw, grid

PROVENANCE = {
    "family": "fewshot", "metric": "brevity", "one_line": "be brief", "source": "", "controls": [],
    "data": "generated", "about": "on a machine", "machine": "x", "versions": {}, "commit": None,
}  # fmt: skip


def graded(folder, value, *, name="rope", grades=("brevity",)) -> RunStore:
    """Return a run of a task of one's own: answers on four contexts at two lengths, by its own grade."""
    identity = {
        "task": "brief", "version": 1, "model": name, "encoding": name, "fingerprint": "f", "train_length": 64,
        "max_length": None, "dtype": "float32", "prefix_token": 0, "seed": 0, "task_fingerprint": "t", "answers": 1,
        "data": "", "device": "cpu", "kernel": "k", "head": "whole",
    }  # fmt: skip
    with RunStore.writing(folder, identity, PROVENANCE) as store:
        for length in (100, 200):
            for index in range(4):
                store.append({
                    "kind": "answer", "length": length, "control": "", "index": index, "question": 0, "n_questions": 1,
                    "fill": 1.0, "text": "…", "meta": {}, "grade": dict.fromkeys(grades, value + 0.01 * index),
                })  # fmt: skip
    return store


def compared(tmp_path, first, second):
    tables = [
        answers.table([graded(tmp_path / name, value, name=name)])
        for name, value in (("rope", first), ("hope", second))
    ]
    return compare(tables)


def test_a_name_that_is_not_listed_gets_a_default():
    brevity = metric_of("brevity_of_answer")
    assert (brevity.label, brevity.title, brevity.sign) == ("brevity of answer", "brevity of answer", 1)
    assert brevity.shown == "always"
    assert brevity == Metric("brevity_of_answer")
    assert [metric.name for metric in ordered({"brevity", "nll", "perplexity"})] == ["perplexity", "nll", "brevity"]


@pytest.mark.parametrize("grades", [("brevity",), ("accuracy", "brevity")])
def test_a_metric_of_ones_own_has_rows_in_a_table(tmp_path, grades):
    table = answers.table([graded(tmp_path, 0.5, grades=grades)])
    assert [names[-1] for names, _ in grid(table.rows).lines] == ["brief brevity"]
    assert table.rows[0]["metric"] == "brevity"


def test_a_metric_of_ones_own_is_compared_drawn_and_reported(tmp_path):
    comparison = compared(tmp_path, 0.2, 0.7)
    titles = [block.title for block in blocks(comparison, ("scores", "differences", "reach", "wins"))]
    assert len(titles) >= 4
    (content, *_) = (block.grid for block in blocks(comparison, ("differences",)))
    assert [names for names, _ in content.lines] == [("hope", "brief brevity")]
    plots.draw("accuracy", comparison.scores, tmp_path / "a.svg")
    assert "Brevity against length" in (tmp_path / "a.svg").read_text()
    frames = {name: comparison.frame(name) for name in FRAMES}
    page = report.render(report.Content(**frames, runs=comparison.runs, notes=comparison.notes, title="mine"))
    assert "a metric of the task or protocol itself" in page


def test_a_narrow_terminal_names_every_line_of_a_table():
    scores = frame(
        *(row(line, length, [2.0, 2.1], metric="nll") for line in ("rope", "hope") for length in (128, 256)),
        *(row(line, length, [8, 7]) for line in ("rope", "hope") for length in (128, 256)),
    )

    class Lines:
        baseline = ""

        def frame(self, name):
            return effective_lengths(scores, differences(scores, "rope"))

    (lengths, areas) = blocks(Lines(), ("reach",))
    assert (lengths.title, areas.grid.columns) == ("Effective context length (tokens)", ["area"])
    assert "area" not in lengths.grid.columns
    console = Console(file=io.StringIO(), width=79)
    draw(lengths.grid, "table", (), console)
    printed = console.file.getvalue()
    assert "definition" in printed
    assert "…" not in printed
    assert printed.count("passkey accuracy") == printed.count("ppl@bucket nll") == 2


def test_grades_outside_of_0_to_1_are_no_shares(tmp_path):
    inside, outside = (answers.table([graded(tmp_path / str(value), value)]) for value in (0.5, 37.0))
    assert {row["share"] for row in inside.rows} == {True}
    assert {row["share"] for row in outside.rows} == {False}
    assert all(row["low"] <= row["value"] <= row["high"] and row["low"] > 36 for row in outside.rows)
    assert any("Student's t over contexts" in note for note in outside.notes)
    comparison = compared(tmp_path, 0.5, 37.0)
    gap = comparison.differences.iloc[0]
    assert (gap.value, gap.verdict) == (pytest.approx(36.5), "better")
    rows = [one for one in records(comparison.scores) if one["line"] == "hope"]
    assert "(Student's t over contexts)" in interval_of(rows, "bands")
    content = json.loads(comparison.frame("scores").to_json(orient="records"))
    assert {(one["line"], one["share"]) for one in content} == {("rope", True), ("hope", False)}


def test_a_control_is_a_share_where_its_task_is_one():
    assert is_share({"metric": "floor", "value": 0.2, "share": True})
    assert not is_share({"metric": "floor", "value": 0.2, "share": False})
    assert not is_share({"metric": "floor", "value": 20.0})


def test_the_caption_names_the_interval_that_was_made():
    assert interval_way({"metric": "followed", "value": 0.5}) == "Wilson"
    assert interval_way({"metric": "error_skip", "value": 0.5}) == "Wilson"
    assert interval_way({"metric": "perplexity", "value": 0.5}) == "Student's t"
    followed = records(frame(row("rope", 256, [8, 7, 8], metric="followed")))
    assert "Wilson" in interval_of(followed, "bands")


def test_a_share_and_a_mean_are_told_apart_as_means():
    counts = np.ones((1, 4))
    share = Clusters(0.5 * counts, counts, tuple("abcd"), proportion=True)
    mean = Clusters(7 * counts, counts, tuple("abcd"))
    gap = difference(mean, share)
    assert gap.value == pytest.approx(6.5)
    assert gap.low == pytest.approx(6.5)


def test_lower_is_better_where_the_metric_says_so():
    scores = frame(row("rope", 256, [2.0, 2.1, 2.0], metric="nll"), row("hope", 256, [1.0, 1.1, 1.0], metric="nll"))
    assert list(differences(scores, "rope").verdict) == ["better"]


def test_a_figure_of_what_nobody_measured_says_so(tmp_path):
    scores = frame(row("rope", 256, [8, 7, 8]), row("rope", 512, [8, 7, 8]))
    with pytest.raises(OptionError, match="no run has a number of `brevity`"):
        plots.draw("accuracy", scores, tmp_path / "a.svg", metric="brevity")
