"""Sample, Prompt and Task: what a model is asked. All that a task file may import.

A task makes prompts of any length; a prompt is a context and questions on it. Evaluation asks each question by itself,
and reads the context once for all of them; training asks them one after the other, in one line:

    evaluated   context query target · context query target · …      every line as long as asked for
    trained on  context query target query target query target       one line as long as asked for

Only targets are scored, and only targets are trained on.
"""

import dataclasses
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hope_eval.errors import ContextTooShortError, TaskError, did_you_mean
from hope_eval.plugins import module_from_file, only_class

Ids = Sequence[int] | np.ndarray

_HERE = Path(__file__).parent
# Beside the package in a checkout, within it where it is installed.
FOLDER = next(folder for folder in (_HERE / "tasks", _HERE.parent / "tasks") if folder.is_dir())


@dataclass(frozen=True)
class Sample:
    """Token ids to read, and those among them to score.

        context  query  target              one forward reads the whole line; the nll of every
        <s> a b  c d    e f g               target token is scored, given all tokens before it

    context: ids that are read and not scored; at least one, since the first token of a line has no prediction.
    target:  ids that are scored, in order.
    query:   ids between them that are read and not scored; samples with one context differ from here on.
    unread:  the last target ids that are scored but not read, 0 or 1. The prediction of a token needs only the
             tokens before it, so this matters where the number of tokens read is itself a definition (lm-eval's
             rolling windows) or changes the model (dynamic NTK).
    meta:    what results are sliced by: document, position, depth, distance…
    """

    context: Ids
    target: Ids
    query: Ids = ()
    unread: int = 0
    meta: Mapping[str, object] = field(default_factory=dict)

    @property
    def n_before(self) -> int:
        """Tokens before the target."""
        return len(self.context) + len(self.query)

    @property
    def n_read(self) -> int:
        """Tokens that the model reads."""
        return self.n_before + len(self.target) - self.unread


@dataclass(frozen=True)
class Question:
    """What is asked on a context: ids to read, ids to be predicted, and what results are sliced by."""

    query: Ids
    target: Ids
    meta: Mapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.query) + len(self.target)


@dataclass(frozen=True)
class Prompt:
    """A context, and the questions on it."""

    context: Ids
    questions: tuple[Question, ...]

    def samples(self) -> list[Sample]:
        """Return a sample for each question; all share the context."""
        return [Sample(self.context, q.target, q.query, meta=q.meta) for q in self.questions]

    def line(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of the context and of all questions after it [L], and which of them are targets, bool [L]."""
        parts: list[tuple[Ids, bool]] = [(self.context, False)]
        for question in self.questions:
            parts += [(question.query, False), (question.target, True)]
        ids = np.concatenate([np.asarray(part, np.int64) for part, _ in parts])
        scored = np.repeat([flag for _, flag in parts], [len(part) for part, _ in parts])
        return ids, scored


class Vocabulary:
    """A tokenizer as tasks see it: pieces of text as ids, and words that are one id each.

    tokenizer: of transformers, or anything with `encode(text) -> ids`.
    prefix:    the id that every context begins with (BOS, else EOS); None: nothing.
    """

    def __init__(self, tokenizer: Any, prefix: int | None) -> None:
        self.tokenizer = tokenizer
        self.start: list[int] = [] if prefix is None else [prefix]
        self._pieces: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a piece of text, without special tokens. Pieces are remembered: there should be few."""
        if text not in self._pieces:
            try:
                ids = self.tokenizer.encode(text, add_special_tokens=False)
            except TypeError:
                ids = self.tokenizer.encode(text)
            self._pieces[text] = list(ids)
        return self._pieces[text]

    @cached_property
    def _words(self) -> np.ndarray:
        tokens = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        if tokens is None:
            return np.zeros(0, np.int64)
        # Byte-level tokenizers write a space as Ġ, SentencePiece as ▁.
        return np.array(
            [
                number
                for number, text in enumerate(tokens(list(range(len(self.tokenizer)))))
                if text and re.fullmatch(r"[Ġ▁][A-Za-z]{2,}", text)
            ],
            np.int64,
        )

    def words(self, n: int) -> np.ndarray:
        """Return the first n ids that stand for a space and two or more letters [n].

        Raises TaskError if the tokenizer has fewer.
        """
        if len(self._words) < n:
            raise TaskError(
                f"the task needs {n} words that are one token each, and the tokenizer has {len(self._words)}",
                "choose another task, or a model with a larger vocabulary",
            )
        return self._words[:n]


@dataclass(frozen=True)
class Task(ABC):
    """A kind of question. Its fields are its parameters; their values and `version` are its identity.

    source:   the paper that defines it, as an arXiv id; empty for one of our own.
    version:  raise it when the same parameters make other prompts.
    one_line: what it asks.
    """

    source: ClassVar[str]
    version: ClassVar[int]
    one_line: ClassVar[str]

    @abstractmethod
    def prompt(self, vocabulary: Vocabulary, length: int, rng: np.random.Generator, joined: bool = False) -> Prompt:
        """Return a prompt whose longest question makes it `length` tokens long, everything counted.

        joined: all questions go into one line of that length, for training; otherwise each by itself.

        Raises ContextTooShortError, naming the least length that will do.
        """

    def varied(self, rng: np.random.Generator, length: int) -> "Task":
        """Return the task with other parameters that fit into `length`, for training on more than one."""
        return self

    def room(self, vocabulary: Vocabulary, length: int, questions: Sequence[Question], joined: bool, least: int) -> int:
        """Return how many tokens are left for the context, after the prefix and the questions.

        least: tokens that it must have. Raises ContextTooShortError if it has fewer.
        """
        sizes = [len(question) for question in questions]
        fixed = len(vocabulary.start) + (sum(sizes) if joined else max(sizes))
        if length < fixed + least:
            raise ContextTooShortError(self.name, length, fixed + least)
        return length - fixed

    @property
    def name(self) -> str:
        """The name of the file that defines it."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def fingerprint(self) -> str:
        """A hash of name, version and parameters, 16 hexadecimal digits."""
        identity = [self.name, self.version, dataclasses.asdict(self)]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def generator(*key: object) -> np.random.Generator:
    """Return the random generator of one prompt: of (split, task, seed, length, index), and of nothing else."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))


def task_names() -> list[str]:
    """Return the names of the tasks of this project: its file names."""
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def task_class(name: str) -> type[Task]:
    """Return the class of a task by its name, or by the path of a Python file that defines one.

    Raises TaskError if there is none of that name.
    """
    path = Path(name) if name.endswith(".py") else FOLDER / f"{name}.py"
    if not path.is_file():
        raise TaskError(f"no task is called `{name}`", did_you_mean(name, task_names(), "or give a Python file"))
    return only_class(module_from_file(path, "hope_eval_tasks"), Task)  # type: ignore[type-abstract]
