"""What prompts are made of: pieces of text, chat templates, words, and haystacks with places in them."""

import re
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from conftest import byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hope_eval import zoo
from hope_eval.data.labelled import LabelledTexts
from hope_eval.data.vocabulary import PROSE, Haystack, Vocabulary, lay_out
from hope_eval.errors import OptionError, TaskError
from hope_eval.task import generator, task_class

TURNS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[end]{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}[assistant]{% endif %}"

# A tokenizer with template, and what the template begins with.
CHATS = [("", False), ("", True), ("<s>", False), ("<s>", True)]


def chat_tokenizer(bos, adds_bos):
    """Return a byte tokenizer with a chat template.

    bos:      what the template begins with.
    adds_bos: whether the tokenizer puts BOS before a text by itself.
    """
    tokenizer = byte_tokenizer()
    if adds_bos:
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    tokenizer.chat_template = bos + TEMPLATE
    return tokenizer


def metaspace_tokenizer(words=("word", "other", "end"), breaks=1):
    """Return a tokenizer that puts a space before everything, as Llama 2 does; line breaks are bytes.

    breaks: so many line breaks in a row are a token too.
    """
    pieces = [("<unk>", 0.0), *[(f"<0x{byte:02X}>", -20.0) for byte in range(256)], ("▁", -3.0)]
    pieces += [(f"▁{word}", -1.0) for word in words] + [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz.:,"]
    pieces += [("\n" * n, -1.0) for n in range(2, breaks + 1)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(zoo.folder("zoo:hope"), local_files_only=True)


@pytest.fixture(scope="module")
def texts():
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [(folder / name).read_text("utf-8") for name in ("heapq.py", "bisect.py", "textwrap.py", "shlex.py")]


# Chat templates


@pytest.mark.parametrize(("bos", "adds_bos"), CHATS)
@pytest.mark.parametrize("name", ["passkey", "needle", "variable_tracking", "recency_decoy"])
def test_a_chat_prompt_is_in_the_template_once_and_has_one_bos(name, bos, adds_bos):
    tokenizer = chat_tokenizer(bos, adds_bos)
    vocabulary = Vocabulary(tokenizer, 0, chat=True)
    prompt = task_class(name)().prompt(vocabulary, 2500, generator(name))
    for question in prompt.questions:
        ids = [*prompt.context, *question.query]
        assert len(ids) + max(map(len, question.answers)) <= 2500
        assert ids.count(0) == (1 if bos or adds_bos else 0)
        assert 0 not in ids[1:]
        read = vocabulary.text(ids).removeprefix("<s>")
        match = re.fullmatch(r"\[user\](.*)\[end\]\[assistant\](.*)", read, re.DOTALL)
        asked, lead = match[1], match[2]
        # What a tokenizer makes of the template with all of it inside is the same.
        turns = [{"role": "user", "content": asked}]
        whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + lead
        assert whole.removeprefix("<s>") == read
        assert tokenizer.encode(whole.removeprefix("<s>"), add_special_tokens=False) == [t for t in ids if t != 0]
        # The question ends the turn of the user, and the answer has begun.
        assert re.search(r"\n[A-Z][^\n]*[.?]$", asked)
        assert re.search(r"pass key|(?:first|last) one|the word|number in box", asked.splitlines()[-1])
        assert re.match(r"The [^\n]* (?:is|are)$", lead)
        assert not set(re.findall(r"\[\w+\]", asked))


@pytest.mark.parametrize("name", ["label_map", "rule_induction", "instruction_at_distance"])
def test_a_few_shot_chat_has_its_shots_in_one_turn_and_answers_in_another(name, tokenizer):
    copy = AutoTokenizer.from_pretrained(zoo.folder("zoo:hope"), local_files_only=True)
    copy.chat_template = "<s>" + TEMPLATE if copy.bos_token == "<s>" else TEMPLATE
    vocabulary = Vocabulary(copy, copy.bos_token_id, chat=True)
    task = task_class(name)()
    for length in (300, 601):
        prompt = task.prompt(vocabulary, length, generator(name))
        assert len(prompt.context) + max(map(len, prompt.questions)) + task.n_new == length
        assert list(prompt.context).count(copy.bos_token_id) == 1
        for question in prompt.questions:
            read = vocabulary.text([*prompt.context, *question.query])
            assert read.count("[user]") == read.count("[end]") == read.count("[assistant]") == 1
            assert read.endswith("[end][assistant]")
            asked = read.partition("[user]")[2].partition("[end]")[0]
            if name == "instruction_at_distance":
                assert asked.startswith("Instruction: ")
                assert "Answer:" not in asked
            else:
                assert re.match(r"(Label|Treat) the last \w+ as the others are ", asked)
                assert asked.endswith(" ->")
                shots = re.findall(r"(.*) -> (.*)\n", asked)
                assert len(shots) == question.meta["shots"] > 4


def test_without_a_chat_template_the_context_begins_with_the_prefix_token(tokenizer):
    for prefix, start in ((tokenizer.bos_token_id, [tokenizer.bos_token_id]), (None, [])):
        vocabulary = Vocabulary(tokenizer, prefix)
        assert vocabulary.start == start
        assert vocabulary.end == []
        prompt = task_class("passkey")().prompt(vocabulary, 300, generator(0))
        assert len(prompt.context) + len(prompt.questions[0]) == 300
        assert list(prompt.context).count(tokenizer.bos_token_id) == len(start)


def test_a_chat_without_a_template_and_a_template_without_the_user_are_errors():
    with pytest.raises(OptionError, match="no chat template") as caught:
        Vocabulary(byte_tokenizer(), 0, chat=True)
    assert "--plain" in caught.value.hint
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "[user]hello[end]"
    with pytest.raises(OptionError, match="leaves out the user's words"):
        Vocabulary(tokenizer, 0, chat=True)


# Pieces of text


def test_pieces_make_the_text_that_they_are_pieces_of():
    for tokenizer in (byte_tokenizer(), metaspace_tokenizer()):
        vocabulary = Vocabulary(tokenizer, None)
        pieces = ["word", " other", " end", "\n", "word", ".", "\n", " word"]
        ids = [token for piece in pieces for token in vocabulary.encode(piece)]
        first, before = vocabulary._anchors[0] if vocabulary._anchors else ("", [])
        assert vocabulary.text([*before, *ids]) == first + "".join(pieces)


def test_no_piece_gets_a_space_that_it_does_not_have():
    tokenizer = metaspace_tokenizer()
    # So it is: the tokenizer invents one.
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("word", add_special_tokens=False)) == ["▁word"]
    vocabulary = Vocabulary(tokenizer, None)

    def pieces(text):
        return tokenizer.convert_ids_to_tokens(vocabulary.encode(text))

    assert pieces(" word") == ["▁word"]
    assert pieces(" word other") == ["▁word", "▁other"]
    assert pieces("\n") == ["<0x0A>"]
    assert pieces("\n word") == ["<0x0A>", "▁word"]
    assert pieces("word") == ["w", "o", "r", "d"]
    assert pieces(".") == ["."]


def test_a_line_break_is_one_even_where_several_are_a_token():
    tokenizer = metaspace_tokenizer(breaks=3)
    vocabulary = Vocabulary(tokenizer, None)
    ids = [token for piece in (" word", "\n", " other") for token in vocabulary.encode(piece)]
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁word", "<0x0A>", "▁other"]


def test_a_piece_is_tokenized_once():
    class Counting:
        calls = 0

        def encode(self, text):
            self.calls += 1
            return list(text.encode())

    tokenizer = Counting()
    vocabulary = Vocabulary(tokenizer, None)
    assert vocabulary.encode("ab") == vocabulary.encode("ab") == [97, 98]
    assert tokenizer.calls == 1


def test_words_are_a_space_and_letters_and_the_first_stay_the_first(tokenizer):
    vocabulary = Vocabulary(tokenizer, None)
    words = vocabulary.words(768)
    assert len(set(words.tolist())) == 768
    assert np.array_equal(vocabulary.words(100), words[:100])
    assert all(re.fullmatch(" [A-Za-z]{2,}", vocabulary.text([word])) for word in words)
    assert [len(vocabulary.encode(vocabulary.text([word]))) for word in words[:50]] == [1] * 50
    assert len(Vocabulary(metaspace_tokenizer(), None).words(3)) == 3
    with pytest.raises(TaskError, match="needs 4 words of one token each, and the tokenizer has 3"):
        Vocabulary(metaspace_tokenizer(), None).words(4)


# Haystacks


@pytest.mark.parametrize("n", [0, 1, 5, 100, 1000])
def test_prose_is_whole_sentences_after_the_first(n, tokenizer):
    vocabulary = Vocabulary(tokenizer, None)
    haystack = vocabulary.haystack("prose", n, generator(n))
    assert len(haystack.ids) == n
    assert haystack.places[-1] == n
    assert np.all(np.diff(haystack.places) > 0)
    for low, high in zip(haystack.places[:-1], haystack.places[1:], strict=True):
        assert vocabulary.text(haystack.ids[low:high]).strip() in PROSE
    assert any(sentence.endswith(vocabulary.text(haystack.ids[: haystack.places[0]]).strip()) for sentence in PROSE)


def test_more_prose_of_a_key_is_the_same_with_more_before_it(tokenizer):
    vocabulary = Vocabulary(tokenizer, None)
    long, short = (vocabulary.haystack("prose", n, generator("one")).ids for n in (700, 123))
    assert np.array_equal(long[-123:], short)
    assert not np.array_equal(short, vocabulary.haystack("prose", 123, generator("two")).ids)


@pytest.mark.parametrize("is_fast", [True, False])
def test_text_is_cut_from_the_texts_at_a_line(is_fast, tokenizer, texts):
    class Slow:
        def encode(self, text):
            return tokenizer.encode(text, add_special_tokens=False)

        def decode(self, ids):
            return tokenizer.decode(ids)

    vocabulary = Vocabulary(tokenizer if is_fast else Slow(), None, texts=texts)
    whole = "".join(texts)
    for number in range(20):
        haystack = vocabulary.haystack("text", 150, generator(number))
        assert len(haystack.ids) == 150
        # It may end inside a character.
        read = vocabulary.text(haystack.ids).rstrip("\ufffd")
        assert "\n" + read.removeprefix("\n") in f"\n{whole}"
        assert haystack.places[0] == 0
        for place in haystack.places[1:]:
            # After the end of a line, or before a token that begins with it.
            before, after = (vocabulary.text(ids) for ids in (haystack.ids[:place], haystack.ids[place : place + 1]))
            assert before.endswith("\n") or after.startswith("\n")
        # A token may hold several breaks.
        assert len(haystack.places) >= 0.6 * read.count("\n")


def test_the_same_length_gets_the_same_text_whatever_was_asked_before(tokenizer, texts):
    def drawn(*lengths):
        vocabulary = Vocabulary(tokenizer, None, texts=texts * 8)
        return [vocabulary.haystack("text", n, generator("same")).ids.tolist() for n in lengths][-1]

    assert drawn(50) == drawn(4_000, 50) == drawn(50, 4_000, 3, 50)
    assert drawn(4_000) == drawn(50, 4_000) == drawn(4_000, 4_000)


def test_a_character_of_several_tokens_is_not_cut():
    vocabulary = Vocabulary(byte_tokenizer(), None, texts=["…one\n…two\n…three\n" * 30])
    haystack = vocabulary.haystack("text", 150, generator(0))
    for place in haystack.places:
        # The first byte of three, or the break before it; the last may be cut by the end of the stretch.
        if place + 3 <= len(haystack.ids):
            assert vocabulary.text(haystack.ids[place : place + 3]) in ("…", "\n\ufffd")


def test_texts_that_are_too_short_are_an_error(tokenizer):
    for texts in ([], ["a line\n"]):
        with pytest.raises(TaskError, match="haystack needs 100 tokens") as caught:
            Vocabulary(tokenizer, None, texts=texts).haystack("text", 100, generator(0))
        assert "--data" in caught.value.hint
    vocabulary = Vocabulary(tokenizer, None, texts=["a line of text\n" * 10])
    n = len(tokenizer.encode("a line of text\n" * 10, add_special_tokens=False))
    assert len(vocabulary.haystack("text", n, generator(0)).ids) == n
    with pytest.raises(TaskError):
        vocabulary.haystack("text", n + 1, generator(0))


def test_no_text_has_a_place_too(tokenizer, texts):
    haystack = Vocabulary(tokenizer, None, texts=texts).haystack("text", 0, generator(0))
    planted, starts = haystack.with_planted([[7, 8], [9]], [0.9, 0.1])
    assert planted.tolist() == [9, 7, 8]
    assert starts == [1, 0]


def test_another_haystack_is_an_error(tokenizer):
    with pytest.raises(TaskError, match="`tale` is not a kind of haystack"):
        Vocabulary(tokenizer, None).haystack("tale", 10, generator(0))


def test_needles_are_planted_at_the_nearest_places_in_their_order():
    haystack = Haystack(np.arange(100, 120), np.array([0, 5, 10, 20]))
    ids, starts = haystack.with_planted([[1, 1], [2], [3, 3, 3], [4]], [0.55, 0.0, 0.45, 1.0])
    # 0.45 and 0.55 are nearest to 10, of which the one that is to be earlier comes first.
    assert ids.tolist() == [2, *range(100, 110), 3, 3, 3, 1, 1, *range(110, 120), 4]
    assert starts == [14, 0, 11, 26]
    assert haystack.with_planted([], [])[0].tolist() == list(range(100, 120))


# Shots


def test_shots_are_laid_out_in_their_order_and_fill_the_room(tokenizer):
    vocabulary = Vocabulary(tokenizer, None)
    shots = [vocabulary.encode(f" shot {number}\n") for number in "abcd"]
    for placement in ("fill", "packed", "spread"):
        for room in (sum(map(len, shots)), sum(map(len, shots)) + 1, 60, 200):
            laid = lay_out(vocabulary, shots, room, placement, generator(0))
            assert len(laid) == room
            assert re.findall(r" shot (\w)\n", vocabulary.text(laid)) == list("abcd")
    with pytest.raises(TaskError, match="`over there` is not a placement"):
        lay_out(vocabulary, shots, 100, "over there", generator(0))


def test_the_fingerprint_of_examples_is_that_of_texts_and_labels():
    shown, asked = {"a": ["one", "two"], "b": ["three"]}, {"a": ["four"], "b": ["five"]}
    one = LabelledTexts("one", shown, asked).fingerprint
    assert re.fullmatch("[0-9a-f]{16}", one)
    assert LabelledTexts("other name", dict(reversed(shown.items())), asked).fingerprint == one
    for others in (
        (asked, shown),
        ({"a": ["one"], "b": ["two", "three"]}, asked),
        ({"a": ["onetwo"], "b": ["three"]}, asked),
        ({"a": ["two", "one"], "b": ["three"]}, asked),
        ({"a": ["one", "two"], "c": ["three"]}, {"a": ["four"], "c": ["five"]}),
    ):
        assert LabelledTexts("one", *others).fingerprint != one
