"""From tasks to records, end to end, with models whose scores are known beforehand."""

import copy
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from asking import prompts, run
from commands import hope_eval
from fakes import Oracle, Parrot, Recency, Uniform, fake, zoo_tokenizer

from hope_eval.analysis import answers
from hope_eval.analysis.compare import compare
from hope_eval.data.labelled import LabelledTexts
from hope_eval.errors import LengthError, OptionError, TaskError
from hope_eval.evaluation import loop, questions
from hope_eval.evaluation.material import Material, vocabulary_for
from hope_eval.metrics import distinct
from hope_eval.model.checkpoint import load
from hope_eval.model.reading import OutOfMemory
from hope_eval.model.scoring import LanguageModel
from hope_eval.runs.store import RunStore
from hope_eval.task import Prompt, Question, Task, parse_task, task_class, task_names

FIXED = [name for name in task_names() if not task_class(name).n_new]

# Tasks that ask for the context again from its beginning: those that a parrot can do.
COPIES = {"copy", "copy_text", "copy_shuffled"}


def metrics(store: RunStore, *lengths: int) -> dict[str, float]:
    """Return the metrics of a run at one length, which may be left out if it has no other."""
    rows = answers.table([store], lengths or None).rows
    assert len({row["length"] for row in rows}) == 1
    return {row["metric"]: row["value"] for row in rows if not row["slice"]}


def statuses(store: RunStore, lengths) -> dict[int, str]:
    return {row["length"]: row["status"] for row in answers.table([store], lengths).rows}


def lines(store: RunStore) -> list[str]:
    return (store.path / "records.jsonl").read_text().splitlines()


@pytest.mark.parametrize("name", FIXED)
def test_the_oracle_is_right_about_everything(name, tmp_path):
    task = task_class(name)()
    store = run(fake(Oracle(prompts(task, (400, 800), 2))), task, (400, 800), tmp_path)
    rows = [row for row in answers.table([store]).rows if not row["slice"]]
    assert {row["status"] for row in rows} == {"ok"}
    for metric in {"accuracy", "token_accuracy", task.metric}:
        assert [row["value"] for row in rows if row["metric"] == metric] == [1.0, 1.0], metric
    assert {row["n"] for row in rows} == {2}
    assert all(0.98 <= row["fill"] <= 1 for row in rows)
    assert all(row["value"] < 1e-3 for row in rows if row["metric"] == "surprisal")


@pytest.mark.parametrize(
    ("text", "n", "chance"),
    [("label_map", 24, 1 / 4), ("label_map:n_classes=2", 24, 1 / 2), ("recency_decoy", 80, 1 / 2)],
)
def test_uniform_is_at_chance(text, n, chance, tmp_path):
    task = parse_task(text)
    found = metrics(run(fake(Uniform()), task, (150,), tmp_path, n))
    n_questions = n * len(prompts(task, (150,), 1)[0].questions)
    assert found["choice_accuracy"] == pytest.approx(chance, abs=3 * np.sqrt(chance * (1 - chance) / n_questions))
    assert found["accuracy"] == 0
    (row, *_) = answers.table([run(fake(Uniform()), task, (150,), tmp_path, n)]).rows
    assert row["metric"] == "choice_accuracy"
    assert row["chance"] == chance
    assert row["low"] < chance < row["high"]


class Nearest(Oracle):
    """Takes the number that is nearer to the question, whichever is asked for."""

    def answer(self, question: Question) -> list[int]:
        right = question.meta["nearer"] == "right"
        return list(map(int, question.target if right else question.choices[0]))


