import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import story

from hope_eval.errors import StoreError
from hope_eval.results.store import RunStore, run_id

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


def test_a_line_that_is_no_json_is_an_error(tmp_path):
    store = write(tmp_path, 3)
    path = store.path / "records.jsonl"
    path.write_bytes(b"{oops}\n" + path.read_bytes())
    with pytest.raises(StoreError, match="line 1, is damaged"):
        RunStore.reading(store.path)


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
    with pytest.raises(StoreError, match="newer hope-eval"):
        RunStore.reading(path)


def test_a_killed_run_ends_up_the_same_as_one_that_was_not(checkpoint, tmp_path):
    """kill -9 in the middle of `hope-eval ppl`, then the same command again."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": story(30, 50 * n)}) + "\n" for n in range(6)))
    # Slowed down where a batch has been scored, so that there is a middle to be killed in.
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\nimport hope_eval.model.scoring as s\nown = s.LanguageModel.score\n"
        "def score(self, samples):\n    time.sleep(0.06)\n    return own(self, samples)\n"
        "s.LanguageModel.score = score\nfrom hope_eval.cli import main\nmain()\n"
    )
    command = [sys.executable, str(slow), "ppl", "--model", str(checkpoint), "--data", str(data), "--device", "cpu"]
    command += ["--protocol", "windows", "--lengths", "64,256"]

    def contents(root: Path) -> dict[str, bytes]:
        (run,) = root.iterdir()
        return {name: (run / name).read_bytes() for name in ("records.jsonl", "arrays.bin")}

    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    wanted = contents(tmp_path / "whole")
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, "--out", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > len(wanted["records.jsonl"]) // 2 for path in killed.glob("*/records.jsonl")):
        assert time.monotonic() < deadline
        assert process.poll() is None, "it was too fast to be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert 0 < len(contents(killed)["records.jsonl"]) < len(wanted["records.jsonl"])
    again = subprocess.run([*command, "--out", str(killed)], check=True, capture_output=True, text=True)
    assert "were already done" in again.stderr
    assert contents(killed) == wanted
