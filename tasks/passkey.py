"""Passkey: a number hidden in a text about other things, then the question for it.

    <s> … The boats come home at noon. The pass key is 7 3 9 1 4. The hills are far away. … \n The pass key is
                                                                                              ~~~~~~ target

Source: Mohtashami & Jaggi, 2023, "Landmark Attention", arXiv 2305.16300 (the idea; the words are ours).
"""

from dataclasses import dataclass, replace

import numpy as np

from hope_eval.task import PROSE, Prompt, Question, Task, Vocabulary


@dataclass(frozen=True)
class Passkey(Task):
    """Find a number. The wrong answer is a number with other digits.

    digits:   of the number.
    depth:    of the number, from 0 (the beginning) to 1 (the end); below 0: random.
    distance: tokens from its sentence to the question, at every length; 0: as `depth` says.
    control:  floor: the context has no number; ceiling: it has nothing else.
    """

    source = "2305.16300"
    version = 1
    one_line = "find a number that is hidden in a text about other things"
    family = "retrieve"
    controls = ("floor", "ceiling")

    digits: int = 5
    depth: float = -1.0
    distance: int = 0
    control: str = ""

    limits = {"digits": (1, 1000), "depth": (-1, 1), "distance": (0, 1 << 30)}

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        key = rng.integers(10, size=self.digits)
        question = Question(
            vocabulary.asked("Repeat the sentence of the text that tells the pass key.", "The pass key is"),
            vocabulary.digits(key),
            choices=(vocabulary.digits((key + 5) % 10),),
        )
        sentence = [*vocabulary.encode(" The pass key is"), *question.target, *vocabulary.encode(".")]
        room = self.room(vocabulary, length, [question], joined, max(len(sentence), self.distance))
        if self.control == "ceiling":
            return Prompt(np.array([*vocabulary.start, *sentence], np.int64), (question,))
        depth = self.depth if self.depth >= 0 else float(rng.random())
        n_before = room - self.distance if self.distance else round(depth * (room - len(sentence)))
        # Only the first sentence of the context is cut, to fill it to the token.
        after = _sentences(vocabulary, room - len(sentence) - n_before, rng)
        before = _filled(vocabulary, room - len(sentence) - len(after), rng)
        meta = {"depth": len(before) / max(1, room - len(sentence)), "distance": len(sentence) + len(after)}
        if self.control == "floor":
            sentence = _filled(vocabulary, len(sentence), rng)
        context = np.concatenate([vocabulary.start, before, sentence, after]).astype(np.int64)
        return Prompt(context, (replace(question, meta=meta),))

    def varied(self, rng: np.random.Generator, length: int) -> "Passkey":
        """Task with a number of 2 to 8 digits."""
        return replace(self, digits=int(rng.integers(2, 9)))


def _sentences(vocabulary: Vocabulary, room: int, rng: np.random.Generator) -> list[int]:
    """Ids of whole sentences, at most `room` tokens."""
    ids: list[int] = []
    while True:
        sentence = vocabulary.encode(f" {PROSE[rng.integers(len(PROSE))]}")
        if len(ids) + len(sentence) > room:
            return ids
        ids += sentence


def _filled(vocabulary: Vocabulary, room: int, rng: np.random.Generator) -> list[int]:
    """Ids of sentences, exactly `room` tokens; the first sentence lacks its beginning."""
    ids = _sentences(vocabulary, room, rng)
    sentence = vocabulary.encode(f" {PROSE[rng.integers(len(PROSE))]}")
    while len(ids) < room:
        ids = [*sentence[max(0, len(sentence) - room + len(ids)) :], *ids]
    return ids