def test_a_table_shows_the_arms_of_a_task_apart_and_a_reader_without_a_model_beside_them(tmp_path):
    task = task_class("recency_decoy")()
    store = run(fake(Nearest(prompts(task, (300, 600), 5))), task, (300, 600), tmp_path, 5)
    table = answers.table([store])
    shown = [(row["slice"], row["value"]) for row in table.rows if row["headline"] and row["metric"] == task.metric]
    assert shown == 2 * [("", 0.5), ("nearer decoy", 0.0), ("nearer right", 1.0)]
    compared = compare([table]).scores
    kept = compared[(compared.metric == task.metric) & compared.headline]
    assert kept.slice.tolist() == [part for part, _ in shown]
    reader = [(row["slice"], row["value"]) for row in table.rows if row["metric"] == "lexical"]
    assert reader == [(part, 0.5) for part, _ in shown]
    noted = "lexical match, without a model: 0.50 (0.50 with nearer decoy, 0.50 with nearer right)"
    assert noted in table.notes
    assert {row["chance"] for row in table.rows if row["metric"] == task.metric} == {0.5}
    # Another fact may divide the table instead, also one that a reader scores by.
    for fact in ("depth", "lexical"):
        parts = {row["slice"].split()[0] for row in answers.table([store], by=fact).rows if row["slice"]}
        assert parts == {fact}


