"""`hope-eval copy`, `retrieve`, `fewshot`, `run` and `tasks`, as they are typed."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
from commands import hope_eval
from conftest import tiny_module

from hope_eval.model.scoring import LanguageModel
from hope_eval.task import task_class, task_names

MINE = '''
from dataclasses import dataclass
import numpy as np
from hope_eval.task import Prompt, Question, Task

@dataclass(frozen=True)
class Again(Task):
    """Say the first word again."""
    source, version, one_line, family = "", 1, "say the first word again", "copy"
    n: int = 1
    def prompt(self, vocabulary, length, rng, joined=False):
        question = Question(vocabulary.encode("\\n"), [0] * self.n, {"half": int(rng.integers(2))})
        room = self.room(vocabulary, length, [question], joined, self.n)
        ids = vocabulary.words(64)[rng.integers(64, size=room)]
        asked = Question(question.query, ids[:self.n], question.meta)
        return Prompt(np.concatenate([vocabulary.start, ids]).astype(int), (asked,))
'''


# One context of 64 tokens.
ONE = ("--lengths", "64", "--samples", "1", "--format", "json")


@pytest.fixture
def hope(tmp_path):
    """Return what runs a command on the zoo's HoPE."""

    def run(command, *arguments, code: int = 0, model="zoo:hope"):
        fixed = ("--out", tmp_path / "runs", "--device", "cpu", "--model", model)
        return hope_eval(command, *fixed, *arguments, code=code)

    return run


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


@pytest.fixture
def labelled(tmp_path):
    path = tmp_path / "fruit.csv"
    rows = [
        f"the {word} was {n} days old,{label}"
        for label in ("fruit", "sea")
        for word in ("wave", "apple")
        for n in range(6)
    ]
    path.write_text("\n".join(["sentence,kind", *rows]) + "\n")
    return path


def rows_of(result, **wanted):
    return [row for row in json.loads(result.stdout) if all(row[key] == value for key, value in wanted.items())]


def runs_in(tmp_path):
    return sorted((tmp_path / "runs").iterdir())


def test_copying_prints_a_table(hope):
    text = hope("copy", "--lengths", "64,300", "--samples", "2").stdout
    lines = text.splitlines()
    assert [word for word in lines[1].split() if word.isdigit()] == ["64", "300"]
    for metric in ("copy accuracy", "copy token accuracy"):
        (line,) = [line for line in lines if metric in line]
        assert [word.endswith("*") for word in line.split()[-2:]] == [False, True]
    assert "copy@v1: repeat a string of random words" in text
    assert "2 contexts x 1 question at each length" in text
    assert "prefix <s>" in text
    assert "Wilson" in text


def test_retrieval_asks_its_main_tasks_with_their_controls(hope):
    rows = rows_of(hope("retrieve", "--lengths", "150", "--samples", "2", "--format", "json"))
    assert {row["task"] for row in rows} == {"passkey", "associative_recall"}
    for task in ("passkey", "associative_recall"):
        found = {row["metric"]: row["value"] for row in rows if row["task"] == task}
        assert {"accuracy", "floor", "ceiling", "normalised", "surprisal", "margin"} <= found.keys()
        assert found["ceiling"] > 0.9
        assert found["floor"] < 0.1
    rows = rows_of(hope("retrieve", "--lengths", "150", "--samples", "2", "--format", "json", "--no-controls"))
    assert {"floor", "ceiling", "normalised"} <= {row["metric"] for row in rows}, "they are there already"


def test_without_controls_none_are_asked(hope):
    fixed = ("retrieve", "--task", "passkey", "--lengths", "100", "--samples", "1", "--format", "json")
    assert not {"floor", "ceiling"} & {row["metric"] for row in rows_of(hope(*fixed, "--no-controls"))}
    assert {"floor", "ceiling"} <= {row["metric"] for row in rows_of(hope(*fixed))}


def test_few_shots_are_labels_and_rules(hope):
    rows = rows_of(hope("fewshot", "--lengths", "250", "--samples", "2", "--format", "json"))
    first = {row["task"]: row["metric"] for row in reversed(rows)}
    assert first == {"label_map": "choice_accuracy", "rule_induction": "accuracy"}
    assert {row["chance"] for row in rows if (row["task"], row["metric"]) == ("label_map", "choice_accuracy")} == {0.25}
    assert "permuted" in {row["metric"] for row in rows}


