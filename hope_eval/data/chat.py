"""Chat templates: code that comes with a tokenizer. It may fail, and it may not end."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from types import FrameType
from typing import Any
from unittest import mock

from hope_eval.errors import OptionError, first_line

# Seconds that a template may take; the longest of known models take a hundredth of one.
PATIENCE = 5.0


def rendered(tokenizer: Any, turns: Sequence[dict[str, str]]) -> str:
    """Turns of a chat as the template of a tokenizer writes them, up to the words of the model.

    Raises OptionError if the template fails, takes too long, or writes no text.
    """
    try:
        with _at_most(PATIENCE), _on_that_day():
            text = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
    except TimeoutError:
        raise OptionError(
            f"the chat template of the tokenizer does not end within {PATIENCE:g} seconds", "--plain leaves it out"
        ) from None
    except Exception as error:
        # Templates are programs, and raise errors of any kind.
        raise OptionError(
            f"the chat template of the tokenizer fails: {type(error).__name__}: {first_line(error)}",
            "--plain leaves it out",
        ) from error
    if not isinstance(text, str):
        raise OptionError(
            f"the chat template of the tokenizer gives {type(text).__name__}, and not a text", "--plain leaves it out"
        )
    return text


class _ThatDay(datetime):
    """A clock that stands still: the same prompts on every day."""

    @classmethod
    def now(cls, tz: Any = None) -> "_ThatDay":
        """The date that every template is told."""
        return cls(2024, 7, 26, tzinfo=UTC)


@contextlib.contextmanager
def _on_that_day() -> Iterator[None]:
    """Let `strftime_now` of templates tell the same date always: as an argument, transformers makes it a string."""
    code = sys.modules.get("transformers.utils.chat_template_utils")
    with mock.patch.object(code, "datetime", _ThatDay) if code else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in Python code that runs for longer; not outside the main thread, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
