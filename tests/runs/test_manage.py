"""`hope-eval runs`: runs are listed, shown, verified and removed."""

import csv
import errno
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import hope_eval
from conftest import story
from rich.console import Console

from hope_eval.errors import StoreError
from hope_eval.runs import manage as runs
from hope_eval.runs.store import FILES, RunStore, run_id
from hope_eval.runs.verify import verify
from hope_eval.show import terminal

ANSWERS = {"task": "needle", "model": "m", "encoding": "rope"}
PPL = {"task": "ppl", "model": "a model", "encoding": "hope", "prefix_token": 0, "lengths": [4, 4096]}
ASKED = {"controls": ["floor", "ceiling"], "command": "hope-eval retrieve --model 'm n'"}


def answer(index: int, question: int = 0, **changes) -> dict:
    fixed = {"n_questions": 2, "fill": 1.0, "n_target": 3, "hits": 2, "nll": 1.0}
    named = {"kind": "answer", "length": 64, "control": "", "index": index, "question": question}
    return named | fixed | changes


def answers_run(root: Path, records=None, identity=ANSWERS, provenance=ASKED) -> Path:
    if records is None:
        records = [answer(index, question) for index in range(3) for question in range(2)]
    with RunStore.writing(root, identity, provenance) as store:
        for record in records:
            store.append(record)
    return store.path


def ppl_run(root: Path, change=lambda records: None, identity=PPL) -> Path:
    """Write a run of two documents of 5 tokens, with a window each, after a change of what is appended."""
    records = []
    for index in range(2):
        document = {
            "kind": "document",
            "document": f"d{index}",
            "index": index,
            "n_tokens": 5,
            "n_bytes": 9,
            "n_words": 2,
        }
        window = {"kind": "window", "document": f"d{index}", "window": [0, 3, 0, 3, True]}
        records += [
            (document, {"bytes": np.arange(5, dtype="<u4")}),
            (window, {"nll": np.arange(3, dtype="<f4")}),
        ]
    records.append(({"kind": "oom", "document": "d1", "n_read": 9, "memory": {}, "message": ""}, {}))
    change(records)
    with RunStore.writing(root, identity, {"command": "hope-eval ppl"}) as store:
        for record, arrays in records:
            store.append(record, **arrays)
    return store.path


def edit(path: Path, name: str, change) -> None:
    content = change((path / name).read_bytes())
    (path / name).write_bytes(content)


