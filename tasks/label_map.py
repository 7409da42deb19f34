"""Label map: examples of texts with made-up labels, then texts whose labels are asked for.

    <s> return open list -> zip \n get set open -> zip \n self xml one -> map \n …  index open size ->
                                                                                        ~~~~~~ target: zip \n

A class owns a few words and a label, all drawn anew for every prompt. A text is one word of its class among words of no
class, in random order. So a label can be told from the examples only, and chance is 1 / classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from hope_eval.task import Prompt, Question, Task, Vocabulary


@dataclass(frozen=True)
class LabelMap(Task):
    """Label texts as the examples do.

    n_classes:   classes, which take turns.
    n_words:     words that belong to a class.
    text_length: words of a text.
    n_questions: texts whose labels are asked for.
    """

    source = ""
    version = 1
    one_line = "label a text as the examples before it are labelled"

    n_classes: int = 4
    n_words: int = 2
    text_length: int = 3
    n_questions: int = 8

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        words = rng.permutation(vocabulary.words(512))
        n_owned = self.n_classes * self.n_words
        owned = words[:n_owned].reshape(self.n_classes, self.n_words)
        labels, noise = words[n_owned : n_owned + self.n_classes], words[n_owned + self.n_classes :]
        arrow, end = vocabulary.encode(" ->"), vocabulary.encode("\n")
        classes = _rounds(self.n_classes, rng)

        def example() -> Question:
            which = next(classes)
            text = noise[rng.integers(len(noise), size=self.text_length)]
            text[rng.integers(self.text_length)] = owned[which, rng.integers(self.n_words)]
            return Question((*text, *arrow), (labels[which], *end), {"class": int(which)})

        n_questions, size = self.n_questions, len(example())
        if joined:
            # All that can be answered: from the third round on, most words have been seen.
            fits = (length - len(vocabulary.start)) // size
            n_questions = max(1, fits - 2 * self.n_classes)
        questions = [example() for _ in range(n_questions)]
        room = self.room(vocabulary, length, questions, joined, 2 * self.n_classes * size)
        shots = [example() for _ in range(room // size)]
        # What is left over is empty lines.
        blank = (end * room)[: room - size * len(shots)]
        context = np.concatenate([vocabulary.start, blank, *((*s.query, *s.target) for s in shots)]).astype(np.int64)
        return Prompt(context, tuple(replace(q, meta={**q.meta, "shots": len(shots)}) for q in questions))

    def varied(self, rng: np.random.Generator, length: int) -> "LabelMap":
        """Return the task with 2 to 6 classes of 1 or 2 words."""
        most = max(3, min(7, length // 16))
        return replace(self, n_classes=int(rng.integers(2, most)), n_words=int(rng.integers(1, 3)))


def _rounds(n: int, rng: np.random.Generator) -> Iterator[int]:
    """Yield 0..n-1 in random order, again and again."""
    while True:
        yield from rng.permutation(n)
