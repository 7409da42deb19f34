"""Key-value retrieval: a long list of pairs as in JSON, then keys whose values are asked for.

    <s>{
    "return self": "list",
    "open zoo": "size",
    …
    "xml one": "map"}
    "open zoo": "                target: size

Nothing but pairs fills the context, so every line looks like the one that is asked for.

Source: Liu et al., 2023, "Lost in the Middle" (key-value retrieval), arXiv 2307.03172; keys and values are words here.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from hope_eval.task import Prompt, Question, Task, TaskError, Vocabulary


@dataclass(frozen=True)
class KeyValue(Task):
    """Recall the values of keys, among nothing but pairs.

    n_questions: keys that are asked for, at depths spread evenly.
    n_symbols:   words that keys (of two words) and values are made of.
    distance:    tokens from the pair to the question, of the one key that is then asked for; 0: spread evenly.
    control:     floor: the pairs that are asked for are not there; ceiling: no others are.
    """

    source = "2307.03172"
    version = 1
    one_line = "recall the value of a key, among nothing but such pairs"
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
            raise TaskError(f"{len(words)} words make fewer than {n_asked} keys", "raise n_symbols of the task")
        # Two random words are a key; of different halves, so that no part of one is another.
        asked = np.stack([rng.permutation(words[::2])[:n_asked], rng.permutation(words[1::2])[:n_asked]], axis=1)
        values = words[rng.integers(len(words), size=n_asked)]
        # Compared with the value of another key, or, where that is the same, with another word.
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
        if n > len(words[::2]) * len(words[1::2]):
            raise TaskError(f"{len(words)} words make fewer than {n} keys", "raise n_symbols of the task")
        numbers = rng.permutation(len(words[::2]) * len(words[1::2]))[: n + n_asked]
        keys = np.stack([words[::2][numbers % len(words[::2])], words[1::2][numbers // len(words[::2])]], axis=1)
        # Another pair never has a key that is asked for.
        keys = keys[~(keys[:, None] == asked[None]).all(-1).any(1)][:n]
        table = np.column_stack([keys, words[rng.integers(len(words), size=n)]])
        if self.distance:
            back = round((self.distance - len(end) + len(closed)) / size) - 1
            places = np.array([n - 1 - min(n - 1, max(0, back))])
        else:
            bounds = np.linspace(0, n, n_asked + 1).astype(int)
            places = np.array([int(rng.integers(low, max(low + 1, high))) for low, high in pairwise(bounds)])
        if self.control != "floor":
            table[places] = np.column_stack([asked, values])
        line = np.array([*opened, 0, 0, *query_end, 0, *closed], np.int64)
        lines = np.tile(line, (n, 1))
        at = len(opened)
        lines[:, [at, at + 1, size - len(closed) - 1]] = table
        pairs = lines.ravel()[: n * size - len(closed)]
        # What is left over is empty lines before the first pair.
        n_blank = 0 if self.control == "ceiling" else room - n * size - edges + len(closed)
        blank = (vocabulary.encode("\n") * n_blank)[:n_blank]
        context = np.concatenate([vocabulary.start, begin, blank, pairs, end]).astype(np.int64)
        meta = [
            {"depth": float(place) / max(1, n - 1), "distance": int((n - place) * size - len(closed) + len(end))}
            for place in places
        ]
        return Prompt(context, tuple(replace(q, meta=facts) for q, facts in zip(questions, meta, strict=True)))
