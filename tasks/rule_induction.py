"""Rule induction: examples of one operation on short strings of letters, then new strings to apply it to.

    <s> a f k -> k f a \n p c x b -> b x c p \n …  m d e ->
                                                            ~~~~~~~~ target: e d m \n

The operations are Python functions, so the right answers are computed.

Many answers can be guessed by their shape: three letters between brackets are the text itself. `chance` is the score
of a reader who sees the shape of each answer (how many letters, upper-case or not, brackets) and no letter of it, and
takes one of the rules that give these shapes. It is computed for each question, and is 0.5 on average.
"""

from collections.abc import Callable, Iterator, Sequence
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
    version = 2
    family = "fewshot"
    one_line = "find the rule that examples follow, and apply it"

    controls = ("permuted",)
    readers = ("chance",)

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

        def example(letters: Sequence[str] = ()) -> Question:
            letters = letters or _letters(rng)
            return Question(
                _ids(vocabulary, letters) + vocabulary.encode(" ->"),
                _ids(vocabulary, RULES[rule](list(letters))) + vocabulary.encode("\n"),
                {"letters": list(letters)},
            )

        longest = len(example("bcdfg"))
        head = vocabulary.encode("Treat the last line as the others are treated.\n") if vocabulary.chat else []
        n_questions = self.n_questions
        if joined:
            rest = length - len(vocabulary.start) - len(head) - max(2, self.n_shots) * longest
            n_questions = int(rng.integers(1, max(1, rest // (longest + len(vocabulary.end))) + 1))
        asked = [example() for _ in range(n_questions)]
        questions = [replace(question, query=(*question.query, *vocabulary.end)) for question in asked]
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
        shown = [shot.meta["letters"] for shot in shots]
        facts = {"rule": rule, "shots": len(shots)}
        guessed = chances(rule, shown, [question.meta["letters"] for question in asked])
        return Prompt(
            context,
            tuple(replace(q, meta={**facts, "chance": of_q}) for q, of_q in zip(questions, guessed, strict=True)),
        )

    def varied(self, rng: np.random.Generator, length: int) -> "RuleInduction":
        """Task with as many examples as fit, or with a few, in filler."""
        placement = ("fill", "packed", "spread")[rng.integers(3)]
        n_shots = 0 if placement == "fill" else int(rng.integers(2, max(3, length // 24)))
        return replace(self, n_shots=n_shots, placement=placement)


def chances(rule: str, shown: Sequence[list[str]], asked: Sequence[list[str]]) -> Iterator[float]:
    """Yield for each question the score of a guess by a reader who sees only the shapes of answers.

    rule:  the one that is followed.
    shown: letters of each example.
    asked: letters of each question.

    The reader takes one of the rules whose answers to the examples and to the question have the right shapes.
    """
    left, given = list(RULES.values()), RULES[rule]
    for letters in shown:
        shape = _shape(given(letters))
        left = [other for other in left if _shape(other(letters)) == shape]
    for letters in asked:
        right, shape = given(letters), _shape(given(letters))
        alike = [answer == right for answer in (other(letters) for other in left) if _shape(answer) == shape]
        yield sum(alike) / len(alike)


def _shape(answer: Sequence[str]) -> list[str]:
    """What is left of an answer without its letters: `(aaa)`, `AAA`."""
    return [("A" if symbol.isupper() else "a") if symbol.isalpha() else symbol for symbol in answer]


def _letters(rng: np.random.Generator) -> list[str]:
    """Three to five letters, all different."""
    return [chr(97 + number) for number in rng.permutation(26)[: rng.integers(3, 6)]]


def _as_many_as_fit(example: Callable[[], Question], room: int) -> list[Question]:
    shots: list[Question] = []
    size = 0
    while True:
        shot = example()
        size += len(shot)
        if size > room:
            return shots
        shots.append(shot)


def _ids(vocabulary: Vocabulary, letters: Sequence[str]) -> list[int]:
    return [token for letter in letters for token in vocabulary.encode(f" {letter}")]
