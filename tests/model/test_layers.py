"""What is read in pieces scores as the whole does: attention without masks, and layers over chunks of tokens."""

import gc
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import VOCAB_SIZE, tiny_module
from torch import nn

from hope_eval import load
from hope_eval.encodings import Geometry, PositionEncoding, encoding_class, encoding_names, parse_encoding
from hope_eval.errors import OptionError
from hope_eval.model import configs
from hope_eval.model.kernels import (
    attention,
    attention_bias,
    attention_blocks,
    attention_choice,
    attention_masks,
    chunked_layers,
)
from hope_eval.model.reading import Reader
from hope_eval.model.scoring import LanguageModel
from hope_eval.task import Prompt, Question, Sample

IDS = np.random.default_rng(0).integers(1, VOCAB_SIZE, 500)
WINDOWED = ["mistral", "gemma2", "gemma3_text", "qwen2", "phi3"]


def windowed_module(kind):
    changes = {"use_sliding_window": True, "max_window_layers": 1} if kind == "qwen2" else {}
    return tiny_module(kind, sliding_window=24, max_position_embeddings=512, **changes)


def nll(module, n=200, **options):
    return LanguageModel("tiny", module, None, **options).score([Sample(IDS[:1], IDS[1:n])])[0].nll


@pytest.mark.parametrize("kind", [*WINDOWED, "llama", "qwen3"])
@pytest.mark.parametrize("n", [20, 24, 25, 200])
def test_attention_without_masks_scores_as_that_of_transformers(kind, n, monkeypatch):
    # Blocks of as many queries as a window has keys, so that there are several.
    monkeypatch.setattr(attention_blocks, "_WINDOW_ROWS", 1)
    wanted = nll(windowed_module(kind), n)
    module = windowed_module(kind)
    assert attention.put_on(module)
    made = []

    def watch_windows(own):
        return lambda *given: (
            made.extend(x for x in given if isinstance(x, int | attention_masks.Window)) or own(*given)
        )

    for name in ("windowed", "capped"):
        monkeypatch.setattr(attention, name, watch_windows(getattr(attention, name)))
    monkeypatch.setattr(attention_blocks, "BLOCK_NUMBERS", 0)
    model = LanguageModel(kind, module, None)
    made.clear()
    found = model.score([Sample(IDS[:1], IDS[1:n])])[0].nll
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert bool(made) == (kind in WINDOWED and n > 24)


def masks(kind, n_queries, n_keys, **changes):
    """Return what a model of that kind makes of its masks, by layer type."""
    from transformers import masking_utils

    config = windowed_module(kind).config
    config._attn_implementation = attention.PLAIN
    attention.register()
    embedded = torch.zeros(1, n_queries, 32)
    for name in ("create_causal_mask", "create_sliding_window_causal_mask"):
        yield getattr(masking_utils, name)(
            config=config, inputs_embeds=embedded, past_key_values=None, attention_mask=changes.get("attention_mask")
        )


def test_a_window_stands_for_its_mask():
    assert list(masks("mistral", 24, 24)) == [None, None]
    assert list(masks("mistral", 25, 25)) == [None, attention_masks.Window(24)]


def test_padding_is_a_mask_as_ever():
    padded = torch.ones(1, 30, dtype=torch.long)
    padded[0, 0] = 0
    full, sliding = masks("mistral", 30, 30, attention_mask=padded)
    assert full.shape == sliding.shape == (1, 1, 30, 30)
    assert not full[..., 1:, 0].any()
    assert not sliding[0, 0, 29, :6].any()


def test_chunks_of_attention_are_not_taken_for_windows():
    from transformers import masking_utils

    sliding = masking_utils.sliding_window_causal_mask_function(8)
    chunked = masking_utils.chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.int))
    for n in (9, 12, 40, 64):
        assert attention_masks._slides(sliding, 8, n)
        assert not attention_masks._slides(chunked, 8, n)
        assert not attention_masks._slides(masking_utils.causal_mask_function, 8, n)
    mask = attention_masks.mask(1, 40, 40, mask_function=chunked, local_size=8)
    assert mask.shape[-2:] == (40, 40)


