"""What only a GPU can show. Run with `-m gpu`."""

import json

import numpy as np
import pytest
import torch
from conftest import VOCAB_SIZE, tiny_model, tiny_module

from hope_eval.model.scoring import LanguageModel
from hope_eval.task import Sample
from test_cli import hope_eval

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


def test_memory_of_a_large_vocabulary_stays_small():
    model = LanguageModel("wide", tiny_module(vocab_size=128_256, max_position_embeddings=65_536).to("cuda"), None)
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