def test_the_same_command_again_resumes_and_formats_agree(hope):
    fixed = ("copy", "--lengths", "64,96", "--samples", "2", "--format")
    first = rows_of(hope(*fixed, "json"))
    again = hope(*fixed, "csv")
    assert "320 of 320 tokens were already done" in again.stderr
    table = list(csv.DictReader(io.StringIO(again.stdout)))
    assert [float(row["value"]) for row in table] == [row["value"] for row in first]
    assert [row["metric"] for row in table] == [row["metric"] for row in first]
    assert r"\begin{tabular}" in hope(*fixed, "latex").stdout
    assert "| copy accuracy: gate not run |" in hope(*fixed, "markdown").stdout


def test_tables_are_made_from_runs(hope, tmp_path):
    first = hope("copy", "--lengths", "64,256,512", "--samples", "2", "--format", "json")
    (run,) = runs_in(tmp_path)
    assert hope_eval("copy", "--from", run, "--format", "json").stdout == first.stdout
    part = rows_of(hope_eval("copy", "--from", run, "--lengths", "1x,2x", "--samples", "1", "--format", "json"))
    assert {(row["length"], row["n"]) for row in part} == {(256, 1), (512, 1)}
    assert "has no answers at 1024 tokens" in hope_eval("copy", "--from", run, "--lengths", "1k", code=1).stderr
    hope("copy", "--lengths", "64", "--samples", "2", model="zoo:rope")
    one, other = runs_in(tmp_path)
    both = rows_of(hope_eval("copy", "--from", one, "--from", other, "--lengths", "64", "--format", "json"))
    assert {row["encoding"] for row in both} == {"hope", "rope"}


def test_tables_from_runs_take_no_model(hope, tmp_path):
    hope("copy", "--lengths", "64", "--samples", "1")
    error = hope_eval("copy", "--from", runs_in(tmp_path)[0], "--model", "zoo:rope", code=1).stderr
    assert "takes no --model" in error


def test_perplexity_is_no_task_to_make_a_table_of(hope, stories, tmp_path):
    hope("ppl", "--data", stories, "--lengths", "32")
    error = hope_eval("copy", "--from", runs_in(tmp_path)[0], code=1).stderr
    assert "is a run of `ppl`" in error
    assert "hint: `hope-eval ppl --from` reads it" in error


def test_lengths_in_training_lengths(hope):
    fixed = ("copy", "--samples", "1", "--format", "json")
    assert {row["length"] for row in rows_of(hope(*fixed, "--lengths", "0.25x,1x"))} == {64, 256}
    rows = rows_of(hope(*fixed))
    assert {row["length"] for row in rows} == {77, 154, 256, 512, 1024}
    assert {row["extrapolation"] for row in rows} == {77 / 256, 154 / 256, 1, 2, 4}


def test_models_that_are_compared_are_asked_at_the_same_lengths(hope, checkpoint):
    result = hope(
        "retrieve", "--model", checkpoint, "--task", "passkey", "--samples", "1", "--format", "json", "--no-controls"
    )
    lengths = [sorted({row["length"] for row in rows_of(result, model=name)}) for name in ("zoo:hope", "tiny-llama")]
    assert lengths == [[77, 154, 256, 512, 1024]] * 2


def test_holes_stand_beside_numbers(hope):
    result = hope(
        "retrieve", "--model", "zoo:learned", "--task", "passkey", "--lengths", "16,128,512", "--samples", "1"
    )
    (hope_line, learned_line) = [line for line in result.stdout.splitlines() if "passkey accuracy" in line]
    assert hope_line.count("infeasible (needs ") == learned_line.count("infeasible (needs ") == 1
    assert hope_line.split()[-1].endswith("*")
    assert learned_line.split()[-1] == "-"
    assert "table of 256 positions" in result.stdout


def test_a_column_is_broken_down_by_a_fact(hope):
    fixed = ("retrieve", "--task", "associative_recall", "--lengths", "200", "--samples", "2", "--no-controls")
    rows = rows_of(hope(*fixed, "--format", "json", "--by", "depth"), metric="accuracy")
    whole, *parts = rows
    assert [row["slice"] for row in parts] == [f"depth {n / 5:.1f}-{(n + 1) / 5:.1f}" for n in range(5)]
    assert sum(row["n_questions"] for row in parts) == whole["n_questions"] == 32
    assert "associative_recall accuracy, depth 0.2-0.4" in hope(*fixed, "--by", "depth").stdout
    error = hope(*fixed, "--by", "dpeth", code=1).stderr
    assert "Error: no question has a fact `dpeth`" in error
    assert "hint: --by depth|distance" in error


