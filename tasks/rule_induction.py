"""Rule induction: examples of one operation on short strings of letters, then strings to apply it to.

    <s> a f k -> k f a \n p c x b -> b x c p \n …  m d e ->
                                                            ~~~~~~~~ target: e d m \n

The operations are functions, so answers are right by construction.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from hope_eval.task import Prompt, Question, Task, Vocabulary

RULES: dict[str, Callable[[list[str]], list[str]]] = {
    "copy": lambda x: x,
    "reverse": lambda x: x[::-1],
    "first": lambda x: x[:1],
    "last": lambda x: x[-1:],
    "second": lambda x: x[1:2],
    "drop first": lambda x: x[1:],
    "drop last": lambda x: x[:-1],
    "rotate": lambda x: [*x[1:], x[0]],
    "swap ends": lambda x: [x[-1], *x[1:-1], x[0]],
    "repeat": lambda x: [*x, *x],
    "sort": lambda x: sorted(x),
    "upper-case": lambda x: [letter.upper() for letter in x],
    "drop vowels": lambda x: [letter for letter in x if letter not in "aeiou"] or ["none"],
    "in brackets": lambda x: ["(", *x, ")"],
}


@dataclass(frozen=True)
class RuleInduction(Task):
    """Find the rule from examples, and follow it.

    rule:        one of RULES; empty: any.
    n_questions: strings to apply it to.
    """

    source = ""
    version = 1
    one_line = "find the rule that examples follow, and apply it"

    rule: str = ""
    n_questions: int = 4

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        rule = self.rule or list(RULES)[rng.integers(len(RULES))]
        end = vocabulary.encode("\n")

        def example() -> Question:
            letters = [chr(97 + number) for number in rng.permutation(26)[: rng.integers(3, 6)]]
            query = _ids(vocabulary, letters) + vocabulary.encode(" ->")
            return Question(query, _ids(vocabulary, RULES[rule](letters)) + end, {"rule": rule})

        longest = 5 * len(vocabulary.encode(" a")) * 3 + 8
        n_questions = max(1, (length - 4 * longest) // longest) if joined else self.n_questions
        questions = [example() for _ in range(n_questions)]
        room = self.room(vocabulary, length, questions, joined, 2 * longest)
        shots: list[Question] = []
        while True:
            shot = example()
            if sum(map(len, shots)) + len(shot) > room:
                break
            shots.append(shot)
        # What is left over is empty lines.
        blank = (end * room)[: room - sum(map(len, shots))]
        context = np.concatenate([vocabulary.start, blank, *((*s.query, *s.target) for s in shots)]).astype(np.int64)
        return Prompt(context, tuple(replace(q, meta={**q.meta, "shots": len(shots)}) for q in questions))


def _ids(vocabulary: Vocabulary, letters: list[str]) -> list[int]:
    return [token for letter in letters for token in vocabulary.encode(f" {letter}")]
