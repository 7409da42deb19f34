"""Suites: what is measured together, read from `tasks/suites.toml` or a file of one's own.

    [quick]
    about = "all pillars on the bundled models, in two minutes on a CPU"
    lengths = "1x,2x,4x"
    samples = 8
    tasks = ["ppl", "copy", { task = "needle:n_needles=4", lengths = "2x", samples = 4 }]

Lengths are tokens, or multiples of each model's training length. A key that is not known is an error: what is misspelt
would otherwise be left out without a word.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hope_eval.errors import OptionError, did_you_mean
from hope_eval.lengths import DEFAULT, Lengths, parse_lengths
from hope_eval.protocols import DEFAULT_PROTOCOL, Protocol, parse_protocol
from hope_eval.runs.kinds import PPL
from hope_eval.task import FOLDER, Task, parse_task

# Keys of a suite that hold for all its tasks, and that a task may have for itself.
_SHARED = ("lengths", "samples", "controls")


@dataclass(frozen=True)
class Entry:
    """One thing to measure.

    what:    a task, or a perplexity protocol.
    samples: contexts, or documents; None: the default of what is measured.
    controls: whether a task's controls are measured too.
    """

    what: Task | Protocol
    lengths: Lengths = DEFAULT
    samples: int | None = None
    controls: bool = True


@dataclass(frozen=True)
class Suite:
    """Several things to measure."""

    name: str
    about: str
    entries: tuple[Entry, ...]

    def with_changes(self, lengths: Lengths | None, samples: int | None) -> "Suite":
        """Return the suite with other lengths, or numbers of samples, for all that it measures."""
        entries = (replace(e, lengths=lengths or e.lengths, samples=samples or e.samples) for e in self.entries)
        return replace(self, entries=tuple(entries))


def suites(path: Path = FOLDER / "suites.toml") -> dict[str, Suite]:
    """Return the suites of a file, by name.

    Raises OptionError for what cannot be read, and for unknown keys; TaskError for unknown tasks.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot read the suites of `{path}`: {error}", "give a TOML file as suites.toml") from error
    if not content:
        raise OptionError(f"`{path}` holds no suite", '[mine], then tasks = ["ppl", "copy"]')
    wrong = next((name for name, table in content.items() if not isinstance(table, dict)), None)
    if wrong is not None:
        raise OptionError(f"`{wrong}` of `{path}` is no suite", f"put it below a name: [{path.stem}]")
    return {name: _suite(name, table) for name, table in content.items()}


def suite_named(name: str) -> Suite:
    """Return a suite by its name, or from a file: `my.toml`, or `my.toml:name` of several.

    Raises OptionError if there is none.
    """
    file, found, inner = name.partition(".toml")
    known = suites(Path(f"{file}.toml").expanduser()) if found else suites()
    inner = inner.removeprefix(":") if found else name
    if found and not inner and len(known) == 1:
        return next(iter(known.values()))
    if inner not in known:
        raise OptionError(
            f"no suite is called `{inner or name}`", did_you_mean(inner, known, f"one of {', '.join(known)}")
        )
    return known[inner]


def _suite(name: str, table: Mapping[str, Any]) -> Suite:
    _check_keys(table, ("about", *_SHARED, "tasks"), name)
    tasks = table.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        raise OptionError(f"the suite `{name}` names no tasks", 'tasks = ["ppl", "copy"]')
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
    lengths = parse_lengths(str(values["lengths"])) if "lengths" in values else DEFAULT
    controls = values.get("controls", True)
    if not isinstance(controls, bool):
        raise OptionError(f"`controls` of `{text}` in the suite `{suite}` is {controls!r}", "true or false")
    return Entry(parse_measure(text), lengths, samples, controls)


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