def test_distances_make_a_line_each(hope):
    fixed = ("retrieve", "--task", "passkey", "--lengths", "100,200", "--samples", "1", "--format", "json")
    result = hope(*fixed, "--distance", "64,128")
    status = {(row["task"], row["length"]): row["status"] for row in rows_of(result, metric="accuracy")}
    assert {key: value for key, value in status.items() if value == "ok"}.keys() == {
        ("passkey:distance=64", 100),
        ("passkey:distance=64", 200),
        ("passkey:distance=128", 200),
    }
    assert status["passkey:distance=128", 100].startswith("infeasible (needs 1")


def test_parameters_of_a_task_are_in_its_name(hope):
    rows = rows_of(hope("copy", "--task", "copy:n_symbols=16", "--task", "copy", *ONE))
    assert {row["task"] for row in rows} == {"copy:n_symbols=16", "copy"}


def test_a_task_of_ones_own(hope, mine, tmp_path):
    fixed = ("--lengths", "64", "--samples", "4", "--format", "json")
    for command in ("copy", "retrieve"):
        rows = rows_of(hope(command, "--task", f"{mine}:n=2", "--by", "half", *fixed))
        assert {row["task"] for row in rows} == {"again:n=2"}
        assert {row["slice"] for row in rows} <= {"", "half 0", "half 1"}
    assert len(runs_in(tmp_path)) == 1
    assert "say the first word again" in hope_eval("tasks", mine).stdout
    plan = hope_eval("plan", "--task", f"{mine}:n=2", "--model", "zoo:hope", "--no-benchmark", *fixed[:4]).stdout
    assert f" --task {mine}:n=2 " in plan.splitlines()[-1], "a command that can be run, with the file of the task"


def test_labelled_texts_are_used(hope, labelled):
    fixed = ("fewshot", "--task", "label_map", "--data", labelled, "--field", "sentence", "--label", "kind")
    rows = rows_of(hope(*fixed, "--lengths", "256", "--samples", "2", "--format", "json", "--by", "class"))
    assert {row["corpus"] for row in rows} == {"fruit.csv"}
    assert {row["chance"] for row in rows if row["metric"] == "choice_accuracy"} == {0.5}
    assert {row["slice"] for row in rows} == {"", "class fruit", "class sea"}
    error = hope("fewshot", "--task", "label_map", "--data", labelled, code=1).stderr
    assert "has no `text` (it has: sentence, kind)" in error


def test_texts_are_used_for_haystacks_and_copies(hope, stories):
    rows = rows_of(hope("copy", "--task", "copy_text", "--data", stories, *ONE))
    assert {row["corpus"] for row in rows} == {"stories.jsonl"}
    rows = rows_of(hope("retrieve", "--task", "needle:n_needles=2", "--data", stories, *ONE, "--lengths", "200"))
    assert {row["task"] for row in rows} == {"needle:n_needles=2,haystack=text"}


def test_encodings_are_swapped(hope):
    rows = rows_of(hope("copy", "--encoding", "native", "--encoding", "hope", *ONE, model="zoo:rope"))
    assert {row["encoding"] for row in rows} == {"rope", "hope(swap)"}


def test_training_seeds_make_one_line(hope, checkpoint, tmp_path):
    folders = [shutil.copytree(checkpoint, tmp_path / f"x-{seed}") for seed in range(2)]
    tiny_module(seed=1).save_pretrained(folders[1])
    fixed = ("--model", folders[1], "--task", "passkey", "--lengths", "200", "--samples", "3", "--format", "json")
    rows = rows_of(hope("retrieve", *fixed, model=folders[0]), metric="surprisal")
    (pooled,) = rows_of(hope("retrieve", *fixed, "--pool-seeds", model=folders[0]), metric="surprisal")
    assert [row["model"] for row in rows] == ["x-0", "x-1"]
    assert (pooled["model"], pooled["n_seeds"]) == ("x (2 seeds)", 2)
    assert pooled["value"] == pytest.approx(np.mean([row["value"] for row in rows]))
    runs = [word for run in runs_in(tmp_path) for word in ("--from", run)]
    (again,) = rows_of(hope_eval("retrieve", *runs, "--pool-seeds", "--format", "json"), metric="surprisal")
    assert again == pooled


