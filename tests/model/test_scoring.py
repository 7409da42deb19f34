import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from conftest import VOCAB_SIZE, Uniform, byte_tokenizer, story, tiny_model, tiny_module
from fakes import zoo_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hope_eval.errors import CheckpointError, LengthError, OptionError
from hope_eval.evaluation.loop import batch_size
from hope_eval.model import contexts, reading
from hope_eval.model.checkpoint import load
from hope_eval.model.kernels import nll
from hope_eval.model.reading import OutOfMemory, Reader
from hope_eval.model.scoring import LanguageModel
from hope_eval.model.tokens import encode
from hope_eval.task import Prompt, Question, Sample, Vocabulary, generator, parse_task

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
    monkeypatch.setattr(reading, "_CHUNK_BYTES", {"cpu": 0})
    module = family(name)
    model = LanguageModel(name, module, None)
    assert (model.reading.head, model.reading.head_reason) == ("chunked", "")
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
    monkeypatch.setattr(reading, "_CHUNK_BYTES", {"cpu": 64 * 4 * VOCAB_SIZE})
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


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt_neox"])
def test_samples_of_one_shape_score_the_same_in_every_bit_whatever_is_read_beside_them(kind):
    model = tiny_model(kind, max_position_embeddings=256)
    ids = np.random.default_rng(0).integers(1, VOCAB_SIZE, (5, 100))
    samples = [Sample(row[:1], row[1:]) for row in ids]
    alone = [model.score([sample])[0].nll for sample in samples]
    for n in (2, 5):
        for score, values in zip(model.score(samples[:n]), alone[:n], strict=True):
            np.testing.assert_array_equal(score.nll, values)
    assert batch_size("cpu", 1) == 1, "and a run on a CPU reads one at a time"


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
    assert model.reading.head == "full"
    assert "nats off" in model.reading.head_reason
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
    assert model.reading.head == "full"
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

    monkeypatch.setattr(nll, "choose", lambda device: nll.Kernel("plain", small_head))
    model.reading = replace(model.reading, head_chunk=64)
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
    with pytest.raises(CheckpointError, match="IndexError"):
        model.score([Sample([0], [-VOCAB_SIZE - 5, 1])])


def test_the_end_of_a_learned_position_table_is_an_error():
    config = transformers.GPT2Config(
        n_embd=8, n_layer=1, n_head=2, vocab_size=VOCAB_SIZE, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    model = LanguageModel("gpt2", transformers.GPT2LMHeadModel(config), None)
    assert model.max_length == 32
    assert model.reading.head == "chunked"
    model.check_length(32)
    with pytest.raises(LengthError, match="table of 32"):
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


SCRIPTS = "日本語の絵文字😀🎉 é, naïve.\n世界。 한국어 👩‍👩‍👧  x  é"


def pieces(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes that cuts characters: of the zoo, with NFC before it, or as Llama 2's."""
    if kind == "fallback":
        vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"<unk>": 256, "▁": 257, "x": 258, "世": 259}
        tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    tokenizer = Tokenizer.from_str(zoo_tokenizer().backend_tokenizer.to_str())
    if kind == "NFC":
        tokenizer.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("kind", ["byte-level", "NFC"])
def test_pieces_of_a_character_have_their_own_bytes(kind):
    tokenizer = pieces(kind)
    ((ids, sizes),) = encode(tokenizer, [SCRIPTS])
    # The bytes of the first n tokens: what is decoded, up to a character that is not finished.
    text = SCRIPTS.encode()
    assert sizes.sum() == len(text)
    for n in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[:n]).rstrip("\ufffd").encode()
        n_bytes = int(sizes[:n].sum())
        assert text.startswith(whole)
        assert len(whole) == len(text[:n_bytes].decode(errors="ignore").encode())
        assert (len(whole) == n_bytes) == ("\ufffd" not in tokenizer.decode(ids[:n]))


