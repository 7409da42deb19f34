"""Processes that hold a model together give what one does that holds all of it, and nobody waits for the dead."""

import json
import shutil
import threading
import time
from functools import partial
from pathlib import Path

import filelock
import numpy as np
import pytest
import together
import torch
import transformers
from commands import hope_eval
from conftest import byte_tokenizer, tiny_module
from fakes import zoo_tokenizer
from groups import TOLERANCE, check_records, failure, group_of, results, saved, together_in_threads, torchrun
from sharing import SUITE, dies_after, files, model, processes, wanted, work
from together import given, measured

from hope_eval.errors import CheckpointError, OptionError, StoreError
from hope_eval.model import checkpoint
from hope_eval.model.parallel import group as parallel
from hope_eval.runs import manage as runs
from hope_eval.runs.processes import ALONE, Ranks
from hope_eval.runs.store import RunStore, shards_of

# Fixtures.
__all__ = ["model", "wanted"]


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """A tiny Llama of two heads with the words of the zoo, as tasks need them."""
    return saved(tmp_path_factory.mktemp("words") / "words", zoo_tokenizer(), max_position_embeddings=64)


def check_given(found: dict, name: str) -> None:
    path, _, encoding = name.partition("+")
    whole = checkpoint.load(path, device="cpu", encoding=encoding or "native")
    wanted = given(whole)
    for key in ("nll", "answers"):
        np.testing.assert_allclose(found[key], wanted[key], rtol=0, atol=TOLERANCE)
    assert found["written"] == wanted["written"]
    assert (
        (found["head"], found["keeps_contexts"])
        == (whole.reading.head, whole.reading.keeps_contexts)
        == ("chunked", True)
    )
    assert found["fingerprint"] == whole.fingerprint
    n, n_embeddings = (sum(p.numel() for p in part.parameters())
                       for part in (whole.module, whole.module.get_input_embeddings()))  # fmt: skip
    kept = n_embeddings if UNEVEN not in KINDS else 0
    assert found["parameters"] < kept + 0.6 * (n - kept), "each holds about half of it"


def test_two_processes_that_hold_a_model_together_measure_what_one_does(forked, words, tmp_path):
    assert forked("measure", tmp_path, words) == [0, 0]
    found = results(tmp_path, 2)
    assert found[0] == found[1], "all of a group give the same, to the last bit"
    assert found[0][str(words)]["least"] == 6.5
    check_given(found[0][str(words)], str(words))
    measured(checkpoint.load(str(words), device="cpu"), tmp_path / "one")
    check_records(tmp_path / "runs", tmp_path / "one")
    for run in runs.runs_in(tmp_path / "runs"):
        (session,) = RunStore.reading(run).sessions()
        assert (session["rank"], session["ranks"], session["tensor_parallel"]) == (0, 2, 2)
        assert RunStore.reading(run).header["provenance"]["tensor_parallel"] == 2


UNEVEN = "uneven vocabulary"
KINDS = {
    UNEVEN: {"vocab_size": 257},
    "tied head": {"tie_word_embeddings": True},
    "qwen2": {"kind": "qwen2"},
    "qwen3": {"kind": "qwen3"},
    "mixtral": {"kind": "mixtral"},
    "gemma2": {"kind": "gemma2"},
    "olmo2": {"kind": "olmo2"},
    "cohere": {"kind": "cohere"},
}
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23):
    # It neither shards this nor embeddings.
    del KINDS[UNEVEN]


@pytest.mark.slow
def test_architectures_and_encodings_give_the_same_together(tmp_path):
    names = [str(saved(tmp_path / name, byte_tokenizer(), **changes)) for name, changes in KINDS.items()]
    names += [f"{names[0]}+hope", f"{names[0]}+dynamic_ntk:factor=2"]
    torchrun(2, "scores", tmp_path, *names)
    for name in names:
        for found in results(tmp_path, 2):
            if name.endswith("factor=2"):
                # It reads every answer with its context.
                found[name]["keeps_contexts"] = True
                continue
            check_given(found[name], name)


