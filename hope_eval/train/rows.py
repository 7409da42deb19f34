"""Rows: the data that a model is trained on. A row is one sequence of ids, as long as the training length.

    share of rows  content                                                        trained on
    60 %           <s> and a stretch of text, from a random place                 all tokens
    40 %           prompts of the tasks (split "train"), all questions in a row   the targets

All rows are made before the training begins, and kept in two arrays on disk. So every encoding reads the same tokens in
the same order, a resumed training continues with the very next row, and training waits for nothing.

Row i follows from (tokenizer, texts, shares, length, seed, i) alone.
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

from hope_eval.errors import TrainingError
from hope_eval.runs.columns import Progress
from hope_eval.task import Vocabulary, generator, task_class

# Shares of the rows, by task; the rest is text. Copying and recall are learned slowly, the others quickly.
SHARES = {"copy": 0.13, "associative_recall": 0.14, "passkey": 0.04, "label_map": 0.05, "rule_induction": 0.04}

# The name of a task in the random key of its rows, if that is not the task's name. The bundled models were trained when
# `copy` was called `copying`; training them again must give them the same rows.
_KEYS = {"copy": "copying"}

# Reading the same text more often than this teaches a model to recite it.
MOST_EPOCHS = 100

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
    stream: np.ndarray,
    n_rows: int,
    length: int,
    seed: int,
    shares: Mapping[str, float] = SHARES,
    progress: Progress = lambda done, total: None,
) -> Rows:
    """Write the rows to a folder, unless it has rows of the same identity.

    identity: everything that decides the rows, as JSON.
    stream:   the ids of all documents, each after the prefix token [T].
    shares:   of the rows, by task.
    progress: called with the rows made so far, and their total.

    Raises TrainingError if the texts are too short, or the disk is too full.
    """
    marker = folder / "lines.json"
    wanted = json.dumps({**identity, "n_lines": n_rows, "length": length, "seed": seed, "shares": dict(shares)})
    if marker.is_file() and marker.read_text() == wanted:
        return Rows.read(folder)
    dtype = np.uint16 if len(vocabulary.tokenizer) <= 1 << 16 else np.uint32
    folder.mkdir(parents=True, exist_ok=True)
    check_disk(folder, n_rows * length * (np.dtype(dtype).itemsize + 1), "the training rows")
    marker.unlink(missing_ok=True)
    ids = np.lib.format.open_memmap(folder / "ids.npy", "w+", dtype, (n_rows, length))
    scored = np.lib.format.open_memmap(folder / "scored.npy", "w+", np.bool_, (n_rows, length))
    progress(0, n_rows)
    kinds = _kinds(n_rows, shares, seed)
    of_text = np.flatnonzero(kinds == "")
    scored[of_text, 1:] = True
    stretches = _stretches(stream, len(of_text), length - len(vocabulary.start), seed)
    for row, stretch in zip(of_text, stretches, strict=True):
        ids[row] = np.concatenate([vocabulary.start, stretch])
    ids.flush()
    scored.flush()
    done = len(of_text)
    progress(done, n_rows)
    for n_made in _fill_in_processes(folder, vocabulary, kinds, length, seed):
        done += n_made
        progress(done, n_rows)
    marker.write_text(wanted)
    return Rows.read(folder)


def _fill_in_processes(
    folder: Path, vocabulary: Vocabulary, kinds: np.ndarray, length: int, seed: int
) -> Iterator[int]:
    """Make the rows of the tasks on all cores; yields the number made so far."""
    chunks = [range(start, min(start + _CHUNK, len(kinds))) for start in range(0, len(kinds), _CHUNK)]
    calls = [(folder, vocabulary, kinds[rows.start : rows.stop], rows, length, seed) for rows in chunks]
    n_processes = min(os.cpu_count() or 1, len(chunks) // 2)
    if n_processes < 2:
        yield from (_fill(*arguments) for arguments in calls)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, context) as pool:
        for future in as_completed([pool.submit(_fill, *arguments) for arguments in calls]):
            yield future.result()


def _fill(folder: Path, vocabulary: Vocabulary, kinds: np.ndarray, rows: range, length: int, seed: int) -> int:
    """Make the rows of the tasks among these rows; gives their number."""
    ids, scored = (np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("ids", "scored"))
    n_made = 0
    for row, kind in zip(rows, kinds, strict=True):
        if kind:
            rng = generator("train", _KEYS.get(str(kind), str(kind)), seed, length, row)
            task = task_class(str(kind))().varied(rng, length)
            ids[row], scored[row] = task.prompt(vocabulary, length, rng, joined=True).row()
            n_made += 1
    ids.flush()
    scored.flush()
    return n_made


def _kinds(n_rows: int, shares: Mapping[str, float], seed: int) -> np.ndarray:
    """Task of every row, empty for text."""
    names = np.array([*shares, ""])
    edges = np.cumsum(list(shares.values()))
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