def test_a_piece_of_two_bytes_has_two_of_three():
    # Three characters that differ in their first byte only: the other two become one token.
    alike = [bytes([first, 0xB8, 0x96]).decode() for first in (0xE4, 0xE5, 0xE6)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=257, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator([" ".join(alike * 9)], trainer)
    ((ids, sizes),) = encode(PreTrainedTokenizerFast(tokenizer_object=tokenizer), ["".join(alike)])
    assert len(ids) == 6
    assert sizes.tolist() == [1, 2, 1, 2, 1, 2]


def test_a_token_of_a_byte_has_one_byte():
    ((ids, sizes),) = encode(pieces("fallback"), [SCRIPTS])
    assert sizes.tolist() == [3 if number == 259 else 1 for number in ids]
    assert sizes.sum() == len(SCRIPTS.encode())


def test_a_normaliser_that_joins_characters_keeps_their_bytes():
    ((ids, sizes),) = encode(pieces("NFC"), ["e\u0301" * 20])
    assert len(ids) == 40
    assert np.abs(np.cumsum(sizes)[1::2] - 3 * np.arange(1, 21)).max() < 3
    assert sizes.sum() == 60


def test_pieces_that_tell_no_bytes_share_a_character_evenly():
    tokenizer = Tokenizer(models.WordLevel({"(": 0, "株": 1, ")": 2, "<unk>": 3}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    # One character of three bytes, normalised to `(株)`.
    ((ids, sizes),) = encode(PreTrainedTokenizerFast(tokenizer_object=tokenizer), ["㈱㈱"])
    assert ids.tolist() == [0, 1, 2, 0, 1, 2]
    assert sizes.tolist() == [1, 1, 1, 1, 1, 1]


def test_tokens_of_ascii_text_have_their_own_bytes():
    ((ids, sizes),) = tiny_model().encode(["plain text"])
    assert len(ids) == 10
    assert (sizes == 1).all()


def test_documents_are_encoded_without_special_tokens():
    model = tiny_model()
    ((ids, _),) = model.encode(["abc"])
    assert byte_tokenizer().decode(ids) == "abc"


def prompts_of(vocab_size: int, n: int = 2, size: int = 100, longest: int = 16) -> list[Prompt]:
    """Return prompts with questions and choices of different lengths, `size + longest` tokens long at the most."""
    rng = np.random.default_rng(0)

    def ids(n: int) -> np.ndarray:
        return rng.integers(1, vocab_size, n)

    def questions() -> tuple[Question, ...]:
        return (
            Question(ids(3), ids(4), choices=(ids(2), ids(longest - 3))),
            Question((), ids(1)),
            Question(ids(7), ids(2), choices=(ids(3),)),
        )

    return [Prompt(np.concatenate([[0], ids(size - 1)]), questions()) for _ in range(n)]


def check_read_separately(model: LanguageModel, prompts: list[Prompt], atol: float) -> None:
    """Assert that all scores of prompts are those of every answer read with its whole context."""
    scores = model.score_prompts(prompts)
    assert [len(one) for one in scores] == [len(prompt.questions) for prompt in prompts]
    for prompt, found in zip(prompts, scores, strict=True):
        for question, score in zip(prompt.questions, found, strict=True):
            wanted, *others = (model.score([Sample(prompt.context, a, question.query)])[0] for a in question.answers)
            np.testing.assert_allclose(score.nll, wanted.nll, atol=atol)
            assert np.array_equal(score.target, question.target)
            assert np.array_equal(score.greedy, wanted.greedy)
            np.testing.assert_allclose(score.others, [other.nll.sum() for other in others], atol=len(IDS) * atol / 10)
            assert score.others.dtype == np.float32


def calls_of(model: LanguageModel) -> list[tuple[int, ...]]:
    """Return a list that the shapes of what the decoder reads are added to."""
    calls: list[tuple[int, ...]] = []
    own = model.reading.decoder.forward

    def forward(input_ids, **rest):
        calls.append(tuple(input_ids.shape))
        return own(input_ids=input_ids, **rest)

    model.reading.decoder.forward = forward
    return calls


ZOO = ["rope", "hope", "nope", "prope", "xpos", "alibi", "kerple", "fire", "t5", "sinusoidal", "learned"]


@pytest.mark.parametrize("name", ZOO)
def test_contexts_read_once_give_the_scores_of_contexts_read_for_every_answer(name, monkeypatch):
    model = load(f"zoo:{name}", device="cpu")
    # To the very end of the position table of `learned`, and for one model beyond where it was trained.
    prompts = prompts_of(4096, n=1 + (name == "learned"), size={"learned": 240, "hope": 300}.get(name, 130))
    for copies in (1, 1 << 40):
        monkeypatch.setitem(contexts._COPIES_BYTES, "cpu", copies)
        check_read_separately(model, prompts, 5e-4)


@pytest.mark.parametrize("copies", [1, 1 << 40], ids=["one by one", "all at once"])
def test_answers_are_read_side_by_side_as_far_as_memory_goes(copies, monkeypatch):
    monkeypatch.setitem(contexts._COPIES_BYTES, "cpu", copies)
    model = tiny_model()
    prompts = prompts_of(VOCAB_SIZE)
    calls = calls_of(model)
    model.score_prompts(prompts)
    # Six answers to each of two prompts; what is read of each is the context's last token, the question, and the
    # answer but for its end.
    assert calls == [(2, 99), *([(12, 16)] if copies > 1 else [(2, n) for n in (7, 5, 16, 1, 9, 10)])]
    check_read_separately(model, prompts, 5e-5)
    check_read_separately(model, prompts[1:], 5e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_contexts_read_once_give_the_same_scores_in_every_family(name):
    model = LanguageModel(name, family(name), None)
    check_read_separately(model, prompts_of(VOCAB_SIZE, size=40), 5e-5)


RECURRENT = {
    "mamba": {"state_size": 8},
    "lfm2": {"full_attn_idxs": [1]},
    # Keeps nothing of what it has read.
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 2, "max_position_embeddings": 128},
}


@pytest.mark.parametrize("name", RECURRENT)
def test_what_keeps_no_keys_and_values_reads_the_context_with_every_answer(name):
    model = LanguageModel(name, tiny_module(name, **RECURRENT[name]), None)
    check_read_separately(model, prompts_of(VOCAB_SIZE, size=50), 5e-5)


def test_frequencies_that_change_with_the_length_read_every_answer_with_its_context():
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    model = LanguageModel("dynamic", tiny_module(rope_parameters=rope), None)
    assert not model.nested_safe
    calls = calls_of(model)
    prompts = prompts_of(VOCAB_SIZE, size=100)
    model.score_prompts(prompts)
    assert min(n_read for _, n_read in calls) > 100
    check_read_separately(model, prompts, 1e-5)


class Logits(torch.nn.Module):
    """A model of one's own: nothing but logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_module()

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        return self.inner(ids_BL).logits


def test_a_module_of_ones_own_gives_the_same_scores():
    own, ours = LanguageModel("own", Logits(), byte_tokenizer()), tiny_model()
    assert own.reading.head == "full"
    prompts = prompts_of(VOCAB_SIZE)
    check_read_separately(own, prompts, 1e-6)
    for mine, others in zip(own.score_prompts(prompts), ours.score_prompts(prompts), strict=True):
        for one, other in zip(mine, others, strict=True):
            np.testing.assert_allclose(one.nll, other.nll, atol=1e-4)
            np.testing.assert_allclose(one.others, other.others, atol=1e-3)


def test_out_of_memory_halves_the_contexts_then_reads_them_for_every_answer_then_gives_up():
    model, prompts = tiny_model(), prompts_of(VOCAB_SIZE, n=4)
    wanted = model.score_prompts(prompts)
    own, tried = model.module.model.forward, []

    def narrow(input_ids, **rest):
        tried.append(len(input_ids))
        if len(input_ids) > limit["rows"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return own(input_ids=input_ids, **rest)

    limit = {"rows": 0}
    model.module.model.forward = narrow
    for rows, first in ((12, [4, 24, 2, 12, 2, 12]), (1, [4, 2, 1, 6, 1, 1, 1, 1, 1, 1, 1, 6])):
        tried.clear()
        limit["rows"] = rows
        for mine, others in zip(model.score_prompts(prompts), wanted, strict=True):
            for one, other in zip(mine, others, strict=True):
                np.testing.assert_allclose(one.nll, other.nll, atol=1e-4)
                np.testing.assert_allclose(one.others, other.others, atol=1e-3)
        assert tried[: len(first)] == first
    limit["rows"] = 0
    with pytest.raises(OutOfMemory) as caught:
        model.score_prompts(prompts)
    assert caught.value.n_read == 107


def greedy(module, ids: list[int], n: int) -> list[int]:
    """Return what greedy decoding writes, by repeated reading of the whole."""
    line = list(ids)
    with torch.no_grad():
        for _ in range(n):
            output = module(torch.tensor([line]))
            logits = output if isinstance(output, torch.Tensor) else output.logits
            line.append(int(logits[0, -1].argmax()))
    return line[len(ids) :]


def starts_of(vocab_size: int, n: int = 3, size: int = 30) -> list[list[int]]:
    return np.random.default_rng(1).integers(1, vocab_size, (n, size)).tolist()


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3_text", "gpt_neox", "own"])
def test_what_is_written_is_greedy_decoding_and_batches_do_not_matter(name):
    module = Logits() if name == "own" else family(name)
    model = LanguageModel(name, module, byte_tokenizer())
    starts = starts_of(VOCAB_SIZE)
    together = model.generate(starts, 12)
    assert [greedy(module, start, 12) for start in starts] == together
    assert [model.generate([start], 12)[0] for start in starts] == together
    assert model.generate(starts, 5) == [written[:5] for written in together]


@pytest.mark.parametrize("name", ["rope", "hope", "t5"])
def test_models_of_the_zoo_write_greedily(name):
    model = load(f"zoo:{name}", device="cpu")
    starts = starts_of(4096, n=2, size=260)
    assert model.generate(starts, 5) == [greedy(model.module, start, 5) for start in starts]


@pytest.mark.parametrize("module", [tiny_module, Logits])
def test_writing_ends_where_the_model_ends_it(module):
    model = LanguageModel("tiny", module(), byte_tokenizer())
    starts = starts_of(VOCAB_SIZE)
    whole = model.generate(starts, 12)
    end = whole[0][4]
    assert not set(whole[0][:4]) & {end}
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(end)
    if module is tiny_module:
        model.module.generation_config.eos_token_id = None
    written = model.generate(starts, 12)
    assert written[0] == whole[0][:4]
    for found, complete in zip(written[1:], whole[1:], strict=True):
        assert found == (complete[: complete.index(end)] if end in complete else complete)


def test_a_checkpoint_names_its_ends_and_so_does_its_tokenizer():
    model = tiny_model()
    for own, ends in ((None, [0]), (0, [0]), (7, [7, 0]), ([9, 7, 0], [9, 7, 0])):
        model.module.generation_config.eos_token_id = own
        assert model.end_tokens() == ends
    model.tokenizer.eos_token = None
    assert model.end_tokens() == [9, 7, 0]
    assert LanguageModel("own", Logits(), None).end_tokens() == []


def test_sampling_and_penalties_of_a_checkpoint_do_not_apply_and_are_left_as_they_were():
    model, starts = tiny_model(), starts_of(VOCAB_SIZE)
    wanted = model.generate(starts, 12)
    own = transformers.GenerationConfig(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=3.0, no_repeat_ngram_size=1, eos_token_id=0,
        max_length=31, min_new_tokens=12, num_beams=2, bad_words_ids=[[wanted[0][0]]],
    )  # fmt: skip
    model.module.generation_config = own
    before = own.to_dict()
    assert model.generate(starts, 12) == wanted
    assert model.module.generation_config is own
    assert own.to_dict() == before
    model.module.forward = None
    with pytest.raises(CheckpointError, match="TypeError"):
        model.generate(starts, 12)
    assert model.module.generation_config is own, "whatever happens"


def test_what_does_not_fit_is_written_in_halves(monkeypatch):
    model, starts = tiny_model(), starts_of(VOCAB_SIZE)
    wanted, own, tried, most = model.generate(starts, 6), Reader.written, [], 1

    def written(self, ids_BL, n, ends):
        tried.append(len(ids_BL))
        if len(ids_BL) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return own(self, ids_BL, n, ends)

    monkeypatch.setattr(Reader, "written", written)
    assert model.generate(starts, 6) == wanted
    assert tried == [3, 1, 2, 1, 1]
    most = 0
    with pytest.raises(OutOfMemory) as caught:
        model.generate(starts, 6)
    assert caught.value.n_read == 36


@pytest.mark.parametrize("name", ["rope", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hope", "t5"))])
def test_an_answer_is_right_where_the_model_writes_it_and_only_there(name):
    """Teacher-forced likeliest tokens are as good as writing, within the window and beyond it."""
    model = load(f"zoo:{name}", device="cpu")
    vocabulary = Vocabulary(model.tokenizer, 0)
    seen = []
    for text in ("associative_recall:n_questions=4", "rule_induction", "passkey", "copy_distance:n_string=8"):
        for length in (150, 400):
            prompt = parse_task(text).prompt(vocabulary, length, generator(text, length))
            for question, score in zip(prompt.questions, *model.score_prompts([prompt]), strict=True):
                target = [int(token) for token in question.target]
                (written,) = model.generate([[*prompt.context, *question.query]], len(target))
                assert score.greedy_hits.all() == (written == target)
                seen.append(written == target)
    assert 0 < np.mean(seen) < 1, "some are right and some are wrong"


def test_an_answer_of_a_tiny_llama_is_right_where_it_writes_it_and_only_there():
    model = tiny_model()
    for start in starts_of(VOCAB_SIZE):
        target = greedy(model.module, start, 6)
        for at in (None, 0, 3, 5):
            wanted = [token if number != at else token + 1 for number, token in enumerate(target)]
            prompt = Prompt(start[:20], (Question(start[20:], wanted),))
            assert model.score_prompts([prompt])[0][0].greedy_hits.all() == (at is None)
            assert (model.generate([start], 6) == [wanted]) == (at is None)


def test_the_fingerprint_of_a_tokenizer_is_that_of_what_it_does_to_texts():
    def fingerprint(padded: bool, read: bool) -> str:
        model = tiny_model()
        if padded:
            model.tokenizer.backend_tokenizer.enable_truncation(8)
            model.tokenizer.backend_tokenizer.enable_padding()
        if read:
            model.encode(["a text of more than eight tokens"])
        return model.tokenizer_fingerprint

    assert len({fingerprint(padded, read) for padded in (False, True) for read in (False, True)}) == 1
