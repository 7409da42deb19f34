"""A run of perplexity and one of a task, as several processes share them, and what one process writes."""

from pathlib import Path

import pytest
import torch
from asking import read, run
from conftest import story, tiny_module
from fakes import zoo_tokenizer

from hope_eval.data.corpora import Corpus, Document
from hope_eval.model.scoring import LanguageModel
from hope_eval.protocols import protocol_named
from hope_eval.runs import manage as runs
from hope_eval.runs import processes as meeting
from hope_eval.runs.processes import ALONE, Ranks
from hope_eval.runs.verify import verify
from hope_eval.task import parse_task

SUITE = '[both]\ntasks = [{ task = "ppl", samples = 5 }, { task = "passkey", samples = 4 }]\nlengths = "200,256"\n'
TEXTS = Corpus("stories", tuple(Document(str(n), story(30, 1000 * n)) for n in range(4)), "stories")
PPL = protocol_named("windows")
TASK = parse_task("associative_recall")


class Killed(BaseException):
    """What no except clause of the program catches."""


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    module = tiny_module(vocab_size=len(zoo_tokenizer()), max_position_embeddings=64)
    return LanguageModel("tiny", module, zoo_tokenizer(), 64, "a test")


def dies_after(n: int | None):
    """Return a report that kills after n batches."""
    left = [-1 if n is None else n]

    def report(done, total):
        if left[0] == 0:
            raise Killed
        left[0] -= 1

    return report


def work(ranks: Ranks, model, root: Path, task: bool, dies: int | None = None, report=None) -> Path:
    """Do what one process does, as far as it comes."""
    report = report or dies_after(dies)
    try:
        if task:
            return run(model, TASK, (200, 256), root, 4, controls=True, report=report, ranks=ranks).path
        return read(model, TEXTS, PPL, (32, 64), root, report=report, ranks=ranks).store.path
    except Killed:
        return root


def processes(root: Path, n: int, tensor_parallel: int = 1, context_parallel: int = 1) -> list[Ranks]:
    folder = root / ".sessions" / meeting._new_session()
    folder.mkdir(parents=True)
    sizes = {"tensor_parallel": tensor_parallel, "context_parallel": context_parallel}
    return [Ranks(rank, n, folder.name, folder, **sizes) for rank in range(n)]


def files(root: Path) -> tuple[bytes, bytes]:
    """Return records and arrays of the only run, of which nothing may be left to merge."""
    (run,) = runs.runs_in(root)
    assert not (run / "shards").exists()
    assert runs.state(verify(run)) == "ok"
    return (run / "records.jsonl").read_bytes(), (run / "arrays.bin").read_bytes()


@pytest.fixture(scope="module")
def wanted(model, tmp_path_factory):
    """What one process writes, by whether it is a task."""
    found = {}
    for task in (False, True):
        root = tmp_path_factory.mktemp("alone")
        work(ALONE, model, root, task)
        found[task] = files(root)
    return found
