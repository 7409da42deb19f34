"""Tables of tasks, from answers that are made by hand."""

import json
import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from asking import prompts, run
from fakes import Oracle, Recency, fake

from hope_eval.analysis import answers
from hope_eval.analysis.answers import error_kind
from hope_eval.analysis.intervals import proportion
from hope_eval.analysis.rows import by_seed
from hope_eval.errors import OptionError, StoreError
from hope_eval.metrics import ERRORS
from hope_eval.runs import store as stores_on_disk
from hope_eval.runs.store import RunStore, run_id
from hope_eval.task import parse_task

IDENTITY = {
    "task": "needle", "version": 1, "model": "m", "encoding": "rope", "fingerprint": "f", "train_length": 64,
    "max_length": None, "dtype": "float32", "prefix_token": 0, "seed": 0, "device": "cpu", "kernel": "sdpa",
    "head": "full", "answers": 1, "task_fingerprint": "t", "data": "",
}  # fmt: skip
PROVENANCE = {
    "family": "retrieve", "metric": "accuracy", "one_line": "find it", "source": "", "controls": ["floor", "ceiling"],
    "data": "generated", "about": "on a machine",
}  # fmt: skip


def answer(hits: int, n_target: int = 2, *, length=100, control="", index=0, question=0, **more):
    meta = more.pop("meta", {})
    return {
        "kind": "answer", "length": length, "control": control, "index": index, "question": question, "fill": 1.0,
        "meta": meta, "n_target": n_target, "hits": hits, "first_error": min(hits, n_target),
        "error": "" if hits == n_target else "other", "nll": 1.0, "best_other": 3.0, "n_answers": 2, **more,
    }  # fmt: skip


def store_of(root, records, identity=IDENTITY, **provenance) -> RunStore:
    """Return a run of these records; contexts are whole unless their answers say otherwise."""
    records = list(records)
    n = Counter((one.get("length"), one.get("control"), one.get("index")) for one in records)
    for one in records:
        if one.get("kind") == "answer":
            one.setdefault("n_questions", n[one.get("length"), one.get("control"), one.get("index")])
    with RunStore.writing(root, identity, {**PROVENANCE, **provenance}) as store:
        for record in records:
            store.append(record)
    return store


def values(table, slice_="") -> dict[str, float]:
    return {row["metric"]: row["value"] for row in table.rows if row["slice"] == slice_}


def without_clusters(table) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "clusters"} for row in table.rows]


@pytest.mark.parametrize(
    ("greedy", "first", "kind"),
    [
        ([1, 2, 3, 4, 5, 6], 6, ""),
        # The next one is left out, and it goes on from there.
        ([1, 2, 4, 5, 6, 9], 2, "skip"),
        ([1, 2, 4, 4, 5, 6], 2, "skip"),
        ([3, 2, 3, 4, 5, 6], 0, "skip"),
        ([1, 1, 3, 4, 5, 6], 1, "repeat"),
        ([1, 2, 3, 4, 1, 6], 4, "repeat"),
        ([1, 2, 4, 3, 5, 6], 2, "swap"),
        ([2, 1, 3, 4, 5, 6], 0, "swap"),
        ([1, 2, 3, 4, 6, 5], 4, "swap"),
        ([1, 2, 3, 0, 5, 6], 3, "stop"),
        ([1, 2, 3, 4, 5, 0], 5, "stop"),
        ([1, 2, 3, 9, 5, 6], 3, "other"),
        ([9, 2, 3, 4, 5, 6], 0, "other"),
        ([1, 2, 3, 4, 5, 9], 5, "other"),
        # The first error is the one that counts.
        ([1, 9, 3, 3, 0, 0], 1, "other"),
    ],
)
def test_the_kind_of_an_error(greedy, first, kind):
    assert error_kind([1, 2, 3, 4, 5, 6], greedy, [0, 8]) == (first, kind)


def test_a_skip_or_a_repeat_is_of_a_token_that_is_near():
    target = list(range(1, 31))
    for at, wrong, kind in ((0, 9, "skip"), (0, 10, "other"), (20, 13, "repeat"), (20, 12, "other")):
        assert error_kind(target, [*target[:at], wrong, *target[at + 1 :]], [0]) == (at, kind)


