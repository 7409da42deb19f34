"""Associative recall: pairs of a key and a value among filler, then questions for the values of keys.

    <s> get 7up zoo set one zoo xml \n set      keys: get, set; values: 7up, one; filler: zoo, xml
                                           ~~~ target: one

Keys, values and filler are words of three disjoint sets, so the question is unambiguous. Each key occurs once. In a
longer context the number of pairs stays the same, and they stand further apart.

Source: Arora et al., 2023, "Zoology" (multi-query associative recall), arXiv 2312.04927.
"""

from dataclasses import dataclass, replace

import numpy as np

from hope_eval.task import Prompt, Question, Task, TaskError, Vocabulary


@dataclass(frozen=True)
class AssociativeRecall(Task):
    """Recall the values of keys.

    n_pairs:     pairs in the context.
    n_questions: pairs that are asked for, at most all.
    n_symbols:   words of each set: keys, values, filler.
    control:     floor: the pairs that are asked for are missing; ceiling: the context has no filler.
    """

    source = "2312.04927"
    version = 1
    family = "retrieve"
    chat = False
    controls = ("floor", "ceiling")
    one_line = "recall the value of a key, among other pairs and filler"

    n_pairs: int = 32
    n_questions: int = 16
    n_symbols: int = 256
    control: str = ""

    limits = {"n_pairs": (1, 1 << 20), "n_questions": (1, 1 << 20), "n_symbols": (2, 1 << 20)}

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        if self.n_pairs > self.n_symbols:
            raise TaskError(
                f"{self.n_pairs} pairs need as many keys, and there are {self.n_symbols}", "raise n_symbols"
            )
        words = vocabulary.words(3 * self.n_symbols)
        keys, values, filler = (words[set_::3] for set_ in range(3))
        pairs = np.stack(
            [rng.permutation(keys)[: self.n_pairs], values[rng.integers(self.n_symbols, size=self.n_pairs)]], axis=1
        )
        separator = vocabulary.encode("\n")
        asked = rng.permutation(self.n_pairs)[: self.n_questions]
        if joined:
            # A pair may come again. If each came once, the values that are left over would tell the next one.
            asked = asked[rng.integers(len(asked), size=len(asked))]
        # The wrong answer is the value of another pair: a word that the context makes likely, too.
        other = values[np.where(pairs[:, 1] == values[0], 1, 0)]
        lures = [pairs[at - 1, 1:] if pairs[at - 1, 1] != pairs[at, 1] else other[at : at + 1] for at in asked]
        questions = [
            Question((*separator, pairs[which, 0]), pairs[which, 1:], choices=(lure,))
            for which, lure in zip(asked, lures, strict=True)
        ]
        room = self.room(vocabulary, length, questions, joined, 2 * self.n_pairs)
        if self.control == "ceiling":
            room = 2 * self.n_pairs
        # Each pair gets its own place, drawn uniformly; filler stands between the pairs.
        n_units = room - self.n_pairs
        places = np.sort(rng.choice(n_units, size=self.n_pairs, replace=False))
        starts = places + np.arange(self.n_pairs)
        haystack = filler[rng.integers(self.n_symbols, size=room)]
        given = np.setdiff1d(np.arange(self.n_pairs), asked) if self.control == "floor" else np.arange(self.n_pairs)
        haystack[starts[given]], haystack[starts[given] + 1] = pairs[given, 0], pairs[given, 1]
        context = np.concatenate([vocabulary.start, haystack]).astype(np.int64)
        meta = [{"depth": float(starts[which]) / room, "distance": int(room - starts[which])} for which in asked]
        return Prompt(context, tuple(replace(q, meta=facts) for q, facts in zip(questions, meta, strict=True)))

    def varied(self, rng: np.random.Generator, length: int) -> "AssociativeRecall":
        """Task with a random number of pairs, all of which are asked for."""
        most = max(1, min(self.n_symbols, (length - 8) // 5))
        n_pairs = int(rng.integers(min(4, most), 1 + most))
        return replace(self, n_pairs=n_pairs, n_questions=n_pairs)
