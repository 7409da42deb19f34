"""Budget: the part of a plan that fits into a number of seconds.

Kept in this order: fewer samples of everything, down to a quarter and to five of them; then without the longest
lengths; then without controls. Samples fill the time that this leaves.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hope_eval.errors import OptionError
from hope_eval.evaluation.jobs import Choice
from hope_eval.evaluation.plan import Plan
from hope_eval.lengths import duration, short_length

# Fewest samples under a budget: a quarter of them, and no fewer than five.
_FLOOR_SHARE = 4
_FEWEST_SAMPLES = 5

# Precision of the share of samples.
_PRECISION = 1 / 128

Choices = list[Choice | None]


def within(plan: Plan, budget: float) -> Plan:
    """The part of a plan that takes at most `budget` seconds.

    Raises OptionError if even the smallest part takes longer.
    """
    if any(subject.speed is None for subject in plan.subjects):
        raise OptionError("a budget needs a speed", "state it with --tflops, or leave --no-benchmark out")
    if plan.seconds() <= budget:
        return plan
    least = math.inf
    for choices, dropped in _smaller(plan):
        least = plan.seconds([_with_share(choice, 0) for choice in choices])
        if least <= budget:
            chosen = _filled(plan, choices, budget)
            words = "; ".join([*dropped, *_fewer(plan, chosen)])
            return replace(plan, choices=chosen, dropped=[f"dropped for the budget: {words}"])
    raise OptionError(
        f"the least of this plan takes {duration(least)}, and the budget is {duration(budget)}",
        "raise --budget, or name fewer models or tasks",
    )


def _smaller(plan: Plan) -> Iterator[tuple[Choices, list[str]]]:
    """Smaller and smaller choices, each with all its samples and a list of what was dropped."""
    choices = list(plan.choices)
    names = [jobs[0].measurement.name for jobs in plan.jobs]
    words: list[str] = []
    yield list(choices), []
    while True:
        lengths = [jobs[0].in_tokens(choice) if choice else () for jobs, choice in zip(plan.jobs, choices, strict=True)]
        if len(set(itertools.chain(*lengths))) < 2:
            break
        longest = max(itertools.chain(*lengths))
        for number, choice in enumerate(choices):
            if choice is not None and lengths[number][-1] == longest:
                shorter: Any = choice.lengths[:-1]
                choices[number] = replace(choice, lengths=shorter) if shorter else None
                if not shorter:
                    words.append(f"{names[number]} at {short_length(longest)}, its only length")
        words.append(f"length {short_length(longest)}")
        yield list(choices), list(words)
    if any(choice is not None and choice.controls for choice in choices):
        yield [choice and replace(choice, controls=False) for choice in choices], [*words, "controls"]


def _filled(plan: Plan, choices: Choices, budget: float) -> Choices:
    """Choices with as many samples as the budget has time for."""
    if plan.seconds(choices) <= budget:
        return choices
    low, high = 0.0, 1.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        fits = plan.seconds([_with_share(choice, middle) for choice in choices]) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return [_with_share(choice, low) for choice in choices]


def _fewer(plan: Plan, chosen: Choices) -> list[str]:
    """Entries with fewer samples than planned, in words."""
    fewer: dict[str, list[str]] = {}
    for jobs, before, after in zip(plan.jobs, plan.choices, chosen, strict=True):
        if before and after and after.n < before.n:
            words = f"{after.n} of {before.n} samples are left of "
            fewer.setdefault(words, []).append(jobs[0].measurement.name)
    return [words + ", ".join(names) for words, names in fewer.items()]


def _with_share(choice: Choice | None, share: float) -> Choice | None:
    """A choice with fewer samples: from the floor, at 0, to all of them, at 1."""
    if choice is None:
        return None
    floor = min(choice.n, max(_FEWEST_SAMPLES, math.ceil(choice.n / _FLOOR_SHARE)))
    return replace(choice, n=floor + math.floor(share * (choice.n - floor)))
