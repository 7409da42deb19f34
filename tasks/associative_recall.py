"""Associative recall: pairs of a key and a value among filler, then keys whose values are asked for.

    <s> get 7up zoo set one zoo xml \n set      keys: get, set; values: 7up, one; filler: zoo, xml
                                           ~~~ target: one

Keys, values and filler are words of three disjoint sets, so what is asked is unmistakable. Each key occurs once. With
longer contexts the pairs stay as many, and move apart.

Source: Arora et al., 2023, "Zoology" (multi-query associative recall), arXiv 2312.04927.
"""

from dataclasses import dataclass, replace

import numpy as np

from hope_eval.task import Prompt, Question, Task, TaskError, Vocabulary


@dataclass(frozen=True)
class AssociativeRecall(Task):
    """Recall the values of keys.

    n_pairs:     pairs in the context, at least one.
    n_questions: of these, how many are asked for, at most all.
    n_symbols:   words of each set: keys, values, filler.
    control:     floor: the pairs that are asked for are not there; ceiling: pairs only, without filler.
    """

    source = "2312.04927"
    version = 1
    family = "retrieve"
    chat = False
    controls = ("floor", "ceiling")
    one_line = "recall the value of a key, among pairs of words and filler"

    n_pairs: int = 32
    n_questions: int = 16
    n_symbols: int = 256
    control: str = ""

    limits = {"n_pairs": (1, 1 << 20), "n_questions": (1, 1 << 20), "n_symbols": (2, 1 << 20)}

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        if self.n_pairs > self.n_symbols:
            raise TaskError(f"{self.n_symbols} words are no {self.n_pairs} keys", "raise n_symbols of the task")
        words = vocabulary.words(3 * self.n_symbols)
        keys, values, filler = (words[set_::3] for set_ in range(3))
        pairs = np.stack(
            [rng.permutation(keys)[: self.n_pairs], values[rng.integers(self.n_symbols, size=self.n_pairs)]], axis=1
        )
        separator = vocabulary.encode("\n")
        asked = rng.permutation(self.n_pairs)[: self.n_questions]
        # Compared with: the value of another pair, for the likelihood to be worth something.
        other = values[np.where(pairs[:, 1] == values[0], 1, 0)]
        lures = [pairs[at - 1, 1:] if pairs[at - 1, 1] != pairs[at, 1] else other[at : at + 1] for at in asked]
        questions = [
            Question((*separator, pairs[which, 0]), pairs[which, 1:], choices=(lure,))
            for which, lure in zip(asked, lures, strict=True)
        ]
        room = self.room(vocabulary, length, questions, joined, 2 * self.n_pairs)
        if self.control == "ceiling":
            room = 2 * self.n_pairs
        # Every pair at a place of its own, the places drawn uniformly; between them, filler.
        n_units = room - self.n_pairs
        places = np.sort(rng.choice(n_units, size=self.n_pairs, replace=False))
        starts = places + np.arange(self.n_pairs)
        haystack = filler[rng.integers(self.n_symbols, size=room)]
        there = np.setdiff1d(np.arange(self.n_pairs), asked) if self.control == "floor" else np.arange(self.n_pairs)
        haystack[starts[there]], haystack[starts[there] + 1] = pairs[there, 0], pairs[there, 1]
        context = np.concatenate([vocabulary.start, haystack]).astype(np.int64)
        meta = [{"depth": float(starts[which]) / room, "distance": int(room - starts[which])} for which in asked]
        return Prompt(context, tuple(replace(q, meta=facts) for q, facts in zip(questions, meta, strict=True)))

    def varied(self, rng: np.random.Generator, length: int) -> "AssociativeRecall":
        """Return the task with any number of pairs from 4 on, all of which are asked for."""
        n_pairs = int(rng.integers(4, max(5, min(self.n_symbols, (length - 8) // 5))))
        return replace(self, n_pairs=n_pairs, n_questions=n_pairs)