# What memory, and death, may set apart.


def test_a_batch_that_does_not_fit_is_halved_by_all_together(forked, words, tmp_path):
    assert forked("scores", tmp_path, words, FAULTS="narrow:01") == [0, 0]
    for found in results(tmp_path, 2):
        check_given(found[str(words)], str(words))


def test_memory_that_ends_in_one_process_only_ends_the_run(forked, words, tmp_path):
    start = time.monotonic()
    assert forked("scores", tmp_path, words, FAULTS="narrow:1") == [1, 1]
    assert time.monotonic() - start < 40
    assert "process 1 of 2 ran out of memory, and the others that share the same model did not" in failure(tmp_path, 1)
    told = failure(tmp_path, 0)
    assert "process 1 of 2, which holds a part of the same model, ended early: process 1 of 2 ran out of memory" in told


@pytest.mark.slow
def test_all_write_what_the_first_does(forked, words, tmp_path):
    assert forked("scores", tmp_path, words, FAULTS="leans:1") == [0, 0]
    first, second = (found[str(words)] for found in results(tmp_path, 2))
    assert first["nll"] != second["nll"]
    assert first["written"] == second["written"]


@pytest.mark.parametrize("who", [0, 1])
def test_nobody_waits_for_the_dead(forked, who, words, tmp_path):
    start = time.monotonic()
    codes = forked("scores", tmp_path, words, FAULTS=f"dies:{who}:2")
    assert codes[who] == -9
    assert codes[1 - who] == 1
    assert time.monotonic() - start < 40
    lost = f"process {who} of 2, which holds a part of the same model, ended early: it was killed"
    assert lost in failure(tmp_path, 1 - who)


@pytest.mark.slow
def test_nobody_waits_for_ever_for_what_hangs(forked, words, tmp_path):
    assert forked("scores", tmp_path, words, FAULTS="stops:1:2") == [1, 1]
    assert "have lost contact" in failure(tmp_path, 0)


def test_a_process_that_waits_is_ended_when_another_of_its_group_has_died(tmp_path, monkeypatch, capfd):
    """Nothing else ends one that waits for a GPU."""
    monkeypatch.setattr("hope_eval.runs.processes._GRACE", 0.1)
    left = threading.Event()
    codes = []
    monkeypatch.setattr("os._exit", lambda code: (codes.append(code), left.set()))
    ranks = [Ranks(rank, 4, "session", tmp_path, tensor_parallel=2) for rank in range(4)]
    locks = [filelock.FileLock(tmp_path / f"{rank}.lock") for rank in range(4)]
    for lock in locks:
        lock.acquire()
    ranks[0].watch_partners()
    locks[2].release()
    locks[3].release()
    assert not left.wait(1.5), "those of other groups are none of its business"
    (tmp_path / "1.failed").write_text("no space left")
    locks[1].release()
    assert left.wait(10)
    assert codes == [1]
    lost = "process 1 of 4, which holds a part of the same model, ended early: no space left"
    assert (tmp_path / "0.failed").read_text() == lost
    assert f"Error: {lost}\nhint: rerun the command to resume" in capfd.readouterr().err


def test_all_go_on_with_less_only_if_all_are_at_the_same_place(monkeypatch):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 62 GiB.")
    members = group_of(3, monkeypatch)
    for _ in range(2):
        assert together_in_threads(members, lambda member: member.all_out_of_memory(error)) == [True] * 3
    apart = group_of(3, monkeypatch, {"0": 7, "1": 7, "2": 8})
    found = together_in_threads(apart, lambda member: member.all_out_of_memory(error))
    assert all("or not at the same place: CUDA out of memory" in str(one) for one in found)
    alone = group_of(2, monkeypatch)[1:]
    (one,) = together_in_threads(alone, lambda member: member.all_out_of_memory(error))
    assert isinstance(one, StoreError)
    assert "--tensor-parallel 2" in one.hint


