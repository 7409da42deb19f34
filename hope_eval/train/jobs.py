"""Several trainings side by side on one machine, each in a process of its own.

One small model leaves a GPU idle most of the time: six of them side by side take little longer than one. Where there
are several GPUs, the models take them in turn.
"""

import contextlib
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hope_eval.runs.columns import Progress
from hope_eval.train.loop import train
from hope_eval.train.prepare import ProgressBar, no_bar, prepare
from hope_eval.train.recipe import Recipe, claim


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
    parent = multiprocessing.parent_process()

    @contextlib.contextmanager
    def watched(title: str, unit: str) -> Iterator[Progress]:
        def look(done: int, total: int) -> None:
            if parent is not None and not parent.is_alive():
                os._exit(1)

        yield look

    for recipe in recipes:
        prepare(recipe, work, watched)


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

    If one fails, the others continue, and its error is raised at the end.
    """
    untrained = prepare_all(recipes, work, force=options.pop("force", False))
    total = {out: recipe.n_tokens for out, recipe in recipes.items()}
    done = {out: 0 if out in untrained else total[out] for out in recipes}
    context = multiprocessing.get_context("spawn")
    n_threads = max(1, (os.cpu_count() or 1) // jobs)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(n_threads))
    errors: list[BaseException] = []
    preparing = context.Process(target=_prepare_here, args=(_by_rows(untrained)[1:], work))
    preparing.start()
    with context.Manager() as manager, ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
        queue: Any = manager.Queue()
        shared = (work, queue, n_threads, options)
        running = {
            pool.submit(_train_here, recipe, out, index, *shared)
            for index, (out, recipe) in enumerate(untrained.items())
        }
        n_messages = 0
        while running:
            finished, running = wait(running, timeout=0.5)
            errors += [error for future in finished if (error := future.exception())]
            while not queue.empty():
                out, tokens = queue.get()
                done[out] = tokens
                n_messages += 1
            # The speed counts from the first call on, which waits until all have reported their start.
            if n_messages >= min(jobs, len(untrained)):
                progress(sum(done.values()), sum(total.values()))
    preparing.join()
    if errors:
        raise errors[0]
    progress(sum(total.values()), sum(total.values()))
    shutil.rmtree(work, ignore_errors=True)


def _train_here(
    recipe: Recipe, out: Path, index: int, work: Path, queue: Any, n_threads: int, options: dict[str, Any]
) -> None:
    """Train one recipe in this process, and report its progress to the parent about once a second.

    index: of the recipe among all, which take the GPUs in turn.
    """
    # With more threads than cores, processes wait for each other.
    torch.set_num_threads(n_threads)
    parent = multiprocessing.parent_process()
    last_message = 0.0

    def tell_parent(done: int, total: int) -> None:
        nonlocal last_message
        if time.monotonic() - last_message > 1:
            last_message = time.monotonic()
            if parent is not None and not parent.is_alive():
                # The command was killed; when it is rerun, it trains this model itself.
                os._exit(1)
            queue.put((out, done))

    if options["device"] in ("auto", "cuda") and (n_gpus := torch.cuda.device_count()) > 1:
        options = {**options, "device": f"cuda:{index % n_gpus}"}
    train(recipe, out, work=work, progress=tell_parent, **options)
