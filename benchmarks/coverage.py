"""How often 95 % intervals hold the truth, in simulations: the tables of docs/statistics.md.

Every simulated sample goes through the functions that make the intervals and notes of tables. The truth is known,
since the sample is drawn from it.

Shape letters: S training seeds, N documents or contexts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import click
import numpy as np

from hope_eval.analysis.doubts import is_doubtful, missing
from hope_eval.analysis.intervals import Clusters, Interval, difference

PAGE = Path(__file__).parents[1] / "docs" / "statistics.md"
REPETITIONS = 4_000

# The kind of document that a sample may lack: their share, and how far off they are in nats.
_RARE, _FAR = 0.05, 6.0

Rng = np.random.Generator
Noise = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Draw:
    """One sample: its interval, the truth, whether a note says not to trust it, and whether it holds all kinds."""

    interval: Interval
    truth: float
    noted: bool = False
    complete: bool = True


# What is simulated, in words, and a function that draws one sample of it.
Kind = tuple[str, Callable[[Rng], Draw]]


def of_numbers(numbers_SN: np.ndarray, of: float = 1, share: bool = False) -> Clusters:
    """Numbers by seed and context, as a table has them."""
    numbers_SN = np.atleast_2d(numbers_SN).astype(float)
    return Clusters(
        numbers_SN, np.full(numbers_SN.shape, float(of)), tuple(map(str, range(numbers_SN.shape[1]))), share
    )


def mean(numbers_SN: np.ndarray, truth: float, complete: bool = True) -> Draw:
    """The mean over documents, and over seeds if there are several."""
    clusters = of_numbers(numbers_SN)
    return Draw(clusters.interval(), truth, is_doubtful(clusters), complete)


def lognormal(rng: Rng, *shape: int) -> np.ndarray:
    """Numbers far more often a little below their mean than far above it; their mean is 0."""
    numbers: np.ndarray = rng.lognormal(0, 0.8, shape) - np.exp(0.32)
    return numbers


def few_far_off(rng: Rng, n: int) -> Draw:
    """The nll of documents, of which a few belong to another kind."""
    far = rng.random(n) < _RARE
    return mean(rng.normal(3, 0.4, n) + _FAR * far, 3 + _RARE * _FAR, bool(far.any()))


def with_seeds(rng: Rng, seeds_S1: np.ndarray) -> Draw:
    """The nll of 30 documents, read by models that differ in their training seed; their effects have mean 0."""
    return mean(3 + seeds_S1 + rng.normal(0, 0.5, (1, 30)) + rng.normal(0, 0.1, (len(seeds_S1), 30)), 3)


def right(rng: Rng, n: int, p: float, alike: float, of: int, n_seeds: int = 1) -> np.ndarray:
    """Right answers by seed and context; `alike` is the correlation of answers on one context."""
    chance = rng.beta(p * (1 - alike) / alike, (1 - p) * (1 - alike) / alike, n) if alike else np.full(n, p)
    return rng.binomial(of, chance, (n_seeds, n))


def accuracy(rng: Rng, n: int, p: float, alike: float, of: int, n_seeds: int = 1) -> Draw:
    """The accuracy over all contexts."""
    return Draw(of_numbers(right(rng, n, p, alike, of, n_seeds), of, share=True).interval(), p)


def gap_of_means(rng: Rng, n: int, noise: Noise) -> Draw:
    """The difference of the nll of two models on the same documents."""
    level = rng.normal(3, 1, n)
    a, b = of_numbers(level + 0.1 + noise(rng, n)), of_numbers(level)
    return Draw(difference(a, b), 0.1, is_doubtful(a))


def gap_of_shares(rng: Rng, p: float, q: float) -> Draw:
    """The difference of the accuracies of two models on the same 25 contexts, some harder for both."""
    hard = rng.beta(4, 1, 25)
    a, b = (of_numbers(rng.binomial(16, 1 - (1 - hard) * 5 * (1 - one), (1, 25)), 16, share=True) for one in (p, q))
    return Draw(difference(a, b), p - q)


def normal(rng: Rng, *shape: int) -> np.ndarray:
    """Numbers of mean 0 and standard deviation 1."""
    return rng.normal(0, 1, shape)


def documents(rng: Rng, n: int, noise: Noise) -> Draw:
    """The nll of documents."""
    return mean(3 + noise(rng, n), 3)


def seeds(rng: Rng, n: int, noise: Noise) -> Draw:
    """The nll over training seeds."""
    return with_seeds(rng, noise(rng, n, 1))


def means() -> Iterator[Kind]:
    """Yield what is simulated of means: of documents, of seeds, of differences."""
    for n in (10, 27, 30, 100):
        yield f"normal documents, n = {n}", partial(documents, n=n, noise=normal)
    for n in (10, 20, 27, 30, 100):
        yield f"lognormal documents (sigma 0.8), n = {n}", partial(documents, n=n, noise=lognormal)
    for n in (10, 20, 27, 30, 60, 100):
        yield f"5 % of documents 6 nats off, n = {n}", partial(few_far_off, n=n)
    for n in (2, 3, 5, 8):
        yield f"{n} training seeds, lognormal effects", partial(seeds, n=n, noise=lognormal)
        yield f"{n} training seeds, normal effects", partial(seeds, n=n, noise=normal)
    yield "3 training seeds, no effects", partial(with_seeds, seeds_S1=np.zeros((3, 1)))
    for n in (10, 30):
        yield f"paired difference, normal, n = {n}", partial(gap_of_means, n=n, noise=normal)
        yield f"paired difference, lognormal, n = {n}", partial(gap_of_means, n=n, noise=lognormal)


def shares() -> Iterator[Kind]:
    """Yield what is simulated of accuracies, and of their differences."""
    grids = (
        (1, 25, 16, (0.5, 0.9, 0.95, 0.98), (0.0, 0.2, 0.5)),
        (1, 50, 8, (0.5, 0.9, 0.95, 0.98), (0.0, 0.2, 0.5)),
        (1, 400, 1, (0.5, 0.9, 0.95, 0.98), (0.0,)),
        (3, 25, 16, (0.9, 0.98), (0.0, 0.2)),
    )
    for n_seeds, n, of, truths, likenesses in grids:
        for p, alike in product(truths, likenesses):
            name = f"{n} contexts x {of}, p = {p:g}" + (f", alike by {alike:g}" if alike else "")
            draw = partial(accuracy, n=n, p=p, alike=alike, of=of, n_seeds=n_seeds)
            yield (f"{n_seeds} seeds, {name}" if n_seeds > 1 else name), draw
    for p, q in ((0.9, 0.8), (0.98, 0.97)):
        yield f"paired difference, 25 x 16, {p:g} and {q:g}", partial(gap_of_shares, p=p, q=q)


def simulated(draw: Callable[[Rng], Draw], seed: int) -> list[Draw]:
    """Samples of one kind; the same seed gives the same ones."""
    rng = np.random.default_rng(seed)
    return [draw(rng) for _ in range(REPETITIONS)]


def held(draws: list[Draw]) -> float:
    """Share of intervals that hold the truth; NaN for no intervals."""
    inside = [one.interval.low <= one.truth <= one.interval.high for one in draws]
    return float(np.mean(inside)) if inside else float("nan")


def table(kinds: Iterator[Kind], with_notes: bool) -> list[str]:
    """The lines of a table, one kind of data a line."""
    titles = ["simulated", "held"]
    titles += ["with a note", "held, without a note", "of these, if the rare kind was drawn"] if with_notes else []
    titles += ["median length"]
    lines = [titles, ["---"] * len(titles)]
    for number, (name, draw) in enumerate(kinds):
        draws = simulated(draw, number)
        cells = [name, _percent(held(draws))]
        if with_notes:
            bare = [one for one in draws if not one.noted]
            complete = [one for one in bare if one.complete]
            cells += [
                _percent(1 - len(bare) / len(draws)),
                _percent(held(bare)),
                _percent(held(complete)) if len(complete) < len(bare) else "",
            ]
        lines.append([*cells, f"{np.median([one.interval.high - one.interval.low for one in draws]):.3f}"])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def unseen() -> list[str]:
    """The table of what no method can do: samples without a single document of a rare kind."""
    sizes, kinds = (10, 20, 27, 30, 60, 100), (0.02, 0.05, 0.1)
    lines = [["documents", *map(str, sizes)], ["---"] * (len(sizes) + 1)]
    lines += [
        [f"none of a kind that makes up {100 * kind:.0f} %", *(_percent(missing(n, kind)) for n in sizes)]
        for kind in kinds
    ]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _percent(value: float) -> str:
    return "" if np.isnan(value) else f"{100 * value:.1f} %"


TABLES: dict[str, Callable[[], list[str]]] = {
    "means": lambda: table(means(), with_notes=True),
    "unseen": unseen,
    "accuracies": lambda: table(shares(), with_notes=False),
}


def page(text: str) -> str:
    """The page with its tables made anew: each stands between two comments with its name."""
    for name, lines in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = before + begin + "\n" + "\n".join(lines()) + "\n\n" + end + rest.split(end)[1]
    return text


@click.command()
def coverage() -> None:
    """Simulate how often intervals hold the truth, and write the tables of docs/statistics.md."""
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
    print(f"wrote {PAGE}")
