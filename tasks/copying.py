"""Copying: a string, and the same string again: all of it, a part of it, or after a distance.

    copy              <s> return self list open \\n return self list open
                                                    ~~~~~~~~~~~~~~~~~~~~~ target
    ngram_prefix      <s> return self list open zoo xml size \\n list open zoo xml size
                                                                             ~~~~~~~~ target: what follows
    ngram_suffix      <s> return self list open zoo xml size \\n open zoo xml self list
                                                                             ~~~~~~~~~ target: what comes before
    duplicate_ngram   <s> return A B C xml … size A B C open \\n size A B C open
                                                                            ~~~~ target, and not xml

A string consists of random words, drawn uniformly so that nothing can be guessed, or is a stretch of text. The position
and the kind of the first error show how a model fails.

Source: Jelassi, Brandfonbrener, Kakade & Malach, 2024, "Repeat After Me", arXiv 2402.01032.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np

from hope_eval.task import Prompt, Question, Task, TaskError, Vocabulary

_SYMBOLS = {"n_symbols": (2, 1 << 20)}

# Strings to draw before giving up.
_TRIES = 100


class _Copying(Task):
    """Facts of all tasks in this file."""

    source = "2402.01032"
    version = 1
    family = "copy"
    chat = False


def _drawn(vocabulary: Vocabulary, n_symbols: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Ids of n random words, each among the first n_symbols of the vocabulary."""
    return vocabulary.words(n_symbols)[rng.integers(n_symbols, size=n)]