@pytest.mark.parametrize("n_queries", [1, 7, 50])
def test_the_last_queries_see_all_keys_before_them(n_queries):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, n_queries, 16, generator=generator)
    k, v = torch.randn(2, 2, 2, 50, 16, generator=generator)
    found = attention_blocks.causal(q, k, v, 0.3)
    nope = parse_encoding("nope").build(Geometry(16, 4, 64))
    wanted = attention_bias.reference(nope, q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), 0.3)
    torch.testing.assert_close(found.double(), wanted.transpose(1, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("window", [1, 3, 16, 50, 80])
def test_a_window_is_its_definition(window, monkeypatch):
    monkeypatch.setattr(attention_blocks, "_WINDOW_ROWS", 5)
    q, k, v = torch.randn(3, 1, 2, 50, 16, generator=torch.Generator().manual_seed(0))
    logits = (q @ k.transpose(-1, -2)).double() * 0.3
    distances = torch.arange(50)[:, None] - torch.arange(50)
    hidden = (distances < 0) | (distances >= window)
    wanted = logits.masked_fill(hidden, float("-inf")).softmax(-1) @ v.double()
    found = attention_blocks.windowed(q, k, v, window, 0.3).transpose(1, 2)
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [n for n in encoding_names() if encoding_class(n).curve is not PositionEncoding.curve])
def test_a_curve_is_the_bias(name):
    encoding = parse_encoding(name).build(Geometry(16, 4, 64, d_model=64))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in encoding.parameters():
            parameter += torch.randn_like(parameter)
        queries, keys = torch.arange(100, 300), torch.arange(300)
        curve = encoding.curve(queries, 300)
        places = curve.by_distance_N[(queries[:, None] - keys).clamp(min=0)] * curve.by_query_Q[:, None]
        assert 0 <= float(places.min()) <= float(places.max()) <= 1
        steps = curve.curve_HP.shape[1] - 1
        before = (places * steps).long().clamp(max=steps - 1)
        share = places * steps - before
        found = curve.curve_HP[:, before] * (1 - share) + curve.curve_HP[:, before + 1] * share
        wanted = encoding.bias(queries, keys)
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)


@pytest.mark.parametrize("spec", ["fire", "kerple", "t5"])
def test_gradients_in_blocks_are_those_of_the_whole(spec, monkeypatch):
    def gradients():
        layer = torch.nn.Module()
        layer.encoding = parse_encoding(spec).build(Geometry(16, 2, 64, d_model=32))
        q, k, v = torch.randn(3, 1, 2, 70, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        out = attention.attention(layer, q, k, v, None)[0]
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        return torch.autograd.grad((out * weights).sum(), [q, k, v, *layer.encoding.parameters()])

    whole = gradients()
    monkeypatch.setattr(attention_blocks, "BLOCK_NUMBERS", 0)
    for one, other in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "olmo2", "cohere", "gpt_neox", "opt", "mixtral", "phi"])
def test_layers_in_chunks_score_as_whole_ones(kind, monkeypatch):
    changes = {"max_position_embeddings": 512}
    if kind == "opt":
        changes |= {"ffn_dim": 64, "word_embed_proj_dim": 32}
    monkeypatch.setattr(chunked_layers, "LARGEST_CHUNK", 256)
    model = LanguageModel(kind, tiny_module(kind, **changes), None)
    assert model.reading.layers, "it has layers that work by tokens"
    sample = Sample(IDS[:1], IDS[1:400])
    wanted = model.score([sample])[0].nll
    model.reading.layers.chunk = 32
    sizes = watch(model) if kind not in ("opt", "mixtral") else [32]
    np.testing.assert_allclose(model.score([sample])[0].nll, wanted, atol=2e-5)
    assert max(sizes) == 32
    assert not any("forward" in part.__dict__ for part in model.reading.layers.parts), "nothing is left changed"


