"""Suites: several measurements together, from `tasks/suites.toml` or from a file of the user.

    [quick]
    about = "all pillars on the bundled models, in two minutes on a CPU"
    lengths = "1x,2x,4x"
    samples = 8
    tasks = ["ppl", "ppl:sliding:stride=64", { task = "needle:n_needles=4", lengths = "2x", samples = 4 }]

Lengths are tokens, or multiples of each model's training length. An unknown key is an error: a misspelt one would
otherwise be ignored silently.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hope_eval.errors import OptionError, did_you_mean
from hope_eval.lengths import DEFAULT, OF_TASKS, Lengths, parse_lengths
from hope_eval.protocols import DEFAULT_PROTOCOL, Protocol, parse_protocol
from hope_eval.runs.kinds import PPL
from hope_eval.task import FOLDER, Task, parse_task

# Keys of a suite that apply to all its tasks. A task may replace them.
_SHARED = ("lengths", "samples", "controls")


@dataclass(frozen=True)
class Entry:
    """One measurement of a suite.

    what:     a task, or a perplexity protocol.
    lengths:  None: the default of either.
    samples:  contexts of a task, or documents of a perplexity; None: the default of either.
    controls: whether the controls of a task are measured too.
    written:  as the user wrote it, such as `my/task.py:n=4`; empty: as `what` prints.
    """

    what: Task | Protocol
    lengths: Lengths | None = None
    samples: int | None = None
    controls: bool = True
    written: str = ""

    @property
    def all_lengths(self) -> Lengths:
        """Its lengths, or the default ones."""
        return self.lengths or (DEFAULT if isinstance(self.what, Protocol) else OF_TASKS)

    def __str__(self) -> str:
        """As it is written on a command line: `needle:n_needles=4`, `ppl:sliding:stride=64`."""
        return self.written or (f"{PPL}:{self.what}" if isinstance(self.what, Protocol) else str(self.what))


@dataclass(frozen=True)
class Suite:
    """Several measurements."""

    name: str
    about: str
    entries: tuple[Entry, ...]

    def with_changes(self, lengths: Lengths | None, samples: int | None) -> "Suite":
        """The suite with other lengths, or another number of samples, for all its entries."""
        entries = (replace(e, lengths=lengths or e.lengths, samples=samples or e.samples) for e in self.entries)
        return replace(self, entries=tuple(entries))


def suites(path: Path = FOLDER / "suites.toml") -> dict[str, Suite]:
    """The suites of a file, by name.

    Raises OptionError for a file that cannot be read and for unknown keys, TaskError for unknown tasks.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(
            f"cannot read the suites of `{path}`: {error}", "give a TOML file such as tasks/suites.toml"
        ) from error
    if not content:
        raise OptionError(f"`{path}` has no suite", '[mine], then tasks = ["ppl", "copy"]')
    stray = next((name for name, table in content.items() if not isinstance(table, dict)), None)
    if stray is not None:
        raise OptionError(f"`{stray}` of `{path}` is not inside a suite", f"put it below a name: [{path.stem}]")
    return {name: _suite(name, table) for name, table in content.items()}


def suite_named(name: str) -> Suite:
    """A suite by its name, or from a file: `my.toml`, or `my.toml:name` of several.

    Raises OptionError if no suite has that name.
    """
    file, is_file, inner = name.partition(".toml")
    by_name = suites(Path(f"{file}.toml").expanduser()) if is_file else suites()
    inner = inner.removeprefix(":") if is_file else name
    if is_file and not inner and len(by_name) == 1:
        return next(iter(by_name.values()))
    if inner not in by_name:
        raise OptionError(
            f"no suite is called `{inner or name}`", did_you_mean(inner, by_name, f"one of {', '.join(by_name)}")
        )
    return by_name[inner]


def _suite(name: str, table: Mapping[str, Any]) -> Suite:
    _check_keys(table, ("about", *_SHARED, "tasks"), name)
    tasks = table.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        raise OptionError(f"the suite `{name}` has no tasks", 'tasks = ["ppl", "copy"]')
    shared = {key: table[key] for key in _SHARED if key in table}
    entries = [_entry({**shared, **(task if isinstance(task, dict) else {"task": task})}, name) for task in tasks]
    return Suite(name, str(table.get("about", "")), tuple(entries))


def _entry(values: Mapping[str, Any], suite: str) -> Entry:
    _check_keys(values, ("task", *_SHARED), suite)
    samples, text = values.get("samples"), values.get("task")
    if not isinstance(text, str):
        raise OptionError(f"a task of the suite `{suite}` has no name", '{ task = "copy", samples = 8 }')
    if samples is not None and (type(samples) is not int or samples < 1):
        raise OptionError(f"`samples` of `{text}` in the suite `{suite}` is {samples!r}", "a whole number from 1 on")
    lengths = parse_lengths(str(values["lengths"])) if "lengths" in values else None
    controls = values.get("controls", True)
    if not isinstance(controls, bool):
        raise OptionError(f"`controls` of `{text}` in the suite `{suite}` is {controls!r}", "true or false")
    return Entry(parse_measure(text), lengths, samples, controls, text)


def parse_measure(text: str) -> Task | Protocol:
    """Read a task, or `ppl`, or `ppl:sliding:stride=512` for perplexity by a protocol with its parameters."""
    name, _, protocol = text.partition(":")
    return parse_protocol(protocol or DEFAULT_PROTOCOL) if name == PPL else parse_task(text)


def _check_keys(table: Mapping[str, Any], allowed: tuple[str, ...], suite: str) -> None:
    for key in table:
        if key not in allowed:
            raise OptionError(
                f"the suite `{suite}` has no key `{key}`", did_you_mean(key, allowed, f"one of {', '.join(allowed)}")
            )