def listed(out: Path) -> list[dict]:
    return json.loads(hope_eval("runs", "list", "--out", out, "--format", "json").stdout)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A folder with a run of perplexity and runs of two tasks, one of them with grades."""
    root = tmp_path_factory.mktemp("real")
    texts = root / "texts.jsonl"
    texts.write_text(json.dumps({"text": story(40)}) + "\n" + json.dumps({"text": story(30, 9)}) + "\n")
    fixed = ("--model", "zoo:hope", "--out", root / "runs", "--device", "cpu")
    hope_eval("ppl", *fixed, "--data", texts, "--protocol", "sliding", "--lengths", "32,64", "--stride", "16")
    hope_eval("ppl", *fixed, "--data", texts, "--protocol", "rolling", "--lengths", "64")
    hope_eval("retrieve", *fixed, "--task", "passkey", "--lengths", "16,100", "--samples", "4")
    hope_eval("fewshot", *fixed, "--task", "instruction_at_distance", "--lengths", "200", "--samples", "1")
    return root / "runs"


def test_runs_are_listed_the_last_one_worked_on_at_the_end(tmp_path):
    first, second = answers_run(tmp_path), ppl_run(tmp_path)
    for path, when in ((first, 2_000_000_000), (second, 1_000_000_000)):
        os.utime(path / "records.jsonl", (when, when))
    assert [one["id"] for one in listed(tmp_path)] == [second.name, first.name]
    ppl, task = listed(tmp_path)
    assert (ppl["task"], ppl["model"], ppl["encoding"], ppl["lengths"]) == ("ppl", "a model", "hope", [4, 4096])
    assert (task["task"], task["records"], task["lengths"], task["state"]) == ("needle", 6, None, "ok")
    assert ppl["bytes"] == sum(file.stat().st_size for file in second.iterdir())
    assert ppl["worked_on"].startswith("2001-09-0")
    text = hope_eval("runs", "--out", tmp_path).stdout
    lines = [line.split() for line in text.splitlines() if "rope" in line or "hope" in line]
    assert lines[0][:6] == [second.name, "ppl", "a", "model", "hope", "4,4k"]
    assert lines[1][:5] == [first.name, "needle", "m", "rope", "6"]
    assert lines[1][-1] == "ok"


def test_latest_are_the_runs_of_the_last_command(tmp_path):
    """Of one command: all of its runs, also those that it began before another command ran."""
    made = {}
    for name, command, started in (("a", "one", "01"), ("b", "two", "02"), ("c", "one", "03"), ("d", None, "00")):
        made[name] = answers_run(tmp_path, identity={**ANSWERS, "model": name})
        with RunStore.writing(tmp_path, {**ANSWERS, "model": name}, ASKED) as store:
            store.log_session({"started": started, "command": command})
    assert set(runs.latest(tmp_path)) == {made["a"], made["c"]}
    shutil.rmtree(made["c"])
    assert runs.latest(tmp_path) == [made["b"]]


def test_no_command_has_no_latest_runs(tmp_path):
    with pytest.raises(StoreError, match="no command has worked on a run"):
        runs.latest(tmp_path)


def test_no_id_is_cut_on_a_narrow_screen(tmp_path, monkeypatch):
    path = answers_run(tmp_path, identity={**ANSWERS, "model": "a-name-that-is-quite-a-bit-longer-than-others"})
    monkeypatch.setattr(terminal, "plain_console", lambda: Console(width=60))
    assert path.name in hope_eval("runs", "--out", tmp_path).stdout


def test_lists_are_tables_for_programs_too(tmp_path):
    path = answers_run(tmp_path)
    for command in (("runs", "--out", tmp_path), ("encodings",), ("tasks",), ("zoo",)):
        records = json.loads(hope_eval(*command, "--format", "json").stdout)
        lines = list(csv.DictReader(hope_eval(*command, "--format", "csv").stdout.splitlines()))
        assert len(records) == len(lines) >= 1
        assert list(records[0]) == list(lines[0])
    assert [line["id"] for line in listed(tmp_path)] == [path.name]


def test_a_list_tells_what_is_not_whole(tmp_path):
    whole = answers_run(tmp_path)
    empty = answers_run(tmp_path, [], {**ANSWERS, "model": "empty"})
    cut = answers_run(tmp_path, None, {**ANSWERS, "model": "cut"})
    edit(cut, "records.jsonl", lambda content: content[:-5])
    bad = answers_run(tmp_path, None, {**ANSWERS, "model": "bad"})
    (bad / "run.json").write_text("{")
    newer = answers_run(tmp_path, None, {**ANSWERS, "model": "newer"})
    edit(newer, "run.json", lambda content: content.replace(b'"format": 1', b'"format": 2'))
    (tmp_path / "no run").mkdir()
    (tmp_path / "a file").write_text("")
    states = {one["id"]: (one["state"], one["records"]) for one in listed(tmp_path)}
    assert states == {
        whole.name: ("ok", 6), empty.name: ("empty", 0), cut.name: ("cut", 5), bad.name: ("bad", 0),
        newer.name: ("bad", 0),
    }  # fmt: skip
    assert hope_eval("runs", "--out", tmp_path).stdout.count("?") == 6


def test_a_folder_without_runs_says_so(tmp_path):
    result = hope_eval("runs", "--out", tmp_path)
    assert result.stdout == ""
    assert f"no runs below {tmp_path}" in result.stderr
    assert listed(tmp_path) == []
    assert hope_eval("runs", "verify", "--out", tmp_path).stdout == ""
    for command in ([], ["verify"]):
        result = hope_eval("runs", *command, "--out", tmp_path / "nowhere", code=1)
        assert f"Error: no folder `{tmp_path / 'nowhere'}`" in result.stderr
        assert "hint: " in result.stderr


def test_a_run_is_found_by_folder_id_and_beginning(tmp_path, monkeypatch):
    one, other = answers_run(tmp_path), answers_run(tmp_path, identity={**ANSWERS, "model": "mm"})
    monkeypatch.chdir(tmp_path)
    for name in (str(one), one.name, f"{one.name}/", f"./{one.name}", "needle-m-"):
        assert runs.find(name, tmp_path).resolve() == one
    with pytest.raises(StoreError, match=f"the ids of 2 runs begin with `needle`: {one.name}, {other.name}\n"):
        runs.find("needle", tmp_path)
    # An id that begins another is still itself.
    monkeypatch.chdir(tmp_path.parent)
    shutil.copytree(one, tmp_path / f"{one.name}0")
    assert runs.find(one.name, tmp_path) == tmp_path / one.name


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("needel-m-rope", r"no run `needel-m-rope` in ", "did you mean `needle-m-rope-"),
        ("zzz", r"no run `zzz` in ", "lists all"),
        ("", r"no run `` in ", "lists all"),
        ("no run", r"the folder `no run` is not a run", "`hope-eval runs --out no run`"),
        (".", r"the folder `\.` is not a run", "`hope-eval runs --out .`"),
    ],
)
def test_what_is_no_run_is_an_error_with_a_hint(name, message, hint, tmp_path, monkeypatch):
    answers_run(tmp_path)
    (tmp_path / "no run").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=message) as caught:
        runs.find(name, tmp_path)
    assert hint in caught.value.hint
    for command in ("show", "verify", "rm"):
        assert "hint: " in hope_eval("runs", command, name, "--out", tmp_path, code=1).stderr


def test_of_many_ids_a_few_are_named(tmp_path):
    for number in range(9):
        answers_run(tmp_path, [], {**ANSWERS, "seed": number})
    with pytest.raises(StoreError, match=r"the ids of 9 runs begin with `needle`: (needle-m-rope-\w+, ){4}…\n"):
        runs.find("needle", tmp_path)


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    answers_run(tmp_path)

    def refuse(self):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "is_file", refuse)
    for command in ([], ["verify"], ["show", "needle"], ["rm", "needle"]):
        error = hope_eval("runs", *command, "--out", tmp_path, code=1).stderr
        assert "Permission denied" in error
        assert "hint: give a folder you may read" in error


def test_a_run_is_shown_with_what_it_is_and_how_it_came_to_be(tmp_path):
    path = answers_run(
        tmp_path,
        [*[answer(index) for index in range(12)], {"kind": "infeasible", "length": 9, "needed": 20}],
        {**ANSWERS, "inverse_frequencies": {"rotary": [1 / n for n in range(1, 40)]}, "max_length": None},
    )
    store = RunStore.reading(path)
    store.log_session({"started": "2026-01-02T03:04:05", "seconds": 12.5, "peak_memory_gib": 7.25})
    with (path / "sessions.jsonl").open("ab") as stream:
        stream.write(b'{"started": "2026-')
    text = hope_eval("runs", "show", path.name, "--out", tmp_path).stdout
    assert text.splitlines()[0] == path.name
    assert f"{path}, " in text
    for line in ("command   hope-eval retrieve --model 'm n'", "answer      12", "infeasible  1"):
        assert f"  {line}\n" in text
    for line in ("session of 2026-01-02T03:04:05", "seconds          12.5", "peak_memory_gib  7.25"):
        assert line in text
    assert "rotary 1, 0.5, 0.333333, 0.25, … (39)\n" in text
    assert text.count("session of") == 1
    found = json.loads(hope_eval("runs", "show", path, "--format", "json").stdout)
    assert found["identity"] == store.header["identity"]
    assert found["provenance"] == ASKED
    assert found["records"] == {"answer": 12, "infeasible": 1}
    assert [session["peak_memory_gib"] for session in found["sessions"]] == [7.25]
    assert (found["id"], found["state"], found["bytes_cut"]) == (path.name, "ok", 0)


def test_real_runs_are_sound_and_are_shown(real):
    result = hope_eval("runs", "verify", "--out", real)
    paths = sorted(real.iterdir())
    assert len(paths) == 4
    assert sorted(line.split()[1] for line in result.stdout.splitlines()) == [f"{path.name}:" for path in paths]
    assert {line.split()[0] for line in result.stdout.splitlines()} == {"ok"}
    for path in paths:
        found = json.loads(hope_eval("runs", "show", path, "--format", "json").stdout)
        assert sum(found["records"].values()) == len(RunStore.reading(path).records)
        assert found["sessions"][0]["tokens_read"] > 0
    kinds = {key for path in paths for key in runs.described(path)["records"]}
    assert kinds == {"answer", "infeasible", "document", "window"}


def test_a_half_written_record_and_an_empty_run_are_told_and_are_no_fault(tmp_path):
    cut = ppl_run(tmp_path)
    edit(cut, "records.jsonl", lambda content: content[:-9])
    empty = answers_run(tmp_path, [])
    lines = hope_eval("runs", "verify", "--out", tmp_path).stdout.splitlines()
    n = len((cut / "records.jsonl").read_bytes().split(b"\n")[-1])
    assert sorted(lines) == [
        f"cut    {cut.name}: 4 records, and {n} bytes of a half-written one: rerun its command to resume",
        f"empty  {empty.name}: 0 records",
    ]
    shown = hope_eval("runs", "show", cut).stdout
    assert f"cut ({n} bytes of a half-written record)" in shown
    # Power was lost before arrays were written.
    edit(cut, "records.jsonl", lambda content: content[: content.rfind(b"\n") + 1])
    edit(cut, "arrays.bin", lambda content: content[:-1])
    assert hope_eval("runs", "verify", cut).stdout.startswith(f"cut    {cut.name}: 3 records, and ")


def swap(old: str, new: str):
    def change(content: bytes) -> bytes:
        assert old.encode() in content
        return content.replace(old.encode(), new.encode(), 1)

    return change


FAULTS = {
    "another identity": ("run.json", swap('"model": "m"', '"model": "M"'), "its identity belongs to needle-M-rope-"),
    "a newer format": ("run.json", swap('"format": 1', '"format": 7'), "format 7 of a newer hope-eval"),
    "no header": ("run.json", lambda content: content[:-9], r"run\.json is damaged"),
    "a damaged line": ("records.jsonl", swap('"index": 1', '"index": x'), r"records\.jsonl, line 3, is damaged"),
    "a lost line end": ("records.jsonl", swap("}\n{", "}{"), r"records\.jsonl, line 1, is damaged"),
    "an answer twice": (
        "records.jsonl",
        lambda content: content + content.splitlines(keepends=True)[3],
        "question 1 on context 1 at 64 tokens is answered twice",
    ),
    "a question too many": (
        "records.jsonl",
        swap('"question": 1', '"question": 2'),
        "question 2 on context 0 at 64 tokens is not among the questions of its context",
    ),
    "a question below none": ("records.jsonl", swap('"question": 1', '"question": -1'), "is not among the questions"),
    "numbers of questions that differ": (
        "records.jsonl",
        swap('"n_questions": 2', '"n_questions": 3'),
        "question 1 on context 0 at 64 tokens disagrees with others about the number of questions",
    ),
    "an unknown control": ("records.jsonl", swap('"control": ""', '"control": "roof"'), "that `needle` does not have"),
    "a ceiling with a length": ("records.jsonl", swap('"control": ""', '"control": "ceiling"'), "has a wrong length"),
    "an answer without a length": ("records.jsonl", swap('"length": 64', '"length": 0'), "has a wrong length"),
    "more right than there is": ("records.jsonl", swap('"hits": 2', '"hits": 4'), "has more hits than tokens"),
    "no likelihood": ("records.jsonl", swap('"nll"', '"nil"'), "line 1, is damaged: it has no `nll`"),
    "a kind of perplexity": (
        "records.jsonl",
        swap('"kind": "answer"', '"kind": "window"'),
        "a run of questions has no records of the kind `window`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_answers_is_found(fault, tmp_path):
    name, change, message = FAULTS[fault]
    bad, good = answers_run(tmp_path), ppl_run(tmp_path)
    assert verify(bad)
    edit(bad, name, change)
    with pytest.raises(StoreError, match=message):
        verify(bad)
    result = hope_eval("runs", "verify", "--out", tmp_path, code=1)
    lines = result.stdout.splitlines()
    assert sorted(line.split()[:2] for line in lines) == [["bad", f"{bad.name}:"], ["ok", f"{good.name}:"]]
    assert "Error: 1 of 2 runs is bad" in result.stderr
    if fault == "a newer format":
        assert "hint: pip install --upgrade" in result.stderr
    elif fault not in ("no header", "another identity"):
        assert f"hint: `hope-eval runs rm {bad}`, then rerun its command: {ASKED['command']}" in result.stderr
    else:
        assert f"`hope-eval runs rm {bad}`" in result.stderr


def test_infeasible_lengths_are_told_once_and_whole(tmp_path):
    hole = {"kind": "infeasible", "length": 9, "needed": 20}
    assert verify(answers_run(tmp_path / "a", [hole, {**hole, "length": 10}]))
    with pytest.raises(StoreError, match="the length 9 occurs twice"):
        verify(answers_run(tmp_path / "b", [hole, answer(0), hole]))
    for lack in ({**hole, "needed": None}, {"kind": "infeasible"}):
        with pytest.raises(StoreError, match=r"a record of the kind `infeasible` is damaged: .*(`needed`|`length`)"):
            verify(answers_run(tmp_path / f"{len(lack)}", [lack]))
    oom = {"kind": "oom", "length": 9, "memory": {}}
    assert verify(answers_run(tmp_path / "c", [oom, oom]))
    with pytest.raises(StoreError, match="the kind `oom` is damaged: `memory` is 3"):
        verify(answers_run(tmp_path / "d", [{**oom, "memory": 3}]))


def replaced(at: int, **changes):
    def change(records):
        records[at][0].update(changes)

    return change


def nll_of(count: int):
    return lambda records: records[1][1].update(nll=np.zeros(count, "<f4"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced(2, index=2), "document of index 1 is missing"),
        (replaced(2, index=0), "document of index 1 is missing, or another document has its index"),
        (replaced(0, index=1), "document of index 0 is missing"),
        (replaced(2, document="d0"), "line 3, is damaged: document `d0` occurs twice"),
        (replaced(2, n_tokens=6), "line 3, is damaged: the number of its bytes is not that of its tokens"),
        (replaced(1, document="d1"), "line 2, is damaged: its document `d1` does not come before it"),
        (replaced(1, window=[0, 3, 0, 3]), "line 2, is damaged"),
        (replaced(1, window=[0, 3, 3, 3, True]), r"line 2, is damaged: \[0, 3, 3, 3, True\] is not a window"),
        (replaced(1, window=[3, 6, 3, 6, True]), "reaches past its document"),
        (replaced(1, window="0 to 3"), "line 2, is damaged"),
        (replaced(1, window=None), "line 2, is damaged"),
        (nll_of(2), "line 2, is damaged: the number of its nll is not that of the tokens"),
        (nll_of(4), "the number of its nll is not that of the tokens"),
        (lambda records: records[1][1].clear(), "line 2, is damaged: it has no `nll`"),
        (lambda records: records.insert(2, records[1]), "line 3, is damaged: the window .* of `d0` occurs twice"),
        (replaced(1, kind="answer"), "a run of perplexity has no records of the kind `answer`"),
        (replaced(1, kind=None), "no records of the kind `None`"),
    ],
)
def test_what_is_wrong_with_tokens_is_found(change, message, tmp_path):
    with pytest.raises(StoreError, match=message) as caught:
        verify(ppl_run(tmp_path, change))
    assert caught.value.hint.endswith("then rerun its command: hope-eval ppl")


def test_a_prefix_that_the_run_has_not_is_found(tmp_path):
    with pytest.raises(StoreError, match="it begins with a prefix token, and its run has none"):
        verify(ppl_run(tmp_path, identity={**PPL, "prefix_token": None}))


def test_every_byte_of_the_arrays_is_verified(tmp_path):
    path = ppl_run(tmp_path)
    whole = (path / "arrays.bin").read_bytes()
    assert verify(path)
    for at in range(len(whole)):
        (path / "arrays.bin").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(StoreError, match=r"arrays\.bin is damaged at byte"):
            verify(path)
    # What a kill left behind the last record is nobody's.
    (path / "arrays.bin").write_bytes(whole + b"more")
    assert verify(path)


def test_every_lost_line_of_a_perplexity_but_those_at_the_end_is_found(tmp_path):
    path = ppl_run(tmp_path)
    lines = (path / "records.jsonl").read_bytes().splitlines(keepends=True)
    for at in (0, 2):
        (path / "records.jsonl").write_bytes(b"".join([*lines[:at], *lines[at + 1 :]]))
        with pytest.raises(StoreError, match="line"):
            verify(path)


def test_large_runs_tell_how_far_they_are(tmp_path, monkeypatch):
    for path in (answers_run(tmp_path), ppl_run(tmp_path)):
        assert hope_eval("runs", "verify", path).stderr == ""
        told = []
        verify(path, lambda done, total, told=told: told.append((done, total)))
        assert told[0][0] == 0
        assert told[-1][0] == told[-1][1] > 0
    monkeypatch.setattr(sys.modules["hope_eval.cli.runs"], "_LARGE", 1)
    assert "bytes to go" in hope_eval("runs", "verify", path).stderr


def test_verify_takes_names_and_each_run_once(tmp_path):
    one, other = answers_run(tmp_path), ppl_run(tmp_path)
    edit(other, "records.jsonl", lambda content: b"{oops}\n" + content)
    lines = hope_eval("runs", "verify", one.name, one, "needle", "--out", tmp_path).stdout.splitlines()
    assert lines == [f"ok     {one.name}: 6 records"]
    assert (
        "Error: 1 of 2 runs is bad"
        in hope_eval("runs", "verify", one, other, "needle", "--out", tmp_path, code=1).stderr
    )
    edit(one, "records.jsonl", lambda content: b"{oops}\n" + content)
    error = hope_eval("runs", "verify", "--out", tmp_path, code=1).stderr
    assert "Error: 2 of 2 runs are bad" in error
    assert error.count("hope-eval runs rm ") == 2


def confirmed(*arguments, answer: str, code: int = 0):
    from click.testing import CliRunner

    from hope_eval.cli import main

    result = CliRunner().invoke(main, ["runs", "rm", *map(str, arguments)], input=answer)
    assert result.exit_code == code, result.output
    return result


def test_removing_asks_first(tmp_path):
    one, other = answers_run(tmp_path), ppl_run(tmp_path)
    result = confirmed(one.name, "ppl", "--out", tmp_path, answer="n\n", code=1)
    assert f"{one}: 6 records, " in result.output
    assert "Remove these 2 runs? [y/N]" in result.output
    assert one.exists()
    assert other.exists()
    assert confirmed(one, answer="", code=1)
    assert one.exists(), "nobody answered"
    assert f"removed {one}" in confirmed(one, answer="y\n").output
    assert not one.exists()
    assert other.exists()
    assert hope_eval("runs", "rm", other, other, "--yes").stdout == f"removed {other}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_being_written_is_not_removed(tmp_path):
    with RunStore.writing(tmp_path, ANSWERS, ASKED) as store:
        store.append(answer(0))
        error = hope_eval("runs", "rm", store.path, "--yes", code=1).stderr
        assert f"another process is writing the run {store.path}" in error
        store.append(answer(1))
    assert len(RunStore.reading(store.path).records) == 2
    hope_eval("runs", "rm", store.path, "--yes")
    assert not store.path.exists()


def test_nothing_but_runs_is_removed(tmp_path, monkeypatch):
    run = answers_run(tmp_path)
    (run / "notes.txt").write_text("mine")
    other = ppl_run(tmp_path)
    result = hope_eval("runs", "rm", other, run, "--yes", code=1)
    assert "also holds files that are not part of a run: notes.txt" in result.stderr
    assert other.exists(), "one that cannot be removed keeps all"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "records.jsonl").write_text("")
    for name in (folder, tmp_path):
        assert "is not a run" in hope_eval("runs", "rm", name, "--yes", code=1).stderr
        with pytest.raises(StoreError, match="no run at"):
            runs.remove(name)
    assert (folder / "records.jsonl").exists()
    hope_eval("runs", "rm", other, "nowhere", "--out", tmp_path, "--yes", code=1)
    assert other.exists()


def test_a_damaged_run_and_a_newer_one_can_be_removed(tmp_path):
    damaged, newer = answers_run(tmp_path), ppl_run(tmp_path)
    (damaged / "run.json").write_text("{")
    edit(newer, "run.json", swap('"format": 1', '"format": 2'))
    hope_eval("runs", "rm", damaged, newer, "--yes")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_be_shown_says_why(tmp_path):
    path = answers_run(tmp_path)
    edit(path, "records.jsonl", lambda content: content + b"{oops}\n")
    error = hope_eval("runs", "show", path, code=1).stderr
    assert "line 7, is damaged" in error
    assert f"hint: `hope-eval runs rm {path}`" in error
    edit(path, "run.json", swap('"format": 1', '"format": 2'))
    assert "hint: pip install --upgrade hope-eval" in hope_eval("runs", "show", path, code=1).stderr


def test_the_name_of_a_run_is_that_of_its_identity_after_a_round_trip(real):
    for path in real.iterdir():
        assert run_id(RunStore.reading(path).header["identity"]) == path.name


@pytest.mark.parametrize("command", [[], ["list"], ["show"], ["verify"], ["rm"]])
def test_every_command_has_help_with_an_example(command):
    words = " ".join(["hope-eval runs", *command])
    assert words in hope_eval("runs", *command, "--help").stdout.split("Options")[0].split("\n\n", 2)[2]


def test_links_are_never_followed_to_remove(tmp_path):
    elsewhere = answers_run(tmp_path / "elsewhere")
    (tmp_path / "runs").mkdir()
    link = tmp_path / "runs" / elsewhere.name
    link.symlink_to(elsewhere)
    assert "is a link" in hope_eval("runs", "rm", link, "--yes", code=1).stderr
    run = answers_run(tmp_path / "runs", identity={**ANSWERS, "model": "n"})
    # The files of a shard elsewhere have the names of those of a run.
    (run / "shards").symlink_to(elsewhere.parent)
    assert "shards` is a link" in hope_eval("runs", "rm", run, "--yes", code=1).stderr
    (run / "shards").unlink()
    (run / "shards").mkdir()
    (run / "shards" / "session-0").symlink_to(elsewhere)
    assert "not part of a run: session-0" in hope_eval("runs", "rm", run, "--yes", code=1).stderr
    shutil.rmtree(run / "shards")
    content = (elsewhere / "records.jsonl").read_bytes()
    for name in FILES:
        if name != "run.json":
            (run / name).unlink(missing_ok=True)
            (run / name).symlink_to(elsewhere / name)
            assert f"{name}` is a link" in hope_eval("runs", "rm", run, "--yes", code=1).stderr
            (run / name).unlink()
    assert sorted(path.name for path in elsewhere.iterdir()) == ["arrays.bin", "records.jsonl", "run.json", "run.lock"]
    assert (elsewhere / "records.jsonl").read_bytes() == content


@pytest.mark.parametrize("name", ["", *(name for name in FILES if name != "run.json"), "shards"])
def test_nothing_is_written_through_a_link(name, tmp_path):
    elsewhere = answers_run(tmp_path / "elsewhere")
    # What a resume would cut off.
    edit(elsewhere, "records.jsonl", lambda content: content + b'{"kind": "ans')
    before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    run = tmp_path / "runs" / elsewhere.name
    if name:
        answers_run(tmp_path / "runs")
        (run / name).unlink(missing_ok=True)
    else:
        run.parent.mkdir()
    (run / name).symlink_to(elsewhere / name)
    with pytest.raises(StoreError, match="is a link"), RunStore.writing(tmp_path / "runs", ANSWERS, ASKED) as store:
        store.append(answer(7))
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == before


def test_the_kind_of_a_run_knows_each_of_its_records_and_no_other(real):
    for path in real.iterdir():
        store = RunStore.reading(path)
        kinds = {store.kind.record_kind(record).name for record in store.records}
        assert store.kind.records[0].name in kinds
        for record in store.records:
            kind = store.kind.record_kind(record)
            assert {field.name for field in kind.fields if field.required} <= set(record)
            assert kind.name == "answer" or set(record) <= {"kind", "arrays", *(field.name for field in kind.fields)}
        assert len({store.kind.key(record) for record in store.records}) == len(store.records)
