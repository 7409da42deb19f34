"""Processes that read a text together give it what one does that reads all of it."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import together
import torch
from commands import hope_eval
from conftest import byte_tokenizer, tiny_model, tiny_module
from groups import (
    TOLERANCE,
    check_records,
    failure,
    group_of,
    results,
    saved,
    together_in_threads,
    torchrun,
)
from sharing import files, model, processes, wanted, work
from together import perplexed, read
from transformers.masking_utils import chunked_causal_mask_function

from hope_eval.errors import CheckpointError, OptionError
from hope_eval.model import checkpoint
from hope_eval.model.attach import attach
from hope_eval.model.kernels import attention, attention_blocks, attention_masks
from hope_eval.model.parallel import sequence as parts
from hope_eval.runs import manage as runs
from hope_eval.runs.store import RunStore, shards_of

# Fixtures.
__all__ = ["model", "wanted"]

KINDS = {
    "llama": {},
    "mistral": {"kind": "mistral", "sliding_window": 70},
    "gemma3": {"kind": "gemma3_text", "sliding_window": 90, "num_hidden_layers": 4,
               "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma2": {"kind": "gemma2", "sliding_window": 150},
    "qwen3": {"kind": "qwen3"},
    "mixtral": {"kind": "mixtral"},
    "neox": {"kind": "gpt_neox"},
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: saved(root / name, byte_tokenizer(), **changes) for name, changes in KINDS.items()}


def check_read(found: dict, name: str) -> None:
    path, _, encoding = name.partition("+")
    alone = read(checkpoint.load(path, device="cpu", encoding=encoding or "native"))
    assert found["target"] == alone["target"]
    np.testing.assert_allclose(found["nll"], alone["nll"], rtol=0, atol=TOLERANCE)
    assert np.mean(np.array(found["greedy"]) == alone["greedy"]) > 0.99


def test_two_processes_that_read_a_text_together_measure_what_one_does(forked, checkpoints, tmp_path):
    names = [str(checkpoints[name]) for name in ("mistral", "llama")]
    assert forked("perplexity", tmp_path, *names) == [0, 0]
    found = results(tmp_path, 2)
    assert found[0] == found[1], "all of a group give the same, to the last bit"
    for name in names:
        check_read(found[0][name], name)
    perplexed(checkpoint.load(names[-1], device="cpu"), tmp_path / "one")
    check_records(tmp_path / "runs", tmp_path / "one")
    (run,) = runs.runs_in(tmp_path / "runs")
    (session,) = RunStore.reading(run).sessions()
    assert (session["rank"], session["ranks"], session["context_parallel"]) == (0, 2, 2)
    assert "tensor_parallel" not in session
    assert RunStore.reading(run).header["provenance"]["context_parallel"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_architectures_and_encodings_give_the_same_in_parts(n, forked, checkpoints, tmp_path):
    names = [*map(str, checkpoints.values()), f"{checkpoints['llama']}+hope"]
    assert forked("reads", tmp_path, *names, n=n) == [0] * n, failure(tmp_path, 0)
    for found in results(tmp_path, n):
        for name in names:
            check_read(found[name], name)


# How a text is cut, and what each part sees.


@pytest.mark.parametrize("size", [2, 3, 8])
def test_parts_are_all_of_a_text_and_all_do_equally_much(size):
    for length in (2 * size * parts.SHORTEST, 1031, 2048):
        cuts = [parts.Cut(length, size, member) for member in range(size)]
        assert torch.equal(torch.cat([cut.positions() for cut in cuts]).sort().values, torch.arange(length))
        pairs = [int((cut.positions() + 1).sum()) for cut in cuts]
        assert max(pairs) < 1.03 * min(pairs)
        sizes = [stop - start for cut in cuts for start, stop in cut.own]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) == cuts[0].largest


@pytest.mark.parametrize("window", [None, 1, 37, 150, 699])
@pytest.mark.parametrize("size", [2, 3])
def test_queries_of_a_part_see_all_keys_up_to_themselves(window, size, monkeypatch):
    monkeypatch.setattr(attention_blocks, "_WINDOW_ROWS", 50)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 700, 8, generator=generator) for heads in (4, 2, 2))
    distances = torch.arange(700)[:, None] - torch.arange(700)
    visible = (distances >= 0) & (distances < (window or 700))
    logits = (q @ k.repeat_interleave(2, 1).transpose(-1, -2)).masked_fill(~visible, -torch.inf)
    whole = (0.3 * logits).softmax(-1) @ v.repeat_interleave(2, 1)
    for member in range(size):
        cut = parts.Cut(700, size, member)
        own = cut.positions()
        others = iter((k, v))
        monkeypatch.setattr(parts.Cut, "whole", lambda cut, own, others=others: next(others))
        found = attention_blocks.in_parts(
            q[:, :, own], k[:, :, own], v[:, :, own], attention_masks.PartsMask(cut, window), 0.3
        )
        torch.testing.assert_close(found.transpose(1, 2), whole[:, :, own], atol=1e-5, rtol=1e-5)
        assert cut.n_attended == 1


# What memory, and death, may set apart.


@pytest.mark.slow
def test_what_does_not_fit_is_halved_by_all_that_read_it(forked, checkpoints, tmp_path):
    assert forked("reads", tmp_path, checkpoints["llama"], FAULTS="narrow:01:520") == [0, 0], failure(tmp_path, 0)
    for found in results(tmp_path, 2):
        check_read(found[str(checkpoints["llama"])], str(checkpoints["llama"]))


@pytest.mark.slow
def test_memory_that_ends_in_one_process_only_ends_the_run(forked, checkpoints, tmp_path):
    assert forked("reads", tmp_path, checkpoints["llama"], FAULTS="narrow:1:520") == [1, 1]
    told = failure(tmp_path, 1)
    assert "process 1 of 2 ran out of memory, and the others that share the same sequence did not" in told
    assert "more than --context-parallel 2" in told


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["dies:1:2", "stops:1:2"])
def test_nobody_waits_for_the_dead_or_for_what_hangs(forked, fault, checkpoints, tmp_path):
    start = time.monotonic()
    assert forked("reads", tmp_path, checkpoints["llama"], FAULTS=fault) == [-9 if "dies" in fault else 1, 1][::-1]
    assert time.monotonic() - start < 40
    lost = {"dies": "process 1 of 2, which reads a part of the same text, ended early: it was killed",
            "stops": "the processes that share a sequence have lost contact"}  # fmt: skip
    assert lost[fault[: fault.index(":")]] in failure(tmp_path, 0)


# What each process is dealt, and who writes.


def test_groups_that_read_together_write_the_same_bytes_as_one_process(model, wanted, tmp_path):
    group = processes(tmp_path, 4, context_parallel=2)
    for ranks in group:
        work(ranks, model, tmp_path, task=False)
    (run,) = runs.runs_in(tmp_path)
    assert [shard.name[-1] for shard in shards_of(run)] == ["0", "2"]
    assert [ranks.finish() for ranks in reversed(group)] == [False] * 3 + [True]
    assert files(tmp_path) == wanted[False]


# What cannot be done.


def test_what_cannot_be_read_in_parts_is_refused_with_a_remedy(monkeypatch):
    group = group_of(2, monkeypatch, context_parallel=2)
    for error in together_in_threads(group, lambda one: checkpoint.load("zoo:hope", device="cpu", group=one)):
        assert isinstance(error, OptionError)
        assert "`zoo:hope` is of this project's own decoder" in str(error)
        assert "leave --context-parallel out" in error.hint
    for module, plainly, why in (
        (tiny_module("gpt2", n_embd=32, n_head=2), True, "is `gpt2`, which has no rotary encoding"),
        (attach(tiny_module(), "dynamic_ntk:factor=2", 64), True, "has frequencies that change with the length read"),
        (tiny_module(), False, "attention is not one of transformers' that can be replaced"),
    ):
        with pytest.raises(OptionError, match=why):
            parts.check_readable("it", module, plainly)
    parts.check_readable("it", tiny_module())


def test_layers_that_see_only_their_own_part_are_found_out():
    module = tiny_module(num_hidden_layers=3)
    cut = parts.Cut(300, 2, 0)
    cut.n_attended = 2
    with pytest.raises(CheckpointError, match="of its 3 layers, 2 look at what comes before"):
        parts.check_all_attended("it", module, cut)


def test_masks_that_cannot_be_cut_are_refused():
    cut = parts.Cut(300, 2, 0)
    one = tiny_model()
    attention.put_on(one.module)
    ids = torch.ones(1, 150, dtype=torch.long)
    for arguments, why in (
        # Two texts in one row.
        ({"position_ids": cut.positions()[None]}, "neither causal nor a sliding window"),
        ({"attention_mask": torch.ones(1, 1, 150, 150)}, "makes a mask of its own"),
    ):
        with cut.reading(), pytest.raises(CheckpointError, match=why):
            one.module.model(ids, use_cache=False, **arguments)
    assert parts.current() is None
    chunks = chunked_causal_mask_function(100, torch.zeros(1, dtype=torch.long))
    with cut.reading(), pytest.raises(CheckpointError, match="attention within chunks of 100 tokens"):
        attention_masks.mask(1, 150, 150, mask_function=chunks, local_size=100)


def test_two_kinds_of_groups_and_tasks_are_refused(checkpoints, tmp_path):
    command = ("--model", checkpoints["llama"], "--out", tmp_path, "--device", "cpu", "--context-parallel", "2")
    told = hope_eval("ppl", *command, "--tensor-parallel", "2", code=1).stderr
    assert "--tensor-parallel and --context-parallel cannot be combined" in told
    told = hope_eval("retrieve", *command, code=1).stderr
    assert "--context-parallel is for perplexity: it does not cut the contexts of `passkey`" in told
    assert "hint: use hope-eval ppl" in told
    told = hope_eval("ppl", *command, code=1).stderr
    assert "--context-parallel 2 needs a multiple of 2 processes, got 1" in told
    assert "hint: torchrun --nproc-per-node 2" in told


# From here on, with torchrun.


@pytest.mark.slow
def test_two_groups_that_read_together_measure_what_one_process_does(checkpoints, tmp_path):
    texts = [{"text": text} for text in together.TEXTS]
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    command = ("ppl", "--model", str(checkpoints["mistral"]), "--data", str(tmp_path / "stories.jsonl"),
               "--lengths", "100,301,700", "--device", "cpu", "--format", "csv")  # fmt: skip
    hope_eval(*command, "--out", tmp_path / "one")
    torchrun(4, "command", *command, "--context-parallel", 2, "--out", tmp_path / "two")
    check_records(tmp_path / "two", tmp_path / "one")
    torchrun(4, "command", *command, "--context-parallel", 2, "--out", tmp_path / "died", code=1, FAULTS="dies:1:2")
    told = torchrun(4, "command", *command, "--context-parallel", 4, "--out", tmp_path / "died").stderr
    assert "were already done" in told
    for folder in (tmp_path / "died").glob(".sessions"):
        shutil.rmtree(folder)
    check_records(tmp_path / "died", tmp_path / "one")
    (run,) = runs.runs_in(tmp_path / "died")
    assert {one["context_parallel"] for one in RunStore.reading(run).sessions()} == {2, 4}
