import errno
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import hope_eval
from conftest import story

from hope_eval.errors import StoreError
from hope_eval.runs import columns
from hope_eval.runs.columns import Field
from hope_eval.runs.store import RunStore, run_id

IDENTITY = {"task": "ppl", "model": "a model/x", "encoding": "hope:multiplier=2(swap)", "lengths": [1, 2]}


def write(root: Path, n: int) -> RunStore:
    with RunStore.writing(root, IDENTITY, {"command": "c"}) as store:
        for number in range(len(store.records), n):
            store.append({"number": number, "word": "…"}, values=np.full(number + 1, number, "<f4"))
        return store


def numbers(store: RunStore) -> list[int]:
    for record in store.records:
        np.testing.assert_array_equal(store.array(record, "values"), np.full(record["number"] + 1, record["number"]))
    return [record["number"] for record in store.records]


def test_records_come_back(tmp_path):
    store = write(tmp_path, 5)
    assert numbers(RunStore.reading(store.path)) == [0, 1, 2, 3, 4]
    assert numbers(store) == [0, 1, 2, 3, 4]
    assert RunStore.reading(store.path).header["provenance"] == {"command": "c"}


@pytest.mark.parametrize("file", ["records.jsonl", "arrays.bin"])
def test_a_kill_at_any_byte_loses_at_most_the_records_after_it(file, tmp_path):
    whole = write(tmp_path / "whole", 4)
    records, arrays = (whole.path / name for name in ("records.jsonl", "arrays.bin"))
    wanted = records.read_bytes(), arrays.read_bytes()
    for size in range((whole.path / file).stat().st_size):
        root = tmp_path / f"{file}{size}"
        cut = write(root, 4)
        os.truncate(cut.path / file, size)
        kept = numbers(RunStore.reading(cut.path))
        assert kept == list(range(len(kept)))
        # What is lost is written again, and nothing tells that it was ever lost.
        assert numbers(write(root, 4)) == [0, 1, 2, 3]
        assert ((cut.path / "records.jsonl").read_bytes(), (cut.path / "arrays.bin").read_bytes()) == wanted


def test_arrays_that_changed_on_disk_are_an_error(tmp_path):
    store = write(tmp_path, 3)
    with (store.path / "arrays.bin").open("r+b") as stream:
        stream.seek(5)
        stream.write(b"!")
    with pytest.raises(StoreError, match="damaged"):
        numbers(RunStore.reading(store.path))


def test_reading_parses_nothing_until_it_is_asked(tmp_path):
    store = write(tmp_path, 3)
    (store.path / "records.jsonl").write_bytes(b"{oops}\n")
    again = RunStore.reading(store.path)
    assert (again.id, again.header["identity"], again.cut, again.n_records) == (store.id, IDENTITY, 0, 1)
    with pytest.raises(StoreError, match="line 1, is damaged"):
        list(again.records)


DAMAGES = {
    "no JSON": b"{oops}\n",
    "no record": b"[1]\n",
    "an empty line": b"\n",
    "two on a line": b'{"kind": "a", "n": 1} {"kind": "a", "n": 2}\n',
    "bytes that are no text, where nobody looks": b'{"kind": "a", "n": 1, "text": "\xff"}\n',
    "zeros, as after a loss of power": bytes(30) + b"\n",
}


@pytest.mark.parametrize("place", [0, 7, 20])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_line_is_an_error_that_tells_which(damage, place, tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "_BLOCK", 100)
    store = write(tmp_path, 0)
    lines = [f'{{"kind": "a", "n": {n}}}\n'.encode() for n in range(20)]
    (store.path / "records.jsonl").write_bytes(b"".join([*lines[:place], damage, *lines[place:]]))
    for read in (lambda run: run.records, lambda run: run.columns("a", [Field("n", "int32")])):
        with pytest.raises(StoreError, match=rf"records.jsonl, line {place + 1}, is damaged") as caught:
            read(RunStore.reading(store.path))
        assert caught.value.hint == f"`hope-eval runs rm {store.path}`, then rerun its command"


def mixed(n: int) -> list[dict]:
    """Return records of two kinds, some with what others have not."""
    rng = np.random.default_rng(0)
    floats = [0.1, 1e-300, -0.0, math.nan, math.inf, -math.inf, 3, 0.30000000000000004, 12345.67891]
    records = []
    for number in range(n):
        record = {
            "kind": "a",
            "n": number,
            "x": floats[number % len(floats)],
            "word": ["", "é…", "\n\u2028"][number % 3],
        }
        if number % 4:
            record |= {"y": int(rng.integers(-5, 5)), "meta": {"deep": float(rng.integers(3)), "other": [1, {"n": 9}]}}
        if number % 11 == 5:
            record = {"kind": "b", "n": "no number", "text": "\U0001f600" * 20}
        records.append(record)
    return records