def close(member, gap):
    member.check_close("states", np.ones(3) + gap * member.member, torch.float32)


def test_a_group_that_does_not_score_alike_is_refused(monkeypatch):
    members = group_of(2, monkeypatch)
    assert together_in_threads(members, lambda member: member.check_same("scores", ["chunked"])) == [None, None]
    found = together_in_threads(members, lambda member: member.check_same("scores", [member.member]))
    assert all(isinstance(one, CheckpointError) and "do not agree on scores" in str(one) for one in found)
    for gap, refused in ((1e-4, False), (3e-3, True)):
        check = partial(close, gap=gap)
        assert [isinstance(one, CheckpointError) for one in together_in_threads(members, check)] == [refused] * 2
    found = together_in_threads(members, lambda member: member.gathered("x" if member.member else "y"))
    assert found == [["y", "x"]] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("unsummed", "do not agree on the states of a short input: they are up to"),
        ("ungathered", "cannot be read in 2 parts: RuntimeError: index"),
    ],
)
def test_a_plan_that_is_wrong_is_found_out_on_loading(forked, fault, told, words, tmp_path):
    assert forked("scores", tmp_path, words, FAULTS=fault) == [1, 1]
    for rank in range(2):
        assert told in failure(tmp_path, rank)
        assert "--device-map auto" in failure(tmp_path, rank)


# What each process is dealt, and who writes.


@pytest.mark.parametrize("task", [False, True])
@pytest.mark.parametrize("n", [2, 4, 6])
def test_groups_write_the_same_bytes_as_one_process(n, task, model, wanted, tmp_path):
    group = processes(tmp_path, n, 2)
    for ranks in group:
        work(ranks, model, tmp_path, task)
    (run,) = runs.runs_in(tmp_path)
    assert [shard.name[-1] for shard in shards_of(run)] == [str(rank) for rank in range(0, n, 2)]
    assert [ranks.finish() for ranks in reversed(group)] == [False] * (n - 1) + [True]
    assert files(tmp_path) == wanted[task]


@pytest.mark.parametrize("task", [False, True])
def test_all_of_a_group_are_dealt_the_same_whatever_was_done_before(task, model, wanted, tmp_path):
    for size, deaths in ((2, {0: 3, 1: 3}), (1, {1: 2}), (2, {2: 2, 3: 2})):
        group = processes(tmp_path, 4, size)
        read = []
        for ranks in group:
            dies = dies_after(deaths.get(ranks.rank))
            mine = []

            def report(done, total, mine=mine, dies=dies):
                mine.append((done, total))
                dies(done, total)

            # The second time, what this session has measured is known.
            for _ in range(2):
                work(ranks, model, tmp_path, task, report=report)
            read.append(mine)
        assert size == 1 or (read[0] == read[1] and read[2] == read[3])
        for ranks in group:
            ranks.close()
    work(ALONE, model, tmp_path, task)
    assert files(tmp_path) == wanted[task]


# What cannot be done.


def outline(kind: str, **changes):
    with torch.device("meta"):
        return tiny_module(kind, **changes)


def test_what_cannot_be_sharded_is_said_with_what_can_be_done():
    parallel.check_shardable("fits", outline("llama", num_key_value_heads=2), 2)
    for module, n, told, hint in (
        (outline("bloom", n_head=2), 2, "transformers has no plan to shard `bloom`", "--device-map auto"),
        (outline("llama"), 2, "has 2 attention heads and 1 key value heads, which 2 processes", "--tensor-parallel 1;"),
        (
            outline("llama", num_attention_heads=8, num_key_value_heads=4),
            8,
            "share evenly",
            "--tensor-parallel 1 or 2 or 4;",
        ),
    ):
        with pytest.raises(OptionError, match=told) as caught:
            parallel.check_shardable("it", module, n)
        assert hint in caught.value.hint


