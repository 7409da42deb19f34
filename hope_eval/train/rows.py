"""Rows: the data that a model is trained on. A row is one sequence of ids, as long as the training length.

    a row of text    <s> and a stretch of text, from a random place                           all tokens are trained on
    a row of a task  prompts of one task (split "train"), one after another, and then text    targets, and the text

The lengths of the prompts in a row are random, and so are their parameters: a task asked at one length only is learned
at that length only. "attend 127 tokens back" would do for a string of 127 tokens and its copy. The share of each kind
of rows is the mix of the recipe.

All rows are made before the training begins, and kept in two arrays on disk. So every encoding reads the same tokens in
the same order, a resumed training continues with the very next row, and training waits for nothing.

Row i follows from (tokenizer, texts, mix, length, seed, i) alone.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hope_eval.errors import ContextTooShortError, OptionError, TrainingError
from hope_eval.runs.columns import Progress
from hope_eval.runs.launch import obey_parent
from hope_eval.task import Prompt, Task, Vocabulary, generator, task_class

# Reading the same text more often than this teaches a model to recite it.
MOST_EPOCHS = 100

# Bytes on disk of a token of a row, at least: its id, and whether it is trained on.
BYTES = 3

# Prompts to draw before a row ends with text: a prompt may be too long for what is left.
_TRIES = 4

# Rows that a process makes at a time; for fewer, no process is started.
_CHUNK = 4096


@dataclass(frozen=True)
class Rows:
    """Ids [N, L] and which of them are trained on, bool [N, L], both on disk."""

    ids: np.ndarray
    scored: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> "Rows":
        """Open the rows in a folder."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "scored")))

    def __len__(self) -> int:
        return len(self.ids)


def make_rows(
    folder: Path,
    identity: Mapping[str, Any],
    vocabulary: Vocabulary,
    texts: Path,
    n_rows: int,
    length: int,
    seed: int,
    mix: Mapping[str, float],
    progress: Progress = lambda done, total: None,
) -> Rows:
    """Write the rows to a folder, unless it has rows of the same identity.

    identity: everything that decides the rows, as JSON.
    texts:    file of the ids of all documents, each after the prefix token [T].
    mix:      shares of the rows, by task; the rest is text.
    progress: called with the rows made so far, and their total.

    Raises TrainingError if the texts are too short.
    """
    marker = folder / "lines.json"
    wanted = json.dumps({**identity, "n_lines": n_rows, "length": length, "seed": seed, "mix": dict(mix)})
    if marker.is_file() and marker.read_text() == wanted:
        return Rows.read(folder)
    dtype = np.uint16 if len(vocabulary.tokenizer) <= 1 << 16 else np.uint32
    folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    ids = np.lib.format.open_memmap(folder / "ids.npy", "w+", dtype, (n_rows, length))
    scored = np.lib.format.open_memmap(folder / "scored.npy", "w+", np.bool_, (n_rows, length))
    progress(0, n_rows)
    kinds = _kinds(n_rows, mix, seed)
    of_text = np.flatnonzero(kinds == "")
    scored[of_text, 1:] = True
    stretches = _stretches(np.load(texts, mmap_mode="r"), len(of_text), length - len(vocabulary.start), seed)
    for row, stretch in zip(of_text, stretches, strict=True):
        ids[row] = np.concatenate([vocabulary.start, stretch])
    ids.flush()
    scored.flush()
    done = len(of_text)
    progress(done, n_rows)
    for n_made in _fill_in_processes(folder, vocabulary, texts, kinds, length, seed):
        done += n_made
        progress(done, n_rows)
    marker.write_text(wanted)
    return Rows.read(folder)


def check_mix(mix: Mapping[str, float], vocabulary: Vocabulary, length: int) -> None:
    """Raise an error if rows of that length cannot be made of these tasks.

    Raises TrainingError if no prompt of a task fits, OptionError for a task whose answers are free, TaskError for an
    unknown one.
    """
    too_long: dict[str, int] = {}
    for name in mix:
        cls = task_class(name)
        if cls.n_new:
            raise OptionError(
                f"the answers of `{name}` are free, so there is nothing to train on", f"leave `{name}` out of --mix"
            )
        for index in range(_TRIES):
            try:
                drawn(cls, vocabulary, length, generator("check", name, length, index))
                break
            except ContextTooShortError as error:
                too_long[name] = max(too_long.get(name, 0), error.needed)
        else:
            continue
        too_long.pop(name, None)
    if too_long:
        names = ", ".join(f"`{name}`" for name in too_long)
        raise TrainingError(
            f"no prompt of {names} fits into rows of {length} tokens",
            f"--train-length {max(too_long.values())}, or leave them out: --mix text, --mix copy=0.2",
        )