@pytest.mark.parametrize("block", [1, 90, 1000, 4 << 20])
def test_columns_hold_what_records_say(block, tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "_BLOCK", block)
    said = mixed(200)
    with RunStore.writing(tmp_path, IDENTITY, {}) as store:
        for record in said:
            store.append(record)
        wanted = [
            Field("word", "string", category=True),
            Field("n", "int32"),
            Field("x", "float64"),
            Field("y", "int32", required=False),
            Field("meta.deep", "float64", required=False, category=True),
        ]
        frames = [run.columns("a", wanted) for run in (store, RunStore.reading(store.path))]
    mine = [record for record in said if record["kind"] == "a"]
    for frame, others in frames:
        assert others == [record for record in said if record["kind"] == "b"]
        assert list(frame) == [column.name for column in wanted]
        assert frame["n"].tolist() == [record["n"] for record in mine]
        assert frame["n"].dtype == np.int32
        np.testing.assert_array_equal(frame["x"], np.array([record["x"] for record in mine], float))
        assert frame["word"].tolist() == [record["word"] for record in mine]
        assert frame["y"].tolist() == [record.get("y", 0) for record in mine]
        deep = [record.get("meta", {}).get("deep") for record in mine]
        assert [
            None if at < 0 else frame["meta.deep"].cat.categories[at] for at in frame["meta.deep"].cat.codes
        ] == deep


def test_columns_of_no_records_are_empty(tmp_path):
    store = write(tmp_path, 0)
    wanted = [Field("n", "int32"), Field("word", "string", category=True), Field("grade.strict", "float64")]
    for content in (b"", b'{"kind": "b"}\n', b'{"kind": "a", "n"'):
        (store.path / "records.jsonl").write_bytes(content)
        frame, others = RunStore.reading(store.path).columns("a", wanted)
        assert (list(frame), len(frame), len(others)) == (["n", "word", "grade.strict"], 0, content.count(b"\n"))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"n": "3"}, "`n` is '3'"),
        ({"n": 1.5}, "`n` is 1.5"),
        ({"n": 1 << 40}, "`n` is 1099511627776"),
        ({"n": None}, "it has no `n`"),
        ({"grade": 1.0}, "it has no `grade.strict`"),
        ({"kind": 5}, "`kind` is 5"),
        ({"kind": None}, "it has no `kind`"),
    ],
)
def test_a_value_of_another_type_is_an_error_that_tells_where(wrong, why, tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "_BLOCK", 150)
    records = [{"kind": "a", "n": n, "grade": {"strict": 1.0}} for n in range(30)]
    records[17] |= wrong
    with RunStore.writing(tmp_path, IDENTITY, {}) as store:
        for record in records:
            store.append(record)
    with pytest.raises(StoreError, match=f"line 18, is damaged: {why}"):
        store.columns("a", [Field("n", "int32"), Field("grade.strict", "float64")])


def test_what_only_json_can_read_is_read_too(tmp_path):
    store = write(tmp_path, 0)
    lines = [
        '{"kind": "a", "n": 1, "x": 1}',
        # What is there twice counts as it is there last.
        '{"kind": "a", "n": 1, "n": 2, "x": 0.5}',
        '{"kind": "a", "n": 3, "x": true}',
    ]
    (store.path / "records.jsonl").write_text("\n".join([*lines, ""]))
    frame, _ = RunStore.reading(store.path).columns("a", [Field("n", "int32"), Field("x", "float64")])
    assert (frame["n"].tolist(), frame["x"].tolist()) == ([1, 2, 3], [1.0, 0.5, 1.0])


def test_a_half_written_line_is_no_part_of_columns(tmp_path):
    with RunStore.writing(tmp_path, IDENTITY, {}) as store:
        for record in mixed(10):
            store.append(record)
    whole = (store.path / "records.jsonl").read_bytes()
    last = whole.rstrip().rfind(b"\n") + 1
    for size in range(last, len(whole)):
        (store.path / "records.jsonl").write_bytes(whole[:size])
        run = RunStore.reading(store.path)
        frame, others = run.columns("a", [Field("n", "int32")])
        assert (len(frame) + len(others), run.cut, run.n_records) == (9, size - last, 9)
        assert len(run.records) == 9
        assert sum(1 for _ in run.holding("kind")) == 9


def test_a_long_half_written_line_is_found(tmp_path):
    store = write(tmp_path, 2)
    with (store.path / "records.jsonl").open("ab") as stream:
        stream.write(b'{"number": 2, "text": "' + b"x" * 200_000)
    run = RunStore.reading(store.path)
    assert (run.cut, numbers(run)) == (200_023, [0, 1])


