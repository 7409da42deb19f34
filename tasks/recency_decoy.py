"""Recency decoy: a thing has two numbers, told in the same words; the question asks for the first or for the last.

    <s> … The pass key is 7 3 9 1 4. … The pass key is 2 2 5 1 0. …
    The first pass key is                                             target: 7 3 9 1 4, against 2 2 5 1 0
    The last pass key is                                              target: 2 2 5 1 0, against 7 3 9 1 4

No words beside a number tell which of the two is meant: `first` and `last` stand in the question only. Half of the
questions ask for the further number (the nearer one is the decoy), half for the nearer one. Tables show both halves.
A model that takes the nearer number is right in one half and wrong in the other, and so is one that takes the further
number, or the one that it likes more: chance is 0.5, over both halves. So a score tells something only if both halves
are above 0.5.

`lexical` is the score of a reader without a model: it takes the number whose words before it match the end of the
question best, and guesses between equals. It is 0.5 in both halves.

An encoding without slowly rotating pairs is suspected to prefer what is close ("return from digression"). This task
measures it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hope_eval.task import Ids, Prompt, Question, Task, Vocabulary

THINGS = (
    "pass key",
    "door code",
    "safe code",
    "line number",
    "room number",
    "page number",
    "account number",
    "seat number",
)

# Which of the two numbers is asked for, by what is nearer to the question.
_ASKED = {"decoy": "first", "right": "last"}


@dataclass(frozen=True)
class RecencyDecoy(Task):
    """Find the number that is asked for, the first or the last, and not the other one that may be nearer.

    n_things: things with two numbers each.
    digits:   of the numbers.
    nearer:   the number that is nearer to the question: right, decoy, or either: each in half of the questions.
    haystack: prose: generated sentences; text: a stretch of the texts.
    control:  ceiling: the context has only the numbers.
    """

    source = ""
    version = 2
    one_line = "find the first or the last of two numbers that are told in the same words"
    family = "retrieve"
    metric = "choice_accuracy"
    controls = ("ceiling",)
    arms = "nearer"
    readers = ("lexical",)
    uses = "text"

    n_things: int = 1
    digits: int = 5
    nearer: str = "either"
    haystack: str = "prose"
    control: str = ""

    limits = {
        "n_things": (1, len(THINGS)),
        "digits": (1, 1000),
        "nearer": ("either", "right", "decoy"),
        "haystack": ("prose", "text"),
    }

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        things = [THINGS[which] for which in rng.permutation(len(THINGS))[: self.n_things]]
        first = rng.integers(10, size=(self.n_things, self.digits))
        # The two numbers of a thing differ in every digit.
        last = (first + rng.integers(1, 10, size=first.shape)) % 10
        values = [[vocabulary.digits(number) for number in pair] for pair in zip(first, last, strict=True)]
        depths = np.sort(rng.random((self.n_things, 2)), axis=1).ravel()
        asked = list(self._asked(rng, joined))
        questions = [self._question(vocabulary, things[at], nearer, values[at]) for at, nearer in asked]
        needles = [
            self._needle(vocabulary, thing, value) for thing, pair in zip(things, values, strict=True) for value in pair
        ]
        size = sum(map(len, needles))
        room = self.room(vocabulary, length, questions, joined, size)
        filler = vocabulary.haystack(self.haystack, 0 if self.control == "ceiling" else room - size, rng)
        ids, starts = filler.with_planted(needles, depths.tolist())
        context = np.concatenate([vocabulary.start, ids]).astype(np.int64)
        placed = []
        for question, (at, nearer) in zip(questions, asked, strict=True):
            start = starts[2 * at + (nearer == "right")]
            lexical = lexical_match(ids, question.query, question.answers)
            meta = {"nearer": nearer, "depth": start / len(ids), "distance": len(ids) - start, "lexical": lexical}
            placed.append(replace(question, meta=meta))
        return Prompt(context, tuple(placed))

    def _asked(self, rng: np.random.Generator, joined: bool) -> Iterator[tuple[int, str]]:
        """Yield a thing and what is nearer than what, for each question.

        In one row each thing is asked for once: the second question would be answered by the first one.
        """
        for at in range(self.n_things):
            both = tuple(_ASKED) if self.nearer == "either" else (self.nearer,)
            yield from ((at, nearer) for nearer in ([both[rng.integers(len(both))]] if joined else both))

    @staticmethod
    def _question(vocabulary: Vocabulary, thing: str, nearer: str, values: Sequence[Ids]) -> Question:
        which = _ASKED[nearer]
        query = vocabulary.asked(
            f"The text gives the {thing} twice. Repeat the {which} one.", f"The {which} {thing} is"
        )
        right, other = values if nearer == "decoy" else values[::-1]
        return Question(query, right, {}, (other,))

    def _needle(self, vocabulary: Vocabulary, thing: str, value: Ids) -> list[int]:
        begin, end = ("\n", ".\n") if self.haystack == "text" else (" ", ".")
        return [*vocabulary.encode(f"{begin}The {thing} is"), *map(int, value), *vocabulary.encode(end)]

    def varied(self, rng: np.random.Generator, length: int) -> "RecencyDecoy":
        """Task with 1 to 4 things of 2 to 6 digits."""
        most = max(1, min(4, length // 56))
        return replace(self, n_things=int(rng.integers(1, most + 1)), digits=int(rng.integers(2, 7)))


def lexical_match(context: Ids, query: Ids, answers: Sequence[Ids]) -> float:
    """Score of a reader without a model, whose answer is the one after the words that match the end of the query best.

    answers: the right one, then the others. Between n equals it guesses: the right one of them gets 1 / n.
    """
    read, wanted = [*map(int, context)], [*map(int, query)]

    def matched(answer: Ids) -> int:
        """The longest run of tokens before the answer that ends the query too; -1: the context lacks the answer."""
        ids, best = [*map(int, answer)], -1
        for start in (at for at in range(len(read)) if read[at] == ids[0] and read[at : at + len(ids)] == ids):
            n = 0
            while n < min(start, len(wanted)) and read[start - n - 1] == wanted[-n - 1]:
                n += 1
            best = max(best, n)
        return best

    runs = [matched(answer) for answer in answers]
    return (runs[0] == max(runs)) / runs.count(max(runs))
