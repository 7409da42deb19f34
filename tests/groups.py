"""Processes that hold a model together, or read a text: how tests start them, and compare what they write."""

import json
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_module

from hope_eval.model.parallel import group as parallel
from hope_eval.runs import manage as runs
from hope_eval.runs.processes import Ranks
from hope_eval.runs.store import RunStore
from hope_eval.runs.verify import verify

TOGETHER = str(Path(__file__).parent / "together.py")

# Largest difference in nll that sums in another order make, in float32.
TOLERANCE = 2e-4


def torchrun(n: int, *arguments, code: int = 0, **environment) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), TOGETHER]
    done = subprocess.run(
        [*launch, *map(str, arguments)],
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def saved(folder: Path, tokenizer, kind: str = "llama", **changes) -> Path:
    options = {"vocab_size": len(tokenizer) + len(tokenizer) % 2, "num_key_value_heads": 2, **changes}
    tiny_module(kind, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def results(root: Path, n: int) -> list[dict]:
    found = [json.loads((root / f"{rank}.json").read_text()) for rank in range(n)]
    assert all(one.keys() == found[0].keys() for one in found)
    return found


def check_records(root: Path, wanted: Path) -> None:
    """Compare the records of runs, but for the last bits of scores."""
    assert [run.name for run in runs.runs_in(root)] == [run.name for run in runs.runs_in(wanted)] != []
    for run in runs.runs_in(root):
        assert runs.state(verify(run)) == "ok"
        assert not (run / "shards").exists()
        ours, theirs = RunStore.reading(run), RunStore.reading(wanted / run.name)
        assert [plain(record) for record in ours.records] == [plain(record) for record in theirs.records]
        for one, other in zip(ours.records, theirs.records, strict=True):
            numbers = [key for key, value in other.items() if isinstance(value, float)]
            assert [one[key] for key in numbers] == pytest.approx([other[key] for key in numbers], abs=TOLERANCE)
            for name in other.get("arrays", {}):
                arrays = ours.array(one, name), theirs.array(other, name)
                np.testing.assert_allclose(*arrays, rtol=0, atol=TOLERANCE)


def plain(record: dict) -> dict:
    return {key: value for key, value in record.items() if key != "arrays" and not isinstance(value, float)}


def failure(root: Path, rank: int) -> str:
    """Return what a process told of its end, on standard error or where the others look."""
    told = [file.read_text() for file in (root / "runs").glob(f".sessions/*/{rank}.failed")]
    return "\n".join([*told, (root / f"{rank}.err").read_text()])


def group_of(size: int, monkeypatch, places=None, context_parallel: int = 1) -> list[parallel.Group]:
    """Return the members of a group that talk over a store in memory, at these places of their programs."""
    monkeypatch.setattr(parallel, "_SOON", timedelta(seconds=1))
    monkeypatch.setattr(parallel, "_place", lambda: str((places or {}).get(threading.current_thread().name, 7)))
    store = torch.distributed.HashStore()
    sizes = {"tensor_parallel": size // context_parallel, "context_parallel": context_parallel, "store": store}
    return [parallel.Group(Ranks(rank, size, "s", **sizes)) for rank in range(size)]


def together_in_threads(members, function) -> list:
    """Call a function with each member at the same time; return what it returned or raised."""
    found = [None] * len(members)

    def work(number):
        try:
            found[number] = function(members[number])
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=work, args=(n,), name=str(n)) for n in range(len(members))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
