"""Every protocol against a computation that follows its definition one token at a time, in float64."""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from unittest import mock

import asking
import numpy as np
import pytest
import torch
from conftest import VOCAB_SIZE, Uniform, byte_tokenizer, story, tiny_model, tiny_module
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hope_eval.analysis.perplexity import other_table, table, tokens_of
from hope_eval.analysis.rows import by_seed
from hope_eval.data.corpora import Corpus, Document, load_corpus
from hope_eval.errors import CorpusError, LengthError, OptionError, StoreError
from hope_eval.evaluation.documents import _heads, choose
from hope_eval.model.scoring import LanguageModel
from hope_eval.protocols import Window, merge, protocol_class, protocol_named, protocol_names
from hope_eval.show.tables import clean

TEXTS = [story(8, 100 * number) for number in range(3)]
CORPUS = Corpus("stories", tuple(Document(f"d{i}", text) for i, text in enumerate(TEXTS)), "f" * 16)


def ids_of(text: str) -> list[int]:
    return list(byte_tokenizer()(text)["input_ids"])


def slow_nll(module, context: list[int], target: int) -> float:
    """Return the nll of one token given exactly `context`, from one forward of its own, in float64."""
    with torch.no_grad():
        logits = module(torch.tensor([context])).logits[0, -1].double()
    return float(-torch.log_softmax(logits, -1)[target])


def measured(protocol, lengths, tmp_path, model=None, **options):
    tokens = asking.read(model or tiny_model(), CORPUS, protocol, lengths, tmp_path, **options)
    return {(row["length"], row["metric"]): row for row in table([tokens]).rows}, tokens


def test_prefix_is_the_definition(tmp_path):
    """YaRN: read B, x_1..x_{L-1}, score all of them, mean over documents of document means."""
    lengths = [16, 40, 100]
    model = tiny_model()
    slow = model.module.double()
    wanted = {}
    for length in lengths:
        means = []
        for text in TEXTS:
            ids = [0, *ids_of(text)][:length]
            means.append(np.mean([slow_nll(slow, ids[:t], ids[t]) for t in range(1, length)]))
        wanted[length] = np.mean(means)
    rows, _ = measured(protocol_named("prefix"), lengths, tmp_path)
    for length in lengths:
        assert rows[length, "nll"]["value"] == pytest.approx(wanted[length], rel=1e-5)
        assert rows[length, "perplexity"]["value"] == pytest.approx(math.exp(wanted[length]), rel=1e-5)
        assert rows[length, "nll"]["n_tokens"] == 3 * (length - 1)


def test_sliding_with_stride_one_is_the_definition(tmp_path):
    """ALiBi: every token but those of the first window is predicted from exactly L - 1 tokens before it."""
    slow = tiny_model().module.double()
    length, span = 20, 60
    values = []
    for text in TEXTS:
        ids = ids_of(text)[:span]
        for t in range(span):
            # The window [B, x_{t-L+3} .. x_t]: L tokens with x_t itself, which is read but not needed.
            start = max(0, t - (length - 1) + 1)
            values.append(slow_nll(slow, [0, *ids[start:t]], ids[t]))
    rows, _ = measured(protocol_named("sliding", stride=1, tokens=span), [length], tmp_path)
    assert rows[length, "nll"]["value"] == pytest.approx(np.mean(values), rel=1e-5)
    assert rows[length, "nll"]["n_tokens"] == 3 * span


@pytest.mark.parametrize("weighting", ["token", "window"])
def test_sliding_with_a_longer_stride_is_the_definition(weighting, tmp_path):
    slow = tiny_model().module.double()
    length, stride, span = 30, 11, 90
    tokens, windows = [], []
    for text in TEXTS:
        ids = ids_of(text)[:span]
        done, start = 0, 0
        while done < span:
            stop = min(start + length - 1, span)
            window = [slow_nll(slow, [0, *ids[start:t]], ids[t]) for t in range(done, stop)]
            tokens += window
            windows.append(np.mean(window))
            done, start = stop, start + stride
    rows, _ = measured(protocol_named("sliding", stride=stride, tokens=span, weighting=weighting), [length], tmp_path)
    wanted = np.mean(tokens) if weighting == "token" else np.mean(windows)
    assert rows[length, "nll"]["value"] == pytest.approx(wanted, rel=1e-5)


