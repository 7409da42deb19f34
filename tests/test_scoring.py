import math

import numpy as np
import pytest
import torch
import transformers
from conftest import VOCAB_SIZE, Uniform, byte_tokenizer, story, tiny_model, tiny_module

from hope_eval.errors import LengthError, OptionError
from hope_eval.model import nll, scoring
from hope_eval.model.scoring import LanguageModel, OutOfMemory
from hope_eval.task import Sample

IDS = np.random.default_rng(0).integers(1, VOCAB_SIZE, 150)

FAMILIES = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 3.0, "sliding_window": 16},
    "gemma3_text": {"sliding_window": 16},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 8.0},
    "olmo2": {},
    "phi3": {},
    "gpt_neox": {},
    # Calls a part of its base model.
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 150},
    "mixtral": {"num_local_experts": 4},
}


def family(name: str) -> torch.nn.Module:
    return tiny_module(name.split()[0], **FAMILIES[name])


def full_logits_nll(module, ids: np.ndarray) -> np.ndarray:
    """Return the nll of every id but the first, from all logits, in float64."""
    with torch.no_grad():
        logits = module(torch.as_tensor(ids)[None]).logits[0].double()
    return -torch.log_softmax(logits, -1)[:-1].gather(-1, torch.as_tensor(ids)[1:, None])[:, 0].numpy()


@pytest.mark.parametrize("name", FAMILIES)
def test_head_in_chunks_equals_full_logits(name, monkeypatch):
    # Chunks of 16 tokens, so that there are many.
    monkeypatch.setattr(scoring, "_CHUNK_BYTES", {"cpu": 0})
    module = family(name)
    model = LanguageModel(name, module, None)
    assert (model.head, model.head_reason) == ("chunked", "")
    score = model.score([Sample(IDS[:1], IDS[1:])])[0]
    np.testing.assert_allclose(score.nll, full_logits_nll(module, IDS), atol=2e-5)
    assert score.nll.dtype == np.float32


def test_soft_capping_and_scaling_matter_here():
    # The test above would be empty if these did nothing.
    for name, off in (("gemma2", {"final_logit_softcapping": None}), ("cohere", {"logit_scale": 1.0})):
        plain = tiny_module(name, **{**FAMILIES[name], **off})
        assert np.abs(full_logits_nll(plain, IDS) - full_logits_nll(family(name), IDS)).max() > 0.05


def test_no_logits_of_the_whole_length_are_made(monkeypatch):
    # A chunk of 64 tokens of float32 logits.
    monkeypatch.setattr(scoring, "_CHUNK_BYTES", {"cpu": 64 * 4 * VOCAB_SIZE})
    model = tiny_model()
    rows = []
    model.module.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[1]))
    model.score([Sample(IDS[:1], IDS[1:])])
    assert rows == [64, 64, 21]


def test_only_the_target_is_scored_and_the_context_is_read():
    model = tiny_model()
    whole = model.score([Sample(IDS[:1], IDS[1:])])[0]
    part = model.score([Sample(IDS[:100], IDS[100:])])[0]
    np.testing.assert_allclose(part.nll, whole.nll[99:], atol=1e-5)
    unread = model.score([Sample(IDS[:100], IDS[100:], unread=1)])[0]
    np.testing.assert_allclose(unread.nll, part.nll, atol=1e-5)


def test_side_by_side_equals_one_at_a_time():
    model = tiny_model()
    samples = [Sample(IDS[:50], IDS[50:80]), Sample(IDS[20:21], IDS[21:100]), Sample(IDS[3:9], IDS[9:83])]
    together = model.score(samples)
    for sample, score in zip(samples, together, strict=True):
        np.testing.assert_allclose(score.nll, model.score([sample])[0].nll, atol=1e-5)


def test_greedy_hits_are_what_greedy_decoding_writes():
    model = tiny_model()
    written = model.module.generate(
        torch.as_tensor(IDS)[None, :20], max_new_tokens=30, do_sample=False, eos_token_id=VOCAB_SIZE, pad_token_id=0
    )
    written = written[0].numpy()
    assert model.score([Sample(written[:20], written[20:])])[0].greedy_hits.all()
    written[30] += 1
    hits = model.score([Sample(written[:20], written[20:])])[0].greedy_hits
    assert hits[:10].all()
    assert not hits[10]


def test_a_head_that_cannot_be_chunked_is_scored_with_full_logits_and_says_so():
    class Odd(transformers.LlamaForCausalLM):
        """Its logits depend on all hidden states, not on those of the position alone."""

        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * torch.linspace(1, 2, output.logits.shape[1])[None, :, None]
            return output

    module = Odd(tiny_module().config).eval()
    model = LanguageModel("odd", module, None)
    assert model.head == "full"
    assert "nats off" in model.head_reason
    np.testing.assert_allclose(model.score([Sample(IDS[:1], IDS[1:])])[0].nll, full_logits_nll(module, IDS), atol=2e-5)


