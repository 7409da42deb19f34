"""Label map: examples of texts with made-up labels, then new texts to label.

    <s> return open list -> zip \n get set open -> zip \n self xml one -> map \n …  index open size ->
                                                                                        ~~~~~~ target: zip \n

A class has a few words and a label, all drawn again for each prompt. A text is one word of its class among words of no
class, in random order. So only the examples show which label is right, and chance is 1 / classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from hope_eval.task import Prompt, Question, Task, TaskError, Vocabulary, lay_out


@dataclass(frozen=True)
class LabelMap(Task):
    """Label texts as the examples are labelled. The wrong answers are the labels of the other classes.

    n_classes:   classes, which take turns; 0: four made-up classes, or all labels of your own texts (--data).
    n_words:     words of a made-up class.
    text_length: words of a made-up text.
    n_questions: texts to label.
    n_shots:     examples; 0: as many as fit.
    placement:   of the examples. fill: they fill the context; packed: close to the question; spread: all over it.
    control:     permuted: the labels of the examples are shuffled; last: only the last example of each class is left.
    """

    source = ""
    version = 1
    one_line = "label a text as the examples are labelled"
    family = "fewshot"
    metric = "choice_accuracy"
    controls = ("permuted", "last")
    uses = "examples"

    n_classes: int = 0
    n_words: int = 2
    text_length: int = 3
    n_questions: int = 8
    n_shots: int = 0
    placement: str = "fill"
    control: str = ""

    limits = {
        "n_classes": (0, 1 << 20),
        "n_words": (1, 100),
        "text_length": (1, 100),
        "n_questions": (1, 1000),
        "n_shots": (0, 1 << 30),
        "placement": ("fill", "packed", "spread"),
    }

    @property
    def shots_grow(self) -> bool:
        """Whether the examples fill the context."""
        return not self.n_shots

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        made_up = vocabulary.examples is None
        n_classes, example = (self._made_up if made_up else self._brought)(vocabulary, rng, joined)
        at_least = self.n_shots or (2 if made_up else 1) * n_classes
        if at_least < n_classes:
            raise TaskError(f"{at_least} examples cannot show {n_classes} classes", "raise n_shots")
        n_questions = self.n_questions
        if joined:
            fits = (length - len(vocabulary.start)) // len(example(True))
            n_questions = int(rng.integers(1, 1 + max(1, fits - at_least)))
        questions = [example(True) for _ in range(n_questions)]
        # Questions are drawn before examples, so that they are the same at all lengths.
        first = [example(False) for _ in range(at_least)]
        head = vocabulary.encode("Label the last text as the others are labelled.\n") if vocabulary.chat else []
        room = self.room(vocabulary, length, questions, joined, len(head) + sum(map(len, first))) - len(head)
        shots = self._as_many_as_fit(first, example, room)
        if self.control == "last":
            shots = list({shot.meta["class"]: shot for shot in shots}.values())
            room = sum(map(len, shots))
        lines = [(*shot.query[: len(shot.query) - len(vocabulary.end)], *shot.target) for shot in shots]
        if self.control == "permuted":
            lines = _permuted(shots, rng, len(vocabulary.end))
            # Labels differ in length: if the lines no longer fit, the first ones are dropped.
            while sum(map(len, lines)) > room:
                lines = lines[1:]
        placement = "fill" if self.control == "last" else self.placement
        laid = lay_out(vocabulary, lines, room, placement, rng)
        context = np.concatenate([vocabulary.start, head, laid]).astype(np.int64)
        return Prompt(context, tuple(replace(q, meta={**q.meta, "shots": len(shots)}) for q in questions))

    def _as_many_as_fit(self, first: list[Question], example: Callable[[bool], Question], room: int) -> list[Question]:
        shots, size = list(first), sum(map(len, first))
        while not self.n_shots:
            shot = example(False)
            size += len(shot)
            if size > room:
                break
            shots.append(shot)
        return shots

    def _made_up(
        self, vocabulary: Vocabulary, rng: np.random.Generator, joined: bool
    ) -> tuple[int, Callable[[bool], Question]]:
        """Number of classes, and a function that makes an example of the class whose turn it is.

        Questions that stand in one row have a random class each: taking turns, they would tell the class of the next.
        """
        n_classes = self.n_classes or 4
        words = rng.permutation(vocabulary.words(512))
        n_owned = n_classes * self.n_words
        if n_owned + n_classes > 256:
            raise TaskError(f"{n_classes} classes of {self.n_words} words need more than 256 words", "lower n_classes")
        owned = words[:n_owned].reshape(n_classes, self.n_words)
        labels, noise = words[n_owned : n_owned + n_classes], words[n_owned + n_classes :]
        arrow, end = vocabulary.encode(" ->"), vocabulary.encode("\n")
        classes = _rounds(n_classes, rng)

        def example(asked: bool) -> Question:
            which = int(rng.integers(n_classes)) if asked and joined else next(classes)
            text = noise[rng.integers(len(noise), size=self.text_length)]
            text[rng.integers(self.text_length)] = owned[which, rng.integers(self.n_words)]
            others = tuple((label, *end) for label in np.delete(labels, which)) if asked else ()
            return Question((*text, *arrow, *vocabulary.end), (labels[which], *end), {"class": int(which)}, others)

        return n_classes, example

    def _brought(
        self, vocabulary: Vocabulary, rng: np.random.Generator, joined: bool
    ) -> tuple[int, Callable[[bool], Question]]:
        """Same as `_made_up`, for the labelled texts of a user."""
        labelled = vocabulary.examples
        assert labelled is not None
        names = sorted(labelled.shown)
        if self.n_classes > len(names):
            raise TaskError(f"`{labelled.name}` has {len(names)} labels, not {self.n_classes}", "lower n_classes")
        names = [names[which] for which in rng.permutation(len(names))[: self.n_classes or len(names)]]
        end = vocabulary.encode("\n")
        answers = [(*vocabulary.encode(f" {name}"), *end) for name in names]
        turns = {True: _rounds(len(names), rng), False: _rounds(len(names), rng)}
        texts = {
            asked: [iter(_rounds(len(part[name]), rng)) for name in names]
            for asked, part in ((True, labelled.asked), (False, labelled.shown))
        }

        def example(asked: bool) -> Question:
            which = int(rng.integers(len(names))) if asked and joined else next(turns[asked])
            text = (labelled.asked if asked else labelled.shown)[names[which]][next(texts[asked][which])]
            others = tuple(answers[:which] + answers[which + 1 :]) if asked else ()
            query = (*vocabulary.encode(f"{text.strip()} ->"), *vocabulary.end)
            return Question(query, answers[which], {"class": names[which]}, others)

        return len(names), example

    def varied(self, rng: np.random.Generator, length: int) -> "LabelMap":
        """Task with 2 to 6 classes of 1 or 2 words, texts of 1 to 5 words, and any number and place of examples."""
        text_length = int(rng.integers(1, 6))
        # The label, the arrow and the end of the line take about 4 tokens.
        fits = length // (text_length + 4)
        n_classes = int(rng.integers(2, max(3, min(7, fits // 3))))
        n_shots, placement = 0, "fill"
        if rng.random() < 0.5:
            n_shots = int(rng.integers(2 * n_classes, max(2 * n_classes, fits - 1) + 1))
            placement = ("fill", "packed", "spread")[rng.integers(3)]
        return replace(
            self,
            n_classes=n_classes,
            n_words=int(rng.integers(1, 3)),
            text_length=text_length,
            n_shots=n_shots,
            placement=placement,
        )


def _permuted(shots: list[Question], rng: np.random.Generator, n_end: int) -> list[tuple[int, ...]]:
    """Shots as lines, each with the label of another."""
    order = rng.permutation(len(shots))
    return [
        (*shot.query[: len(shot.query) - n_end], *shots[other].target) for shot, other in zip(shots, order, strict=True)
    ]


def _rounds(n: int, rng: np.random.Generator) -> Iterator[int]:
    """Numbers from 0 to n - 1 in random order, again and again."""
    while True:
        yield from rng.permutation(n)