SUITE = """
[mine]
about = "two things"
lengths = "64,96"
samples = 2
tasks = [{ task = "copy", samples = 1 }, { task = "passkey:digits=3", lengths = "0.5x" }]
[other]
tasks = ["copy_text", "ppl"]
"""


def test_a_suite_is_run(hope, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(SUITE)
    result = hope("run", "--suite", f"{path}:mine", "--format", "json")
    assert "mine: two things" in result.stderr
    cells = {(row["task"], row["length"], row["n"]) for row in rows_of(result, metric="accuracy")}
    assert cells == {("copy", 64, 1), ("copy", 96, 1), ("passkey:digits=3", 128, 2)}
    result = hope("run", "--suite", f"{path}:mine", "--lengths", "80", "--samples", "1", "--format", "json")
    assert {(row["length"], row["n"]) for row in rows_of(result, metric="accuracy")} == {(80, 1)}
    assert "two things" not in result.stdout


def test_perplexity_is_part_of_suites(hope, tmp_path, stories):
    path = tmp_path / "mine.toml"
    path.write_text(SUITE)
    fixed = ("run", "--suite", f"{path}:other", "--data", stories, "--lengths", "64", "--samples", "1", "--format")
    rows = rows_of(hope(*fixed, "json"))
    assert {row["task"] for row in rows} == {"copy_text", "ppl"}
    assert {row["corpus"] for row in rows} == {"stories.jsonl"}
    table = hope(*fixed, "table").stdout
    assert "perplexity" in table
    assert "copy_text accuracy" in table
    assert len(list(csv.DictReader(io.StringIO(hope(*fixed, "csv").stdout)))) == len(rows)


def test_texts_for_a_suite_are_used_by_what_can_use_them(hope, tmp_path, stories):
    path = tmp_path / "mine.toml"
    path.write_text('[mine]\ntasks = ["copy_text", "copy"]\n')
    result = hope("run", "--suite", path, "--data", stories, *ONE)
    assert {(row["task"], row["corpus"]) for row in rows_of(result)} == {
        ("copy_text", "stories.jsonl"),
        ("copy", "generated"),
    }


def test_nan_is_marked_and_the_exit_code_is_1(hope, monkeypatch):
    own = LanguageModel.score_prompts

    def score_prompts(self, prompts):
        scores = own(self, prompts)
        if len(prompts[0].context) > 150:
            scores[0][0].nll[:] = float("nan")
        return scores

    monkeypatch.setattr(LanguageModel, "score_prompts", score_prompts)
    result = hope("retrieve", "--task", "passkey", "--lengths", "100,200", "--samples", "1", "--format", "json", code=1)
    assert {row["length"]: row["status"] for row in rows_of(result, metric="accuracy")} == {100: "ok", 200: "nan"}
    assert "Error: NaN in the scores of zoo:hope hope at 200" in result.stderr
    assert "hint: --dtype float32" in result.stderr


def test_tasks_are_listed():
    text = hope_eval("tasks").stdout
    listed = re.findall(r"^ *(\w+) +(copy|retrieve|fewshot) ", text, re.MULTILINE)
    assert sorted(name for name, _ in listed) == sorted(task_names())
    assert all(task_class(name).family == family for name, family in listed)
    families = [family for _, family in listed]
    assert families == sorted(families, key=["copy", "retrieve", "fewshot"].index)


def test_a_sample_is_shown_as_it_is_asked():
    text = hope_eval("tasks", "needle:n_needles=3", "--length", "200").stdout
    assert "200 of 200 tokens, 3 questions on one context" in text
    told = dict(re.findall(r"The word for (the \w+ \w+) is (\w+)\.", text))
    asked = re.findall(r"The word for (the \w+ \w+) is⟦ (\w+)⟧\n   against ⟦ (\w+)⟧", text)
    assert len(told) == len(asked) == 3
    for key, word, lure in asked:
        assert told[key] == word != lure
    assert "depth 0." in text
    assert text != hope_eval("tasks", "needle:n_needles=3", "--length", "200", "--index", "1").stdout
    assert text != hope_eval("tasks", "needle:n_needles=3", "--length", "200", "--seed", "1").stdout


@pytest.mark.parametrize("name", task_names())
def test_every_task_can_be_shown(name, stories):
    data = ("--data", stories) if task_class(name).uses == "text" else ()
    text = hope_eval("tasks", name, "--length", "450", *data).stdout
    assert text.startswith(name)
    assert task_class(name).one_line in text
    (n,) = re.findall(r"(\d+) of 450 tokens", text)
    assert 441 <= int(n) <= 450
    assert text.count("⟦") >= 1


BAD = [
    (["copy", "--task", "needle"], "`hope-eval copy` does not measure `needle`", "hope-eval retrieve --task needle"),
    (
        ["fewshot", "--task", "copy:n_symbols=4"],
        "does not measure `copy:n_symbols=4`",
        "hope-eval copy --task copy:n_symbols=4",
    ),
    (["copy", "--task", "cpoy"], "no task is called `cpoy`", "did you mean `copy`"),
    (["copy", "--task", "nowhere.py"], "no file `nowhere.py`", "--task takes"),
    (["retrieve", "--task", "needle:n_nedles=4"], "`needle` has no parameter `n_nedles`", "did you mean `n_needles`"),
    (
        ["retrieve", "--task", "passkey:digits=many"],
        "`digits` of `passkey` must be of type int",
        "passkey:digits=5",
    ),
    (["retrieve", "--task", "passkey:control=floor"], "no parameter `control`", "digits"),
    (["copy", "--lengths", "2x,1x"], "lengths must ascend", "--lengths 1x,2x"),
    (["copy", "--lengths", "64,1x,32"], "lengths must ascend, got 32 after 64", "32,64"),
    (["retrieve", "--task", "passkey", "--distance", "1x"], "--distance is in tokens", "--distance 256,1k"),
    (["copy", "--distance", "100"], "`copy` has no distance", "leave --distance out"),
    (["copy", "--data", "texts.txt"], "takes no --data", "leave --data out"),
    (["fewshot", "--task", "label_map", "--data", "nowhere.csv"], "no labelled texts at", "--data takes"),
    (["copy", "--task", "copy_text", "--data", "nowhere.txt"], "no text at", "--data"),
    (["run", "--suite", "quikc"], "no suite is called `quikc`", "did you mean `quick`"),
    (["run", "--suite", "nowhere.toml"], "cannot read the suites", "TOML"),
    (["retrieve", "--chat", "--lengths", "100"], "no chat template", "--plain"),
    (["copy", "--model", "zoo:hpoe"], "zoo:hpoe", "zoo:hope"),
    (["copy", "--encoding", "hoep"], "no position encoding is called `hoep`", "did you mean `hope`"),
]


@pytest.mark.parametrize(("arguments", "message", "hint"), BAD)
def test_bad_input_is_one_error_and_a_hint(arguments, message, hint, hope, tmp_path):
    result = hope(*arguments, code=1)
    check_error(result, message, hint)
    assert not (tmp_path / "runs").exists(), "nothing half-written"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["fewshot", "--task", "rule_induction:rule=srot"], "no rule is called `srot`", "sort"),
        (["fewshot", "--task", "label_map:placement=far"], "cannot be `far`", "spread"),
        (["retrieve", "--task", "needle:haystack=hay"], "cannot be `hay`", "prose, text"),
        (["retrieve", "--task", "needle:n_needles=900"], "106 words", "lower n_needles"),
        (["copy", "--task", "copy_distance:distance=3"], "at least 17 tokens away", "distance=17"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_one_error_and_a_hint(arguments, message, hint, hope):
    check_error(hope(*arguments, "--lengths", "200", "--samples", "1", code=1), message, hint)


def test_what_is_not_there_to_be_shown_is_one_error_and_a_hint():
    check_error(hope_eval("tasks", "neddle", code=1), "no task is called `neddle`", "did you mean `needle`")
    check_error(hope_eval("tasks", "needle", "--length", "20", code=1), "needs at least", "longer")
    check_error(hope_eval("copy", "--from", "nowhere", code=1), "no run at `nowhere`", "give the folder of a run")


def test_the_hint_of_perplexity_is_a_command_that_there_is(hope):
    error = hope("copy", "--task", "ppl", code=1).stderr
    assert "`hope-eval copy` does not measure `ppl`" in error
    assert "--task" not in error.rpartition("hint: ")[2], "hope-eval ppl has no --task"


def check_error(result, message, hint):
    error, _, advice = result.stderr.strip().rpartition("\nhint: ")
    assert message in error
    assert hint in advice
    assert result.stderr.count("Error: ") == 1
    assert result.stderr.count("hint: ") == 1
    assert "Traceback" not in result.output
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["copy", "retrieve", "fewshot", "run", "tasks"])
def test_every_command_has_help_with_an_example(command):
    assert f"hope-eval {command}" in hope_eval(command, "--help").stdout.split("Options")[0].split("\n\n", 2)[2]
