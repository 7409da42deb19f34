"""Mistakes of users, as exceptions. Our own mistakes are asserts.

    HopeEvalError
    ├── CheckpointError       a checkpoint that is missing, incomplete, or not a checkpoint
    ├── ComparisonError       runs that cannot be compared
    ├── ContextTooShortError  a length that is too short for a task
    ├── CorpusError           a text that cannot be read, or is too short
    ├── EncodingError         an encoding that is unknown, or does not fit the model
    ├── LengthError           a length that is malformed, or that the model cannot read
    ├── MissingPackageError   an optional package that is not installed
    ├── OptionError           an option that is not valid, or that does not fit the others
    ├── StoreError            results that cannot be written or read, or that lack what is asked for
    ├── TaskError             a task that is unknown, or that a tokenizer cannot express
    └── TrainingError         a training that cannot start or resume

Each message says what was asked, with its value, and what is allowed; `hint` says what to do.
"""

import difflib
import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

# Characters of an unexpected error that its line shows.
_MOST_CHARACTERS = 300


class HopeEvalError(Exception):
    """A mistake that the user can correct: a message and a hint.

    The command line prints both and exits with 1; a traceback is never shown for it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class CheckpointError(HopeEvalError):
    """A checkpoint that is missing, incomplete, or not a checkpoint."""


class ComparisonError(HopeEvalError):
    """Runs that cannot be compared."""


class ContextTooShortError(HopeEvalError):
    """A length that is too short for a task.

    needed: the fewest tokens that the task needs.
    """

    def __init__(self, task: str, length: int, needed: int) -> None:
        super().__init__(f"`{task}` needs at least {needed} tokens of context, got {length}", "give a longer length")
        self.needed = needed


class CorpusError(HopeEvalError):
    """A text that cannot be read, or is too short."""


class EncodingError(HopeEvalError):
    """An encoding that is unknown, or does not fit the model."""


class LengthError(HopeEvalError):
    """A length that is malformed, or that the model cannot read."""


class MissingPackageError(HopeEvalError):
    """An optional package that is not installed."""


class OptionError(HopeEvalError):
    """An option that is not valid, or that does not fit the others."""


class StoreError(HopeEvalError):
    """Results that cannot be written or read, or that lack what is asked for."""


class TaskError(HopeEvalError):
    """A task that is unknown, or that a tokenizer cannot express."""


class TrainingError(HopeEvalError):
    """A training that cannot start or resume."""


def first_line(error: BaseException | str) -> str:
    """The first line of what an error says, 200 characters at most."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:200]


def did_you_mean(name: str, known: Iterable[str], lists_all: str) -> str:
    """The hint for an unknown name: the closest known name, and the command that lists all."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean `{close[0]}`? {lists_all}" if close else lists_all


def unexpected(error: BaseException) -> HopeEvalError:
    """The error for a mistake of ours: one line, and the traceback in a file of the user's cache folder.

    The folder is `hope-eval` in $XDG_CACHE_HOME, else in ~/.cache.
    """
    text = "".join(traceback.format_exception(error))
    what = f"{type(error).__name__}: {error}".splitlines()[0][:_MOST_CHARACTERS]
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hope-eval"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"error-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.txt"
        file.write_text(f"{shlex.join(sys.argv)}\n\n{text}", "utf-8", errors="backslashreplace")
    except (OSError, RuntimeError):
        return HopeEvalError(f"this is a fault of hope-eval: {what}", "please report it with the command")
    return HopeEvalError(
        f"this is a fault of hope-eval: {what}", f"please report it with the command and the file {file}"
    )


def require(module: str, purpose: str, package: str = "") -> ModuleType:
    """Import an optional package where it is used.

    Raises MissingPackageError with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        package = package or module.split(".")[0]
        raise MissingPackageError(f"{purpose} needs the package `{package}`", f"pip install {package}") from None