def test_what_a_guess_scores_is_said_where_it_differs_from_question_to_question(tmp_path):
    task = task_class("rule_induction")()
    told = prompts(task, (200, 300), 4)
    table = answers.table([run(fake(Oracle(told)), task, (200, 300), tmp_path, 4)])
    asked = [question.meta["chance"] for prompt in told for question in prompt.questions]
    expected = [pytest.approx(np.mean(half), abs=1e-3) for half in (asked[: len(asked) // 2], asked[len(asked) // 2 :])]
    assert [row["chance"] for row in table.rows if row["metric"] == "accuracy"] == expected
    assert [row["chance"] for row in table.rows if row["metric"] == "token_accuracy"] == [None, None]
    assert re.search(
        r"4 contexts x 4 questions at each length; chance 0\.\d+( to 0\.\d+)?, the mean over", table.notes[0]
    )


@pytest.mark.parametrize("name", sorted({*FIXED} - {"label_map", "recency_decoy"}))
def test_uniform_guesses_nothing_of_what_is_to_be_said(name, tmp_path):
    found = metrics(run(fake(Uniform()), task_class(name)(), (500,), tmp_path, 1))
    assert found["accuracy"] == 0
    assert found["token_accuracy"] < 0.05


def test_the_surprisal_of_uniform_is_that_of_the_vocabulary(tmp_path):
    found = metrics(run(fake(Uniform()), task_class("passkey")(), (150,), tmp_path, 2))
    assert found["surprisal"] == pytest.approx(5 * np.log(len(zoo_tokenizer())), rel=1e-3)


@pytest.mark.parametrize("name", FIXED)
def test_a_parrot_copies_and_does_nothing_else(name, tmp_path):
    found = metrics(run(fake(Parrot()), task_class(name)(), (401,), tmp_path, 2))
    assert found["accuracy"] == (name in COPIES)
    assert found.get("choice_accuracy", 0) == 0, "which ties are not"


def test_a_parrot_fails_where_the_string_does_not_begin_the_context(tmp_path):
    assert metrics(run(fake(Parrot()), parse_task("copy_distance:distance=200"), (400,), tmp_path))["accuracy"] == 0


@pytest.mark.parametrize("name", [name for name in FIXED if name not in ("label_map", "rule_induction")])
def test_who_remembers_w_tokens_fails_exactly_beyond_them(name, tmp_path):
    task, lengths, window = task_class(name)(), (380, 900), 255 if name != "copy_distance" else 127
    told = prompts(task, lengths, 2)
    store = run(fake(Recency(told, window)), task, lengths, tmp_path)
    distances = [question.meta["distance"] for prompt in told for question in prompt.questions]
    assert min(distances) <= window < max(distances), "there are questions on either side"
    assert [r["meta"]["distance"] for r in store.records] == distances
    assert [r["hits"] == r["n_target"] for r in store.records] == [distance <= window for distance in distances]
    slices = [r for r in answers.table([store], by="distance").rows if r["slice"] and r["metric"] == task.metric]
    octaves = ("4", "8", "16", "32", "64", "128") + ("256",) * (window == 255)
    assert {row["slice"]: row["value"] for row in slices} == {
        row["slice"]: float(row["slice"].split("-")[1] in octaves) for row in slices
    }


def test_the_floor_is_what_is_known_without_the_context_and_the_ceiling_without_filler(tmp_path):
    for text in ("passkey", "needle", "key_value:n_questions=4", "associative_recall", "variable_tracking"):
        task = parse_task(text)
        told = prompts(task, (500,), 5)[:3] + prompts(
            type(task)(**{**task.parameters, "control": "ceiling"}), (500,), 4
        )
        store = run(fake(Oracle(told)), task, (500,), tmp_path, 5, controls=True)
        found = metrics(store, 500)
        assert found["accuracy"] == pytest.approx(3 / 5), "it was told three contexts of five"
        assert (found["floor"], found["ceiling"]) == (0, 1)
        assert found["normalised"] == pytest.approx(3 / 5)
        asked = {
            control: {r["index"] for r in store.records if r["control"] == control} for control in ("floor", "ceiling")
        }
        assert asked == {"floor": {0, 1, 2, 3}, "ceiling": {0, 1, 2, 3}}
        assert {r["length"] for r in store.records if r["control"] == "ceiling"} == {0}, "it serves all lengths"
        assert store.records[0]["control"] == "ceiling", "it comes first"


def test_permuted_labels_are_asked_too(tmp_path):
    task = task_class("label_map")()
    store = run(fake(Oracle(prompts(task, (400,), 4))), task, (400,), tmp_path, 4, controls=True)
    found = metrics(store)
    assert found["choice_accuracy"] == 1
    assert found["permuted"] == found["last"] == 0, "it was told nothing of them, and ties are wrong"


def saying(task: Task, said: str, length: int, n: int) -> list[Prompt]:
    """Return prompts of a task whose answer is a text; `{topic}` in it is the topic that is asked for."""
    return [
        Prompt(
            prompt.context,
            tuple(
                Question(q.query, [*zoo_tokenizer().encode(said.format(**q.meta), add_special_tokens=False), 0])
                for q in prompt.questions
            ),
        )
        for prompt in prompts(task, (length,), n)
    ]


@pytest.mark.parametrize(
    "said", [" {topic} was all that we ever saw", " {topic} was all that We ever saw", " {topic}", " a grey sea", ""]
)
def test_a_free_answer_is_written_and_graded(said, tmp_path, monkeypatch):
    task = parse_task("instruction_at_distance:rule=lower")
    monkeypatch.setattr(type(task), "n_new", 30)
    store = run(fake(Oracle(saying(task, said, 300, 2))), task, (300,), tmp_path)
    asked = [record for record in store.records if not record["control"]]
    assert [record["text"] for record in asked] == [said.format(**record["meta"]).strip() for record in asked]
    right = float("that we" in said)
    assert metrics(store) == {"strict": right, "loose": right, "followed": right, "floor": 0, "above_floor": right}
    assert {record["fill"] for record in store.records} == {1.0}


# On every topic, and following what is followed by not doing something.
CONSTANT = " storm city house school journey bread dog snow spring night market tower"


def test_a_constant_answer_is_nothing_above_the_floor_which_is_always_asked(tmp_path, monkeypatch):
    task = task_class("instruction_at_distance")()
    monkeypatch.setattr(type(task), "n_new", 40)
    both = [saying(of, CONSTANT, 200, 20) for of in (task, replace(task, control="floor"))]
    store = run(fake(Oracle(both[0] + both[1])), task, (200,), tmp_path, 20, controls=False)
    assert Counter(record["control"] for record in store.records) == {"": 20, "floor": 20}
    table = answers.table([store])
    values = {row["metric"]: row for row in table.rows}
    assert 0.1 < values["strict"]["value"] == values["floor"]["value"] < 0.6
    assert (values["above_floor"]["value"], values["above_floor"]["n"]) == (0, 20)
    shown = [row["metric"] for row in table.rows if row["headline"]]
    assert shown == ["above_floor", "strict", "loose", "floor"], "the headline comes first"
    # Who answers as told, and only then.
    store = run(fake(Oracle(both[0]), "told"), task, (200,), tmp_path, 20, controls=False)
    values = {row["metric"]: row["value"] for row in answers.table([store]).rows}
    assert values["above_floor"] == values["strict"] > values["floor"] == 0
    compared = compare([table, answers.table([store])])
    assert set(compared.differences.metric) == {"above_floor", "strict", "loose"}, "the floor is no score of its own"
    assert distinct(compared.differences.metric) == ["above_floor"], "it stands for the others"


class Stop(Exception):  # noqa: N818
    """A user who presses Ctrl-C."""


def stop_at(number: int):
    """Return a report that stops the work when it is called for that time."""
    calls = []

    def report(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == number:
            raise Stop

    return report


def test_an_interrupted_run_goes_on_and_ends_up_the_same(tmp_path, monkeypatch):
    """With a real model, contexts side by side, and controls."""
    monkeypatch.setitem(loop.BATCH_TOKENS, "cpu", 256)
    model, task, lengths = load("zoo:rope", device="cpu"), parse_task("key_value:n_questions=2"), (60, 90)
    reported: list[tuple[int, int]] = []

    def ask_in(root: Path, report) -> RunStore:
        return run(model, task, lengths, root, 3, controls=True, report=report)

    whole = ask_in(tmp_path / "whole", lambda *now: reported.append(now))
    assert len(reported) > 6
    assert reported == sorted(reported)
    assert reported[-1][0] == reported[-1][1] == 2 * 3 * (60 + 90)
    for number in range(1, len(reported) + 1):
        root = tmp_path / str(number)
        with pytest.raises(Stop):
            ask_in(root, stop_at(number))
        again = []
        store = ask_in(root, lambda *now, again=again: again.append(now))
        assert lines(store) == lines(whole)
        assert again == reported[number - 1 :], "what was done is said, and not done again"


def test_a_kill_after_any_record_loses_none_of_the_others(tmp_path):
    task = parse_task("label_map:n_questions=3")
    whole = lines(run(fake(Uniform()), task, (120, 150), tmp_path / "whole", 2, controls=True))
    for size in range(len(whole)):
        root = tmp_path / str(size)
        cut = run(fake(Uniform()), task, (120, 150), root, 2, controls=True)
        (cut.path / "records.jsonl").write_text("".join(f"{line}\n" for line in whole[:size]))
        again = run(fake(Uniform()), task, (120, 150), root, 2, controls=True)
        assert lines(again) == whole, f"{size} of {len(whole)} records were there"


def test_a_finished_run_asks_nothing_again(tmp_path, monkeypatch):
    task = task_class("passkey")()
    run(fake(Uniform()), task, (150,), tmp_path, 3, controls=True)
    monkeypatch.setattr(LanguageModel, "score_prompts", None)
    reported = []
    run(fake(Uniform()), task, (150,), tmp_path, 3, controls=True, report=lambda *x: reported.append(x))
    # Three contexts and three of the floor; the ceiling is as good as nothing.
    assert reported == [(900, 900)]


@pytest.mark.parametrize("batch", [0, 700])
def test_more_contexts_and_more_lengths_go_on_with_the_run(batch, tmp_path, monkeypatch):
    monkeypatch.setitem(loop.BATCH_TOKENS, "cpu", batch)
    task = parse_task("passkey")
    few = lines(run(fake(Uniform()), task, (150,), tmp_path, 3))
    more = lines(run(fake(Uniform()), task, (150,), tmp_path, 7))
    assert more[: len(few)] == few
    longer = run(fake(Uniform()), task, (150, 200), tmp_path, 7)
    assert lines(longer)[: len(more)] == more
    assert len(list(tmp_path.iterdir())) == 1
    assert sorted((r["length"], r["index"]) for r in longer.records) == [(n, i) for n in (150, 200) for i in range(7)]
    fresh = run(fake(Uniform()), task, (150, 200), tmp_path / "fresh", 7)
    assert sorted(lines(longer)) == sorted(lines(fresh)), "what is asked depends on nothing else"
    assert answers.table([longer], (150,), 3).rows[0]["n"] == 3


def test_contexts_side_by_side_need_not_be_equally_long(tmp_path, monkeypatch):
    task, n = parse_task("needle:n_needles=2"), 6
    told = prompts(task, (120,), n)
    assert len({len(prompt.context) for prompt in told}) > 1
    model = fake(Recency(told, 60))
    wanted = lines(run(model, task, (120,), tmp_path / "one by one", n))
    monkeypatch.setitem(loop.BATCH_TOKENS, "cpu", 4096)
    assert lines(run(model, task, (120,), tmp_path / "side by side", n)) == wanted


def test_what_differs_is_another_run(tmp_path):
    tokenizer = copy.deepcopy(zoo_tokenizer())
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}Q: {{ m.content }}\nA:{% endfor %}"
    model = LanguageModel("fake", Uniform(), tokenizer, 256, "a test")

    def ask_for(text: str, *, chat: bool | None = False, prefix="auto", **options) -> RunStore:
        task = parse_task(text)
        return run(model, task, (150,), tmp_path, 1, chat=chat, prefix=prefix, **options)

    stores = [
        ask_for("passkey"),
        ask_for("passkey", seed=1),
        ask_for("passkey", chat=True),
        ask_for("passkey", prefix="none"),
        ask_for("passkey:digits=4"),
        ask_for("passkey:depth=0.5"),
        ask_for("needle:n_needles=2"),
        ask_for("copy"),
        ask_for("copy_text"),
    ]
    same = [ask_for("passkey:digits=5"), ask_for("passkey", controls=True)]
    assert len({store.id for store in stores}) == len(stores)
    assert {store.id for store in same} == {stores[0].id}, "what is the default anyway is no difference"
    assert lines(stores[0])[0] != lines(stores[1])[0]


def test_another_template_is_another_run_and_the_date_is_always_the_same():
    task, tokenizer = task_class("passkey")(), copy.deepcopy(zoo_tokenizer())
    model = LanguageModel("m", Uniform(), tokenizer, 256)

    def named(template: str, chat: bool = True) -> dict:
        tokenizer.chat_template = template
        return questions.Questions.of(model, task, (150,), n_contexts=1, chat=chat).identity(model)

    turn = "{% for m in messages %}Q: {{ m.content }}\nA:{% endfor %}"
    assert named(turn) == named(turn)
    assert named(turn) != named("You answer. " + turn)
    assert named(turn, chat=False) == named("You answer. " + turn, chat=False)
    assert "template" not in named(turn, chat=False), "runs without a template keep their names"
    clock = "{{ strftime_now('%d %b %Y %H:%M:%S.%f') }} " + turn
    first = named(clock)
    time.sleep(0.002)
    assert named(clock) == first
    vocabulary = vocabulary_for(tokenizer, task, chat=True)
    assert "26 Jul 2024" in vocabulary.text(vocabulary.start)


def test_a_chat_model_is_asked_in_its_template_unless_told_otherwise():
    tokenizer = copy.deepcopy(zoo_tokenizer())
    assert not vocabulary_for(tokenizer, task_class("passkey")()).chat
    with pytest.raises(OptionError, match="no chat template"):
        vocabulary_for(tokenizer, task_class("passkey")(), chat=True)
    tokenizer.chat_template = "{% for m in messages %}Q: {{ m.content }}\nA:{% endfor %}"
    assert vocabulary_for(tokenizer, task_class("passkey")()).chat
    assert not vocabulary_for(tokenizer, task_class("passkey")(), chat=False).chat
    assert not vocabulary_for(tokenizer, task_class("copy")()).chat, "words to copy are no words to a chat model"


def test_the_data_that_is_asked_of_are_part_of_the_run(tmp_path):
    task = task_class("label_map")()
    ids = set()
    for word in ("sour", "bitter"):
        texts = {"fruit": [f"a {word} apple {n}" for n in range(4)], "sea": [f"a {word} wave {n}" for n in range(4)]}
        examples = LabelledTexts("mine.csv", texts, {key: [f"{t} now" for t in value] for key, value in texts.items()})
        store = run(fake(Uniform()), task, (200,), tmp_path, 1, material=Material(examples=examples))
        ids.add(store.id)
        assert store.header["provenance"]["data"] == "mine.csv"
        assert {record["meta"]["class"] for record in store.records} == {"fruit", "sea"}
    assert len(ids) == 2


def test_without_a_number_there_are_as_many_contexts_as_make_the_wanted_questions(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "N_QUESTIONS", 20)
    for text, n in (("passkey", 20), ("label_map", 3), ("key_value:n_questions=5", 4)):
        store = run(fake(Uniform()), parse_task(text), (20, 150), tmp_path, None)
        assert {row["n"] for row in answers.table([store], (150,)).rows} == {n}


@pytest.mark.parametrize("text", ["associative_recall", "key_value", "label_map", "rule_induction", "needle"])
def test_a_length_that_is_too_short_is_a_hole_that_names_one_that_will_do(text, tmp_path):
    task, model = parse_task(text), fake(Uniform())
    store = run(model, task, (4, 600), tmp_path, 1)
    hole = statuses(store, (4, 600))
    assert hole[600] == "ok"
    assert hole[4].startswith("infeasible (needs ")
    needed = int(hole[4].split()[-1].rstrip(")"))
    again = run(model, task, (4, needed - 1, needed, 600), tmp_path, 1)
    assert statuses(again, (4, needed - 1, needed, 600)) == {
        4: hole[4],
        needed - 1: hole[4],
        needed: "ok",
        600: "ok",
    }
    assert [record["length"] for record in again.records if record["kind"] == "infeasible"] == [4, needed - 1]


@pytest.mark.parametrize("name", sorted({*FIXED} - {"copy", "copy_text", "copy_shuffled"}))
def test_a_length_that_will_do_will_do_for_all_contexts(name, tmp_path):
    """Keys, labels and rules differ in length, so one context takes more than another."""
    task, model, n = task_class(name)(), fake(Uniform()), 12
    (hole,) = set(statuses(run(model, task, (6,), tmp_path, n), (6,)).values())
    needed = int(hole.removeprefix("infeasible (needs ").rstrip(")"))
    store = run(model, task, (needed - 1, needed), tmp_path, n)
    assert statuses(store, (needed - 1, needed)) == {needed - 1: hole, needed: "ok"}
    assert {row["n"] for row in answers.table([store], (needed,)).rows} == {n}


def test_a_run_of_nothing_but_holes_is_a_table_of_holes(tmp_path):
    store = run(fake(Uniform()), task_class("needle")(), (10, 20), tmp_path, None, controls=True)
    (hole,) = set(statuses(store, (10, 20)).values())
    assert hole.startswith("infeasible (needs 1")
    rows = answers.table([store]).rows
    assert [row["metric"] for row in rows] == ["accuracy", "accuracy"]
    assert all(np.isnan(row["value"]) for row in rows)


def test_past_the_end_of_a_learned_table_there_is_a_dash(tmp_path):
    model = load("zoo:learned", device="cpu")
    task = task_class("passkey")()
    store = run(model, task, (128, 256, 512), tmp_path, 1, controls=True)
    assert statuses(store, (128, 256, 512)) == {128: "ok", 256: "ok", 512: "-"}
    assert any("table of 256 positions" in note for note in answers.table([store], (128, 256, 512)).notes)
    with pytest.raises(LengthError, match="table of 256"):
        run(model, task, (512, 1024), tmp_path / "alone", 1)
    assert not (tmp_path / "alone").exists()


def test_what_does_not_fit_into_memory_is_a_hole_and_shorter_ones_are_kept(tmp_path, monkeypatch):
    own, tried = LanguageModel.score_prompts, []

    def score_prompts(self, prompts):
        tried.append(len(prompts[0].context))
        if len(prompts[0].context) > 300:
            raise OutOfMemory(len(prompts[0].context), {"total_gib": 79.1, "free_gib": 0.2}, "CUDA out of memory")
        return own(self, prompts)

    monkeypatch.setattr(LanguageModel, "score_prompts", score_prompts)
    task = task_class("passkey")()
    store = run(fake(Uniform()), task, (200, 400, 800), tmp_path, 2, controls=True)
    assert statuses(store, (200, 400, 800)) == {200: "ok", 400: "oom", 800: "oom"}
    assert max(tried) < 400, "the longer one is not even tried"
    notes = answers.table([store], (200, 400, 800)).notes
    assert "oom: fake native could not read 400 tokens (total 79.1 GiB, free 0.2 GiB)" in notes
    monkeypatch.setattr(LanguageModel, "score_prompts", own)
    again = run(fake(Uniform()), task, (200, 400, 800), tmp_path, 2, controls=True)
    assert statuses(again, (200, 400, 800)) == {200: "ok", 400: "ok", 800: "ok"}, "on a larger machine"
    assert not any(note.startswith("oom") for note in answers.table([again], (200, 400, 800)).notes)


@pytest.mark.parametrize("where", ["nll", "others"])
def test_a_number_that_is_none_is_a_hole_and_never_a_wrong_answer(where, tmp_path, monkeypatch):
    own = LanguageModel.score_prompts

    def score_prompts(self, prompts):
        scores = own(self, prompts)
        if len(prompts[0].context) > 150:
            getattr(scores[0][-1], where)[:] = float("nan")
        return scores

    monkeypatch.setattr(LanguageModel, "score_prompts", score_prompts)
    store = run(fake(Uniform()), parse_task("label_map"), (150, 200), tmp_path, 2)
    assert statuses(store, (150, 200)) == {150: "ok", 200: "nan"}


@dataclass(frozen=True)
class Short(Task):
    """Fills less than it is asked to."""

    source, version, one_line, family = "", 1, "fills too little", "copy"
    controls = ("floor", "ceiling")

    share: float = 0.9
    control: str = ""

    def prompt(self, vocabulary, length, rng, joined=False):
        n = 3 if self.control == "ceiling" else round(self.share * length) - 1
        return Prompt(np.full(n, 7), (Question((), (8,)),))


def test_a_prompt_that_does_not_fill_its_length_is_an_error(tmp_path):
    for share in (0.9, 0.97, 1.01):
        with pytest.raises(TaskError, match=f"fills {share * 1000:.0f} of 1000 tokens"):
            run(fake(Uniform()), Short(share), (1000,), tmp_path, 1)
    store = run(fake(Uniform()), Short(0.98), (1000,), tmp_path, 1, controls=True)
    assert [record["control"] for record in store.records] == ["ceiling", "", "floor"]
    assert [record["fill"] for record in store.records] == [0.004, 0.98, 0.98], "a ceiling need not"
    records = [json.loads(line) for line in lines(store)]
    assert records == store.records


def test_a_run_notes_name_kind_and_style_of_its_encoding_beside_its_identity(tmp_path):
    model = fake(Uniform())
    model.encoding = "hope:multiplier=2(swap)"
    header = run(model, parse_task("passkey"), (200,), tmp_path, 1).header
    assert header["identity"]["encoding"] == "hope:multiplier=2(swap)"
    style = {"colour": "#df5516", "dash": "solid", "marker": "s"}
    assert header["provenance"]["encoding"] == {"name": "hope", "kind": "rotary", "style": style}


_GRADES = """
from dataclasses import dataclass

from hope_eval.task import Prompt, Question, Task


@dataclass(frozen=True)
class Odd(Task):
    source, version, one_line, family, metric, n_new = "", 1, "write", "fewshot", "brevity", 4

    def prompt(self, vocabulary, length, rng, joined=False):
        question = Question(vocabulary.encode(" the"), ())
        n_filler = self.room(vocabulary, length, [question], joined, least=4)
        return Prompt([*vocabulary.start, *rng.choice(vocabulary.words(64), n_filler)], (question,))

    def grade(self, answer, meta):
        return {grade}
"""


@pytest.mark.parametrize("grade", ["None", "{}", '{"brevity": None}', '{"brevity": "good"}', '{"other": 1.0}', "1 / 0"])
def test_a_grade_that_is_no_number_is_refused_before_it_is_stored(grade, tmp_path):
    (tmp_path / "odd.py").write_text(_GRADES.replace("{grade}", grade))
    words = ("--task", tmp_path / "odd.py", "--samples", "1", "--lengths", "64", "--out", tmp_path / "runs")
    result = hope_eval("fewshot", "--model", "zoo:hope", *words, code=1)
    said = "`odd.py`, line 17: ZeroDivisionError" if grade == "1 / 0" else "`grade` of the task `odd`"
    assert said in result.stderr
    assert not any(path.stat().st_size for path in (tmp_path / "runs").glob("*/records.jsonl"))
