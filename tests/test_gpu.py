"""What only a GPU can show. Run with `-m gpu`."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from commands import hope_eval
from conftest import VOCAB_SIZE, tiny_model, tiny_module

from hope_eval.encodings import Geometry, parse_encoding
from hope_eval.model.kernels import attention, attention_bias, attention_blocks, attention_choice, chunked_layers, nll
from hope_eval.model.scoring import LanguageModel
from hope_eval.task import Sample
from hope_eval.train.loop import train
from hope_eval.train.recipe import Recipe

# Libraries of GPUs warn of what is the user's to choose.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")]

IDS = np.random.default_rng(0).integers(1, VOCAB_SIZE, 3000)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gpu_agrees_with_the_cpu_and_uses_the_chunked_head(kind, dtype):
    model = LanguageModel(kind, tiny_module(kind).to("cuda", dtype), None)
    assert (model.reading.head, model.reading.head_reason) == ("chunked", "")
    slow = tiny_model(kind)
    sample = Sample(IDS[:1], IDS[1:200])
    gap = np.abs(model.score([sample])[0].nll - slow.score([sample])[0].nll)
    assert gap.max() < (2e-3 if dtype == torch.float32 else 0.5)
    assert abs(gap.mean()) < (2e-4 if dtype == torch.float32 else 0.05)


def test_the_fused_nll_is_in_use_and_agrees_with_the_plain_one():
    name, fused = nll.choose("cuda")
    assert name == "fused"
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
            assert int(found[1][1]) == 0, "among equals the first"


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


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("spec", ["hope", "xpos", "alibi", "kerple", "kerple:power=1", "t5", "fire"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [300, 2500])
def test_fast_attention_is_the_equation_forward_and_backward(spec, head_dim, dtype, length):
    parsed = parse_encoding(spec)
    encoding = parsed.build(Geometry(head_dim, 6, 256, d_model=6 * head_dim)).to("cuda")
    own = list(encoding.parameters())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in own:
            parameter += torch.randn_like(parameter) * 0.3
    layer = torch.nn.Module()
    layer.encoding = encoding
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(2, 6, length, head_dim, device="cuda", generator=generator).to(dtype).requires_grad_()
        for _ in range(3)
    )
    positions = torch.arange(length, device="cuda")
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    logs = encoding.log_scales(positions - length // 2)
    factors = torch.cat([logs, logs], -1).double().exp() if logs is not None else torch.ones(1, device="cuda")
    logits = (exact[0] * factors) @ (exact[1] / factors).transpose(-1, -2) / head_dim**0.5
    if encoding.bias_form():
        table = encoding.distance_bias(positions)
        logits = logits + attention_bias.bias_block(encoding, table, 0, length, length, positions.device).double()
    logits = logits.masked_fill(positions[:, None] < positions, float("-inf"))
    wanted = (logits.softmax(-1) @ exact[2]).transpose(1, 2)
    weights = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, [*exact, *own], weights, allow_unused=True)

    def error(one, other):
        return float((one.detach().double() - other.detach().double()).norm() / other.detach().double().norm())

    assert attention_bias.biased_kernel("cuda"), "without gradients, a bias is added in a kernel"
    with torch.inference_mode():
        in_kernel = attention.attention(layer, q, k, v, None)[0]
    assert error(in_kernel, wanted) < (1e-4 if dtype == torch.float32 else 5e-3)
    found = attention.attention(layer, q, k, v, None)[0]
    mine = torch.autograd.grad(found, [q, k, v, *own], weights.to(dtype), allow_unused=True)

    assert error(found, wanted) < (1e-4 if dtype == torch.float32 else 5e-3)
    largest = max(float(gradient.norm()) for gradient in gradients[3:] if gradient is not None) if own else 0
    for one, other in zip(mine, gradients, strict=True):
        # What softmax ignores (a constant added to all logits) has no gradient but rounding.
        # In bfloat16, neither has what is a small difference of large numbers, as the gradient of FIRE's c.
        if other is not None and float(other.norm()) > (1e-6 if dtype == torch.float32 else 1e-2) * largest:
            assert error(one, other) < (1e-3 if dtype == torch.float32 else 5e-2)


def test_a_bias_by_distance_takes_memory_linear_in_length():
    layer = torch.nn.Module()
    layer.encoding = parse_encoding("kerple").build(Geometry(64, 8, 256, d_model=512)).to("cuda")
    peaks = []
    for length in (8192, 32_768):
        q, k, v = (torch.randn(1, 8, length, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.inference_mode():
            attention.attention(layer, q, k, v, None)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 5 * peaks[0]
    assert peaks[1] < 2**30


@pytest.mark.parametrize("n_queries", [1, 7, 333])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_queries_see_all_keys_before_them(n_queries, dtype):
    generator = torch.Generator("cuda").manual_seed(0)
    q = torch.randn(2, 8, n_queries, 64, device="cuda", generator=generator).to(dtype)
    k, v = (torch.randn(2, 2, 333, 64, device="cuda", generator=generator).to(dtype) for _ in range(2))
    found = attention_blocks.causal(q, k, v, 0.1)
    wanted = attention_bias.reference(parse_encoding("nope").build(Geometry(64, 8, 256)), q.cpu(), *spread(k, v), 0.1)
    torch.testing.assert_close(found.cpu().double(), wanted.transpose(1, 2), atol=0.02, rtol=0)


def spread(*tensors):
    return (x.repeat_interleave(4, dim=1).cpu() for x in tensors)


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text"])
def test_sliding_windows_are_kept_right_without_their_masks(kind):
    module = tiny_module(kind, sliding_window=70, max_position_embeddings=4096).to("cuda", torch.float32)
    wanted = LanguageModel(kind, tiny_module(kind, sliding_window=70, max_position_embeddings=4096), None)
    model = LanguageModel(kind, module, None)
    assert module.config._attn_implementation == attention.PLAIN
    sample = Sample(IDS[:1], IDS[1:2500])
    np.testing.assert_allclose(model.score([sample])[0].nll, wanted.score([sample])[0].nll, atol=2e-3)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_a_kernel_is_chosen_that_agrees(head_dim):
    chosen = attention_choice.fastest(torch.device("cuda"), torch.bfloat16, 8, 2, head_dim)
    assert chosen.order
    assert set(chosen.order) | set(chosen.refused) == set(attention_choice.KERNELS)
    assert all(speed > 10 for speed in chosen.tflops.values())


@pytest.mark.skipif(not find_spec("flash_attn"), reason="flash-attn-4 is not installed")
@pytest.mark.parametrize(("n_queries", "n_keys"), [(333, 333), (200, 1111), (2, 500)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(8, 2, 64), (9, 3, 64), (4, 4, 96), (8, 1, 128), (2, 2, 256)]
)
@torch.inference_mode()
def test_flash_attention_4_agrees_with_the_definition(n_queries, n_keys, heads, kv_heads, head_dim):
    """Fewer queries than keys are the last of them."""
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(2, n_keys, n, head_dim, generator=generator, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        for n in (heads, kv_heads, kv_heads)
    )
    wanted = attention_choice.definition(query, key, value)[:, :, -n_queries:].transpose(1, 2)
    with attention_choice.preferring(("flash4",), n_queries, tried=attention_choice.Heads.of(query)):
        found = attention_choice.by_flash4(query[:, :, -n_queries:], key, value, head_dim**-0.5)
    assert float((found.double() - wanted).norm() / wanted.norm()) < 1e-2


@pytest.mark.parametrize(("dtype", "largest", "mean"), [(torch.float32, 1e-4, 1e-5), (torch.bfloat16, 0.5, 0.01)])
def test_samples_score_the_same_whatever_is_read_beside_them(dtype, largest, mean):
    model = LanguageModel("llama", tiny_module("llama", max_position_embeddings=512).to("cuda", dtype), None)
    ids = np.random.default_rng(0).integers(1, VOCAB_SIZE, (64, 300))
    samples = [Sample(row[:1], row[1:]) for row in ids]
    together = np.stack([score.nll for score in model.score(samples)])
    alone = np.stack([model.score([sample])[0].nll for sample in samples])
    assert np.abs(together - alone).max() < largest
    assert abs((together - alone).mean()) < mean


def test_compiled_chunks_score_as_whole_layers_do(monkeypatch):
    monkeypatch.setattr(chunked_layers, "largest_chunk", lambda device_type, width, compiling: 512)
    whole, chunked = (
        LanguageModel("llama", tiny_module("llama").to("cuda", torch.bfloat16), None, compiling=compiling)
        for compiling in ("off", "on")
    )
    whole.reading = replace(whole.reading, layers=None)
    sample = Sample(IDS[:1], IDS[1:2500])
    gap = chunked.score([sample])[0].nll - whole.score([sample])[0].nll
    # Bfloat16 on weights this wild; what is systematic would show in the mean.
    assert np.abs(gap).max() < 0.5
    assert abs(gap.mean()) < 0.01
    assert chunked.how["compile_seconds"] > 0


def test_a_compiled_training_on_the_gpu_learns(tmp_path):
    recipe = Recipe(
        "hope", "64x2x2", 128, 128 * 64 * 60, texts=("python:click,rich",), batch_tokens=128 * 64, learning_rate=5e-3
    )
    folder = train(recipe, tmp_path / "out", compile_model=True)
    losses = [json.loads(line).get("loss") for line in (folder / "training.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < losses[0] - 2
    assert json.loads((folder / "training.json").read_text())["peak_memory_gib"] > 0
