"""A suite on all bundled models: the wall time of the command, and the seconds of each model and each task."""

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import click

from benchmarks import common
from benchmarks.common import Figure
from hope_eval.runs.manage import described, runs_in


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--suite", default="standard")
@click.option("--jobs", default=1, help="Processes on the one GPU.")
@common.out_option
@click.argument("further", nargs=-1, type=click.UNPROCESSED)
def zoo_suite(suite: str, jobs: int, out: Path | None, further: tuple[str, ...]) -> None:
    """Run a suite on all bundled models; further arguments are passed to `hope-eval run`."""
    words = ["run", "--suite", suite, *(["--jobs", str(jobs)] if jobs > 1 else []), *further]
    with tempfile.TemporaryDirectory() as folder:
        seconds, _ = common.timed(lambda: run([*words, "--out", folder]))
        runs = [described(path) for path in runs_in(Path(folder))]
    by: dict[str, Counter[str]] = {"model": Counter(), "task": Counter()}
    tokens = 0
    for described_run in runs:
        for session in described_run["sessions"]:
            tokens += session["tokens_read"]
            for key, counter in by.items():
                counter[str(described_run["identity"][key])] += session["seconds"]
    command = " ".join(["hope-eval", *words])
    whole = {"way": command, "seconds": round(seconds, 1), "tokens_per_second": round(tokens / seconds)}
    figures: list[Figure] = [whole]
    figures += [
        {"way": f"the runs of {key} {name}{', all processes together' if jobs > 1 else ''}", "seconds": round(taken, 1)}
        for key, counter in by.items()
        for name, taken in counter.items()
    ]
    if jobs == 1:
        rest = seconds - sum(by["model"].values())
        figures.append({"way": "start, loading, tables", "seconds": round(rest, 1)})
    applies = suite == "standard" and not further
    targets = [common.target(f"wall time of {command} [s]", round(seconds, 1), "<= 180 s", applies)]
    common.report(f"The suite `{suite}` on the bundled models", figures, out, targets, runs=len(runs))


def run(words: list[str]) -> None:
    """Run a command of hope-eval in a process of its own."""
    subprocess.run([sys.executable, "-m", "hope_eval", *words], check=True, stdout=subprocess.DEVNULL)
