"""Lines: what a model is trained on. One line is one row of ids, as long as the training length.

    share of lines  what they are                                                  what is trained on
    60 %            <s> and a stretch of text, from a place of its own             all tokens
    40 %            prompts of the tasks (split "train"), all questions in line    the targets

All lines are made before training begins, and kept in two arrays on disk: then every encoding reads the same tokens in
the same order, a resumed training goes on with the very next line, and training waits for nothing.

Line i follows from (tokenizer, texts, shares, length, seed, i) alone.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hope_eval.errors import TrainingError
from hope_eval.task import Vocabulary, generator, task_class

# Of all lines; what is missing to 1 is text. Copying and recall are learned slowly, the others by the way.
SHARES = {"copy": 0.13, "associative_recall": 0.14, "passkey": 0.04, "label_map": 0.05, "rule_induction": 0.04}

# What stands for a task in the key of its lines. The bundled models were trained when `copy` was called `copying`, and
# the one command that trains them again is to give it the lines that they have read.
_KEYS = {"copy": "copying"}

# Reading the same text more often than this teaches a model to recite it.
MOST_EPOCHS = 100

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Lines:
    """Ids [N, L] and which of them are trained on, bool [N, L], both on disk."""

    ids: np.ndarray
    scored: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> "Lines":
        """Open the lines in a folder."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "scored")))

    def __len__(self) -> int:
        return len(self.ids)


def make_lines(
    folder: Path,
    identity: Mapping[str, Any],
    vocabulary: Vocabulary,
    text: np.ndarray,
    n_lines: int,
    length: int,
    seed: int,
    shares: Mapping[str, float] = SHARES,
    report: Report = lambda done, total: None,
) -> Lines:
    """Write the lines to a folder, unless those of that identity are there already.

    identity: what the lines follow from, as JSON.
    text:     the ids of all documents, each after the prefix token [T].
    shares:   of lines, by task.
    report:   called with lines made so far, and in all.

    Raises TrainingError if the texts are too short, or the disk too small.
    """
    marker = folder / "lines.json"
    wanted = json.dumps({**identity, "n_lines": n_lines, "length": length, "seed": seed, "shares": dict(shares)})
    if marker.is_file() and marker.read_text() == wanted:
        return Lines.read(folder)
    dtype = np.uint16 if len(vocabulary.tokenizer) <= 1 << 16 else np.uint32
    folder.mkdir(parents=True, exist_ok=True)
    check_disk(folder, n_lines * length * (np.dtype(dtype).itemsize + 1), "the training lines")
    marker.unlink(missing_ok=True)
    ids = np.lib.format.open_memmap(folder / "ids.npy", "w+", dtype, (n_lines, length))
    scored = np.lib.format.open_memmap(folder / "scored.npy", "w+", np.bool_, (n_lines, length))
    report(0, n_lines)
    kinds = _kinds(n_lines, shares, seed)
    rows = np.flatnonzero(kinds == "")
    scored[rows, 1:] = True
    for row, stretch in zip(rows, _stretches(text, len(rows), length - len(vocabulary.start), seed), strict=True):
        ids[row] = np.concatenate([vocabulary.start, stretch])
    ids.flush()
    scored.flush()
    done = len(rows)
    report(done, n_lines)
    for n in _fill_in_processes(folder, vocabulary, kinds, length, seed):
        done += n
        report(done, n_lines)
    marker.write_text(wanted)
    return Lines.read(folder)


# Rows that a process makes at a time; fewer are not worth starting processes for.
_CHUNK = 4096


def _fill_in_processes(
    folder: Path, vocabulary: Vocabulary, kinds: np.ndarray, length: int, seed: int
) -> Iterator[int]:
    """Make the lines of the tasks on all cores; yield how many are made."""
    chunks = [range(start, min(start + _CHUNK, len(kinds))) for start in range(0, len(kinds), _CHUNK)]
    arguments = [(folder, vocabulary, kinds[rows.start : rows.stop], rows, length, seed) for rows in chunks]
    n_processes = min(os.cpu_count() or 1, len(chunks) // 2)
    if n_processes < 2:
        yield from (_fill(*one) for one in arguments)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, context) as pool:
        for future in as_completed([pool.submit(_fill, *one) for one in arguments]):
            yield future.result()


def _fill(folder: Path, vocabulary: Vocabulary, kinds: np.ndarray, rows: range, length: int, seed: int) -> int:
    """Make the lines of the tasks among these rows, and return how many they are."""
    ids, scored = (np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("ids", "scored"))
    n = 0
    for row, kind in zip(rows, kinds, strict=True):
        if kind:
            rng = generator("train", _KEYS.get(str(kind), str(kind)), seed, length, row)
            task = task_class(str(kind))().varied(rng, length)
            ids[row], scored[row] = task.prompt(vocabulary, length, rng, joined=True).line()
            n += 1
    ids.flush()
    scored.flush()
    return n


def _kinds(n_lines: int, shares: Mapping[str, float], seed: int) -> np.ndarray:
    """Return the task of every line, empty for text."""
    names = np.array([*shares, ""])
    edges = np.cumsum(list(shares.values()))
    return names[np.searchsorted(edges, generator("train", "kinds", seed).random(n_lines), side="right")]


def _stretches(stream: np.ndarray, n: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield n stretches of that many tokens: all of the stream in random order, then again, cut at other places."""
    if n * size > MOST_EPOCHS * len(stream) or len(stream) < 2 * size:
        raise TrainingError(
            f"the texts hold {len(stream):,} tokens, and {n * size:,} are asked of them: more than {MOST_EPOCHS} times "
            "the same",
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
            f"{what} take {n_bytes / 2**30:,.1f} GiB, and `{folder}` has {free / 2**30:,.1f} GiB left",
            "make room, or choose another --out",
        )
