"""Copying: a string of random words, a separator, and the same string again.

    <s> return self list open \n return self list open
                                 ~~~~~~~~~~~~~~~~~~~~~ target

Source: Jelassi, Brandfonbrener, Kakade & Malach, 2024, "Repeat After Me", arXiv 2402.01032.
"""

from dataclasses import dataclass

import numpy as np

from hope_eval.task import Prompt, Question, Task, Vocabulary


@dataclass(frozen=True)
class Copying(Task):
    """Copy a string that is half as long as the context.

    n_symbols: different words that the string is drawn from, uniformly.
    """

    source = "2402.01032"
    version = 1
    one_line = "repeat a string of random words that fills half of the context"

    n_symbols: int = 512

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        separator = vocabulary.encode("\n")
        room = self.room(vocabulary, length, [Question((), ())], joined, 2 + len(separator))
        n, odd = divmod(room - len(separator), 2)
        string = vocabulary.words(self.n_symbols)[rng.integers(self.n_symbols, size=n)]
        # One token too many becomes a second separator.
        context = np.concatenate([vocabulary.start, string, separator, separator[:1] * odd]).astype(np.int64)
        return Prompt(context, (Question((), string, {"distance": n + len(separator) + odd}),))
