"""Progress on standard error: a bar with tokens/s and time left on a terminal, plain lines elsewhere."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from hope_eval.lengths import duration
from hope_eval.show.terminal import printable

if TYPE_CHECKING:
    from hope_eval.evaluation.run import ProgressBar
    from hope_eval.runs import columns

# Seconds between two plain lines.
_EVERY = 10.0

# A work that takes longer (seconds) says so once, as soon as its speed is known: after that many seconds.
_LONG, _KNOWN_AFTER = 600.0, 20.0


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} {self.unit}/s" if task.speed else "", style="dim")


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.time_remaining is None else f"{duration(round(task.time_remaining))} left", style="cyan")


def is_first_process() -> bool:
    """Whether this process is the first of several that share the work. Only the first one prints."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def progress(title: str, unit: str = "tokens") -> Iterator["columns.Progress"]:
    """Show the progress of a piece of work. Work of earlier sessions is reported once; the speed leaves it out."""
    if not is_first_process():
        yield lambda done, total: None
        return
    console = Console(stderr=True, highlight=False)
    title = printable(title)
    shown = _bar(console, title, unit) if console.is_terminal else _lines(console, title, unit)
    with shown as advance:
        first: int | None = None
        start, is_told = time.monotonic(), False

        def report(done: int, total: int) -> None:
            nonlocal first, is_told
            if first is None:
                first = done
                if done:
                    console.print(f"{title}: {done:,} of {total:,} {unit} were already done", soft_wrap=True)
            seconds = time.monotonic() - start
            if not is_told and seconds >= _KNOWN_AFTER and done > first:
                is_told = True
                if (left := (total - done) * seconds / (done - first)) > _LONG:
                    console.print(
                        f"{title}: about {duration(left)} to go; Ctrl-C ends it, and rerunning the command resumes. "
                        "`hope-eval plan` shows what takes how long, and its --budget what fits",
                        soft_wrap=True,
                        markup=False,
                    )
            advance(done, total)

        yield report


@contextlib.contextmanager
def joint_progress(title: str, n: int) -> Iterator["ProgressBar"]:
    """Show one progress over n pieces of work that follow each other and take about the same time, in percent."""
    with progress(title, "%") as report:
        n_done, begun = 0, False

        @contextlib.contextmanager
        def piece(name: str) -> Iterator["columns.Progress"]:
            nonlocal n_done

            def report_piece(done: int, total: int) -> None:
                nonlocal begun
                # Pieces of earlier sessions took no time: the first report counts them together.
                begun = begun or done < total
                if begun:
                    report(round(100 * (n_done + (done / total if total else 1)) / n), 100)

            yield report_piece
            n_done += 1

        yield piece
        if not begun:
            report(100, 100)


@contextlib.contextmanager
def _bar(console: Console, title: str, unit: str) -> Iterator["columns.Progress"]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        _Speed(unit),
        _TimeLeft(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(title, total=None)

        def report(done: int, total: int) -> None:
            if bars.tasks[0].total is None:
                # The work of an earlier session took no time in this one.
                bars.reset(task, total=total, completed=done)
            bars.update(task, completed=done, total=total)

        yield report


@contextlib.contextmanager
def _lines(console: Console, title: str, unit: str) -> Iterator["columns.Progress"]:
    start = printed = time.monotonic()
    first: int | None = None

    def report(done: int, total: int) -> None:
        nonlocal printed, first
        if first is None:
            first = done
            if done < total:
                console.print(f"{title}: {total - done:,} {unit} to go", soft_wrap=True)
        now = time.monotonic()
        if now - printed < _EVERY or done <= first:
            return
        printed = now
        speed = (done - first) / (now - start)
        left = duration((total - done) / speed)
        console.print(f"{title}: {done:,} of {total:,} {unit}, {speed:,.0f} {unit}/s, {left} left", soft_wrap=True)

    yield report
