"""Key-value retrieval: a long list of pairs as in JSON, then questions for the values of keys.

    <s>{
    "return self": "list",
    "open zoo": "size",
    …
    "xml one": "map"}
    "open zoo": "                target: size

The context has only pairs, so every line looks like the requested one.

Source: Liu et al., 2023, "Lost in the Middle" (key-value retrieval), arXiv 2307.03172; keys and values are words here.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from hope_eval.task import Prompt, Question, Task, TaskError, Vocabulary


@dataclass(frozen=True)
class KeyValue(Task):
    """Recall the values of keys from a long list of pairs.

    n_questions: keys that are asked for, at depths spread evenly.
    n_symbols:   words for keys (two words each) and values.
    distance:    tokens from the pair to the question; only one key is then asked for. 0: spread evenly.
    control:     floor: the pairs that are asked for are missing; ceiling: there are no other pairs.
    """

    source = "2307.03172"
    version = 1
    one_line = "recall the value of a key from a long list of pairs"
    family = "retrieve"
    chat = False
    controls = ("floor", "ceiling")

    n_questions: int = 16
    n_symbols: int = 512
    distance: int = 0
    control: str = ""

    limits = {"n_questions": (1, 1 << 20), "n_symbols": (4, 1 << 20), "distance": (0, 1 << 30)}

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        words = vocabulary.words(self.n_symbols)
        opened, between, closed, end = (vocabulary.encode(piece) for piece in ('"', '":', '",\n', '"}'))
        value_opened, begin = vocabulary.encode(' "'), vocabulary.encode("{\n")
        n_asked = 1 if self.distance else self.n_questions
        if n_asked > len(words[1::2]):
            raise TaskError(f"{n_asked} keys cannot be made of {len(words)} words", "raise n_symbols")
        # A key is two words of different halves, so that the end of one key never begins another.
        asked = np.stack([rng.permutation(words[::2])[:n_asked], rng.permutation(words[1::2])[:n_asked]], axis=1)
        values = words[rng.integers(len(words), size=n_asked)]
        # The wrong answer is the value of another key, or another word if both have the same value.
        spare = np.where(values == words[0], words[1], words[0])
        lures = np.where(np.roll(values, 1) == values, spare, np.roll(values, 1))
        query_end = [*between, *value_opened]
        questions = [
            Question([*vocabulary.encode("\n"), *opened, *key, *query_end], [value], choices=([lure],))
            for key, value, lure in zip(asked.tolist(), values.tolist(), lures.tolist(), strict=True)
        ]
        size = len(opened) + 2 + len(between) + len(value_opened) + 1 + len(closed)
        edges = len(begin) + len(end)
        least = edges + max(n_asked * size, self.distance)
        room = self.room(vocabulary, length, questions, joined, least)
        n = n_asked if self.control == "ceiling" else (room - edges) // size
        # In one row, a key may come again. If each came once, the values that are left over would tell the next one.
        order = rng.integers(n_asked, size=n_asked) if joined else np.arange(n_asked)
        table = self._pairs(words, n, asked, rng)
        places = self._places(n, n_asked, size, len(closed) - len(end), rng)
        if self.control != "floor":
            table[places] = np.column_stack([asked, values])
        line = np.array([*opened, 0, 0, *query_end, 0, *closed], np.int64)
        lines = np.tile(line, (n, 1))
        at = len(opened)
        lines[:, [at, at + 1, size - len(closed) - 1]] = table
        pairs = lines.ravel()[: n * size - len(closed)]
        # Tokens that are left over become empty lines before the first pair.
        n_blank = 0 if self.control == "ceiling" else room - n * size - edges + len(closed)
        blank = (vocabulary.encode("\n") * n_blank)[:n_blank]
        context = np.concatenate([vocabulary.start, begin, blank, pairs, end]).astype(np.int64)
        meta = [
            {"depth": float(place) / max(1, n - 1), "distance": int((n - place) * size - len(closed) + len(end))}
            for place in places
        ]
        return Prompt(context, tuple(replace(questions[which], meta=meta[which]) for which in order))

    def varied(self, rng: np.random.Generator, length: int) -> "KeyValue":
        """Task with a random number of questions; as many pairs as fit stand before them."""
        # A pair and its question take about 16 tokens.
        return replace(self, n_questions=int(rng.integers(1, 1 + max(1, length // 16))))

    @staticmethod
    def _pairs(words: np.ndarray, n: int, asked: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Random pairs [n, 3]: the two words of a key, and the value; none has a key that is asked for."""
        first, second = words[::2], words[1::2]
        if n > len(first) * len(second):
            raise TaskError(f"{n} keys cannot be made of {len(words)} words", "raise n_symbols")
        numbers = rng.permutation(len(first) * len(second))[: n + len(asked)]
        keys = np.stack([first[numbers % len(first)], second[numbers // len(first)]], axis=1)
        keys = keys[~(keys[:, None] == asked[None]).all(-1).any(1)][:n]
        return np.column_stack([keys, words[rng.integers(len(words), size=n)]])

    def _places(self, n: int, n_asked: int, size: int, shift: int, rng: np.random.Generator) -> np.ndarray:
        """Numbers of the pairs that are asked for, among n pairs of `size` tokens.

        shift: tokens that the end of the last pair is shorter by than that of the others.
        """
        if self.distance:
            back = round((self.distance + shift) / size) - 1
            return np.array([n - 1 - min(n - 1, max(0, back))])
        bounds = np.linspace(0, n, n_asked + 1).astype(int)
        return np.array([int(rng.integers(low, max(low + 1, high))) for low, high in pairwise(bounds)])