def test_what_ends_a_string_is_no_stop_where_the_string_has_it():
    assert error_kind([5, 0, 6], [0, 0, 6], [0]) == (0, "skip")
    assert error_kind([5], [0], [0]) == (0, "stop")


def test_accuracy_is_of_answers_and_token_accuracy_within_them(tmp_path):
    records = [answer(2), answer(1, question=1), answer(0, 4, index=1), answer(4, 4, index=1, question=1)]
    found = values(answers.table([store_of(tmp_path, records)]))
    assert found["accuracy"] == 0.5
    assert found["token_accuracy"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert found["surprisal"] == 1.0
    assert found["margin"] == 2.0
    assert "choice_accuracy" not in found
    assert "first_error" not in found


def test_a_choice_is_right_if_it_is_the_likeliest(tmp_path):
    nlls = [(1.0, 2.0), (2.0, 1.0), (1.0, 1.0), (0.5, 0.6)]
    records = [answer(0, index=at, nll=own, best_other=best) for at, (own, best) in enumerate(nlls)]
    table = answers.table([store_of(tmp_path, records, metric="choice_accuracy")])
    assert values(table)["choice_accuracy"] == 0.5
    assert table.rows[0]["metric"] == "choice_accuracy"
    assert "chance 0.5" in table.notes[0]


def test_errors_of_copies_add_up_to_what_is_not_right(tmp_path):
    kinds = ["", "", "skip", "repeat", "swap", "stop", "other", "skip"]
    records = [answer(2 if kind == "" else 0, index=at, error=kind, first_error=at) for at, kind in enumerate(kinds)]
    found = values(answers.table([store_of(tmp_path, records, family="copy")]))
    assert [found[f"error_{kind}"] for kind in ERRORS] == [2 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 8]
    assert sum(found[f"error_{kind}"] for kind in ERRORS) + found["accuracy"] == pytest.approx(1)
    assert found["first_error"] == 3.5


def controlled(root, right: float, floor: float, ceiling: float, **more) -> RunStore:
    """Return a run of 20 contexts, with that share of right answers under each control."""
    records = [
        answer(2 if index < 20 * share else 0, index=index, control=control, length=0 if control == "ceiling" else 100)
        for control, share in (("ceiling", ceiling), ("", right), ("floor", floor))
        for index in range(20)
    ]
    return store_of(root, records, **more)


def test_normalised_is_the_share_of_what_can_be_had(tmp_path):
    table = answers.table([controlled(tmp_path, 0.5, 0.2, 0.8)])
    found = values(table)
    assert (found["accuracy"], found["floor"], found["ceiling"]) == (0.5, 0.2, 0.8)
    assert found["normalised"] == pytest.approx((0.5 - 0.2) / (0.8 - 0.2))
    rows = {row["metric"]: row for row in table.rows}
    for end in ("low", "high"):
        assert rows["normalised"][end] == pytest.approx((rows["accuracy"][end] - 0.2) / 0.6)
    assert {row["metric"] for row in table.rows if row["headline"]} == {"accuracy"}


def test_where_floor_and_ceiling_are_the_same_there_is_no_scale(tmp_path):
    for number, (floor, ceiling) in enumerate(((0.5, 0.5), (0.6, 0.5))):
        table = answers.table([controlled(tmp_path / str(number), 0.5, floor, ceiling)])
        assert "normalised" not in values(table)


@pytest.mark.parametrize(("ceiling", "said"), [(0.45, True), (0.5, False), (1.0, False)])
def test_a_low_ceiling_is_said(ceiling, said, tmp_path):
    notes = answers.table([controlled(tmp_path, 0.3, 0.0, ceiling)]).notes
    assert (
        any(note.startswith("low ceiling: with nothing else in the context, m rope gets 0.45") for note in notes)
        == said
    )


def test_slices_add_up_to_the_column(tmp_path):
    rng = np.random.default_rng(0)
    rules = ["sort", "copy", "last"]
    records = [
        answer(
            2 * int(rng.integers(2)),
            index=index,
            question=question,
            meta={"depth": float(rng.random()), "rule": rules[index % 3], "distance": int(rng.integers(1, 300))},
        )
        for index in range(12)
        for question in range(4)
    ]
    store = store_of(tmp_path, records)
    for by, labels in (
        ("depth", ["depth 0.0-0.2", "depth 0.2-0.4", "depth 0.4-0.6", "depth 0.6-0.8", "depth 0.8-1.0"]),
        ("rule", ["rule copy", "rule last", "rule sort"]),
        ("distance", None),
    ):
        rows = [row for row in answers.table([store], by=by).rows if row["metric"] == "accuracy"]
        whole, *parts = rows
        assert whole["slice"] == ""
        assert labels is None or [row["slice"] for row in parts] == labels
        assert sum(row["n_questions"] for row in parts) == whole["n_questions"] == 48
        right = sum(row["value"] * row["n_questions"] for row in parts)
        assert right == pytest.approx(whole["value"] * 48)
    by_rule = {row["slice"]: row for row in answers.table([store], by="rule").rows if row["metric"] == "accuracy"}
    mine = [r["hits"] == 2 for r in records if r["meta"]["rule"] == "sort"]
    assert by_rule["rule sort"]["value"] == np.mean(mine)
    assert by_rule["rule sort"]["n"] == 4


def test_the_ends_of_a_context_are_in_a_fifth_too(tmp_path):
    records = [answer(2, index=at, meta={"depth": depth}) for at, depth in enumerate((0.0, 0.2, 0.999, 1.0))]
    rows = [r for r in answers.table([store_of(tmp_path, records)], by="depth").rows if r["metric"] == "accuracy"]
    assert {r["slice"]: r["n_questions"] for r in rows[1:]} == {
        "depth 0.0-0.2": 1,
        "depth 0.2-0.4": 1,
        "depth 0.8-1.0": 2,
    }


@pytest.mark.parametrize("first", ["answer", "hole"])
def test_a_fact_that_is_not_told_is_an_error_that_names_those_that_are(first, tmp_path):
    records = [answer(2, meta={"depth": 0.5, "distance": 7})]
    if first == "hole":
        records.insert(0, {"kind": "infeasible", "length": 10, "needed": 50})
    store = store_of(tmp_path, records)
    lengths = [10, 100] if first == "hole" else None
    with pytest.raises(OptionError, match="no question has a fact `dpeth`") as caught:
        answers.check_slices([answers.table([store], lengths, by="dpeth")], "dpeth")
    assert caught.value.hint == "--by depth|distance"
    answers.check_slices([answers.table([store], lengths, by="depth")], "depth")
    answers.check_slices([answers.table([store], lengths)], "")


def test_where_nothing_was_asked_no_fact_is_missed(tmp_path):
    table = answers.table([store_of(tmp_path, [{"kind": "infeasible", "length": 10, "needed": 50}])], by="depth")
    assert table.rows[0]["status"] == "infeasible (needs 50)"
    answers.check_slices([table], "depth")


def test_seeds_of_a_training_make_one_line_that_is_their_mean(tmp_path):
    rng = np.random.default_rng(0)
    stores, hits = [], rng.integers(2, size=(2, 10, 3))
    for seed in range(2):
        records = [
            answer(2 * int(hits[seed, index, question]), index=index, question=question)
            for index in range(10)
            for question in range(3)
        ]
        identity = {**IDENTITY, "model": f"x-{seed}", "fingerprint": f"f{seed}"}
        stores.append(store_of(tmp_path, records, identity))
    other = store_of(tmp_path, [answer(2)], {**IDENTITY, "model": "x-0", "encoding": "hope"})
    groups = by_seed([stores[0], other, stores[1]])
    assert groups == [stores, [other]]
    row = answers.table(stores).rows[0]
    singles = [answers.table([store]).rows[0] for store in stores]
    assert row["value"] == pytest.approx(np.mean([single["value"] for single in singles]))
    assert (row["model"], row["n_seeds"], row["n"], row["n_questions"]) == ("x (2 seeds)", 2, 10, 30)
    pooled = proportion(hits.sum(2), np.full((2, 10), 3))
    assert (row["low"], row["high"]) == (pooled.low, pooled.high)
    assert any("over 2 training seeds too" in note for note in answers.table(stores).notes)


def test_pooled_seeds_share_their_contexts(tmp_path):
    stores = [
        store_of(tmp_path, [answer(2, index=index) for index in range(n)], {**IDENTITY, "model": f"x-{n}"})
        for n in (3, 5)
    ]
    assert answers.table(stores).rows[0]["n"] == 3
    missing = store_of(
        tmp_path, [{"kind": "oom", "length": 100, "memory": {}, "message": ""}], {**IDENTITY, "model": "x-9"}
    )
    assert answers.table([stores[0], missing], (100,)).rows[0]["status"] == "oom"


def test_fewer_contexts_are_the_first_of_more(tmp_path):
    store = store_of(tmp_path, [answer(2 * (index < 2), index=index) for index in range(8)])
    assert [answers.table([store], None, n).rows[0]["value"] for n in (2, 4, 8)] == [1.0, 0.5, 0.25]


def test_a_length_that_a_run_has_not_is_an_error_or_missing(tmp_path):
    store = store_of(tmp_path, [answer(2)])
    with pytest.raises(StoreError, match="has no answers at 200 tokens"):
        answers.table([store], [100, 200])
    rows = answers.table([store], [100, 200], missing=True).rows
    assert {row["length"]: row["status"] for row in rows} == {100: "ok", 200: "missing"}
    assert all(math.isnan(row["value"]) for row in rows if row["status"] == "missing")


def test_what_one_of_several_seeds_lacks_is_missing(tmp_path):
    stores = [
        store_of(tmp_path, [answer(2, length=length) for length in lengths], {**IDENTITY, "model": f"x-{seed}"})
        for seed, lengths in enumerate([(100,), (100, 200)])
    ]
    with pytest.raises(StoreError, match=f"the run {stores[0].id} has no answers at 200"):
        answers.table(stores, [100, 200])
    with pytest.raises(StoreError, match=f"the run {stores[0].id} has no answers at 200"):
        answers.table(stores[::-1])
    rows = answers.table(stores, missing=True).rows
    assert {row["length"]: row["status"] for row in rows} == {100: "ok", 200: "missing"}


def test_an_empty_run_is_an_error_that_tells_how_to_resume(tmp_path):
    store = store_of(tmp_path, [], command="hope-eval retrieve")
    with pytest.raises(StoreError, match=f"the run {store.id} is empty") as caught:
        answers.table([store])
    assert caught.value.hint == "rerun `hope-eval retrieve` to resume"
    assert answers.table([store], missing=True).rows == []
    assert answers.table([store], [100], missing=True).rows[0]["status"] == "missing"


def test_answers_of_a_later_version_are_an_error(tmp_path):
    store = store_of(tmp_path, [answer(2)], {**IDENTITY, "answers": answers.VERSION + 1})
    for read in (lambda: answers.answers_run(store.path), lambda: answers.table([store])):
        with pytest.raises(StoreError, match=f"answers of version {answers.VERSION + 1} of a newer") as caught:
            read()
        assert "--upgrade" in caught.value.hint
    older = store_of(tmp_path, [answer(2)], {**IDENTITY, "answers": answers.VERSION})
    assert answers.table([answers.answers_run(older.path)]).rows


def test_a_half_written_answer_is_passed_over(tmp_path):
    store = store_of(tmp_path, [answer(2, index=index) for index in range(5)])
    os.truncate(store.path / "records.jsonl", (store.path / "records.jsonl").stat().st_size - 3)
    again = answers.answers_run(store.path)
    assert again.cut > 0
    assert answers.table([again]).rows[0]["n"] == 4


@pytest.mark.parametrize("key", ["length", "control", "index", "fill", "hits", "n_target", "nll"])
def test_an_answer_that_lacks_something_is_an_error_that_tells_where(key, tmp_path):
    records = [answer(2, index=index) for index in range(5)]
    del records[3][key]
    store = store_of(tmp_path, records)
    with pytest.raises(StoreError, match=f"line 4, is damaged: it has no `{key}`"):
        answers.table([store])


def test_a_choice_without_another_answer_is_an_error(tmp_path):
    records = [answer(2, index=index) for index in range(2)]
    del records[1]["best_other"]
    assert answers.table([store_of(tmp_path / "a", records)]).rows
    with pytest.raises(StoreError, match="line 2, is damaged: it has no `best_other`"):
        answers.table([store_of(tmp_path / "b", records, metric="choice_accuracy")])


def test_without_other_answers_there_is_no_margin(tmp_path):
    records = [answer(2, index=index) for index in range(3)]
    for record in records:
        del record["best_other"], record["n_answers"]
    found = values(answers.table([store_of(tmp_path, records)]))
    assert "surprisal" in found
    assert "margin" not in found


@pytest.mark.parametrize(("key", "status"), [("nll", "nan"), ("best_other", "nan"), ("fill", "ok")])
def test_a_number_that_is_none_makes_a_hole(key, status, tmp_path):
    records = [answer(2, length=length, index=index) for length in (100, 200) for index in range(3)]
    records[4][key] = math.nan
    rows = answers.table([store_of(tmp_path, records)]).rows
    assert {(row["length"], row["status"]) for row in rows} == {(100, "ok"), (200, status)}


def test_every_number_with_an_interval_tells_what_it_is_made_of(tmp_path):
    table = answers.table([controlled(tmp_path, 0.5, 0.2, 0.8, family="copy")])
    assert {"normalised", "floor", "ceiling"} <= {row["metric"] for row in table.rows}
    for row in table.rows:
        if row["metric"] == "normalised":
            assert "clusters" not in row
            continue
        clusters = row["clusters"]
        interval = clusters.interval()
        assert (row["value"], row["low"], row["high"]) == (interval.value, interval.low, interval.high)
        assert clusters.names == tuple(map(str, range(20)))
        assert clusters.numerators.shape == clusters.denominators.shape == (1, 20)
        assert clusters.proportion == (row["metric"] not in ("surprisal", "margin", "first_error")), row["metric"]
    accuracy = next(row for row in table.rows if row["metric"] == "accuracy")["clusters"]
    assert accuracy.numerators.tolist() == [[1] * 10 + [0] * 10]


def test_a_context_has_one_name_at_all_lengths_and_for_all_seeds(tmp_path):
    def run_of(model: str, indices: dict[int, list[int]]) -> RunStore:
        records = [
            answer(index % 3, length=length, index=index, question=question)
            for length, mine in indices.items()
            for index in mine
            for question in range(1 + index % 2)
        ]
        return store_of(tmp_path, records, {**IDENTITY, "model": model})

    stores = [run_of("x-0", {100: [0, 1, 2, 3], 200: [5, 0, 3]}), run_of("x-1", {100: [3, 2, 9], 200: [3, 5, 7]})]
    rows = [row for row in answers.table(stores).rows if row["metric"] == "token_accuracy"]
    # Only what all seeds were asked, and each with itself, whatever is missing before it.
    assert [row["clusters"].names for row in rows] == [("2", "3"), ("3", "5")]
    assert rows[0]["clusters"].numerators.tolist() == [[1, 0], [1, 0]]
    assert rows[0]["clusters"].denominators.tolist() == [[1, 2], [1, 2]]
    assert rows[1]["clusters"].numerators.tolist() == [[0, 2], [0, 2]]
    assert (rows[1]["n"], rows[1]["n_questions"]) == (2, 4)


def test_chance_is_told_of_choices_only(tmp_path):
    records = [answer(2, index=index, n_answers=2 + 2 * (index % 2)) for index in range(4)]
    rows = answers.table([store_of(tmp_path, records, metric="choice_accuracy")]).rows
    assert {row["metric"]: row["chance"] for row in rows} == {
        "choice_accuracy": (1 / 2 + 1 / 4) / 2, "accuracy": None, "token_accuracy": None, "surprisal": None,
        "margin": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "labels"),
    [
        ([True, False, True], {"far False": 1, "far True": 2}),
        ([3, 10, 3], {"far 10": 1, "far 3": 2}),
        ([0.5, 2.0, 0.5], {"far 0.5": 2, "far 2.0": 1}),
        (["é", "b", None], {"far b": 1, "far é": 1}),
        ([3, 2.5, "x"], {"far 2.5": 1, "far 3": 1, "far x": 1}),
        ([["a", 1], ["b", 2], ["a", 1]], {"far ['a', 1]": 2, "far ['b', 2]": 1}),
        ([None, None, 7], {"far 7": 1}),
    ],
)
def test_a_fact_may_be_of_any_type(facts, labels, tmp_path):
    records = [
        answer(2, index=index, meta={"far": fact} if fact is not None else {}) for index, fact in enumerate(facts)
    ]
    # A control, and one of another kind, whose facts are no one's business.
    records += [
        answer(2, control="floor", meta={"far": "away"}),
        {"kind": "oom", "length": 900, "memory": {}, "meta": {"far": 0}},
    ]
    rows = answers.table([store_of(tmp_path, records)], [100], by="far").rows
    assert {row["slice"]: row["n_questions"] for row in rows if row["slice"]} == labels


