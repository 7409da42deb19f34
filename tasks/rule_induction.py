"""Rule induction: examples of one operation on short strings of letters, then new strings to apply it to.

    <s> a f k -> k f a \n p c x b -> b x c p \n …  m d e ->
                                                            ~~~~~~~~ target: e d m \n

The operations are Python functions, so the right answers are computed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from hope_eval.task import Prompt, Question, Task, TaskError, Vocabulary, lay_out

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
    """Find the rule that the examples follow, and apply it.

    rule:        one of RULES; empty: a random one for each prompt.
    n_questions: strings to apply it to.
    n_shots:     examples; 0: as many as fit.
    placement:   of the examples. fill: they fill the context; packed: close to the question; spread: all over it.
    control:     permuted: the answers of the examples are shuffled.
    """

    source = ""
    version = 1
    family = "fewshot"
    one_line = "find the rule that examples follow, and apply it"

    controls = ("permuted",)

    rule: str = ""
    n_questions: int = 4
    n_shots: int = 0
    placement: str = "fill"
    control: str = ""

    limits = {"n_questions": (1, 1000), "n_shots": (0, 1 << 30), "placement": ("fill", "packed", "spread")}

    @property
    def shots_grow(self) -> bool:
        """Whether the examples fill the context."""
        return not self.n_shots

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        if self.rule and self.rule not in RULES:
            raise TaskError(f"no rule is called `{self.rule}`", f"one of {', '.join(RULES)}")
        rule = self.rule or list(RULES)[rng.integers(len(RULES))]
        end = vocabulary.encode("\n")

        def example() -> Question:
            letters = [chr(97 + number) for number in rng.permutation(26)[: rng.integers(3, 6)]]
            query = _ids(vocabulary, letters) + vocabulary.encode(" ->")
            return Question(query, _ids(vocabulary, RULES[rule](letters)) + end, {"rule": rule})

        longest = 5 * len(vocabulary.encode(" a")) * 3 + 8
        n_questions = max(1, (length - 4 * longest) // longest) if joined else self.n_questions
        questions = [replace(q, query=(*q.query, *vocabulary.end)) for q in (example() for _ in range(n_questions))]
        head = vocabulary.encode("Treat the last line as the others are treated.\n") if vocabulary.chat else []
        first = [example() for _ in range(self.n_shots)]
        least = len(head) + max(2 * longest, sum(map(len, first)))
        room = self.room(vocabulary, length, questions, joined, least) - len(head)
        shots = first or _as_many_as_fit(example, room)
        lines = [(*s.query, *s.target) for s in shots]
        if self.control == "permuted":
            answers = [shots[at].target for at in rng.permutation(len(shots))]
            lines = [(*s.query, *answer) for s, answer in zip(shots, answers, strict=True)]
        laid = lay_out(vocabulary, lines, room, self.placement, rng)
        context = np.concatenate([vocabulary.start, head, laid]).astype(np.int64)
        return Prompt(context, tuple(replace(q, meta={**q.meta, "shots": len(shots)}) for q in questions))


def _as_many_as_fit(example: Callable[[], Question], room: int) -> list[Question]:
    shots: list[Question] = []
    size = 0
    while True:
        shot = example()
        size += len(shot)
        if size > room:
            return shots
        shots.append(shot)


def _ids(vocabulary: Vocabulary, letters: list[str]) -> list[int]:
    return [token for letter in letters for token in vocabulary.encode(f" {letter}")]
