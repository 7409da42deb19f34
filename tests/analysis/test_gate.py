"""The gate: what was learned at one length only says so wherever it is shown, and no length is claimed of it."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from asking import prompts, run
from commands import hope_eval
from fakes import TRAIN_LENGTH, Oracle, fake
from frames import row

from hope_eval.analysis import answers
from hope_eval.analysis.compare import compare, readable_runs, tables_of
from hope_eval.analysis.gate import LENGTHS, NOT_RUN, ONE_LENGTH, command_for, gate_notes, gate_of, is_enough
from hope_eval.evaluation.suites import suite_named
from hope_eval.lengths import OF_TASKS, parse_lengths, resolved
from hope_eval.show.report.findings import findings
from hope_eval.show.report.frames import Results, rows_of
from hope_eval.task import Task, parse_task, task_class, task_names

INSIDE = (64, 128, 154, 192)


def rows(scores, *, n=20, metric="accuracy", chance=None, task="copy", questions=1):
    """Return rows of a task: of each length, its share of right answers among n contexts; None: it does not fit in."""
    made = []
    for length, share in scores.items():
        hits = None if share is None else questions * (np.arange(n) < round(n * share))
        status = "infeasible (needs 220)" if share is None else "ok"
        about = {"metric": metric, "counts": questions, "chance": chance, "share": True, "status": status}
        made.append(row("rope", length, hits, task=task, **about))
    return made


def words(scores, **how):
    gate = gate_of(rows(scores, **how), "zoo:rope rope", "hope-eval copy")
    return gate.words


@pytest.mark.parametrize("n", [6, 10, 400])
def test_a_copy_by_distance_is_learned_at_one_length_only(n):
    # Four contexts are enough at the two lengths that commands ask for by default; more lengths need more (Holm).
    assert words({77: 0, 154: 0, 256: 1, 512: 0}, n=4) == ONE_LENGTH
    assert words({64: 0, 128: 0, 192: 0, 250: 0, 254: 0, 255: 1, 256: 1, 512: 0}, n=n) == ONE_LENGTH
    # The numbers are those of the worst length and of the training length.
    assert gate_of(rows({64: 0.1, 154: 0, 256: 1}), "", "").detail == "accuracy 0.000 at 154, 1.000 at 256"


@pytest.mark.parametrize("share", [1.0, 0.9, 0.5])
def test_who_is_as_good_at_all_lengths_passes(share):
    assert words(dict.fromkeys((*INSIDE, 256, 512), share)) == ""


def test_a_little_worse_inside_is_no_failure():
    assert words({64: 0.92, 154: 0.93, 256: 1}, n=100) == ""
    assert words({64: 0.6, 154: 0.93, 256: 1}, n=100) == ONE_LENGTH


def test_less_than_nine_tenths_must_be_distinguishable():
    assert words({64: 0.75, 154: 0.8, 256: 0.95}, n=20) == ""
    assert words({64: 0.75, 154: 0.8, 256: 0.95}, n=400) == ONE_LENGTH


def test_one_failing_length_is_enough_to_fail_and_not_to_pass():
    assert words({128: 0, 256: 1}) == ONE_LENGTH
    assert words({128: 1, 256: 1}) == NOT_RUN


def test_who_is_at_chance_is_not_judged():
    assert words({64: 0, 154: 0, 256: 0}) == ""
    assert words({64: 0.02, 154: 0, 256: 0.26}, n=100, chance=0.25, metric="choice_accuracy") == ""
    assert words({64: 0.02, 154: 0, 256: 0.8}, n=100, chance=0.25, metric="choice_accuracy") == ONE_LENGTH
    # Nor is who does no better than without the information.
    floor = row("rope", 256, np.arange(20) < 12, counts=1, task="copy", metric="floor")
    measured = rows({64: 0, 154: 0, 256: 0.6})
    assert gate_of(measured, "", "").words == ONE_LENGTH
    assert gate_of([*measured, floor], "", "").words == ""


def test_questions_on_one_context_count_as_one_cluster():
    few = {64: 0.5, 154: 0.5, 256: 0.75}
    assert words(few, n=4, questions=100) == ""
    assert words(few, n=400) == ONE_LENGTH


def test_a_greatest_length_close_to_the_training_length_stands_for_it():
    assert words({64: 0, 154: 0, 255: 1}) == ONE_LENGTH
    assert words({64: 0, 154: 0, 192: 1}) == NOT_RUN
    assert words({64: 1, 154: 1, 192: 1, 512: 1}) == NOT_RUN


def test_without_a_training_length_nothing_is_judged():
    for unknown in (None, math.nan):
        changed = [{**one, "train_length": unknown} for one in rows({64: 0, 154: 0, 256: 1})]
        assert gate_of(changed, "", "") is None


@pytest.mark.parametrize(
    ("lengths", "train_length", "enough"),
    [
        ((64, 154), 256, True), ((128, 192), 256, True), ((100, 101), 256, True),
        ((64, 128), 256, False), ((16, 32, 64, 128), 256, False), ((154,), 256, False), ((154, 200), 256, False),
        ((), 256, False), ((2048,), 131072, False), ((1024, 2048, 4096), 131072, False), ((50, 25), 100, False),
        ((50, 60), 100, True), ((2048, 1024), 4095, False),
    ],
)  # fmt: skip
def test_two_lengths_inside_that_are_not_all_halves_run_the_gate(lengths, train_length, enough):
    assert is_enough(lengths, train_length) is enough


@pytest.mark.parametrize("train_length", [64, 100, 256, 512, 1000, 4096, 131072, 1 << 20])
def test_default_lengths_of_tasks_and_those_of_the_gate_run_it(train_length):
    for lengths in (OF_TASKS, LENGTHS):
        assert train_length in resolved(lengths, train_length)
        assert is_enough(resolved(lengths, train_length), train_length)


@pytest.mark.parametrize("name", ["quick", "standard"])
def test_tasks_of_suites_are_asked_at_lengths_that_run_it(name):
    for entry in suite_named(name).entries:
        if isinstance(entry.what, Task):
            assert is_enough(resolved(entry.lengths, 256), 256), str(entry)


@pytest.mark.parametrize("train_length", [256, 512, 1024, 2048, 4096, 8192])
def test_the_suite_of_the_paper_runs_it_at_its_own_lengths(train_length):
    for entry in suite_named("paper").entries:
        if isinstance(entry.what, Task):
            assert is_enough(resolved(entry.lengths, train_length), train_length), str(entry)


def test_only_tasks_whose_shots_fill_the_context_are_exempt():
    growing = {name for name in task_names() if task_class(name)().shots_grow}
    assert growing == {"label_map", "rule_induction"}
    assert not parse_task("label_map:n_shots=8").shots_grow
    assert not parse_task("rule_induction:n_shots=8").shots_grow


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("hope-eval copy --model ckpt --lengths 2k --samples 10", "hope-eval copy --model ckpt --samples 10"),
        ("hope-eval copy --lengths=2k --out 'my runs'", "hope-eval copy --out 'my runs'"),
        ("hope-eval run --suite quick --model a --model b", "hope-eval run --suite quick --model a --model b"),
        ("", "hope-eval retrieve --model zoo:hope --task passkey:digits=3"),
        ("hope-eval other --lengths 2k", "hope-eval retrieve --model zoo:hope --task passkey:digits=3"),
    ],
)
def test_the_command_of_the_gate_is_that_of_the_run_at_other_lengths(command, wanted):
    identity = {"model": "zoo:hope", "encoding": "hope", "task": "passkey:digits=3"}
    assert command_for(command, identity, "retrieve") == wanted
    swapped = command_for("", {**identity, "encoding": "nope(swap)"}, "retrieve")
    assert "--encoding nope --task" in swapped


def test_no_command_is_given_where_it_would_not_help():
    asked = dict.fromkeys(resolved(LENGTHS, 256)[:-1])
    gate = gate_of(rows({**asked, 256: 1}), "zoo:rope rope", "hope-eval copy")
    (note,) = gate_notes([gate])
    assert gate.words == NOT_RUN
    assert note == "gate not run: copy by zoo:rope rope; it fits into too few lengths inside the training window"


@pytest.mark.parametrize(
    ("needs", "lengths"),
    [
        (None, "0.25x,0.5x,0.6x,0.75x,1x"), (60, "0.25x,0.5x,0.6x,0.75x,1x"), (100, "100,128,154,192,256"),
        (154, "154,192,256"), (170, "170,192,256"), (192, ""), (221, ""),
    ],
)  # fmt: skip
def test_the_command_names_lengths_that_the_task_fits_into(needs, lengths):
    measured = rows({32: 0, 256: 1} if needs is None else {32: None, 256: 1})
    measured = [
        {**each, "status": f"infeasible (needs {needs})"} if each["status"].startswith("inf") else each
        for each in measured
    ]
    gate = gate_of(measured[1:] if needs is None else measured, "zoo:rope rope", "hope-eval copy")
    assert gate.words == NOT_RUN
    assert gate.command == (f"hope-eval copy --lengths {lengths}" if lengths else "")
    assert not lengths or is_enough(resolved(parse_lengths(lengths), 256), 256)


# The runs of a model that copies at its training length only, and of one that copies everywhere.
COPY = parse_task("copy")
NARROW = (round(0.3 * TRAIN_LENGTH), round(0.6 * TRAIN_LENGTH))
ASKED = (*NARROW, TRAIN_LENGTH, 2 * TRAIN_LENGTH)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("gate")
    learned = {"whole": ASKED, "position": (TRAIN_LENGTH, 2 * TRAIN_LENGTH)}
    for name, lengths in learned.items():
        run(fake(Oracle(prompts(COPY, lengths, 6)), name), COPY, ASKED, root, 6)
    return root


def run_of(runs: Path, name: str) -> Path:
    return next(runs.glob(f"copy-{name}-*"))


def test_tables_of_a_run_say_it(runs):
    printed = hope_eval("copy", "--from", run_of(runs, "position")).stdout
    # Below the names of both metrics, beside their intervals; and in the note.
    begun, ended = ([line for line in printed.splitlines() if line.strip().startswith(word)] for word in
                    ("learned at one  ", "length only"))  # fmt: skip
    assert len(begun) == len(ended) == 2
    assert f"{ONE_LENGTH}: copy by position native (accuracy 0.000 at {NARROW[0]}, 1.000 at {TRAIN_LENGTH})" in printed
    from_run = ("copy", "--from", run_of(runs, "position"), "--format")
    for form in ("markdown", "latex"):
        assert f"accuracy: {ONE_LENGTH}" in hope_eval(*from_run, form).stdout
    written = json.loads(hope_eval(*from_run, "json").stdout)
    assert {one["gate"] for one in written if one["metric"] in ("accuracy", "token_accuracy")} == {ONE_LENGTH}
    assert {one["gate"] for one in written if one["metric"] == "surprisal"} == {""}
    whole = hope_eval("copy", "--from", run_of(runs, "whole")).output
    assert "learned" not in whole
    assert NOT_RUN not in whole


def test_the_lengths_that_a_table_leaves_out_are_judged_too(runs):
    for name, verdict in (("position", ONE_LENGTH), ("whole", "")):
        (store,) = readable_runs([run_of(runs, name)])
        table = answers.table([store], [2 * TRAIN_LENGTH])
        assert {one["length"] for one in table.rows} == {2 * TRAIN_LENGTH}
        assert table.gate.words == verdict


def test_without_lengths_inside_the_command_is_named(tmp_path):
    store = run(fake(Oracle(prompts(COPY, (512,), 2))), COPY, (512,), tmp_path)
    printed = hope_eval("copy", "--from", store.path).stdout
    assert printed.count(NOT_RUN) == 3
    assert "hope-eval copy --model fake --task copy --lengths 0.25x,0.5x,0.6x,0.75x,1x" in printed.replace("\n", " ")


def test_runs_of_before_know_from_the_task_that_shots_grow(tmp_path):
    task = parse_task("rule_induction")
    store = run(fake(Oracle(prompts(task, (TRAIN_LENGTH,), 6))), task, ASKED, tmp_path, 6)
    assert store.header["provenance"]["shots_grow"] is True
    assert answers.table([store]).gate is None
    del store.header["provenance"]["shots_grow"]
    assert answers.table([store]).gate is None


def compared(runs, **how):
    return compare(tables_of(readable_runs([runs])), **how)


def test_no_effective_length_is_given(runs):
    reach = compared(runs).reach
    failed = reach[reach.line == "position"]
    assert set(failed.gate) == {ONE_LENGTH}
    assert failed.value.isna().all()
    assert set(failed.censored) == {"-"}
    assert reach[reach.line == "whole"].value.notna().all()
    printed = hope_eval("compare", runs, "--baseline", "whole").stdout
    reached = printed[printed.index("Effective context length") : printed.index("Area under")].splitlines()
    (line,) = (line.split() for line in reached if line.split()[:1] == ["position"] and "token" not in line)
    assert line.count("-") == 3


def test_comparisons_say_it_of_a_line_and_of_the_baseline(runs):
    for baseline, own, of_baseline in (("whole", ONE_LENGTH, ""), ("position", "", ONE_LENGTH)):
        differences = compared(runs, baseline=baseline).differences
        assert set(differences.gate) == {own}
        assert set(differences.baseline_gate) == {of_baseline}
        printed = hope_eval("compare", runs, "--baseline", baseline).stdout
        block = printed[printed.index("Copying: minus") : printed.index("Effective context length")]
        assert (f"position: {ONE_LENGTH} (copy)" in block) is (baseline == "position")
        assert ("learned at one " in block.split("▲ better,")[0]) is (baseline == "whole")


def words_of(figure: Path) -> str:
    """Return the words of a figure; lines of a caption are joined."""
    return " ".join(re.sub(r"<[^>]+>", " ", figure.read_text("utf-8")).split())


@pytest.mark.parametrize("kind", ["accuracy", "errors", "difference"])
def test_figures_mark_the_line_and_say_why(runs, kind, tmp_path):
    hope_eval("plot", runs, "--kind", kind, "--baseline", "whole", "--out", tmp_path / "figure.svg")
    drawn = words_of(tmp_path / "figure.svg")
    assert "position ‡" in drawn
    assert f"‡ {ONE_LENGTH}: copy by position" in drawn
    assert "whole ‡" not in drawn


def test_a_sketch_marks_the_line_and_says_why(runs):
    printed = hope_eval("plot", runs).stdout
    assert "position ‡" in printed
    assert "whole ‡" not in printed
    assert f"‡ {ONE_LENGTH}: copy by position" in printed


def test_the_command_of_a_gate_that_was_not_run_stands_beside_a_figure(tmp_path):
    run(fake(Oracle(prompts(COPY, (256, 512), 2))), COPY, (256, 512), tmp_path / "runs")
    result = hope_eval("plot", tmp_path / "runs", "--out", tmp_path / "figure.svg")
    assert "--lengths 0.25x,0.5x,0.6x,0.75x,1x" in result.stderr
    assert f"{NOT_RUN}: copy by fake" in words_of(tmp_path / "figure.svg")


def results(runs, **how) -> Results:
    comparison = compared(runs, **how)
    return Results(*(rows_of(comparison.frame(name)) for name in ("scores", "differences", "reach", "wins")))


def test_the_report_says_it_first_and_claims_nothing_beyond(runs):
    hope_eval("report", runs, "--out", runs / "report.html")
    page = (runs / "report.html").read_text("utf-8")
    assert f"<small>{ONE_LENGTH}</small>" in page
    assert f"copy, accuracy; {ONE_LENGTH}: position" in page
    for baseline in ("whole", "position"):
        found = findings(results(runs, baseline=baseline))
        assert found[0].name == "Learned at one length only"
        assert found[0].texts[0] == "copy: position."
        said = [text for finding in found[1:] for text in (finding.name, *finding.texts)]
        # Both are right beyond the window, and that is not told: nothing is compared there.
        assert not any("beyond" in text.lower() for text in said)
    assert any("none for position" in text for finding in found for text in finding.texts)