def test_bfloat16_logits_are_summed_in_float32():
    model = LanguageModel("tiny", tiny_module().bfloat16(), None)
    found = model.score([Sample(IDS[:1], IDS[1:])])[0].nll
    with torch.no_grad():
        logits = model.module(torch.as_tensor(IDS)[None]).logits[0]
    exact = -torch.log_softmax(logits.double(), -1)[:-1].gather(-1, torch.as_tensor(IDS)[1:, None])[:, 0].numpy()
    # A sum in bfloat16 would be off by up to 0.4 %.
    np.testing.assert_allclose(found, exact, atol=1e-4)


def test_a_module_of_ones_own_is_scored_with_full_logits():
    model = LanguageModel("uniform", Uniform(), None)
    assert model.head == "full"
    np.testing.assert_allclose(model.score([Sample(IDS[:1], IDS[1:])])[0].nll, math.log(VOCAB_SIZE), rtol=1e-6)


def test_nan_is_kept():
    module = tiny_module()
    module.lm_head.weight.data[:] = float("nan")
    assert np.isnan(LanguageModel("nan", module, None).score([Sample(IDS[:1], IDS[1:])])[0].nll).all()


def test_out_of_memory_halves_the_chunk_then_the_batch_then_gives_up(monkeypatch):
    model = tiny_model()
    samples = [Sample(IDS[i : i + 1], IDS[i + 1 : i + 41]) for i in range(4)]
    wanted = [score.nll for score in model.score(samples)]
    tried: list[tuple[int, ...]] = []
    own = nll.plain

    def small_head(logits, target):
        if len(target) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        tried.append(tuple(logits.shape))
        return own(logits, target)

    monkeypatch.setattr(scoring, "choose", lambda device: small_head)
    monkeypatch.setattr(LanguageModel, "_chunk_size", lambda self: 64)
    for score, values in zip(model.score(samples), wanted, strict=True):
        np.testing.assert_allclose(score.nll, values, atol=1e-5)
    assert all(rows <= 20 for rows, _ in tried)

    decoder = model.module.model.forward
    batches: list[int] = []

    def narrow(input_ids, **rest):
        batches.append(len(input_ids))
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return decoder(input_ids=input_ids, **rest)

    model.module.model.forward = narrow
    for score, values in zip(model.score(samples), wanted, strict=True):
        np.testing.assert_allclose(score.nll, values, atol=1e-5)
    assert batches == [4, 2, 1, 1, 2, 1, 1]

    def none(input_ids, **rest):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    model.module.model.forward = none
    with pytest.raises(OutOfMemory, match="out of memory") as caught:
        model.score(samples)
    assert caught.value.n_read == 41


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    model = tiny_model()
    with pytest.raises(IndexError):
        model.score([Sample([0], [VOCAB_SIZE + 5, 1])])


def test_the_end_of_a_learned_position_table_is_an_error():
    config = transformers.GPT2Config(
        n_embd=8, n_layer=1, n_head=2, vocab_size=VOCAB_SIZE, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    model = LanguageModel("gpt2", transformers.GPT2LMHeadModel(config), None)
    assert model.max_length == 32
    assert model.head == "chunked"
    model.check_length(32)
    with pytest.raises(LengthError, match="learned position table of 32"):
        model.check_length(33)


def test_prefix_policy():
    model = tiny_model()
    assert [model.prefix_token(policy) for policy in ("auto", "bos", "eos", "none")] == [0, 0, 0, None]
    model.tokenizer.bos_token = None
    assert model.prefix_token("auto") == model.tokenizer.eos_token_id
    with pytest.raises(OptionError, match="no BOS token"):
        model.prefix_token("bos")


@pytest.mark.parametrize("text", [story(2), "", "…", "a…b", "naïve 漢字 🙂 done\n", "\n\n  x"])
def test_bytes_of_tokens_add_up_to_the_text(text):
    ((ids, sizes),) = tiny_model().encode([text])
    assert sizes.sum() == len(text.encode())
    assert len(ids) == len(sizes)


def test_tokens_of_ascii_text_have_their_own_bytes():
    ((ids, sizes),) = tiny_model().encode(["plain text"])
    assert len(ids) == 10
    assert (sizes == 1).all()


def test_documents_are_encoded_without_special_tokens():
    model = tiny_model()
    ((ids, _),) = model.encode(["abc"])
    assert byte_tokenizer().decode(ids) == "abc"