def test_a_fact_is_found_however_late_it_comes(tmp_path):
    n = answers._FIRST + 10
    records = [
        answer(2, index=index, meta={"early": 1} | ({"late": 1} if index == n - 1 else {})) for index in range(n)
    ]
    table = answers.table([store_of(tmp_path, records)], by="late")
    assert {row["slice"]: row["n"] for row in table.rows if row["metric"] == "accuracy"} == {"": n, "late 1": 1}


def test_grades_are_numbers_of_their_own(tmp_path):
    records = [
        {
            "kind": "answer", "length": 100, "control": "", "index": index, "question": 0, "fill": 1.0, "text": "…",
            "meta": {}, "grade": {"strict": float(index == 0), "loose": 1.0, "kept": index / 4},
        }
        for index in range(4)
    ]  # fmt: skip
    table = answers.table([store_of(tmp_path, records, metric="strict", family="fewshot")])
    assert values(table) == {"strict": 0.25, "loose": 1.0, "kept": 0.375}
    assert {row["metric"] for row in table.rows if row["headline"]} == {"strict", "loose"}


def test_answers_are_not_read_one_by_one(tmp_path, monkeypatch):
    store = store_of(tmp_path, [answer(2, index=index, meta={"depth": 0.5}) for index in range(3 * answers._FIRST)])
    own, read = stores_on_disk.parsed, []
    monkeypatch.setattr(stores_on_disk, "parsed", lambda line: read.append(line) or own(line))
    again = answers.answers_run(store.path)
    assert answers.table([again], by="depth").rows[0]["n"] == 3 * answers._FIRST
    assert len(read) <= answers._FIRST + 10


