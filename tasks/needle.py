"""Needles in a haystack: sentences that tell a word for a thing, in a text about other things; then the thing is named.

    <s> … The boats come home at noon. The word for the amber lantern is velvet. The hills are far away. …
    The word for the amber lantern is                             target: velvet

    needle               several needles with different keys, each asked for: the context is read once
    needle_multi_key     one is asked for among many whose keys share its adjective or its noun
    needle_multi_value   a key has several words, and all are asked for, in their order
    needle_multi_query   several keys are asked for at once

Needles stand between sentences or lines, at depths spread evenly over the context. Haystacks are generated sentences,
or any text (`haystack=text`, --data). The wording is ours.

Source: Hsieh et al., 2024, "RULER" (which kinds there are), arXiv 2404.06654; Kamradt, 2023 (the idea).
"""

from dataclasses import dataclass

import numpy as np

from hope_eval.task import Prompt, Question, Task, TaskError, Vocabulary

ADJECTIVES = """
amber ancient bitter brave calm clever copper cosy dusty eager frozen gentle golden hollow humble iron jolly
lively lucky mighty modest narrow noble plain proud quiet rapid round rusty silent silver simple sleepy smooth
solid steady tender tiny wild wooden
""".split()  # noqa: SIM905
NOUNS = """
anchor barrel basket bell bottle bridge bucket button candle carpet castle chair clock compass curtain drum
engine feather fence garden hammer harbour helmet kettle ladder lantern mirror needle oven pillow piano ribbon
saddle scarf shovel teapot ticket trumpet wagon whistle
""".split()  # noqa: SIM905
VALUES = """
apple autumn bacon beach bird blood brick bronze butter cabin camel canal cedar cheese cherry cloud coffee coral
cotton cousin diamond doctor dragon eagle east fire flower forest fox ghost glass grape honey horse ice island
jacket juice king kitchen lake lemon lion marble meadow melon milk monkey moon mountain mouse music night north
oak ocean olive onion orange paper pearl pepper pilot planet pond prince queen rabbit rain river robin rose salt
sand shadow sheep ship smoke snow soap south spider spring stone storm sugar summer sun swan sword table tiger
tower train tree tulip valley velvet violin water west wheat whale window winter wolf wool
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Needle(Task):
    """Find the word for a thing. Another word is what its likelihood is compared with.

    n_needles: keys in the context, at least one.
    n_values:  words that each key has.
    n_asked:   keys that one question asks for; each is asked for once.
    haystack:  prose: generated sentences; text: a stretch of texts.
    depth:     where the needles stand, from 0 to 1; below 0: spread evenly.
    distance:  tokens from the needle to the question, of the one key that is then asked for; 0: as `depth` says.
    control:   floor: there are no needles; ceiling: there is nothing else.
    """

    source = "2404.06654"
    version = 1
    one_line = "find the word for a thing, told by a sentence in a text about other things"
    family = "retrieve"
    controls = ("floor", "ceiling")
    uses = "text"

    n_needles: int = 8
    n_values: int = 1
    n_asked: int = 1
    haystack: str = "prose"
    depth: float = -1.0
    distance: int = 0
    control: str = ""

    limits = {
        "n_needles": (1, 1000),
        "n_values": (1, 100),
        "n_asked": (1, 100),
        "haystack": ("prose", "text"),
        "depth": (-1, 1),
        "distance": (0, 1 << 30),
    }

    def keys(self, rng: np.random.Generator) -> list[str]:
        """Return the keys in the context; those that are asked for come first."""
        return _keys(rng.permutation(len(ADJECTIVES) * len(NOUNS))[: self.n_needles])

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        if self.n_needles > len(VALUES):
            raise TaskError(
                f"there are {len(VALUES)} words, and {self.n_needles} needles", "lower n_needles of the task"
            )
        keys = self.keys(rng)
        n_lures = self.n_asked * self.n_values
        n_words = n_lures + len(keys) * self.n_values
        if self.n_asked > self.n_asked_for:
            raise TaskError(
                f"{self.n_asked} of {self.n_asked_for} keys cannot be asked for", "lower n_asked of the task"
            )
        if n_words > len(VALUES):
            raise TaskError(
                f"{self.n_needles} needles of {self.n_values} words are more than the {len(VALUES)} words there are",
                "lower n_needles or n_values of the task",
            )
        words = [VALUES[which] for which in rng.permutation(len(VALUES))[:n_words]]
        lures, words = words[:n_lures], words[n_lures:]
        told = [
            (key, word) for number, key in enumerate(keys) for word in words[number * self.n_values :][: self.n_values]
        ]
        n_questions = 1 if self.distance else self.n_asked_for // self.n_asked
        groups = [keys[number * self.n_asked :][: self.n_asked] for number in range(n_questions)]
        needles = [vocabulary.sentence(self.haystack, f"The word for the {key} is {word}.") for key, word in told]
        mine = [number for number, (key, _) in enumerate(told) if key in groups[0]]
        depths, n_after = self._depths(told, mine, rng), sum(len(needles[number]) for number in mine)
        values = {key: [told[at][1] for at in np.argsort(depths, kind="stable") if told[at][0] == key] for key in keys}
        questions = [self._question(vocabulary, group, values, lures) for group in groups]
        n_needle_tokens = sum(map(len, needles))
        if 0 < self.distance < n_after:
            raise TaskError(f"what is asked for takes {n_after} tokens by itself", f"distance={n_after}")
        # Those that are not asked for stand before those that are.
        least = n_needle_tokens - n_after + self.distance if self.distance else n_needle_tokens
        room = self.room(vocabulary, length, questions, joined, least)
        if self.control == "ceiling":
            in_order = [needles[at] for at in np.argsort(depths, kind="stable")]
            return Prompt(np.concatenate([vocabulary.start, *in_order]).astype(np.int64), tuple(questions))
        floor = self.control == "floor"
        filler = vocabulary.haystack(self.haystack, room if floor else room - n_needle_tokens, rng)
        if self.distance:
            # The first of them at its distance, the others between it and the question; all else before.
            begin = 1 - (self.distance - n_after) / max(1, len(filler.ids))
            after = np.isin(np.arange(len(told)), mine)
            depths = np.where(after, begin + (1 - begin) * (depths - 1), begin * depths)
        ids, starts = (filler.ids, []) if floor else filler.with_planted(needles, depths.tolist())
        context = np.concatenate([vocabulary.start, ids]).astype(np.int64)
        placed = []
        for group, question in zip(groups, questions, strict=True):
            # The needle that is furthest away is what a question stands and falls with.
            first = min((start for (key, _), start in zip(told, starts, strict=False) if key in group), default=0)
            meta = {} if floor else {"depth": first / room, "distance": room - first}
            placed.append(Question(question.query, question.target, meta, question.choices))
        return Prompt(context, tuple(placed))

    def _depths(self, told: list[tuple[str, str]], mine: list[int], rng: np.random.Generator) -> np.ndarray:
        """Return where each needle stands: one in each part of the context, the parts in random order.

        At a given distance, 1 and more for those that are asked for: 1 for the first, the others up to 2.
        """
        order = rng.permutation(len(told))
        depths = (order + rng.random(len(told))) / len(told)
        if self.depth >= 0:
            depths[:] = self.depth
        if self.distance:
            depths[mine] = 1 + np.arange(len(mine)) / len(mine)
        return depths

    @property
    def n_asked_for(self) -> int:
        """How many of the keys are asked for."""
        return self.n_needles

    def _question(
        self, vocabulary: Vocabulary, group: list[str], values: dict[str, list[str]], lures: list[str]
    ) -> Question:
        things = ", ".join(f"the {key}" for key in group)
        many = self.n_values > 1 or self.n_asked > 1
        noun, verb = ("words", "are") if many else ("word", "is")
        order = " in the order in which they are told" if self.n_values > 1 else ""
        query = vocabulary.asked(
            f"Repeat what the text says {verb} the {noun} for {things}{order}.", f"The {noun} for {things} {verb}"
        )
        target = self._words(vocabulary, [word for key in group for word in values[key]])
        return Question(query, target, {}, (self._words(vocabulary, lures),))

    @staticmethod
    def _words(vocabulary: Vocabulary, words: list[str]) -> list[int]:
        pieces = [f" {word}," for word in words[:-1]] + [f" {words[-1]}"]
        return [token for piece in pieces for token in vocabulary.encode(piece)]


@dataclass(frozen=True)
class NeedleMultiKey(Needle):
    """Find the word for a thing among things that are called much like it."""

    one_line = "find the word for a thing among things that are called much like it"

    n_needles: int = 24

    def keys(self, rng: np.random.Generator) -> list[str]:  # noqa: D102
        adjectives, nouns = rng.permutation(len(ADJECTIVES)), rng.permutation(len(NOUNS))
        # A square of few adjectives and few nouns: no half of a key tells it from the others.
        side = int(np.ceil(np.sqrt(self.n_needles)))
        numbers = [adjectives[i] * len(NOUNS) + nouns[j] for i in range(side) for j in range(side)]
        return _keys(rng.permutation(numbers)[: self.n_needles])

    @property
    def n_asked_for(self) -> int:  # noqa: D102
        return min(8, self.n_needles)


@dataclass(frozen=True)
class NeedleMultiValue(Needle):
    """Find all words for a thing, in their order."""

    one_line = "find all the words for a thing, told by several sentences, in their order"

    n_needles: int = 3
    n_values: int = 4


@dataclass(frozen=True)
class NeedleMultiQuery(Needle):
    """Find the words for several things at once."""

    one_line = "find the words for several things, asked for at once"

    n_asked: int = 4


def _keys(numbers: np.ndarray) -> list[str]:
    return [f"{ADJECTIVES[n // len(NOUNS)]} {NOUNS[n % len(NOUNS)]}" for n in numbers.tolist()]
