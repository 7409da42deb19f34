"""What only a GPU can show. Run with `-m gpu`."""

import json

import numpy as np
import pytest
import torch
from conftest import VOCAB_SIZE, tiny_model, tiny_module
from test_cli import hope_eval

from hope_eval.model import nll
from hope_eval.model.scoring import LanguageModel
from hope_eval.task import Sample

pytestmark = pytest.mark.gpu

IDS = np.random.default_rng(0).integers(1, VOCAB_SIZE, 3000)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gpu_agrees_with_the_cpu_and_uses_the_chunked_head(kind, dtype):
    model = LanguageModel(kind, tiny_module(kind).to("cuda", dtype), None)
    assert (model.head, model.head_reason) == ("chunked", "")
    slow = tiny_model(kind)
    sample = Sample(IDS[:1], IDS[1:200])
    gap = np.abs(model.score([sample])[0].nll - slow.score([sample])[0].nll)
    assert gap.max() < (2e-3 if dtype == torch.float32 else 0.5)
    assert abs(gap.mean()) < (2e-4 if dtype == torch.float32 else 0.05)


def test_the_fused_nll_is_in_use_and_agrees_with_the_plain_one():
    fused = nll.choose("cuda")
    assert fused is not nll.plain
    generator = torch.Generator("cuda").manual_seed(0)
    for vocab_size in (3, 4096, 4097, 128_256):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            logits = (5 * torch.randn(70, vocab_size, generator=generator, device="cuda")).to(dtype)
            logits[0, 1:] = float("-inf")
            logits[1] = 0.0
            logits[2, 1] = float("nan")
            target = torch.randint(vocab_size, (70,), generator=generator, device="cuda")
            target[:2] = 0
            target[10:] = logits[10:].argmax(-1)
            wanted, found = nll.plain(logits, target), fused(logits, target)
            torch.testing.assert_close(found[0], wanted[0], atol=2e-5, rtol=1e-5, equal_nan=True)
            keep = torch.arange(70, device="cuda") != 2
            assert torch.equal(found[1][keep], wanted[1][keep])
            assert bool(found[1][1]), "among equals the first"


def test_memory_of_a_large_vocabulary_stays_small():
    model = LanguageModel(
        "wide", tiny_module(vocab_size=128_256, max_position_embeddings=65_536).to("cuda", torch.bfloat16), None
    )
    ids = np.random.default_rng(0).integers(0, 128_256, 16_384)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model.score([Sample(ids[:1], ids[1:])])
    # All logits in float32 would take 7.8 GiB.
    assert torch.cuda.max_memory_allocated() - before < 2 * 2**30


def test_a_true_lack_of_memory_marks_the_cell_and_the_rest_goes_on(checkpoint, tmp_path):
    data = tmp_path / "long.txt"
    data.write_text("every good boy does fine. " * 20_000)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 0.4 * 2**30 / total))
    try:
        result = hope_eval(
            "ppl", "--model", checkpoint, "--data", data, "--out", tmp_path, "--lengths", "1k,256k", "--format", "json"
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    status = {row["length"]: row["status"] for row in json.loads(result.stdout)}
    assert status == {1024: "ok", 262_144: "oom"}
    assert "could not read 256k tokens" in result.stderr


def test_a_run_on_the_gpu_is_not_taken_for_one_on_the_cpu(checkpoint, stories, tmp_path):
    for device in ("cuda", "cpu"):
        hope_eval("ppl", "--model", checkpoint, "--data", stories, "--out", tmp_path, "--device", device)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2