def test_records_are_found_by_what_is_in_them_and_no_others_are_parsed(tmp_path):
    store = write(tmp_path, 0)
    path = store.path / "records.jsonl"
    path.write_bytes(b'{"a": 1}\n{oops}\n{"\xc3\xa9": 2}\n{"\xc3\xa9": oops}\n')
    assert list(RunStore.reading(store.path).holding('"a"')) == [{"a": 1}]
    found = RunStore.reading(store.path).holding("é")
    assert next(found) == {"é": 2}
    with pytest.raises(StoreError, match="line 4, is damaged"):
        next(found)


def test_what_is_written_while_a_run_is_read_does_not_disturb(tmp_path):
    with RunStore.writing(tmp_path, IDENTITY, {}) as store:
        store.append({"kind": "a", "n": 1})
        run = RunStore.reading(store.path)
        store.append({"kind": "a", "n": 2})
        assert len(run.columns("a", [Field("n", "int32")])[0]) == run.n_records == len(run.records) == 1
        assert len(store.columns("a", [Field("n", "int32")])[0]) == store.n_records == len(store.records) == 2


def test_every_change_of_identity_is_another_run():
    ids = {run_id(IDENTITY)}
    for key in IDENTITY:
        ids.add(run_id({**IDENTITY, key: "other"}))
    ids.add(run_id({**IDENTITY, "new": 1}))
    assert len(ids) == len(IDENTITY) + 2
    assert "/" not in run_id(IDENTITY)


def test_two_writers_of_one_run_are_an_error(tmp_path):
    with (
        RunStore.writing(tmp_path, IDENTITY, {}),
        pytest.raises(StoreError, match="another process"),
        RunStore.writing(tmp_path, IDENTITY, {}),
    ):
        pass


def test_a_full_disk_is_an_error_and_what_is_there_stays(tmp_path):
    write(tmp_path, 2)

    class Full:
        def __init__(self, stream):
            self.stream = stream

        def __getattr__(self, name):
            return getattr(self.stream, name)

        def write(self, data):
            self.stream.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RunStore.writing(tmp_path, IDENTITY, {}) as store:
        store._lines = Full(store._lines)
        with pytest.raises(StoreError, match="no space left") as caught:
            store.append({"number": 2}, values=np.zeros(3, "<f4"))
    assert "free some space" in caught.value.hint
    assert numbers(write(tmp_path, 4)) == [0, 1, 2, 3]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"), RunStore.writing(tmp_path / "file", IDENTITY, {}):
        pass


def test_what_is_no_run_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="no run at"):
        RunStore.reading(tmp_path)
    path = write(tmp_path, 1).path
    header = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**header, "format": 99}))
    with pytest.raises(StoreError, match="format 99 of a newer hope-eval"):
        RunStore.reading(path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '"run"', "{}", '{"identity": {}, "provenance": {}}', '{"format": "x"}']
)
def test_a_header_that_is_none_is_an_error(content, tmp_path):
    path = write(tmp_path, 1).path
    (path / "run.json").write_text(content)
    with pytest.raises(StoreError, match=r"run\.json is damaged"):
        RunStore.reading(path)


def test_what_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    path = write(tmp_path, 1).path
    own = Path.open

    def refuse(self, *arguments, **options):
        if self.name == "records.jsonl":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return own(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StoreError, match=r"cannot read .*records\.jsonl: Permission denied") as caught:
        RunStore.reading(path)
    assert caught.value.hint == "give a folder you may read"


def test_a_killed_run_ends_up_the_same_as_one_that_was_not(checkpoint, tmp_path):
    """kill -9 in the middle of `hope-eval ppl`, then the same command again."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": story(30, 50 * n)}) + "\n" for n in range(4)))
    # Slowed down where a batch has been scored, so that there is a middle to be killed in.
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import os, time\nimport hope_eval.model.scoring as s\nown = s.LanguageModel.score\n"
        "def score(self, samples):\n    time.sleep(float(os.environ.get('SLOW', 0)))\n    return own(self, samples)\n"
        "s.LanguageModel.score = score\nfrom hope_eval.cli import main\nmain()\n"
    )
    command = [sys.executable, str(slow), "ppl", "--model", str(checkpoint), "--data", str(data), "--device", "cpu"]
    command += ["--protocol", "windows", "--lengths", "64,256"]

    def contents(root: Path) -> dict[str, bytes]:
        (run,) = root.iterdir()
        return {name: (run / name).read_bytes() for name in ("records.jsonl", "arrays.bin")}

    hope_eval(*command[2:], "--out", tmp_path / "whole")
    wanted = contents(tmp_path / "whole")
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*command, "--out", str(killed)], env={**os.environ, "SLOW": "0.06", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > len(wanted["records.jsonl"]) // 2 for path in killed.glob("*/records.jsonl")):
        assert time.monotonic() < deadline
        assert process.poll() is None, "it was too fast to be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert 0 < len(contents(killed)["records.jsonl"]) < len(wanted["records.jsonl"])
    assert "were already done" in hope_eval(*command[2:], "--out", killed).stderr
    assert contents(killed) == wanted