def test_windows_score_the_same_tokens_at_every_length(tmp_path):
    slow = tiny_model().module.double()
    rows, _ = measured(protocol_named("windows"), [16, 64], tmp_path)
    for length in (16, 64):
        values = []
        for text in TEXTS:
            ids = ids_of(text)[:63]
            values += [slow_nll(slow, [0, *ids[t // (length - 1) * (length - 1) : t]], ids[t]) for t in range(63)]
        assert rows[length, "nll"]["value"] == pytest.approx(np.mean(values), rel=1e-5)
        assert rows[length, "nll"]["n_tokens"] == 3 * 63


def test_bucket_and_last_k_are_slices_of_one_read(tmp_path):
    slow = tiny_model().module.double()
    nll = [[slow_nll(slow, [0, *ids[:t]], ids[t]) for t in range(127)] for ids in map(ids_of, TEXTS)]
    rows, _ = measured(protocol_named("bucket"), [128], tmp_path)
    # x_t with 32 <= t < 64 and 64 <= t < 128; t counts from 1.
    for low, high in ((32, 64), (64, 128)):
        wanted = np.mean([np.mean(values[low - 1 : high - 1]) for values in nll])
        assert rows[high, "nll"]["value"] == pytest.approx(wanted, rel=1e-5)
    rows, _ = measured(protocol_named("last-k", k=10), [32, 128], tmp_path)
    for length in (32, 128):
        wanted = np.mean([np.mean(values[length - 11 : length - 1]) for values in nll])
        assert rows[length, "nll"]["value"] == pytest.approx(wanted, rel=1e-5)


def test_paired_scores_the_same_tokens_with_more_and_more_context(tmp_path):
    slow = tiny_model().module.double()
    k, longest = 8, 300 - 8 - 1
    rows, _ = measured(protocol_named("paired", k=k), [9, 100, 300], tmp_path)
    # 9 tokens have no room for the block and its shortest context.
    reads = [12, 25, 50, 100, 300]
    assert sorted({length for length, _ in rows}) == reads
    gains = {}
    for context in (read - k - 1 for read in reads):
        means = []
        for text in TEXTS:
            ids = ids_of(text)
            means.append(
                np.mean([slow_nll(slow, [0, *ids[longest - context : t]], ids[t]) for t in range(longest, longest + k)])
            )
        row = rows[context + k + 1, "nll"]
        assert row["value"] == pytest.approx(np.mean(means), rel=1e-5)
        gains[context] = rows[12, "nll"]["value"] - row["value"]
        assert rows[context + k + 1, "context_gain"]["value"] == pytest.approx(gains[context], abs=1e-9)


@pytest.mark.parametrize(("train_length", "k"), [(256, 64), (64, 16), (2000, 256), (1 << 17, 256), (None, 256), (3, 1)])
def test_the_block_of_paired_is_a_quarter_of_the_training_length_and_begins_inside_it(train_length, k):
    trained = train_length or 4 * k
    for prefixed in (True, False):
        protocol = replace(protocol_named("paired"), prefixed=prefixed).fitted(train_length)
        assert protocol.k == k
        cells = protocol.cells([4 * trained])
        assert cells[0].length <= trained
        assert cells[-1].length == 4 * trained
        for cell in cells:
            (window,) = cell.windows(10**6)
            assert (window.n_read, window.n_scored) == (cell.length, k)
            assert cell.protocol == f"paired:c={cell.length - k},k={k},at={window.scored_start}"
    assert protocol_named("paired", k=100, shortest=30).fitted(train_length).parameters()["k"] == 100


def test_a_run_of_an_older_paired_is_refused_with_a_remedy(tmp_path):
    _, tokens = measured(protocol_named("paired"), [64], tmp_path)
    identity = tokens.header["identity"]
    assert (identity["protocol_version"], identity["parameters"]["k"]) == (2, 16)
    del identity["protocol_version"]
    with pytest.raises(StoreError, match="version 1 of the protocol `paired`") as caught:
        table([tokens])
    assert "--protocol paired" in caught.value.hint


def test_without_a_prefix_the_first_token_is_not_scored(tmp_path):
    slow = tiny_model().module.double()
    values = []
    for text in TEXTS:
        ids = ids_of(text)[:32]
        values.append(np.mean([slow_nll(slow, ids[:t], ids[t]) for t in range(1, 32)]))
    rows, _ = measured(protocol_named("prefix"), [32], tmp_path, prefix="none")
    assert rows[32, "nll"]["value"] == pytest.approx(np.mean(values), rel=1e-5)
    assert rows[32, "nll"]["n_tokens"] == 3 * 31
    assert rows[32, "nll"]["prefix_token"] is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("length", [16, 50, 4096])
def test_rolling_agrees_with_lm_eval(length, tmp_path):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = tiny_model()
    peer = HFLM(pretrained=model.module, tokenizer=byte_tokenizer(), max_length=length, batch_size=1, device="cpu")
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(TEXTS)]
    peers = peer.loglikelihood_rolling(requests, disable_tqdm=True)
    rows, _ = measured(protocol_named("rolling"), [length], tmp_path, prefix="eos")
    words = sum(len(__import__("re").split(r"\s+", text)) for text in TEXTS)
    n_bytes = sum(len(text.encode()) for text in TEXTS)
    assert rows[length, "word_perplexity"]["value"] == pytest.approx(math.exp(-sum(peers) / words), rel=1e-4)
    assert rows[length, "byte_perplexity"]["value"] == pytest.approx(math.exp(-sum(peers) / n_bytes), rel=1e-4)
    assert rows[length, "bits_per_byte"]["value"] == pytest.approx(-sum(peers) / n_bytes / math.log(2), rel=1e-4)


@pytest.mark.parametrize("name", protocol_names())
def test_a_uniform_model_has_the_vocabulary_as_perplexity(name, tmp_path):
    model = LanguageModel("uniform", Uniform(), byte_tokenizer(), 64)
    parameters = {"k": 8} if name in ("last-k", "paired") else {"stride": 7} if name == "sliding" else {}
    rows, _ = measured(protocol_named(name, **parameters), [40, 128], tmp_path, model)
    assert rows
    for (_, metric), row in rows.items():
        assert row["status"] == "ok"
        if metric == "perplexity":
            assert row["value"] == pytest.approx(VOCAB_SIZE, rel=1e-5)
            assert row["low"] == pytest.approx(row["high"], rel=1e-9), "nothing varies"
    # log2(V) x tokens / bytes; a byte tokenizer has as many tokens as bytes, up to characters cut by the end.
    bits = [row["value"] for (_, metric), row in rows.items() if metric == "bits_per_byte"]
    assert bits == pytest.approx([math.log2(VOCAB_SIZE)] * len(bits), rel=0.15)


def test_bits_per_byte_is_bits_of_scored_tokens_over_their_bytes(tmp_path):
    model = LanguageModel("uniform", Uniform(), byte_tokenizer(), 64)
    rows, _ = measured(protocol_named("windows", tokens=0), [64], tmp_path, model)
    n_tokens = sum(len(ids_of(text)) for text in TEXTS)
    n_bytes = sum(len(text.encode()) for text in TEXTS)
    assert rows[64, "bits_per_byte"]["value"] == pytest.approx(math.log2(VOCAB_SIZE) * n_tokens / n_bytes, rel=1e-6)


def test_rolling_reads_as_many_tokens_as_lm_eval(tmp_path):
    model = LanguageModel("uniform", Uniform(), byte_tokenizer(), 64)
    model.module.calls.clear()
    measured(protocol_named("rolling"), [50], tmp_path, model)
    # The last token of a window is scored and not read, so every read is of exactly the length.
    n_windows = sum(-(-len(ids_of(text)) // 50) for text in TEXTS)
    assert model.module.calls == [(1, 50)] * n_windows


@pytest.mark.parametrize(("name", "n_forwards"), [("prefix", 1), ("bucket", 1), ("last-k", 1)])
def test_one_forward_a_document_serves_all_lengths_of_a_nested_safe_model(name, n_forwards, tmp_path):
    model = LanguageModel("uniform", Uniform(), byte_tokenizer(), 64)
    model.module.calls.clear()
    measured(protocol_named(name, **({"k": 8} if name == "last-k" else {})), [40, 64, 128], tmp_path, model)
    assert model.module.calls == [(1, 128)] * 3 * n_forwards


@pytest.mark.parametrize("name", ["prefix", "last-k"])
def test_a_model_that_changes_with_the_length_gets_a_forward_for_each(name, tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model = tiny_model(rope_parameters=rope)
    lengths = [32, 64, 128, 256]
    rows, _ = measured(protocol_named(name, **({"k": 8} if name == "last-k" else {})), lengths, tmp_path, model)
    for length in lengths:
        values = []
        for text in TEXTS:
            ids = [0, *ids_of(text)][:length]
            # Dynamic NTK remembers longer inputs; a fresh model does not.
            with torch.no_grad():
                logits = tiny_module(rope_parameters=rope)(torch.tensor([ids])).logits[0].double()
            nll = -torch.log_softmax(logits, -1)[:-1].gather(-1, torch.tensor(ids)[1:, None])[:, 0].numpy()
            values.append(nll.mean() if name == "prefix" else nll[-8:].mean())
        assert rows[length, "nll"]["value"] == pytest.approx(np.mean(values), rel=1e-5)


def test_one_forward_equals_one_for_each_length(tmp_path):
    together, _ = measured(protocol_named("prefix"), [16, 64, 256], tmp_path)
    for length in (16, 64, 256):
        alone, _ = measured(protocol_named("prefix"), [length], tmp_path)
        assert together[length, "nll"]["value"] == pytest.approx(alone[length, "nll"]["value"], rel=1e-6)


@pytest.mark.parametrize("name", ["bucket", "last-k"])
def test_another_protocol_is_filled_from_stored_tokens(name, tmp_path):
    _, tokens = measured(protocol_named("prefix"), [128, 256], tmp_path / "one")
    parameters = {"k": 8} if name == "last-k" else {}
    wanted, _ = measured(protocol_named(name, **parameters), [128, 256], tmp_path / "two")
    found = {
        (r["length"], r["metric"]): r
        for r in other_table([tokens_of(tokens.store.path)], name, parameters, None, None).rows
    }
    assert found.keys() == wanted.keys()
    for key, row in found.items():
        assert row["value"] == pytest.approx(wanted[key]["value"], rel=1e-6)
        assert row["protocol"] == wanted[key]["protocol"]


def test_what_a_run_does_not_hold_is_not_derived(tmp_path):
    _, tokens = measured(protocol_named("prefix"), [128], tmp_path)
    for name, parameters, lengths in (
        ("sliding", {"stride": 50, "tokens": 200}, None),
        ("prefix", {}, [256]),
        ("rolling", {"tokens": 200}, None),
    ):
        with pytest.raises(StoreError, match="does not hold"):
            other_table([tokens_of(tokens.store.path)], name, parameters, lengths, None)
    rows = {r["length"] for r in other_table([tokens_of(tokens.store.path)], None, {}, [32, 64], None).rows}
    assert rows == {32, 64}, "shorter lengths of a nested-safe model are there"


def test_shorter_lengths_of_a_model_that_changes_with_the_length_are_not_derived(tmp_path):
    model = tiny_model(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0})
    _, tokens = measured(protocol_named("prefix"), [128], tmp_path, model)
    with pytest.raises(StoreError, match="does not hold"):
        other_table([tokens_of(tokens.store.path)], None, {}, [64], None)


def test_the_first_documents_do_not_depend_on_how_many_are_drawn(tmp_path):
    model = tiny_model()
    all_three = [document.id for document in choose(model, CORPUS, 10, None).documents]
    assert [document.id for document in choose(model, CORPUS, 10, 2).documents] == all_three[:2]
    orders = {tuple(d.id for d in choose(model, CORPUS, 10, None, seed=seed).documents) for seed in range(10)}
    assert len(orders) > 1


def test_short_documents_are_counted_and_left_out(stories, tmp_path):
    model = tiny_model()
    corpus = load_corpus(str(stories))
    chosen = choose(model, corpus, 100, None)
    assert (len(chosen.documents), chosen.n_short) == (3, 1)
    with pytest.raises(CorpusError, match=r"0 of the 4 documents .* have 99,999 tokens, .* the longest has 3,\d\d\d"):
        choose(model, corpus, 99_999, None)
    with pytest.raises(CorpusError, match="and 4 must"):
        choose(model, corpus, 100, None, minimum=4)


def trained(kind: str, text: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of a common make, trained on a text."""
    model, split, decoder = {
        "GPT-2": (models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
        "Llama 2": (models.BPE(unk_token="<unk>", fuse_unk=True), None, None),
        "Gemma": (models.BPE(unk_token="<unk>"), pre_tokenizers.Split(" ", "merged_with_previous"), None),
        "digits from the right": (
            models.BPE(),
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(r"(?=(\d{3})+(?!\d))"), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
                ]
            ),
            decoders.ByteLevel(),
        ),
        "T5": (models.Unigram(), pre_tokenizers.Metaspace(), decoders.Metaspace()),
        "BERT": (models.WordPiece(unk_token="<unk>"), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()),
    }[kind]
    trainer = {models.BPE: trainers.BpeTrainer, models.Unigram: trainers.UnigramTrainer,
               models.WordPiece: trainers.WordPieceTrainer}[type(model)]  # fmt: skip
    tokenizer = Tokenizer(model)
    if kind == "Llama 2":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    if split is not None:
        tokenizer.pre_tokenizer = split
    more = {"unk_token": "<unk>"} if kind == "T5" else {}
    # Llama 2's makes pieces of whole texts, of which training takes forever.
    lines = text.split(" ") if kind == "Llama 2" else text.splitlines(keepends=True)
    tokenizer.train_from_iterator(lines, trainer(vocab_size=600, special_tokens=["<unk>"], show_progress=False, **more))
    if decoder is not None:
        tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("kind", ["GPT-2", "digits from the right", "Llama 2", "Gemma", "T5", "BERT"])
def test_the_first_tokens_of_a_long_text_are_those_that_all_of_it_begins_with(kind):
    """Also where it is cut within blanks, or within nothing but letters, and where four times as much is needed."""
    blanks = "word" + " " * 3000
    lines = "def f(x):\n" + "    " * 700 + "return x\n\n\n" + "x" * 2500
    words = Path(argparse.__file__).read_text()
    texts = [
        (words[:30_000] + blanks) * 2,
        blanks * 12,
        (lines + "\n") * 10,
        "a\u00e9\u4e16\U0001f600 " * 4000,
        "\u4e16\u754c\u3002" * 6000,
        "some words " * 30 + "8" * 10_000 + " and" * 1000,
        " " * 15_000,
        TEXTS[0],
        "",
    ]
    model = tiny_model()
    model.tokenizer = trained(kind, words[:30_000] + "\n8 88 888\n" * 500)
    whole = model.encode(texts)
    for n in (1, 300, 3000):
        read = []

        def encode(some, read=read):
            read.extend(some)
            return LanguageModel.encode(model, some)

        with mock.patch.object(model, "encode", encode):
            heads = _heads(model, texts, n)
        for (ids, sizes), (all_ids, all_sizes) in zip(heads, whole, strict=True):
            np.testing.assert_array_equal(ids, all_ids[:n])
            np.testing.assert_array_equal(sizes, all_sizes[:n])
        if n == 1:
            assert sorted(map(len, read))[-4] < 40_000, "but for those that cannot be cut"


@pytest.mark.parametrize(("name", "parameters"), [
    ("rolling", {}), ("rolling", {"tokens": 100}), ("windows", {"tokens": 0}), ("sliding", {"tokens": 0, "stride": 32}),
])  # fmt: skip
def test_what_reads_to_the_end_is_not_made_of_the_first_tokens(name, parameters, tmp_path):
    """Nor is word perplexity; what reads no further is."""
    _, tokens = measured(protocol_named("prefix"), [128], tmp_path)
    lengths = [128] if name != "sliding" else [64, 128]
    read = [tokens_of(tokens.store.path)], name, parameters, lengths, None
    if parameters.get("tokens"):
        rows = other_table(*read).rows
        assert {row["metric"] for row in rows} == {"perplexity", "nll", "bits_per_byte"}
        return
    with pytest.raises(
        StoreError, match=r"does not hold what `.*` reads: `d\d` to its end; 127 of its tokens were read"
    ):
        other_table(*read)


def test_a_tokenizer_that_tells_no_bytes_reads_texts_once_and_whole():
    model, read = tiny_model(), []

    class Slow:
        def encode(self, text, **_):
            read.append(text)
            return ids_of(text)

    model.tokenizer = Slow()
    chosen = choose(model, CORPUS, 10, None, whole=False).documents
    assert len(read) == 3
    assert all(document.whole and len(document.ids) > 10 for document in chosen)
    assert {document.n_bytes for document in chosen} == {len(text.encode()) for text in TEXTS}


def test_whole_documents_and_their_first_tokens_make_the_same_choice():
    model = tiny_model()
    whole, first = (choose(model, CORPUS, 10, 2, whole=w).documents for w in (True, False))
    assert [d.id for d in first] == [d.id for d in whole]
    for one, other in zip(first, whole, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids[:10])
        np.testing.assert_array_equal(one.bytes, other.bytes[:10])
        assert (one.n_bytes, len(other.ids) > 10) == (int(one.bytes.sum()), True)
        assert 1 <= one.n_words < other.n_words


@pytest.mark.parametrize("name", protocol_names())
def test_protocols_that_read_documents_to_their_end_say_so(name):
    """All others find the same windows, however much more there is."""
    for parameters in [{}, *([{"tokens": 0}, {"tokens": 70}] if hasattr(protocol_class(name), "tokens") else [])]:
        protocol = protocol_named(name, **parameters) if parameters else protocol_named(name)
        lengths = [300, 600]
        needed = protocol.document_tokens(lengths)
        differ = any(cell.windows(needed) != cell.windows(needed + 5000) for cell in protocol.cells(lengths))
        assert not differ or protocol.reads_whole(lengths)
        assert protocol.reads_whole(lengths) == (differ or name == "rolling")


class Spoils(Uniform):
    """A model in which a NaN reaches back: all predictions of a read of more than so many tokens are NaN."""

    longest, n_reads = 50, 0

    def forward(self, ids_BL):
        self.n_reads += len(ids_BL)
        out = super().forward(ids_BL)
        logits = out.logits if hasattr(out, "logits") else out
        if ids_BL.shape[1] > self.longest:
            logits[:] = float("nan")
        return out


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_nan_in_a_long_read_leaves_shorter_lengths_alone(is_killed, tmp_path):
    def model():
        return LanguageModel("spoils", Spoils(), byte_tokenizer(), 64, "a test")

    def die(done, total):
        if done:
            raise KeyboardInterrupt

    if is_killed:
        with pytest.raises(KeyboardInterrupt):
            measured(protocol_named("prefix"), [16, 32, 64, 100], tmp_path, model(), report=die)
    rows, _ = measured(protocol_named("prefix"), [16, 32, 64, 100], tmp_path, model())
    assert [rows[length, "perplexity"]["status"] for length in (16, 32, 64, 100)] == ["ok", "ok", "nan", "nan"]
    assert rows[32, "perplexity"]["value"] == pytest.approx(VOCAB_SIZE)
    again = model()
    n_reads = again.module.n_reads
    _, same = measured(protocol_named("prefix"), [16, 32, 64, 100], tmp_path, again)
    assert again.module.n_reads == n_reads, "nothing is left to read"
    # The longest first, each document once at each length that was spoilt.
    windows = [record["window"][1] for record in same.store.records if record["kind"] == "window"]
    assert windows == sorted(windows, reverse=True)
    assert len(windows) == 3 * len(TEXTS)


def test_nan_marks_the_cells_that_contain_it_and_no_other(tmp_path):
    class Broken(Uniform):
        def forward(self, ids_BL):
            logits = super().forward(ids_BL)
            logits[:, 50:] = float("nan")
            return logits

    model = LanguageModel("broken", Broken(), byte_tokenizer(), 64)
    rows, _ = measured(protocol_named("prefix"), [32, 50, 64], tmp_path, model)
    assert [rows[length, "perplexity"]["status"] for length in (32, 50, 64)] == ["ok", "ok", "nan"]
    assert math.isnan(rows[64, "perplexity"]["value"])


def test_what_does_not_fit_into_memory_is_marked_and_the_rest_goes_on(tmp_path):
    class Narrow(Uniform):
        limit = 100

        def forward(self, ids_BL):
            if ids_BL.shape[1] > self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 62 GiB.")
            return super().forward(ids_BL)

    model = LanguageModel("narrow", Narrow(), byte_tokenizer(), 64)
    rows, tokens = measured(protocol_named("prefix"), [32, 64, 128, 256], tmp_path, model)
    assert [rows[n, "perplexity"]["status"] for n in (32, 64, 128, 256)] == ["ok", "ok", "oom", "oom"]
    assert any("could not read" in note for note in table([tokens]).notes)
    # With more memory, the same run is completed.
    Narrow.limit = 1000
    rows, _ = measured(protocol_named("prefix"), [32, 64, 128, 256], tmp_path, model)
    assert [rows[n, "perplexity"]["status"] for n in (32, 64, 128, 256)] == ["ok"] * 4


def test_a_length_beyond_a_learned_table_is_an_error_before_anything_is_written(tmp_path):
    model = tiny_model()
    model.max_length = 64
    with pytest.raises(LengthError, match="table of 64 positions"):
        measured(protocol_named("prefix"), [65, 80], tmp_path, model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["prefix", "bucket"])
def test_what_lies_beyond_a_learned_table_is_a_hole_beside_what_does_not(name, tmp_path):
    model = tiny_model()
    model.max_length = 64
    rows, tokens = measured(protocol_named(name), [64, 256], tmp_path, model)
    assert {length: rows[length, "nll"]["status"] for length, _ in rows} == {
        length: "ok" if length <= 64 else "-" for length, _ in rows
    }
    assert any("table of 64 positions" in note for note in table([tokens]).notes)
    whole, _ = measured(protocol_named(name), [64, 256], tmp_path / "whole", tiny_model())
    assert rows[64, "nll"]["value"] == pytest.approx(whole[64, "nll"]["value"], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("sliding", {"stride": 0}, "at least 1"),
        ("prefix", {"stride": 3}, "has no parameter `stride`"),
        ("prefixx", {}, "no protocol is called"),
    ],
)
def test_bad_protocols_are_errors(name, parameters, message):
    with pytest.raises(OptionError, match=message):
        protocol_named(name, **parameters).cells([64])


@pytest.mark.parametrize(("name", "shortest"), [("last-k", 256), ("sliding", 256), ("bucket", 33), ("paired", 300)])
def test_lengths_too_short_for_a_protocol_are_errors(name, shortest):
    with pytest.raises(LengthError, match=f"`{name}` needs lengths of at least"):
        protocol_named(name).cells([shortest])


def windows_of(name, length, n_tokens, prefixed, stride):
    parameters = {"stride": stride} if name == "sliding" else {}
    (cell,) = protocol_named(name, prefixed=prefixed, tokens=0, **parameters).cells([length])
    return cell.windows(n_tokens)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_windows_score_each_token_once_and_never_overflow(data):
    name = data.draw(st.sampled_from(["windows", "sliding", "rolling"]))
    prefixed = True if name == "rolling" else data.draw(st.booleans())
    stride = data.draw(st.integers(1, 40))
    length = data.draw(st.integers(stride + 1, 64)) if name == "sliding" else data.draw(st.integers(2, 64))
    n_tokens = data.draw(st.integers(2, 300))
    windows = windows_of(name, length, n_tokens, prefixed, stride)
    scored = [t for window in windows for t in range(window.scored_start, window.scored_stop)]
    assert scored == list(range(0 if prefixed else 1, n_tokens))
    # lm-eval's later windows read one token of the window before beside the full length.
    assert all(window.n_read <= length for window in windows)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(0, 40), st.integers(1, 40), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.booleans(),
)
def test_merged_windows_cover_all_windows(values, nested_safe):
    windows = []
    for start, n_read, skipped, n_scored, prefixed in values:
        stop = start + n_read
        first = start + (not prefixed)
        scored_start = min(first + skipped, stop)
        windows.append(Window(start, stop, scored_start, min(scored_start + n_scored, stop + 1), prefixed))
    merged = merge(windows, nested_safe)
    assert len(merged) <= len(windows)
    for window in windows:
        assert any(read.covers(window, nested_safe) for read in merged)


def test_rows_are_json(tmp_path):
    rows, _ = measured(protocol_named("prefix"), [32], tmp_path)
    for row in rows.values():
        json.dumps(clean([row]))
        assert row["low"] <= row["value"] <= row["high"]
        assert row["protocol"] == "ppl@prefix:L=32"
        assert row["extrapolation"] == 0.5


def test_seeds_make_one_line_their_mean_and_an_interval_over_both(tmp_path):
    stores, apart = [], []
    for seed in range(3):
        model = tiny_model(seed=seed)
        model.name = f"hope-{seed}"
        rows, tokens = measured(protocol_named("bucket"), [256], tmp_path, model)
        stores.append(tokens)
        apart.append(rows[64, "nll"])
    other = tiny_model(seed=4)
    other.name = "rope-0"
    stores.append(measured(protocol_named("bucket"), [256], tmp_path, other)[1])
    groups = by_seed(stores)
    assert [len(group) for group in groups] == [3, 1]
    pooled = table(groups[0])
    (row,) = [row for row in pooled.rows if (row["length"], row["metric"]) == (64, "nll")]
    assert (row["model"], row["n_seeds"]) == ("hope (3 seeds)", 3)
    assert row["value"] == pytest.approx(np.mean([one["value"] for one in apart]))
    assert row["low"] < row["value"] < row["high"]
    assert row["high"] - row["low"] > 0.9 * np.mean([one["high"] - one["low"] for one in apart])
    assert any("3 training seeds" in note for note in pooled.notes)
    fewer = measured(protocol_named("bucket"), [256], tmp_path / "fewer", tiny_model(), n_documents=2)[1]
    with pytest.raises(StoreError, match="read different documents"):
        table([stores[0], fewer])


def test_the_choice_of_documents_is_remembered_for_the_same_texts_only():
    model = tiny_model()
    other = Corpus("other", tuple(Document(f"d{n}", text + "more") for n, text in enumerate(TEXTS)), "other")
    first = choose(model, CORPUS, 10, 2)
    assert choose(model, CORPUS, 10, 2) is first
    assert choose(model, other, 10, 2) is not first
    assert len(choose(model, CORPUS, 10, 3).documents) == 3
    assert len(choose(model, CORPUS, 10, 2, seed=1).documents) == 2