def _fill_in_processes(
    folder: Path, vocabulary: Vocabulary, texts: Path, kinds: np.ndarray, length: int, seed: int
) -> Iterator[int]:
    """Make the rows of the tasks on all cores; yields the number made so far."""
    chunks = [range(start, min(start + _CHUNK, len(kinds))) for start in range(0, len(kinds), _CHUNK)]
    calls = [(folder, vocabulary, texts, kinds[rows.start : rows.stop], rows, length, seed) for rows in chunks]
    n_processes = min(os.cpu_count() or 1, len(chunks) // 2)
    if n_processes < 2:
        yield from (_fill(*arguments) for arguments in calls)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n_processes, context, initializer=obey_parent)
    try:
        for future in as_completed([pool.submit(_fill, *arguments) for arguments in calls]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _fill(
    folder: Path, vocabulary: Vocabulary, texts: Path, kinds: np.ndarray, rows: range, length: int, seed: int
) -> int:
    """Make the rows of the tasks among these rows; gives their number."""
    ids, scored = (np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("ids", "scored"))
    stream = np.load(texts, mmap_mode="r")
    classes = {str(kind): task_class(str(kind)) for kind in np.unique(kinds) if kind}
    n_made = 0
    for row, kind in zip(rows, kinds, strict=True):
        if kind:
            rng = generator("train", str(kind), seed, length, row)
            ids[row], scored[row] = task_row(classes[str(kind)], vocabulary, stream, length, rng)
            n_made += 1
    ids.flush()
    scored.flush()
    return n_made


def task_row(
    cls: type[Task], vocabulary: Vocabulary, stream: np.ndarray, length: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a row of a task [L], and which of them are trained on, bool [L].

    stream: ids of texts, for what no prompt fits into.
    """
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    left = length
    while left:
        try:
            parts.append(drawn(cls, vocabulary, left, rng).row())
        except ContextTooShortError:
            parts.append(_rest(vocabulary, stream, left, rng))
        left -= len(parts[-1][0])
    ids, scored = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(scored)


def drawn(cls: type[Task], vocabulary: Vocabulary, left: int, rng: np.random.Generator) -> Prompt:
    """A prompt of a random length, at most `left`, and with random parameters.

    Raises ContextTooShortError if none is found.
    """
    # The larger of two draws: every length occurs, and long ones, which hold more, occur more often.
    size = int(rng.integers(1, left + 1, size=2).max())
    for tries_left in reversed(range(_TRIES)):
        task = cls().varied(rng, size)
        try:
            return task.prompt(vocabulary, size, rng, joined=True)
        except ContextTooShortError as error:
            if not tries_left:
                raise
            size = int(rng.integers(min(error.needed, left), left + 1))
    raise AssertionError


def _rest(
    vocabulary: Vocabulary, stream: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a stretch of text after the prefix token [size], and which of them are trained on, bool [size]."""
    first = int(rng.integers(len(stream) - size + 1))
    ids = np.concatenate([vocabulary.start, stream[first : first + size]])[:size]
    return ids, np.arange(size) >= len(vocabulary.start)


def _kinds(n_rows: int, mix: Mapping[str, float], seed: int) -> np.ndarray:
    """Task of every row, empty for text."""
    names = np.array([*mix, ""])
    # Shares that add up to 1 leave no text, whatever their last digit.
    edges = np.round(np.cumsum([*mix.values()]), 9)
    return names[np.searchsorted(edges, generator("train", "kinds", seed).random(n_rows), side="right")]


def _stretches(stream: np.ndarray, n: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield n stretches of `size` tokens: the whole stream in random order, then again, cut at other places."""
    if n * size > MOST_EPOCHS * len(stream) or len(stream) < 2 * size:
        raise TrainingError(
            f"the training needs {n * size:,} tokens of text, but the texts have {len(stream):,}: they may be read "
            f"{MOST_EPOCHS} times at most",
            "lower --tokens, or give more texts with --data",
        )
    epoch = 0
    while n:
        rng = generator("train", "text", seed, size, epoch)
        first = int(rng.integers(size))
        starts = rng.permutation(np.arange(first, len(stream) - size + 1, size))[:n]
        yield from (stream[start : start + size] for start in starts)
        n, epoch = n - len(starts), epoch + 1


def check_disk(folder: Path, n_bytes: int, what: str) -> None:
    """Raise TrainingError if the disk has no room for that many bytes."""
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise TrainingError(
            f"{what} take {n_bytes / 2**30:,.1f} GiB, and the disk of `{folder}` has {free / 2**30:,.1f} GiB left",
            "free some space, or choose another --out",
        )
