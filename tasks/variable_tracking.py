"""Variable tracking: boxes that get a number, or what another box holds; then a question for the last box of a chain.

    <s> … Box amber gets the number 4 8 1. … Box birch gets what box amber holds. …
    Box cedar gets what box birch holds. …
    The number in box cedar is                                           target: 4 8 1

All chains have the same number of steps and different numbers, so a model must follow them step by step.

Source: Hsieh et al., 2024, "RULER" (variable tracking), arXiv 2404.06654; the wording is ours.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from hope_eval.task import Prompt, Question, Task, TaskError, Vocabulary, asked_together

NAMES = """
amber anchor apple basil birch bronze camel cedar cherry cloud comet coral daisy delta eagle ember falcon fern
flint garnet ginger hazel heron iris ivory jade jasper juniper kite lemon lily linen lotus maple marble meadow
mint nutmeg oak olive onyx opal orchid otter pearl pepper pine plum poppy quartz quill raven reed robin rose
ruby saffron sage silver slate sparrow thistle topaz tulip velvet violet walnut willow
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class VariableTracking(Task):
    """Follow chains of assignments. The wrong answers are the numbers of the other chains.

    n_chains: chains; the last box of each is asked for.
    n_hops:   steps from box to box in a chain; 0: the box that is asked for gets the number itself.
    digits:   of a number.
    haystack: prose: generated sentences; text: a stretch of the texts.
    control:  floor: the context has no boxes; ceiling: it has nothing else.
    """

    source = "2404.06654"
    version = 1
    one_line = "follow assignments from box to box, and say what the last box holds"
    family = "retrieve"
    controls = ("floor", "ceiling")
    uses = "text"

    n_chains: int = 4
    n_hops: int = 2
    digits: int = 3
    haystack: str = "prose"
    control: str = ""

    limits = {"n_chains": (1, 100), "n_hops": (0, 100), "digits": (1, 6), "haystack": ("prose", "text")}

    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:  # noqa: D102
        n_boxes = self.n_chains * (self.n_hops + 1)
        if self.n_chains > 10**self.digits:
            raise TaskError(
                f"{self.n_chains} chains need as many numbers, and {self.digits} digits make {10**self.digits}",
                "raise digits",
            )
        if n_boxes > len(NAMES):
            raise TaskError(f"{n_boxes} boxes need as many of the {len(NAMES)} names", "lower n_chains or n_hops")
        names = [NAMES[which] for which in rng.permutation(len(NAMES))[:n_boxes]]
        chains = [names[number :: self.n_chains] for number in range(self.n_chains)]
        numbers = rng.permutation(10**self.digits)[: self.n_chains].tolist()
        answers = [" ".join(str(number).zfill(self.digits)) for number in numbers]
        answer_ids = [[t for digit in answer.split() for t in vocabulary.encode(f" {digit}")] for answer in answers]
        needles, depths = [], []
        for chain, answer in zip(chains, answers, strict=True):
            steps = [f"Box {chain[0]} gets the number {answer}."]
            steps += [f"Box {name} gets what box {source} holds." for source, name in pairwise(chain)]
            needles += [vocabulary.sentence(self.haystack, step) for step in steps]
            # The steps of a chain stand in their order, at random depths.
            depths += np.sort(rng.random(len(steps))).tolist()
        questions = [
            Question(
                vocabulary.asked(f"What is the number in box {chain[-1]}?", f"The number in box {chain[-1]} is"),
                answer_ids[number],
                {},
                tuple(ids for other, ids in enumerate(answer_ids) if other != number),
            )
            for number, chain in enumerate(chains)
        ]
        size = sum(map(len, needles))
        which = list(range(self.n_chains))
        if joined:
            which = asked_together(questions, length - len(vocabulary.start) - size, rng)
            questions = [questions[chain] for chain in which]
        room = self.room(vocabulary, length, questions, joined, size)
        if self.control == "ceiling":
            ordered = [needles[at] for at in np.argsort(depths, kind="stable")]
            return Prompt(np.concatenate([vocabulary.start, *ordered]).astype(np.int64), tuple(questions))
        if self.control == "floor":
            ids = vocabulary.haystack(self.haystack, room, rng).ids
            return Prompt(np.concatenate([vocabulary.start, ids]).astype(np.int64), tuple(questions))
        ids, starts = vocabulary.haystack(self.haystack, room - size, rng).with_planted(needles, depths)
        firsts = [starts[chain * (self.n_hops + 1)] for chain in which]
        placed = [
            Question(q.query, q.target, {"depth": first / room, "distance": room - first}, q.choices)
            for q, first in zip(questions, firsts, strict=True)
        ]
        return Prompt(np.concatenate([vocabulary.start, ids]).astype(np.int64), tuple(placed))

    def varied(self, rng: np.random.Generator, length: int) -> "VariableTracking":
        """Task with 1 to 4 chains of 0 to 2 steps, and numbers of 1 to 4 digits."""
        n_hops = int(rng.integers(3))
        # A box takes about 16 tokens.
        most = max(1, min(4, length // (16 * (n_hops + 1))))
        return replace(self, n_chains=int(rng.integers(1, 1 + most)), n_hops=n_hops, digits=int(rng.integers(1, 5)))