def watch(model):
    """Return a list that the numbers of tokens that go through the first MLP are added to."""
    sizes = []
    linear = next(m for part in model.reading.layers.parts for m in part.modules() if isinstance(m, torch.nn.Linear))
    linear.register_forward_hook(lambda module, inputs, output: sizes.append(inputs[0][..., 0].numel()))
    return sizes


def test_what_is_wide_is_never_whole():
    module = tiny_module(max_position_embeddings=2048, intermediate_size=4096, num_hidden_layers=1)
    model = LanguageModel("wide", module, None)
    model.reading.layers.chunk = 64
    sizes = watch(model)
    model.score([Sample(IDS[:1], IDS[1:])] * 3)
    assert len(sizes) == -(-3 * 499 // 64)
    assert max(sizes) == 64


class Mixing(torch.nn.Module):
    """What is called an MLP and is none: every token sees the one before."""

    def forward(self, hidden_BLD):
        return hidden_BLD + torch.roll(hidden_BLD, 1, dims=1)


def test_layers_that_do_not_work_by_tokens_are_left_whole():
    module = tiny_module()
    module.model.layers[1].mlp = Mixing()
    model = LanguageModel("mixing", module, None)
    assert model.reading.head == "chunked"
    assert model.reading.layers is None
    assert model.how["layer_chunk"] is None


@pytest.mark.parametrize(("chunk", "first"), [(1024, [1024, 512, 256]), (65_536, [2000, 1024, 512, 256])])
def test_out_of_memory_halves_the_chunk_of_the_layers_first(chunk, first, monkeypatch):
    """Also where a read is shorter than a chunk, as it may be in a narrow model on a GPU."""
    monkeypatch.setattr(chunked_layers, "LARGEST_CHUNK", 1024)
    module = tiny_module(max_position_embeddings=2048)
    model = LanguageModel("tight", module, None)
    sample = Sample(IDS[:1], IDS[1:])
    wanted = model.score([sample])[0].nll
    model.reading.layers.chunk = chunk
    own, sizes = module.model.layers[0].mlp.forward, []

    def narrow(hidden_BLD):
        sizes.append(hidden_BLD[..., 0].numel())
        if sizes[-1] > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return own(hidden_BLD)

    module.model.layers[0].mlp.forward = narrow
    for score in model.score([sample] * 4):
        np.testing.assert_allclose(score.nll, wanted, atol=2e-5)
    assert sizes[: len(first)] == first
    assert model.how["layer_chunk"] == 256


def test_contexts_are_read_in_chunks_too():
    model = LanguageModel("tiny", tiny_module(max_position_embeddings=512), None)
    prompt = Prompt(IDS[:300], (Question(IDS[300:303], IDS[303:306]), Question(IDS[310:312], IDS[312:316])))
    wanted = model.score_prompts([prompt])[0]
    model.reading.layers.chunk = 32
    sizes = watch(model)
    for found, score in zip(model.score_prompts([prompt])[0], wanted, strict=True):
        np.testing.assert_allclose(found.nll, score.nll, atol=2e-5)
    assert max(sizes) == 32


def test_training_is_left_alone():
    model = LanguageModel("tiny", tiny_module(max_position_embeddings=512), None)
    model.reading.layers.chunk = 32
    sizes = watch(model)
    with model.reading.layers.reading(100):
        model.module(torch.from_numpy(IDS[None, :100])).logits.sum().backward()
    assert sizes == [100]


def test_chunks_follow_the_memory_that_is_free():
    for device_type in ("cpu", "cuda"):
        assert chunked_layers.chunk_for(float("inf"), 14_336, 2, device_type) == chunked_layers.LARGEST_CHUNK
        assert chunked_layers.chunk_for(1 << 30, 14_336, 2, device_type) == 1024
        assert chunked_layers.chunk_for(0, 14_336, 2, device_type) == chunked_layers.SMALLEST_CHUNK
    assert chunked_layers.chunk_for(float("inf"), 1536, 2, "cuda") == 8 * chunked_layers.LARGEST_CHUNK
    assert chunked_layers.chunk_for(float("inf"), 1536, 2, "cpu") == chunked_layers.LARGEST_CHUNK
    assert chunked_layers.chunk_for(float("inf"), 99_999, 2, "cuda") == chunked_layers.LARGEST_CHUNK
    # What may be compiled is in chunks.
    assert chunked_layers.chunk_for(float("inf"), 64, 2, "cuda") == chunked_layers.COMPILED_FROM // 2
    assert chunked_layers.chunk_for(float("inf"), 64, 2, "cuda", "on") == chunked_layers.LARGEST_CHUNK


def test_no_kernel_is_forced_on_a_cpu():
    assert attention_choice.fastest(torch.device("cpu"), torch.float32, 4, 2, 64) == attention_choice.Kernels()
    assert attention_bias.biased_kernel("cpu") is None


def flash4(query, key, value, softmax_scale, causal):
    """Do what FlashAttention-4 does, and like it: [B, L, H, E], and no gradients were asked for here."""
    assert causal
    assert not torch.is_grad_enabled()
    flash4.calls += 1
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    key, value = attention_blocks.for_all_heads(query, key, value)
    n_queries, n_keys = query.shape[2], key.shape[2]
    hidden = torch.ones(n_queries, n_keys, dtype=torch.bool).triu(1 + n_keys - n_queries)
    weights = (query @ key.transpose(-1, -2) * softmax_scale).masked_fill(hidden, -math.inf).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), None