class _WholeCopy(_Copying):
    """The string and its copy fill the context."""

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:
        separator = vocabulary.encode("\n")
        room = self.room(vocabulary, length, [Question((), ())], joined, 2 + len(separator))
        n, odd = divmod(room - len(separator), 2)
        string = self.string(vocabulary, n, rng)
        # If one token is left over, it becomes a second separator.
        context = np.concatenate([vocabulary.start, string, separator, separator[:1] * odd]).astype(np.int64)
        return Prompt(context, (Question((), string, {"distance": n + len(separator) + odd}),))

    def string(self, vocabulary: Vocabulary, n: int, rng: np.random.Generator) -> np.ndarray:
        """Ids to copy [n]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Copy(_WholeCopy):
    """Copy a string that is half as long as the context.

    n_symbols: different words that the string is drawn from.
    """

    one_line = "repeat a string of random words that fills half of the context"

    n_symbols: int = 512

    limits = _SYMBOLS

    def string(self, vocabulary: Vocabulary, n: int, rng: np.random.Generator) -> np.ndarray:  # noqa: D102
        return _drawn(vocabulary, self.n_symbols, n, rng)


@dataclass(frozen=True)
class CopyText(_WholeCopy):
    """Copy a stretch of text; about half of its tokens can be guessed, as in any text."""

    one_line = "repeat a stretch of text that fills half of the context"
    uses = "text"

    def string(self, vocabulary: Vocabulary, n: int, rng: np.random.Generator) -> np.ndarray:  # noqa: D102
        return vocabulary.haystack("text", n, rng).ids


@dataclass(frozen=True)
class CopyShuffled(CopyText):
    """Copy the tokens of a stretch of text in random order: as frequent as in text, but not guessable."""

    one_line = "repeat the tokens of a stretch of text in random order"

    def string(self, vocabulary: Vocabulary, n: int, rng: np.random.Generator) -> np.ndarray:  # noqa: D102
        return rng.permutation(super().string(vocabulary, n, rng))


@dataclass(frozen=True)
class NgramPrefix(_Copying):
    """Continue the string after a few words of it, which occur once.

    n:           words that are given.
    n_answer:    words that are asked for.
    n_questions: places that are asked for.
    n_symbols:   different words that the string is drawn from.
    """

    one_line = "continue the string after three words of it"

    n: int = 3
    n_answer: int = 8
    n_questions: int = 8
    n_symbols: int = 512

    limits = {**_SYMBOLS, "n": (1, 1024), "n_answer": (1, 1024), "n_questions": (1, 1024)}

    # Whether the answer comes before the words that are given.
    backwards: ClassVar[bool] = False

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        separator = vocabulary.encode("\n")
        asked = [Question(np.zeros(len(separator) + self.n), np.zeros(self.n_answer))] * self.n_questions
        room = self.room(vocabulary, length, asked, joined, self.n + self.n_answer + 1)
        string = _drawn(vocabulary, self.n_symbols, room, rng)
        keys = np.lib.stride_tricks.sliding_window_view(string, self.n)
        first, last = (self.n_answer, room - self.n) if self.backwards else (0, room - self.n - self.n_answer)
        # One place in each part of the string, moved on until the words that are given occur once.
        edges = np.linspace(first, last + 1, self.n_questions + 1).astype(int)
        questions = []
        for low, high in pairwise(edges):
            drawn = int(rng.integers(low, max(low + 1, high)))
            places = (*range(drawn, last + 1), *range(first, drawn))
            place = next((at for at in places if (keys == keys[at]).all(1).sum() == 1), None)
            if place is None:
                raise TaskError(
                    f"a string of {room} words has no {self.n} words that occur once", "raise n or n_symbols"
                )
            begins = place - self.n_answer if self.backwards else place + self.n
            meta = {"depth": begins / room, "distance": room - begins + len(separator) + self.n}
            answer = string[begins : begins + self.n_answer]
            questions.append(Question(np.concatenate([separator, string[place : place + self.n]]), answer, meta))
        return Prompt(np.concatenate([vocabulary.start, string]).astype(np.int64), tuple(questions))


@dataclass(frozen=True)
class NgramSuffix(NgramPrefix):
    """Say what comes before a few words of the string, which occur in it once."""

    one_line = "say what comes before three words of the string"

    backwards = True


@dataclass(frozen=True)
class DuplicateNgram(_Copying):
    """Continue after a few words that occur twice in the string; the word before them decides which place is meant.

    n:         words that occur twice.
    n_answer:  words that are asked for.
    n_symbols: different words that the string is drawn from.
    """

    one_line = "continue after three words that occur twice; the word before them tells which place is meant"

    n: int = 3
    n_answer: int = 4
    n_symbols: int = 512

    limits = {**_SYMBOLS, "n": (1, 1024), "n_answer": (1, 1024)}

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        separator = vocabulary.encode("\n")
        size = 1 + self.n + self.n_answer
        key = np.concatenate([separator, np.zeros(1 + self.n)])
        room = self.room(vocabulary, length, [Question(key, np.zeros(self.n_answer))] * 2, joined, 2 * size)
        for _ in range(_TRIES):
            string, places = self._string(vocabulary, room, rng)
            keys = np.lib.stride_tricks.sliding_window_view(string, self.n)
            if (keys == keys[places[0] + 1]).all(1).sum() == 2:
                break
        else:
            raise TaskError(
                f"in a string of {room} words, any {self.n} words occur more than twice", "raise n or n_symbols"
            )
        questions = []
        for place, other in (places, places[::-1]):
            begins = place + 1 + self.n
            answer, lure = (string[at + 1 + self.n : at + size].copy() for at in (place, other))
            meta = {"depth": begins / room, "distance": room - begins + len(key), "later": place > other}
            query = np.concatenate([separator, string[place:begins]])
            questions.append(Question(query, answer, meta, (lure,)))
        return Prompt(np.concatenate([vocabulary.start, string]).astype(np.int64), tuple(questions))

    def _string(self, vocabulary: Vocabulary, room: int, rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
        """String with the same words once in each half, and the position of the word before them in each half."""
        size = 1 + self.n + self.n_answer
        string = _drawn(vocabulary, self.n_symbols, room, rng)
        half = room // 2
        places = [int(rng.integers(0, half - size + 1)), int(rng.integers(half, room - size + 1))]
        first, second = (string[place : place + size] for place in places)
        second[1 : 1 + self.n] = first[1 : 1 + self.n]
        # The word before them, and the first word after them, must differ.
        words = vocabulary.words(self.n_symbols)
        for at in (0, 1 + self.n):
            second[at] = rng.choice(words[words != first[at]])
        return string, places


@dataclass(frozen=True)
class CopyDistance(_Copying):
    """Copy a short string from somewhere in filler; its length and its distance are independent of each other.

    n_string:  words of the string.
    n_given:   words of it that are given again; the rest is asked for.
    distance:  tokens from the beginning of the string to its repetition; 0: drawn, the same part of every length.
    n_symbols: different words: half are for the string, half for the filler.
    """

    version = 2
    one_line = "repeat a short string that stands somewhere in filler"

    n_string: int = 16
    n_given: int = 3
    distance: int = 0
    n_symbols: int = 512

    limits = {**_SYMBOLS, "n_string": (2, 1 << 20), "n_given": (1, 1 << 20), "distance": (0, 1 << 30)}

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        words = vocabulary.words(self.n_symbols)
        if self.n_string > len(words[::2]) or self.n_given >= self.n_string:
            raise TaskError(
                f"a string of {self.n_string} different words, {self.n_given} of them given, cannot be drawn from "
                f"{len(words[::2])} words",
                "raise n_symbols, or lower n_string or n_given",
            )
        string, place = rng.permutation(words[::2])[: self.n_string], rng.random()
        separator = vocabulary.encode("\n")
        question = Question(np.concatenate([separator, string[: self.n_given]]), string[self.n_given :])
        nearest = self.n_string + len(separator)
        if 0 < self.distance < nearest:
            raise TaskError(
                f"a string of {self.n_string} words is at least {nearest} tokens away", f"distance={nearest}"
            )
        room = self.room(vocabulary, length, [question], joined, max(nearest, self.distance) - len(separator))
        begins = (
            room + len(separator) - self.distance
            if self.distance
            else min(int(place * (room - self.n_string + 1)), room - self.n_string)
        )
        filler = words[1::2][rng.integers(len(words) // 2, size=room)]
        filler[begins : begins + self.n_string] = string
        meta = {"depth": begins / room, "distance": room - begins + len(separator)}
        context = np.concatenate([vocabulary.start, filler]).astype(np.int64)
        return Prompt(context, (replace(question, meta=meta),))
