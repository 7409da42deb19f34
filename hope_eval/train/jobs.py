"""Several trainings side by side on one machine, each in a process of its own.

One small model leaves a GPU idle most of the time: six of them side by side take little longer than one. Where there
are several GPUs, the models take them in turn.
"""

import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path
from typing import Any, Self

import torch

from hope_eval.errors import HopeEvalError, TrainingError, unexpected
from hope_eval.runs.columns import Progress
from hope_eval.runs.launch import obey_parent
from hope_eval.train.loop import train
from hope_eval.train.prepare import ProgressBar, no_bar, prepare
from hope_eval.train.recipe import Recipe, claim

_SPAWN = multiprocessing.get_context("spawn")


def prepare_all(
    recipes: Mapping[Path, Recipe], work: Path, force: bool = False, bar: ProgressBar = no_bar
) -> dict[Path, Recipe]:
    """Make the folders of all recipes, and the rows of the first; gives the untrained recipes, by folder.

    `train_all` makes the rows of other seeds while the first models are trained.

    force: delete other trainings in these folders.
    """
    for recipe in recipes.values():
        recipe.check()
    untrained = {out: recipe for out, recipe in recipes.items() if not claim(recipe, out, force)}
    for recipe in _by_rows(untrained)[:1]:
        prepare(recipe, work, bar)
    return untrained


def _by_rows(recipes: Mapping[Path, Recipe]) -> list[Recipe]:
    """One recipe for all that share their rows."""
    return list({replace(each, encoding=""): each for each in recipes.values()}.values())


def _prepare_here(recipes: Sequence[Recipe], work: Path) -> None:
    """Make rows in this process, which leaves the processor to trainings, and ends with the command."""
    os.nice(10)
    obey_parent()
    for recipe in recipes:
        prepare(recipe, work)


def train_all(
    recipes: Mapping[Path, Recipe],
    work: Path,
    jobs: int,
    *,
    progress: Progress = lambda done, total: None,
    **options: Any,
) -> None:
    """Train several recipes, each into its folder, `jobs` of them at a time.

    work:     folder of the rows that they share, until all are done.
    progress: called with the tokens of all trainings together.
    options:  as for `train`.

    If one fails, the others continue, and its error is raised at the end. An interruption ends all of them.

    Raises TrainingError for a training that was killed, and the errors of `train`.
    """
    untrained = prepare_all(recipes, work, force=options.pop("force", False))
    total = {out: recipe.n_tokens for out, recipe in recipes.items()}
    done = {out: 0 if out in untrained else total[out] for out in recipes}
    n_threads = max(1, (os.cpu_count() or 1) // jobs)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(n_threads))
    waiting = [
        _Training(out, (recipe, out, index, work, n_threads, options))
        for index, (out, recipe) in enumerate(untrained.items())
    ]
    preparing = _SPAWN.Process(target=_prepare_here, args=(_by_rows(untrained)[1:], work))
    running: list[_Training] = []
    errors: list[HopeEvalError] = []
    n_begun = 0
    try:
        preparing.start()
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(waiting.pop(0).started())
            connection.wait([training.pipe for training in running], timeout=0.5)
            for training in running:
                n_begun += training.heard(done)
            errors += [training.error for training in running if training.has_ended and training.error]
            running = [training for training in running if not training.has_ended]
            # The speed counts from the first call on, which waits until all have reported their start.
            if n_begun >= min(jobs, len(untrained)):
                progress(sum(done.values()), sum(total.values()))
        preparing.join()
    finally:
        for process in (preparing, *(training.process for training in running)):
            if process.is_alive():
                process.kill()
    if errors:
        raise errors[0]
    progress(sum(total.values()), sum(total.values()))
    shutil.rmtree(work, ignore_errors=True)


class _Training:
    """A training in a process of its own, which tells how many tokens it has read.

    error: why it failed; None while it goes well.
    """

    def __init__(self, out: Path, arguments: tuple[Any, ...]) -> None:
        self.out = out
        self.pipe, self._told = _SPAWN.Pipe(duplex=False)
        self.process = _SPAWN.Process(target=_train_here, args=(self._told, *arguments))
        self.error: HopeEvalError | None = None
        self.has_ended = False
        self._has_begun = False

    def started(self) -> Self:
        """Start it."""
        self.process.start()
        # Only its process holds that end: the pipe ends with the process.
        self._told.close()
        return self

    def heard(self, done: dict[Path, int]) -> bool:
        """Read what it told, into `done`; True when it tells the first time."""
        had_begun = self._has_begun
        try:
            while self.pipe.poll():
                told = self.pipe.recv()
                if isinstance(told, HopeEvalError):
                    self.error = told
                else:
                    done[self.out], self._has_begun = told, True
        except EOFError:
            self.process.join()
            self.has_ended = True
            if self.process.exitcode and self.error is None:
                self.error = TrainingError(
                    f"the training into `{self.out}` was ended (exit code {self.process.exitcode})",
                    "rerun the command to resume; fewer --jobs take less memory",
                )
        return self._has_begun and not had_begun


def _train_here(
    pipe: Any, recipe: Recipe, out: Path, index: int, work: Path, n_threads: int, options: dict[str, Any]
) -> None:
    """Train one recipe in this process, and report its progress to the parent about once a second.

    index: of the recipe among all, which take the GPUs in turn.
    """
    obey_parent()
    # With more threads than cores, processes wait for each other.
    torch.set_num_threads(n_threads)
    last_message = 0.0

    def tell_parent(done: int, total: int) -> None:
        nonlocal last_message
        if time.monotonic() - last_message > 1:
            last_message = time.monotonic()
            pipe.send(done)

    if options["device"] in ("auto", "cuda") and (n_gpus := torch.cuda.device_count()) > 1:
        options = {**options, "device": f"cuda:{index % n_gpus}"}
    try:
        train(recipe, out, work=work, progress=tell_parent, **options)
    except HopeEvalError as error:
        pipe.send(TrainingError(error.message, error.hint))
        sys.exit(1)
    except Exception as error:
        pipe.send(unexpected(error))
        sys.exit(1)
