"""Passkey: a number in a text that has nothing to do with it, then the question for it.

    <s> … The boats come home at noon. The pass key is 7 3 9 1 4. The hills are far away. … \n The pass key is
                                                                                              ~~~~~~ target

Source: Mohtashami & Jaggi, 2023, "Landmark Attention", arXiv 2305.16300 (the idea; the words are ours).
"""

from dataclasses import dataclass, replace

import numpy as np

from hope_eval.task import Prompt, Question, Task, Vocabulary

_FILLER = (
    " The river runs past the old mill.",
    " The boats come home at noon.",
    " The hills are far away.",
    " A train leaves every hour.",
    " The market opens on Monday.",
    " Snow lies on the roofs.",
    " The children play in the yard.",
    " The lamp stands by the window.",
    " It rains in the valley.",
    " The baker sells bread and rolls.",
    " The road turns left at the church.",
    " The birds fly south in autumn.",
)


@dataclass(frozen=True)
class Passkey(Task):
    """Find a number.

    digits: of the number.
    depth:  where it stands, from 0 (the beginning) to 1 (the end); below 0: anywhere.
    """

    source = "2305.16300"
    version = 1
    one_line = "find a number that is hidden in a text about other things"

    digits: int = 5
    depth: float = -1.0

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        key = "".join(map(str, rng.integers(10, size=self.digits)))
        pieces = [" The pass key is", *(f" {digit}" for digit in key), "."]
        needle = [token for piece in pieces for token in vocabulary.encode(piece)]
        answer = [token for piece in pieces[1:-1] for token in vocabulary.encode(piece)]
        question = Question([*vocabulary.encode("\n"), *vocabulary.encode(pieces[0])], answer)
        room = self.room(vocabulary, length, [question], joined, len(needle))
        depth = self.depth if self.depth >= 0 else float(rng.random())
        n_before = round(depth * (room - len(needle)))
        # What is left over goes to the beginning, where a sentence is cut: before the needle none is.
        after = _sentences(vocabulary, room - len(needle) - n_before, rng)
        before = _filled(vocabulary, room - len(needle) - len(after), rng)
        context = np.concatenate([vocabulary.start, before, needle, after]).astype(np.int64)
        meta = {"depth": len(before) / max(1, room - len(needle)), "distance": len(needle) + len(after)}
        return Prompt(context, (replace(question, meta=meta),))


def _sentences(vocabulary: Vocabulary, room: int, rng: np.random.Generator) -> list[int]:
    """Return whole sentences of at most `room` tokens."""
    ids: list[int] = []
    while True:
        sentence = vocabulary.encode(_FILLER[rng.integers(len(_FILLER))])
        if len(ids) + len(sentence) > room:
            return ids
        ids += sentence


def _filled(vocabulary: Vocabulary, room: int, rng: np.random.Generator) -> list[int]:
    """Return exactly `room` tokens of sentences; the first one lacks its beginning."""
    ids = _sentences(vocabulary, room, rng)
    sentence = vocabulary.encode(_FILLER[rng.integers(len(_FILLER))])
    while len(ids) < room:
        ids = [*sentence[max(0, len(sentence) - room + len(ids)) :], *ids]
    return ids
