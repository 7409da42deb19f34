"""Needles in a haystack: sentences that give a word for a thing, in a text about other things; then a question for it.

    <s> … The boats come home at noon. The word for the amber lantern is velvet. The hills are far away. …
    The word for the amber lantern is                             target: velvet

    needle               several needles with different keys, each asked for: the context is read once
    needle_multi_key     many needles whose keys share their adjective or their noun with others
    needle_multi_value   a key has several words, and all are asked for, in their order
    needle_multi_query   several keys are asked for in one question

Needles stand between sentences or lines, at depths spread evenly over the context. Haystacks are generated sentences,
or any text (`haystack=text`, --data). The wording is ours.

Source: Hsieh et al., 2024, "RULER" (which kinds there are), arXiv 2404.06654; Kamradt, 2023 (the idea).
"""

from dataclasses import dataclass, replace

import numpy as np

from hope_eval.task import Prompt, Question, Task, TaskError, Vocabulary, asked_together

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
# None is a word of the prose that they are hidden in, nor part of one.
VALUES = """
acorn apple bacon barn beach blood brick bronze butter cabin camel canal canoe cedar cheese cherry cloud coffee
coral cotton cousin crow diamond doctor dragon eagle east fire flower forest fox ghost glass grape hail honey
horse ice island ivory jacket juice king kitchen lake lemon lion marble meadow melon milk monkey moon mountain
mouse music night north oak ocean olive onion orange paper pearl pepper pilot planet pond prince queen rabbit
robin rose salt sand shadow sheep ship smoke soap spider spring stone storm sugar summer sun swan sword table
tent tiger torch tower tree tulip velvet violin water west whale wheat winter wolf wool
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Needle(Task):
    """Find the word for a thing. The wrong answer is a word that is not in the context.

    n_needles: keys in the context.
    n_values:  words of each key.
    n_asked:   keys that one question asks for; each key is asked for once.
    haystack:  prose: generated sentences; text: a stretch of the texts.
    depth:     of all needles, from 0 to 1; below 0: spread evenly.
    distance:  tokens from the needle to the question; only one key is then asked for. 0: as `depth` says.
    control:   floor: the context has no needles; ceiling: it has nothing else.
    """

    source = "2404.06654"
    version = 2
    one_line = "find the word for a thing, given by one sentence in a text about other things"
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
        """Keys in the context; those that are asked for come first."""
        return _keys(rng.permutation(len(ADJECTIVES) * len(NOUNS))[: self.n_needles])

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        self._check()
        keys = self.keys(rng)
        n_lures = self.n_asked * self.n_values
        n_words = n_lures + len(keys) * self.n_values
        words = [VALUES[which] for which in rng.permutation(len(VALUES))[:n_words]]
        lures, words = words[:n_lures], words[n_lures:]
        pairs = [
            (key, word) for number, key in enumerate(keys) for word in words[number * self.n_values :][: self.n_values]
        ]
        n_questions = 1 if self.distance else self.n_asked_for // self.n_asked
        groups = [keys[number * self.n_asked :][: self.n_asked] for number in range(n_questions)]
        needles = [vocabulary.sentence(self.haystack, f"The word for the {key} is {word}.") for key, word in pairs]
        asked = [number for number, (key, _) in enumerate(pairs) if key in groups[0]]
        depths, n_after = self._depths(len(pairs), asked, rng), sum(len(needles[number]) for number in asked)
        values = {
            key: [pairs[at][1] for at in np.argsort(depths, kind="stable") if pairs[at][0] == key] for key in keys
        }
        questions = [self._question(vocabulary, group, values, lures) for group in groups]
        n_needle_tokens = sum(map(len, needles))
        if 0 < self.distance < n_after:
            raise TaskError(f"the needles of the question take {n_after} tokens themselves", f"distance={n_after}")
        # At a given distance, needles that are not asked for stand before those that are.
        least = n_needle_tokens - n_after + self.distance if self.distance else n_needle_tokens
        if joined:
            drawn = asked_together(questions, length - len(vocabulary.start) - least, rng)
            questions, groups = [questions[which] for which in drawn], [groups[which] for which in drawn]
        room = self.room(vocabulary, length, questions, joined, least)
        if self.control == "ceiling":
            in_order = [needles[at] for at in np.argsort(depths, kind="stable")]
            return Prompt(np.concatenate([vocabulary.start, *in_order]).astype(np.int64), tuple(questions))
        floor = self.control == "floor"
        filler = vocabulary.haystack(self.haystack, room if floor else room - n_needle_tokens, rng)
        if self.distance:
            # Needles that are asked for have depths from 1 to 2 here: the first is put at the distance.
            begin = 1 - (self.distance - n_after) / max(1, len(filler.ids))
            after = np.isin(np.arange(len(pairs)), asked)
            depths = np.where(after, begin + (1 - begin) * (depths - 1), begin * depths)
        ids, starts = (filler.ids, []) if floor else filler.with_planted(needles, depths.tolist())
        context = np.concatenate([vocabulary.start, ids]).astype(np.int64)
        if floor:
            return Prompt(context, tuple(questions))
        # A question needs all its needles, so its depth is that of the furthest.
        firsts = [min(start for (key, _), start in zip(pairs, starts, strict=True) if key in group) for group in groups]
        meta = [{"depth": first / room, "distance": room - first} for first in firsts]
        return Prompt(context, tuple(replace(q, meta=facts) for q, facts in zip(questions, meta, strict=True)))

    def _check(self) -> None:
        if self.n_needles > len(VALUES):
            raise TaskError(f"{self.n_needles} needles need as many of the {len(VALUES)} words", "lower n_needles")
        if self.n_asked > self.n_asked_for:
            raise TaskError(f"a question cannot ask for {self.n_asked} of {self.n_asked_for} keys", "lower n_asked")
        if (self.n_asked + self.n_needles) * self.n_values > len(VALUES):
            raise TaskError(
                f"{self.n_needles} needles of {self.n_values} words need more than the {len(VALUES)} words there are",
                "lower n_needles or n_values",
            )

    def _depths(self, n: int, asked: list[int], rng: np.random.Generator) -> np.ndarray:
        """Depths of n needles: one in each part of the context, the parts in random order.

        At a given distance, those that are asked for get depths from 1 to 2, in their order.
        """
        order = rng.permutation(n)
        depths = (order + rng.random(n)) / n
        if self.depth >= 0:
            depths[:] = self.depth
        if self.distance:
            depths[asked] = 1 + np.arange(len(asked)) / len(asked)
        return depths

    @property
    def n_asked_for(self) -> int:
        """Number of keys that are asked for."""
        return self.n_needles

    def varied(self, rng: np.random.Generator, length: int) -> "Needle":
        """Task with 1 to 16 needles, at one depth now and then; several values or keys vary in number."""
        n_values = int(rng.integers(2, 5)) if self.n_values > 1 else 1
        # A needle takes about 20 tokens.
        n_needles = int(rng.integers(1, 1 + max(1, min(16, length // (20 * n_values)))))
        n_asked = int(rng.integers(1, 1 + min(4, n_needles))) if self.n_asked > 1 else 1
        depth = float(rng.random()) if rng.random() < 0.2 else self.depth
        return replace(self, n_needles=n_needles, n_values=n_values, n_asked=n_asked, depth=depth)

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
    """Find the word for a thing among things with similar names."""

    one_line = "find the word for a thing among things with similar names"

    n_needles: int = 24

    def keys(self, rng: np.random.Generator) -> list[str]:  # noqa: D102
        adjectives, nouns = rng.permutation(len(ADJECTIVES)), rng.permutation(len(NOUNS))
        # All pairs of a few adjectives with a few nouns: half a key never identifies it.
        side = int(np.ceil(np.sqrt(self.n_needles)))
        numbers = [adjectives[i] * len(NOUNS) + nouns[j] for i in range(side) for j in range(side)]
        return _keys(rng.permutation(numbers)[: self.n_needles])

    @property
    def n_asked_for(self) -> int:  # noqa: D102
        return min(8, self.n_needles)


@dataclass(frozen=True)
class NeedleMultiValue(Needle):
    """Find all words for a thing, in their order."""

    one_line = "find all words for a thing, given by several sentences, in their order"

    n_needles: int = 3
    n_values: int = 4


@dataclass(frozen=True)
class NeedleMultiQuery(Needle):
    """Find the words for several things, asked for in one question."""

    one_line = "find the words for several things, asked for in one question"

    n_asked: int = 4


def _keys(numbers: np.ndarray) -> list[str]:
    return [f"{ADJECTIVES[n // len(NOUNS)]} {NOUNS[n % len(NOUNS)]}" for n in numbers.tolist()]