@pytest.fixture
def flash4_preferred(monkeypatch):
    monkeypatch.setattr(attention_choice, "_flash4", lambda: flash4)
    flash4.calls = 0
    with attention_choice.preferring(("flash4", "cudnn"), 100, tried=attention_choice.Heads(None, torch.float32, 16)):
        yield


@pytest.mark.parametrize("n_queries", [1, 30, 50])
@torch.inference_mode()
def test_flash_attention_4_is_called_where_it_is_preferred(n_queries, flash4_preferred):
    """With fewer queries than keys too; for all but a single query."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, n_queries, 16, generator=generator)
    key, value = (torch.randn(2, 2, 50, 16, generator=generator) for _ in range(2))
    layer = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    found, _ = attention.plain(layer, query, key, value, None)
    assert flash4.calls == (n_queries > 1)
    with attention_choice.preferring(("efficient",), 100):
        wanted, _ = attention.plain(layer, query, key, value, None)
    assert flash4.calls == (n_queries > 1), "only where it comes first"
    torch.testing.assert_close(found, wanted)


def test_flash_attention_4_is_left_alone_where_it_was_not_tried(flash4_preferred):
    """Gradients, a mask, values of another width, both ways; other heads or numbers; more queries than keys."""
    query, key, value = (torch.randn(1, 2, 20, 16) for _ in range(3))
    both_ways = nn.Module()
    both_ways.is_causal = False
    visible = torch.ones(20, 20, dtype=torch.bool).tril()[None, None]
    attention.plain(nn.Module(), query, key, value, None)
    with torch.inference_mode():
        attention.plain(nn.Module(), query, key, value, visible)
        attention.plain(nn.Module(), query, key, value[..., :8], None)
        attention.plain(both_ways, query, key, value, None)
        attention.plain(nn.Module(), query, key, value, attention_masks.Window(7))
        attention.plain(nn.Module(), *(x[..., :8] for x in (query, key, value)), None)
        attention.plain(nn.Module(), *(x.bfloat16() for x in (query, key, value)), None)
        attention.plain(nn.Module(), query, key[:, :, :9], value[:, :, :9], None)
        assert flash4.calls == 0
        attention.plain(nn.Module(), query, key, value, None)
        assert flash4.calls == 1


def test_what_is_written_is_read_in_chunks_and_never_compiled(monkeypatch):
    model = LanguageModel("tiny", tiny_module(max_position_embeddings=512), None, compiling="on")
    wanted = model.generate([IDS[:90], IDS[100:190]], 6)
    monkeypatch.setattr(torch, "compile", None)
    model.reading.layers.chunk = 32
    sizes = watch(model)
    assert model.generate([IDS[:90], IDS[100:190]], 6) == wanted
    assert set(sizes) == {32, 20, 2}, "180 tokens in chunks, then a token of each row"


def test_memory_that_ends_while_writing_halves_the_chunks_first(monkeypatch):
    model = LanguageModel("tiny", tiny_module(max_position_embeddings=512), None)
    wanted = model.generate([IDS[:300], IDS[100:400]], 4)
    model.reading.layers.chunk = 512
    seen, own = [], Reader.written

    def written(reader, ids_BL, n, ends):
        seen.append((len(ids_BL), model.reading.layers.chunk))
        if len(ids_BL) > 1 or model.reading.layers.chunk > 256:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(reader, ids_BL, n, ends)

    monkeypatch.setattr(Reader, "written", written)
    assert model.generate([IDS[:300], IDS[100:400]], 4) == wanted
    assert seen == [(2, 512), (2, 256), (1, 256), (1, 256)]


def test_whole_models_score_the_same_with_flash_attention_4(flash4_preferred, monkeypatch):
    """Transformers' own, and this project's decoder with an encoding that has no bias."""
    for kind in ("llama", "hope_eval"):
        module = tiny_module("llama", max_position_embeddings=512) if kind == "llama" else load("zoo:hope").module
        assert kind == "hope_eval" or attention.put_on(module)
        model = LanguageModel(kind, module, None)
        sample = Sample(IDS[:1], IDS[1:200])
        wanted = model.score([sample])[0].nll
        before = flash4.calls
        heads = attention_choice.Heads(None, torch.float32, configs.heads_of(module.config)[2])
        model.reading = replace(model.reading, kernels=attention_choice.Kernels(("flash4",), tried=heads))
        np.testing.assert_allclose(model.score([sample])[0].nll, wanted, atol=1e-4)
        assert flash4.calls > before


@pytest.mark.parametrize("compiling", ["auto", "on"])
def test_where_nothing_can_be_compiled_auto_does_without_and_on_says_so(compiling, monkeypatch):
    def broken(forward, **options):
        def fails(*inputs, **rest):
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

        return fails

    wanted = nll(tiny_module(max_position_embeddings=512), 300)
    model = LanguageModel("tiny", tiny_module(max_position_embeddings=512), None, compiling=compiling)
    model.reading.layers.chunk = 64
    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(chunked_layers.ChunkedLayers, "_compiles", lambda self, n: not self.compile_refused)
    sample = Sample(IDS[:1], IDS[1:300])
    if compiling == "on":
        with pytest.raises(OptionError, match="C compiler"):
            model.score([sample])
        return
    np.testing.assert_allclose(model.score([sample])[0].nll, wanted, atol=2e-5)
    assert "C compiler" in model.how["compile_refused"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "mistral"])
def test_what_is_compiled_scores_the_same_and_no_length_compiles_anew(kind, monkeypatch):
    monkeypatch.setattr(chunked_layers, "LARGEST_CHUNK", 256)
    torch._dynamo.reset()
    gc.collect()
    wanted = [nll(windowed_module(kind), n) for n in (300, 450, 500)]
    module = windowed_module(kind)
    attention.put_on(module)
    model = LanguageModel(kind, module, None, compiling="on")
    model.reading.layers.chunk = 64
    torch._dynamo.utils.counters.clear()
    compiled = []
    for n, values in zip((300, 450, 500), wanted, strict=True):
        np.testing.assert_allclose(model.score([Sample(IDS[:1], IDS[1:n])])[0].nll, values, atol=2e-5)
        compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert compiled[0] > 0
    assert compiled[1:] == compiled[:1] * 2
    assert model.how["compile_seconds"] > 0


class TestOfWhatModelsAreMadeOf:
    """Models whose parts are not as those of Llama."""

    def test_a_layer_that_is_used_twice_is_left_as_it_was(self):
        module = tiny_module(max_position_embeddings=512)
        module.model.layers[1].mlp = module.model.layers[0].mlp
        model = LanguageModel("shared", module, None)
        model.reading.layers.chunk = 32
        model.score([Sample(IDS[:1], IDS[1:200])])
        assert not any("forward" in part.__dict__ for part in module.modules())

    def test_towers_of_images_are_not_taken_for_the_layers(self):
        module = tiny_module(num_hidden_layers=3)
        tower = torch.nn.ModuleList([torch.nn.ModuleDict({"mlp": torch.nn.Linear(2, 2)}) for _ in range(5)])
        wrapped = torch.nn.Module()
        wrapped.vision, wrapped.text = tower, module.model
        found = chunked_layers.ChunkedLayers(wrapped, "off", 3)
        assert module.model.layers[0].mlp in found.parts
        assert not set(found.parts) & set(tower.modules())

    def test_what_is_kept_elsewhere_is_not_fetched_chunk_by_chunk(self):
        module = tiny_module()
        module.model.layers[0].mlp.to("meta")
        found = chunked_layers.ChunkedLayers(module.model, "off", 2)
        assert module.model.layers[0].mlp not in found.parts
        assert module.model.layers[1].mlp in found.parts

    def test_numbers_of_another_type_are_not_cast(self):
        module = tiny_module()
        own = module.model.layers[0].mlp.forward
        module.model.layers[0].mlp.forward = lambda hidden_BLD: own(hidden_BLD).double()
        chunk_1ND, out_1ND = torch.zeros(1, 4, 32), torch.zeros(1, 4, 32)
        assert not chunked_layers._step(module.model.layers[0].mlp.forward, chunk_1ND, out_1ND)

    def test_sparse_attention_keeps_the_attention_that_it_asks_for(self):
        config = {"index_topk": 24, "index_n_heads": 2, "index_head_dim": 16, "q_lora_rank": 16, "kv_lora_rank": 16,
                  "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 2,
                  "first_k_dense_replace": 2}  # fmt: skip
        module = tiny_module("deepseek_v32", **config)
        assert not attention.put_on(module)
        assert module.config._attn_implementation == "sdpa"

    @pytest.mark.parametrize("told", [[64, 64], (32, 64), 64])
    def test_a_config_may_tell_a_number_for_each_layer(self, told):
        assert configs.number_of(SimpleNamespace(intermediate_size=told), "intermediate_size") == 64

    def test_a_config_may_refuse_to_tell(self):
        class Ambiguous:
            @property
            def head_dim(self):
                raise RuntimeError("it depends on the layer")

        assert configs.number_of(Ambiguous(), "head_dim") is None
        assert configs.number_of(None, "head_dim") is None

    def test_what_is_not_causal_is_not_made_so(self):
        q, (k, v) = torch.randn(1, 2, 4, 16), torch.randn(2, 1, 2, 9, 16)
        found = attention.plain(torch.nn.Module(), q, k, v, None, is_causal=False)[0]
        wanted = ((q @ k.transpose(-1, -2) / 4).softmax(-1) @ v).transpose(1, 2)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)

    def test_capped_logits_are_capped_whatever_their_attention_is_called(self):
        module = tiny_module("gemma2", sliding_window=24, max_position_embeddings=512, attn_logit_softcapping=2.0)
        wanted = module(torch.from_numpy(IDS[None, :100])).logits.log_softmax(-1)[0, :-1]
        module.config._attn_implementation = "sdpa"
        model = LanguageModel("capped", module, None)
        found = model.score([Sample(IDS[:1], IDS[1:100])])[0].nll
        np.testing.assert_allclose(found, -wanted[range(99), IDS[1:100]].detach().numpy(), atol=2e-5)
        assert model.kernel == "capped"


def test_an_attention_of_another_library_is_not_replaced(monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention.register()
    ours = ALL_ATTENTION_FUNCTIONS[attention.PLAIN]
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, attention.PLAIN, print)
    with pytest.raises(OptionError, match="already has an attention called `hope_eval_plain`, from builtins"):
        attention.register()
    assert ALL_ATTENTION_FUNCTIONS[attention.PLAIN] is print
    monkeypatch.undo()
    assert ALL_ATTENTION_FUNCTIONS[attention.PLAIN] is ours
