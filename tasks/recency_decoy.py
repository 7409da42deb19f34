"""Recency decoy: the valid number and an outdated one; one is far from the question, the other is close to it.

    <s> … The pass key is 7 3 9 1 4. … The old pass key was 2 2 5 1 0. …
    The pass key is                                                      target: 7 3 9 1 4, against 2 2 5 1 0

In half of the prompts the outdated number is closer, in the other half the valid one (`--by nearer` shows both halves).
A model that reads the meaning is right in both halves. A model that takes the closer number is right in one half only:
chance is 0.5.

An encoding without slowly rotating pairs is suspected to prefer what is close ("return from digression"). This task
measures it.
"""

from dataclasses import dataclass

import numpy as np

from hope_eval.task import Prompt, Question, Task, Vocabulary


@dataclass(frozen=True)
class RecencyDecoy(Task):
    """Find the valid number, and not the outdated one.

    digits:   of the numbers.
    nearer:   the number that is closer to the question: right, decoy, or either.
    haystack: prose: generated sentences; text: a stretch of the texts.
    control:  ceiling: the context has only the two numbers.
    """

    source = ""
    version = 1
    one_line = "find the valid number, not the outdated one that may be closer"
    family = "retrieve"
    metric = "choice_accuracy"
    controls = ("ceiling",)
    uses = "text"

    digits: int = 5
    nearer: str = "either"
    haystack: str = "prose"
    control: str = ""

    limits = {"digits": (1, 1000), "nearer": ("either", "right", "decoy"), "haystack": ("prose", "text")}

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        right = rng.integers(10, size=self.digits)
        # The two numbers differ in every digit.
        old = (right + rng.integers(1, 10, size=self.digits)) % 10
        decoy_is_nearer = bool(rng.integers(2)) if self.nearer == "either" else self.nearer == "decoy"
        depths = (float(rng.random()) / 2, 0.75 + float(rng.random()) / 4)
        needles = [
            vocabulary.sentence(self.haystack, f"{words} {' '.join(map(str, number))}.")
            for words, number in (("The pass key is", right.tolist()), ("The old pass key was", old.tolist()))
        ]
        question = Question(
            vocabulary.asked("Repeat the sentence of the text that tells the pass key.", "The pass key is"),
            vocabulary.digits(right),
            {},
            (vocabulary.digits(old),),
        )
        size = sum(map(len, needles))
        room = self.room(vocabulary, length, [question], joined, size)
        where = [depths[not decoy_is_nearer], depths[decoy_is_nearer]]
        if self.control == "ceiling":
            ids = np.concatenate([needles[at] for at in np.argsort(where)])
            starts = [len(needles[1]) if where[0] > where[1] else 0]
        else:
            ids, starts = vocabulary.haystack(self.haystack, room - size, rng).with_planted(needles, where)
        meta = {
            "nearer": "decoy" if decoy_is_nearer else "right",
            "depth": starts[0] / room,
            "distance": len(ids) - starts[0],
        }
        context = np.concatenate([vocabulary.start, ids]).astype(np.int64)
        return Prompt(context, (Question(question.query, question.target, meta, question.choices),))
