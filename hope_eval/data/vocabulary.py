"""Vocabulary: a tokenizer as tasks see it. All that a prompt is made of comes from here, as token ids.

    encode("…")   a piece of text, remembered
    words(n)      n words that are one token each
    asked(…)      a question, and the beginning of its answer, where a chat model's turn goes between them
    haystack(…)   generated sentences, or text of a corpus, with the places where something can be put into it
    examples      labelled texts that a user brought along

Prompts are put together from ids, so that a context is as long as asked for to the token, and nothing is tokenised
twice. What is put in never cuts a token.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hope_eval.errors import OptionError, TaskError

Ids = Sequence[int] | np.ndarray

# Stands for what a user says in a chat template, which is cut there.
_CONTENT = "\u27eacontent\u27eb"

# Tokens of text, beyond eight times what is asked for, that a haystack is cut from.
_VARIETY = 100_000

PROSE = (
    "The river runs past the old mill.",
    "The boats come home at noon.",
    "The hills are far away.",
    "A train leaves every hour.",
    "The market opens on Monday.",
    "Snow lies on the roofs.",
    "The children play in the yard.",
    "The lamp stands by the window.",
    "It rains in the valley.",
    "The baker sells bread and rolls.",
    "The road turns left at the church.",
    "The birds fly south in autumn.",
)


@dataclass(frozen=True)
class Examples:
    """Labelled texts: those to show, and those to ask for, which are never shown.

    shown, asked: texts of every label, by label.
    """

    name: str
    shown: Mapping[str, Sequence[str]]
    asked: Mapping[str, Sequence[str]]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all texts and labels, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for part in (self.shown, self.asked):
            for label in sorted(part):
                for text in (label, *part[label]):
                    digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
                digest.update(b"\1")
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Haystack:
    """Filler with places where something can be put into it.

    ids:    [N].
    places: where a sentence or line begins or ends, ascending; never the inside of one, never of a token.
    """

    ids: np.ndarray
    places: np.ndarray

    def with_planted(self, needles: Sequence[Ids], wanted: Sequence[float]) -> tuple[np.ndarray, list[int]]:
        """Return the ids with needles in them, and where each begins.

        wanted: the depth of each needle, from 0 (the beginning) to 1 (the end); it goes to the nearest place.
        """
        places = np.array([self.places[np.abs(self.places - depth * len(self.ids)).argmin()] for depth in wanted])
        # Of those at one place, the one that was to be earlier comes first.
        order = np.lexsort((np.asarray(wanted), places))
        parts: list[np.ndarray] = []
        starts = [0] * len(needles)
        done = grown = 0
        for which in order:
            place = int(places[which])
            parts += [self.ids[done:place], np.asarray(needles[which], np.int64)]
            starts[which] = place + grown
            done, grown = place, grown + len(needles[which])
        return np.concatenate([*parts, self.ids[done:]]).astype(np.int64), starts


class Vocabulary:
    """A tokenizer as tasks see it.

    tokenizer: of transformers, or anything with `encode(text) -> ids`.
    prefix:    the id that every context begins with (BOS, else EOS); None: nothing.
    chat:      whether prompts go into the tokenizer's chat template.
    texts:     documents that haystacks are cut from, in the order they are used.
    examples:  labelled texts.

    start: ids before the context, end: ids between a question and its answer (of a chat template; else none).

    Raises OptionError if there is no chat template where one is asked for.
    """

    def __init__(
        self,
        tokenizer: Any,
        prefix: int | None,
        chat: bool = False,
        texts: Sequence[str] = (),
        examples: Examples | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.texts = texts
        self.examples = examples
        self.chat = chat
        self._pieces: dict[str, list[int]] = {}
        self._streams: dict[int, tuple[np.ndarray, ...]] = {}
        self._tokenized: list[tuple[np.ndarray, ...]] = []
        self.start: list[int] = [] if prefix is None else [prefix]
        self.end: list[int] = []
        if chat:
            self.start, self.end = self._chat_parts()

    def _chat_parts(self) -> tuple[list[int], list[int]]:
        """Return the ids before and after what the user says, with one BOS at the most."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise OptionError("the tokenizer has no chat template", "--plain")
        turn = [{"role": "user", "content": _CONTENT}]
        text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        before, found, after = text.partition(_CONTENT)
        if not found:
            raise OptionError("the chat template does not repeat what a user says", "--plain")
        start, end = (self._plain(part) for part in (before, after))
        bos = getattr(self.tokenizer, "bos_token_id", None)
        own = list(self.tokenizer("x")["input_ids"])
        if bos is not None and own[:1] == [bos] and start[:1] != [bos]:
            start = [bos, *start]
        assert bos is None or start[:2] != [bos, bos], "BOS twice"
        return start, end

    def _plain(self, text: str) -> list[int]:
        try:
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        except TypeError:
            ids = self.tokenizer.encode(text)
        return list(ids)

    @cached_property
    def _anchors(self) -> list[tuple[str, list[int]]]:
        """What pieces are tokenised after, where the tokenizer puts a space before whatever it is given; else none."""
        tokens = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        invents = tokens is not None and str(tokens(self._plain("a")[:1])[0]).startswith("\u2581")
        return [(anchor, self._plain(anchor)) for anchor in ("\n", "a")] if invents else []

    def encode(self, text: str) -> list[int]:
        """Return the ids of a piece of text, without special tokens. Pieces are remembered: there should be few."""
        if text not in self._pieces:
            self._pieces[text] = self._encoded(text)
        return self._pieces[text]

    def _encoded(self, text: str) -> list[int]:
        for anchor, before in self._anchors:
            ids = self._plain(anchor + text)
            # Where they do not grow together.
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self._plain(text)

    def asked(self, question: str, lead: str) -> list[int]:
        """Return the ids of a question on a context.

        A chat model is asked in words, and its answer begins with `lead`; another is given `lead`, to go on with.
        """
        if self.chat:
            return [*self.encode("\n"), *self.encode(question), *self.end, *self.encode(lead)]
        return [*self.encode("\n"), *self.encode(f" {lead}")]

    def digits(self, number: Sequence[int] | np.ndarray) -> list[int]:
        """Return the ids of a number's digits, a space before each."""
        return [token for digit in number for token in self.encode(f" {int(digit)}")]

    def text(self, ids: Ids) -> str:
        """Return ids as text."""
        return str(self.tokenizer.decode([int(token) for token in ids]))

    @cached_property
    def _words(self) -> np.ndarray:
        tokens = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        if tokens is None:
            return np.zeros(0, np.int64)
        # Byte-level tokenizers write a space as Ġ, SentencePiece as ▁.
        return np.array(
            [
                number
                for number, text in enumerate(tokens(list(range(len(self.tokenizer)))))
                if text and re.fullmatch(r"[Ġ▁][A-Za-z]{2,}", text)
            ],
            np.int64,
        )

    def words(self, n: int) -> np.ndarray:
        """Return the first n ids that stand for a space and two or more letters [n].

        Raises TaskError if the tokenizer has fewer.
        """
        if len(self._words) < n:
            raise TaskError(
                f"the task needs {n} words that are one token each, and the tokenizer has {len(self._words)}",
                "choose another task, or a model with a larger vocabulary",
            )
        return self._words[:n]

    def haystack(self, kind: str, n: int, rng: np.random.Generator) -> Haystack:
        """Return n tokens of filler.

        kind: `prose` for generated sentences, `text` for a stretch of the texts.

        Raises TaskError for another kind, and if the texts are too short.
        """
        if kind == "prose":
            return self._prose(n, rng)
        if kind == "text":
            ids, begins, places = self._stream(n)
            # From the beginning of a line.
            first = int(rng.choice(begins[: np.searchsorted(begins, len(ids) - n, side="right")]))
            within = places[np.searchsorted(places, first) : np.searchsorted(places, first + n)] - first
            return Haystack(ids[first : first + n], within if len(within) else np.zeros(1, np.int64))
        raise TaskError(f"there is no haystack of `{kind}`", "haystack=prose, or haystack=text")

    def _prose(self, n: int, rng: np.random.Generator) -> Haystack:
        sentences = [np.array(self.encode(f" {sentence}"), np.int64) for sentence in PROSE]
        sizes = np.array([len(sentence) for sentence in sentences])
        chosen = rng.integers(len(sentences), size=n // int(sizes.min()) + 2)
        # From the end, so that more of the same is put in front: the first sentence is cut.
        kept = int(np.searchsorted(np.cumsum(sizes[chosen]), n)) + 1
        ids = np.concatenate([sentences[which] for which in chosen[:kept][::-1]])
        begins = np.cumsum(np.concatenate([[0], sizes[chosen[:kept][::-1]]])) - (len(ids) - n)
        begins = begins[begins >= 0]
        return Haystack(ids[len(ids) - n :], begins if len(begins) else np.zeros(1, np.int64))

    def sentence(self, kind: str, text: str) -> list[int]:
        """Return a sentence as it is put into a haystack of that kind: in prose after a space, in text on its line."""
        return self.encode(f"\n{text}\n" if kind == "text" else f" {text}")

    def _stream(self, n: int) -> tuple[np.ndarray, ...]:
        """Return the ids of as many documents as a stretch of n needs, where lines begin, and where one can be put in.

        The same n gets the same documents, whatever was asked for before.
        """
        wanted = 8 * n + _VARIETY
        while sum(len(ids) for ids, *_ in self._tokenized) < wanted and len(self._tokenized) < len(self.texts):
            self._tokenized.append(self._with_lines(self.texts[len(self._tokenized)]))
        sizes = np.cumsum([0, *(len(ids) for ids, *_ in self._tokenized)])
        if sizes[-1] < n:
            raise TaskError(
                f"the texts hold {sizes[-1]:,} tokens, and {n:,} are to be cut from them",
                "give more with --data, or choose haystack=prose",
            )
        k = min(int(np.searchsorted(sizes, wanted)), len(self._tokenized))
        if k not in self._streams:
            parts = self._tokenized[:k]
            shifts = (0 * sizes[:k], sizes[:k], sizes[:k])
            self._streams[k] = tuple(
                np.concatenate([part + shift for part, shift in zip(column, shifted, strict=True)])
                for column, shifted in zip(zip(*parts, strict=True), shifts, strict=True)
            )
        return self._streams[k]

    def _with_lines(self, text: str) -> tuple[np.ndarray, ...]:
        """Return the ids of a text, which of them begin a line, and before which of them a line begins or ends."""
        if getattr(self.tokenizer, "is_fast", False):
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            firsts = [start for start, _ in encoded["offset_mapping"]]
            # Many tokenizers join the end of a line and the indentation of the next: there, a line ends before a token.
            places = [t for t, start in enumerate(firsts) if start == 0 or "\n" in text[start - 1 : start + 1]]
            # Of a character in several tokens, the first begins the line.
            places = [t for t in places if t == 0 or firsts[t] != firsts[t - 1]]
            begins = [t for t in places if text[firsts[t]] != "\n"] or places
            return tuple(np.array(values, np.int64) for values in (encoded["input_ids"], begins, places))
        lines = [self._plain(line) for line in re.findall(r"[^\n]*\n|[^\n]+", text)]
        sizes = np.cumsum([0, *(len(line) for line in lines)])
        return np.concatenate(lines).astype(np.int64), sizes[:-1], sizes[:-1]


def lay_out(
    vocabulary: Vocabulary, shots: Sequence[Ids], room: int, placement: str, rng: np.random.Generator
) -> np.ndarray:
    """Return `room` tokens with shots in them, in their order [room]; each shot ends its line.

    placement: fill: shots, next to the question, empty lines before them; packed: the same, filler before them;
               spread: filler before, between and after them. Packed and spread differ in the place alone.

    Raises TaskError for another placement.
    """
    size, end = sum(map(len, shots)), vocabulary.encode("\n")
    if placement == "fill":
        blank = (end * room)[: room - size]
        return np.concatenate([blank, *shots]).astype(np.int64)
    if placement == "packed":
        filler = vocabulary.haystack("prose", max(0, room - size - len(end)), rng).ids
        return np.concatenate([filler, end[: room - size - len(filler)], *shots]).astype(np.int64)
    if placement == "spread":
        lines = [[*end, *shot] for shot in shots]
        filler_size = room - sum(map(len, lines)) - len(end)
        if filler_size < 0:
            return lay_out(vocabulary, shots, room, "fill", rng)
        depths = [(number + 0.5) / len(lines) for number in range(len(lines))]
        laid, _ = vocabulary.haystack("prose", filler_size, rng).with_planted(lines, depths)
        return np.concatenate([laid, end]).astype(np.int64)
    raise TaskError(f"there is no placement `{placement}`", "fill, packed, or spread")
