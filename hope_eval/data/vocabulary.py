"""Vocabulary: a tokenizer as tasks see it. Prompts consist of its token ids only.

    encode("…")   the ids of a piece of text, remembered
    words(n)      n words that are one token each
    asked(…)      a question and the beginning of its answer; a chat model's turn ends between them
    haystack(…)   filler (generated sentences, or text of a corpus), with the places where something can be put into it
    examples      labelled texts of the user

Prompts are put together from ids. So a context has exactly the length that was asked for, nothing is tokenised twice,
and what is put in never cuts a token.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hope_eval.data.chat import rendered
from hope_eval.data.labelled import LabelledTexts
from hope_eval.errors import OptionError, TaskError

Ids = Sequence[int] | np.ndarray

# Placeholder for the user's words in a chat template, which is then cut there.
_CONTENT = "\u27eacontent\u27eb"

# A haystack of n tokens is cut at random from texts of 8 n tokens and this many more.
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
class Haystack:
    """Filler, with the places where something can be put into it.

    ids:    [N].
    places: where a sentence or line begins or ends, ascending; never inside a sentence, a line or a token.
    """

    ids: np.ndarray
    places: np.ndarray

    def with_planted(self, needles: Sequence[Ids], depths: Sequence[float]) -> tuple[np.ndarray, list[int]]:
        """Ids with the needles in them, and the position where each needle begins.

        depths: of the needles, from 0 (the beginning) to 1 (the end); each needle goes to the nearest place.
        """
        places = np.array([self.places[np.abs(self.places - depth * len(self.ids)).argmin()] for depth in depths])
        # Of several needles at one place, the one with the smaller depth comes first.
        order = np.lexsort((np.asarray(depths), places))
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
    texts:     documents that haystacks are cut from, in the order in which they are used.
    examples:  labelled texts.

    start: the ids before the context.
    end:   the ids between a question and its answer: those of a chat template, else none.

    Raises OptionError if `chat` is asked for and the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        prefix: int | None,
        chat: bool = False,
        texts: Sequence[str] = (),
        examples: LabelledTexts | None = None,
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
        """Ids before and after the user's words, with one BOS at most."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise OptionError("the tokenizer has no chat template", "--plain")
        turn = [{"role": "user", "content": _CONTENT}]
        text = rendered(self.tokenizer, turn)
        before, content, after = text.partition(_CONTENT)
        if not content:
            raise OptionError("the chat template leaves out the user's words", "--plain")
        start, end = (self._plain(part) for part in (before, after))
        bos = getattr(self.tokenizer, "bos_token_id", None)
        usual = list(self.tokenizer("x")["input_ids"])
        if bos is not None and usual[:1] == [bos] and start[:1] != [bos]:
            start = [bos, *start]
        if bos is not None and start[:2] == [bos, bos]:
            raise OptionError("the chat template writes BOS twice", "--plain leaves it out")
        return start, end

    @property
    def template(self) -> str:
        """Hash of the ids of the chat template around a prompt, 16 hexadecimal digits; empty without a template."""
        parts = json.dumps([list(map(int, part)) for part in (self.start, self.end)])
        return hashlib.sha256(parts.encode()).hexdigest()[:16] if self.chat else ""

    def _plain(self, text: str) -> list[int]:
        try:
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        except TypeError:
            ids = self.tokenizer.encode(text)
        return list(ids)

    @cached_property
    def _anchors(self) -> list[tuple[str, list[int]]]:
        """Anchors: pieces are tokenised after one of these if the tokenizer puts a space before any text; else none."""
        tokens = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        invents = tokens is not None and str(tokens(self._plain("a")[:1])[0]).startswith("\u2581")
        return [(anchor, self._plain(anchor)) for anchor in ("\n", "a")] if invents else []

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of text, without special tokens. Pieces are remembered, so there should be few."""
        if text not in self._pieces:
            self._pieces[text] = self._encoded(text)
        return self._pieces[text]

    def _encoded(self, text: str) -> list[int]:
        for anchor, before in self._anchors:
            ids = self._plain(anchor + text)
            # Unless the tokenizer merged the anchor with the text.
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self._plain(text)

    def asked(self, question: str, lead: str) -> list[int]:
        """Ids of a question on a context.

        A chat model reads the question, and its answer begins with `lead`; any other model reads only `lead`, and
        continues it.
        """
        if self.chat:
            return [*self.encode("\n"), *self.encode(question), *self.end, *self.encode(lead)]
        return [*self.encode("\n"), *self.encode(f" {lead}")]

    def digits(self, number: Sequence[int] | np.ndarray) -> list[int]:
        """Ids of the digits of a number, a space before each."""
        return [token for digit in number for token in self.encode(f" {int(digit)}")]

    def text(self, ids: Ids) -> str:
        """Text of ids."""
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
        """First n ids that stand for a space and two or more letters [n].

        Raises TaskError if the tokenizer has fewer.
        """
        if len(self._words) < n:
            raise TaskError(
                f"the task needs {n} words of one token each, and the tokenizer has {len(self._words)}",
                "choose another task, or a model with a larger vocabulary",
            )
        return self._words[:n]

    def haystack(self, kind: str, n: int, rng: np.random.Generator) -> Haystack:
        """Filler of n tokens.

        kind: `prose`: generated sentences; `text`: a stretch of the texts.

        Raises TaskError for another kind, and if the texts are too short.
        """
        if kind == "prose":
            return self._prose(n, rng)
        if kind == "text":
            ids, begins, places = self._stream(n)
            # A stretch starts at the beginning of a line.
            first = int(rng.choice(begins[: np.searchsorted(begins, len(ids) - n, side="right")]))
            within = places[np.searchsorted(places, first) : np.searchsorted(places, first + n)] - first
            return Haystack(ids[first : first + n], within if len(within) else np.zeros(1, np.int64))
        raise TaskError(f"`{kind}` is not a kind of haystack", "haystack=prose, or haystack=text")

    def _prose(self, n: int, rng: np.random.Generator) -> Haystack:
        sentences = [np.array(self.encode(f" {sentence}"), np.int64) for sentence in PROSE]
        sizes = np.array([len(sentence) for sentence in sentences])
        chosen = rng.integers(len(sentences), size=n // int(sizes.min()) + 2)
        # Filled from the end: only the first sentence is cut.
        kept = int(np.searchsorted(np.cumsum(sizes[chosen]), n)) + 1
        ids = np.concatenate([sentences[which] for which in chosen[:kept][::-1]])
        begins = np.cumsum(np.concatenate([[0], sizes[chosen[:kept][::-1]]])) - (len(ids) - n)
        begins = begins[begins >= 0]
        return Haystack(ids[len(ids) - n :], begins if len(begins) else np.zeros(1, np.int64))

    def sentence(self, kind: str, text: str) -> list[int]:
        """Ids of a sentence to put into a haystack of that kind: in prose after a space, in text on its own line."""
        return self.encode(f"\n{text}\n" if kind == "text" else f" {text}")

    def _stream(self, n: int) -> tuple[np.ndarray, ...]:
        """Ids of as many documents as a stretch of n needs, where lines begin in them, and where one can be put in.

        The same n gets the same documents, whatever the earlier calls.
        """
        n_tokens = 8 * n + _VARIETY
        while sum(len(ids) for ids, *_ in self._tokenized) < n_tokens and len(self._tokenized) < len(self.texts):
            self._tokenized.append(self._with_lines(self.texts[len(self._tokenized)]))
        sizes = np.cumsum([0, *(len(ids) for ids, *_ in self._tokenized)])
        if sizes[-1] < n:
            raise TaskError(
                f"the haystack needs {n:,} tokens, and the texts have {sizes[-1]:,}",
                "give more texts with --data, or choose haystack=prose",
            )
        k = min(int(np.searchsorted(sizes, n_tokens)), len(self._tokenized))
        if k not in self._streams:
            parts = self._tokenized[:k]
            shifts = (0 * sizes[:k], sizes[:k], sizes[:k])
            self._streams[k] = tuple(
                np.concatenate([part + shift for part, shift in zip(column, shifted, strict=True)])
                for column, shifted in zip(zip(*parts, strict=True), shifts, strict=True)
            )
        return self._streams[k]

    def _with_lines(self, text: str) -> tuple[np.ndarray, ...]:
        """Ids of a text, the positions that begin a line, and the positions before which a line begins or ends."""
        if getattr(self.tokenizer, "is_fast", False):
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            firsts = [start for start, _ in encoded["offset_mapping"]]
            # Many tokenizers merge a line break with the indentation after it: the line then ends before the token.
            places = [t for t, start in enumerate(firsts) if start == 0 or "\n" in text[start - 1 : start + 1]]
            # If a character takes several tokens, the first of them begins the line.
            places = [t for t in places if t == 0 or firsts[t] != firsts[t - 1]]
            begins = [t for t in places if text[firsts[t]] != "\n"] or places
            return tuple(np.array(values, np.int64) for values in (encoded["input_ids"], begins, places))
        lines = [self._plain(line) for line in re.findall(r"[^\n]*\n|[^\n]+", text)]
        sizes = np.cumsum([0, *(len(line) for line in lines)])
        return np.concatenate(lines).astype(np.int64), sizes[:-1], sizes[:-1]


def lay_out(
    vocabulary: Vocabulary, shots: Sequence[Ids], room: int, placement: str, rng: np.random.Generator
) -> np.ndarray:
    """Context of `room` tokens with the shots in it, in their order [room]; each shot ends its line.

    placement: fill:   the shots stand next to the question, empty lines before them;
               packed: the shots stand next to the question, filler before them;
               spread: filler stands before, between and after the shots. Only their places differ from `packed`.

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
    raise TaskError(f"`{placement}` is not a placement", "one of fill, packed, spread")