def test_our_own_decoder_is_not_sharded(monkeypatch):
    (one, _) = group_of(2, monkeypatch)
    with pytest.raises(OptionError, match="`zoo:alibi` is of this project's own decoder"):
        checkpoint.load("zoo:alibi", device="cpu", group=one)
    for name, loader in (("model.gguf", None), ("x", "mine.py:load")):
        with pytest.raises(OptionError, match="takes checkpoints in transformers' format"):
            checkpoint.load(name, device="cpu", group=one, loader=loader)


def test_too_few_processes_are_told_the_command_that_starts_enough(words, tmp_path, monkeypatch):
    command = ("ppl", "--model", words, "--lengths", "32", "--out", tmp_path, "--device", "cpu")
    monkeypatch.setattr("sys.argv", ["hope-eval", *map(str, command)])
    told = hope_eval(*command, "--tensor-parallel", "2", code=1).stderr
    assert "--tensor-parallel 2 needs a multiple of 2 processes, got 1" in told
    assert "hint: torchrun --nproc-per-node 2 -m hope_eval ppl --model" in told
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("HOPE_EVAL_WATCHED_BY", "")
    told = hope_eval(*command, "--tensor-parallel", "4", code=1).stderr
    assert "needs a multiple of 4 processes, got 6" in told
    assert "--nproc-per-node 8" in told


# From here on, with torchrun.


@pytest.fixture(scope="module")
def command(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    (folder / "suite.toml").write_text(SUITE)
    texts = [{"text": text} for text in together.TEXTS]
    (folder / "stories.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    return ("command", "run", "--suite", f"{folder}/suite.toml:both", "--model", str(words), "--data",
            str(folder / "stories.jsonl"), "--device", "cpu", "--format", "csv")  # fmt: skip


@pytest.fixture(scope="module")
def by_one(command, tmp_path_factory):
    root = tmp_path_factory.mktemp("one")
    hope_eval(*command[1:], "--out", root)
    return root


@pytest.mark.slow
def test_two_groups_of_two_measure_what_one_process_does(command, by_one, tmp_path):
    done = torchrun(4, *command, "--tensor-parallel", 2, "--out", tmp_path)
    check_records(tmp_path, by_one)
    assert done.stderr.count("tokens to go") == 2, "a line for each of two runs"
    told = torchrun(2, *command, "--tensor-parallel", 2, "--out", tmp_path).stderr
    assert told.count("were already done") == 2, "the records are those of any number of processes"
    for run in runs.runs_in(tmp_path):
        sessions = RunStore.reading(run).sessions()
        assert {(one["rank"], one["ranks"], one["tensor_parallel"]) for one in sessions} == {(0, 4, 2), (2, 4, 2)}


@pytest.mark.slow
@pytest.mark.parametrize(("who", "then"), [(0, (2, 2)), (1, (2, 1)), (3, (4, 2))])
def test_of_two_groups_one_loses_a_process_and_the_other_finishes(who, then, command, by_one, tmp_path):
    start = time.monotonic()
    done = torchrun(4, *command, "--tensor-parallel", 2, "--out", tmp_path, code=1, FAULTS=f"dies:{who}:2")
    assert time.monotonic() - start < 120
    assert not done.stdout
    if who != 0:
        assert "ended early: it was killed" in done.stderr
    assert "rerun the command to resume" in done.stderr
    held = {"0": 0, "2": 0}
    for run in tmp_path.glob("[a-z]*"):
        for shard in shards_of(run):
            held[shard.name[-1]] += RunStore(shard, {}).n_records
    assert held["2" if who < 2 else "0"] > 5, "the other group has finished what is its"
    n, t = then
    torchrun(n, *command, "--tensor-parallel", t, "--out", tmp_path)
    for folder in tmp_path.glob(".sessions"):
        shutil.rmtree(folder)
    check_records(tmp_path, by_one)
