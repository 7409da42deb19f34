"""Seconds and peak of memory that `hope-eval plan` predicts, beside those that the run takes.

With --size, random weights with the vocabulary of the bundled tokenizer, on the sources of the standard library; with
--model, a checkpoint.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks import common
from benchmarks.common import Figure
from hope_eval import LanguageModel, load
from hope_eval.evaluation.plan import planned
from hope_eval.evaluation.run import Models, Options, evaluate
from hope_eval.evaluation.suites import Entry, parse_measure
from hope_eval.lengths import short_length
from hope_eval.model.checkpoint import load_tokenizer
from hope_eval.runs.columns import Progress

MEASURES = "ppl,ppl:sliding,needle,passkey,copy,label_map"


@dataclass(frozen=True)
class Loaded(Models):
    """A model that is loaded already."""

    model: LanguageModel | None = None

    def check(self) -> None:
        """Find nothing wrong."""

    def load(self) -> Iterator[LanguageModel]:
        """Yield the model."""
        assert self.model is not None
        yield self.model


@click.command()
@common.size_option("1.2b")
@click.option("--model", "path", help="A checkpoint, in place of random weights.")
@click.option("--measures", default=MEASURES, help="Tasks, and protocols as ppl:name.")
@common.lengths_option("1k,8k,32k")
@click.option("--samples", default=8, help="Documents, or contexts.")
@click.option("--data", help="Texts of perplexity.  [default: the sources of the standard library]")
@common.out_option
def plan_truth(
    size: str,
    path: str | None,
    measures: str,
    lengths: tuple[int, ...],
    samples: int,
    data: str | None,
    out: Path | None,
) -> None:
    """Compare plans with the runs that they plan."""
    # The bundled tokenizer knows words, which tasks need; its ids are among those of any size but the smallest.
    model = load(path) if path else common.language_model(size, load_tokenizer("zoo:rope"))
    models, figures = Loaded(("given",), model=model), list[Figure]()
    for name in measures.split(","):
        entry = Entry(parse_measure(name), lengths, samples)
        options = Options(data=data if name.startswith("ppl") else None)
        common.free_cache()
        planning, plan = common.timed(lambda: planned([entry], models, options))  # noqa: B023
        (row,) = [row for row in plan.rows() if row["what"] != "loading"]
        common.free_cache()
        common.reset_peak()
        with tempfile.TemporaryDirectory() as folder:
            watch = Watch()
            evaluate([entry], models, Path(folder), options, watch)
        true_bytes = common.peak() or None
        figures.append(
            {
                "what": name,
                "lengths": ",".join(map(short_length, lengths)),
                "samples": row["samples"],
                "tokens": row["tokens"],
                "seconds_to_plan": round(planning, 2),
                "seconds_planned": row["seconds"],
                "seconds": float(f"{watch.seconds:.4g}"),
                "ratio_of_seconds": common.ratio(row["seconds"], watch.seconds),
                "gib_planned": round(row["peak_bytes"] / 2**30, 3),
                "gib": true_bytes and round(true_bytes / 2**30, 3),
                "ratio_of_memory": common.ratio(row["peak_bytes"], true_bytes),
            }
        )
    targets = [
        common.target(f"largest error of a plan of {what}, {Path(path).name if path else size}",
                      _largest_error([figure[key] for figure in figures]), f"<= {limit}")
        for what, key, limit in (("seconds", "ratio_of_seconds", 0.3), ("memory", "ratio_of_memory", 0.2))
    ]  # fmt: skip
    common.report(f"Plans beside the truth, {Path(path).name if path else size}", figures, out, targets)


class Watch:
    """A stop-watch for the work on runs, without their tables."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def __call__(self, title: str) -> Iterator[Progress]:
        """Time the body of the `with` statement."""
        common.wait()
        start = time.perf_counter()
        yield lambda done, total: None
        common.wait()
        self.seconds += time.perf_counter() - start


def _largest_error(ratios: list[float | None]) -> float | None:
    errors = [abs(ratio - 1) for ratio in ratios if ratio is not None]
    return round(max(errors), 3) if errors else None