@pytest.mark.slow
def test_a_million_answers_take_a_second_and_little_memory(tmp_path):
    """A tenth of 10 million, which take less than 10 s and 2 GiB on two cores that nobody else uses."""
    path = tmp_path / run_id(IDENTITY)
    path.mkdir()
    (path / "run.json").write_text(json.dumps({"format": 1, "identity": IDENTITY, "provenance": PROVENANCE}))
    line = json.dumps(answer(2, index=987654, question=5, n_questions=8, nll=0.12345, meta={"depth": 0.4321}))
    with (path / "records.jsonl").open("w") as stream:
        for index in range(125_000):
            one = line.replace("987654", str(index)) + "\n"
            stream.writelines(one.replace('"question": 5', f'"question": {question}') for question in range(8))
    code = """
import resource, sys, time
from pathlib import Path
from hope_eval.analysis import answers
from hope_eval.analysis.answer_columns import RunAnswers
import pandas, pyarrow.json
before = resource.getrusage(resource.RUSAGE_SELF)
run = RunAnswers.read(answers.answers_run(Path(sys.argv[1])), "")
after = resource.getrusage(resource.RUSAGE_SELF)
row = answers.table([run.store]).rows[0]
print(len(run.answers), after.ru_utime - before.ru_utime, (after.ru_maxrss - before.ru_maxrss) / 2**20, row["n"])
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    n, seconds, gib, n_contexts = map(float, done.stdout.split())
    assert (n, n_contexts) == (1_000_000, 125_000)
    # Seconds of all cores, which hardly depend on who else uses them.
    assert seconds < 4
    assert gib < 0.5


def test_rows_are_complete(tmp_path):
    table = answers.table([controlled(tmp_path, 0.5, 0.2, 0.8)])
    for row in table.rows:
        assert row["status"] == "ok"
        assert row["low"] <= row["value"] <= row["high"] or row["metric"] == "surprisal"
        assert (row["task"], row["protocol"], row["length"], row["extrapolation"]) == (
            "needle",
            "needle@v1",
            100,
            100 / 64,
        )
        assert row["n"] == row["n_questions"] == 20
        assert not math.isnan(row["value"])
    assert table.notes[0] == "needle@v1: find it; 20 contexts x 1 question at each length"


def test_a_summary_does_not_depend_on_the_order_of_contexts(tmp_path):
    records = [answer(2 * (index % 3 == 0), index=index, question=q) for index in range(9) for q in range(2)]
    shuffled = [records[at] for at in np.random.default_rng(0).permutation(len(records))]
    first, second = (
        answers.table([store_of(tmp_path / name, some)]) for name, some in (("a", records), ("b", shuffled))
    )
    assert without_clusters(first) == without_clusters(second)


def test_a_summary_does_not_depend_on_the_order_of_columns(tmp_path):
    rng = np.random.default_rng(0)
    records = [
        answer(int(rng.integers(3)), length=length if control != "ceiling" else 0, index=index, control=control)
        for length in (100, 200)
        for control in ("", "floor", *(["ceiling"] if length == 100 else []))
        for index in range(9)
    ]
    mixed = sorted(records, key=lambda record: record["index"])
    first, second = (answers.table([store_of(tmp_path / name, some)]) for name, some in (("a", records), ("b", mixed)))
    assert {row["length"] for row in first.rows if row["metric"] == "ceiling"} == {100, 200}
    assert without_clusters(first) == without_clusters(second)


def test_a_run_of_perplexity_is_no_run_of_a_task(tmp_path):
    store = store_of(tmp_path, [], {**IDENTITY, "task": "ppl"})
    with pytest.raises(StoreError, match="is a run of `ppl`"):
        answers.answers_run(store.path)


def test_pooled_seeds_of_real_runs(tmp_path):
    task = parse_task("passkey:distance=100")
    told = prompts(task, (200,), 4)
    stores = [
        run(fake(module, f"x-{seed}"), task, (200,), tmp_path, 4)
        for seed, module in enumerate((Oracle(told), Recency(told, 50)))
    ]
    (group,) = by_seed(stores)
    row = answers.table(group).rows[0]
    assert (row["value"], row["model"]) == (0.5, "x (2 seeds)")


def test_a_context_that_lost_an_answer_is_left_out_and_told(tmp_path):
    records = [answer(2 * (index > 0), index=index, question=q) for index in range(4) for q in range(4)]
    store_of(tmp_path, records)
    (path,) = tmp_path.iterdir()
    lines = (path / "records.jsonl").read_text().splitlines(keepends=True)
    (path / "records.jsonl").write_text("".join([*lines[:5], *lines[6:], lines[12]]))
    found = answers.table([RunStore.reading(path)])
    row = next(row for row in found.rows if row["metric"] == "accuracy")
    assert (row["n"], row["n_questions"], row["value"]) == (2, 8, 0.5)
    told = [note for note in found.notes if note.startswith("left out: ")]
    assert "context 1 at 100 tokens, has 3 of 4 answers" in told[0]
    assert "context 3 at 100 tokens, has 5 of 4 answers" in told[1]


def test_few_contexts_are_said_to_make_intervals_too_narrow(tmp_path):
    few, many = (store_of(tmp_path / str(n), [answer(2, index=i) for i in range(n)]) for n in (9, 10))
    assert any("too narrow" in note for note in answers.table([few]).notes)
    assert not any("too narrow" in note for note in answers.table([many]).notes)
