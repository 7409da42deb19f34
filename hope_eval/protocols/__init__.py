"""Protocol: the interface that every file of `hope_eval/protocols/` implements, and how protocols are found.

A perplexity protocol says which tokens are read, which of them are scored, and how the scores are averaged. It turns
lengths into *cells*, the columns of a table; a cell turns a document into *windows*. `merge` finds the fewest reads
that serve every window. The tokens of a run fill a cell of any protocol whose windows they cover.

A document is its tokens x_1..x_T, indexed from 0 here: x_t is `tokens[t - 1]`. B is the prefix token (BOS, else EOS).

                    window of `prefix` at L = 6            `sliding` at L = 6, S = 2
    tokens read     B x1 x2 x3 x4 x5                       B x1 x2 x3 x4 x5 · B x3 x4 x5 x6 x7
    tokens scored     x1 x2 x3 x4 x5                         x1 x2 x3 x4 x5             x6 x7

A protocol of your own is one file with one class, given by its path: `--protocol my/halves.py:k=64`. Its fields are its
parameters. Its run stores everything for tables, figures and the report, so that these do not need the file.
"""

import hashlib
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from hope_eval.errors import LengthError, OptionError, StoreError, did_you_mean
from hope_eval.lengths import parse_length
from hope_eval.plugins import module_from_file, only_class

# The protocol of `ppl` unless another is named.
DEFAULT_PROTOCOL = "prefix"

Weighting = Literal["document", "token", "window"]

# The columns of a protocol: context lengths, positions in one read, or contexts before the same tokens.
Axis = Literal["length", "position", "context"]


@dataclass(frozen=True, order=True)
class Window:
    """One read of a document: [B,] tokens[start:stop], of which tokens[scored_start:scored_stop] are scored.

    scored_stop is at most stop + 1: the prediction of a token does not need the token to be read.
    """

    start: int
    stop: int
    scored_start: int
    scored_stop: int
    prefixed: bool

    def __post_init__(self) -> None:
        first = self.start + (not self.prefixed)
        assert self.start >= 0, self
        assert first <= self.scored_start < self.scored_stop <= self.stop + 1, self

    @property
    def n_read(self) -> int:
        """Tokens that the model reads, including the prefix."""
        return self.stop - self.start + self.prefixed

    @property
    def n_scored(self) -> int:
        """Tokens that are scored."""
        return self.scored_stop - self.scored_start

    def covers(self, other: "Window", nested_safe: bool) -> bool:
        """Whether the scores of `other` are among the scores of this window.

        nested_safe: the model's predictions do not depend on how much follows, so a longer read will do, or one that
                     ends with the last scored token.
        """
        return (
            (self.start, self.prefixed) == (other.start, other.prefixed)
            and (nested_safe or self.stop == other.stop)
            and self.scored_start <= other.scored_start
            and self.scored_stop >= other.scored_stop
        )


# From the number of tokens of a document to the windows that are read of it.
WindowsOf = Callable[[int], list[Window]]


def merge(windows: Iterable[Window], nested_safe: bool) -> list[Window]:
    """The fewest windows whose scores cover all of `windows`, in order of position.

    One forward at the longest length serves every length of a nested-safe model.
    """
    reads: dict[tuple[int, ...], Window] = {}
    for window in windows:
        if nested_safe:
            window = replace(window, stop=min(window.stop, window.scored_stop))
        key = (window.start, window.prefixed) if nested_safe else (window.start, window.prefixed, window.stop)
        read = reads.setdefault(key, window)
        reads[key] = replace(
            read,
            stop=max(read.stop, window.stop),
            scored_start=min(read.scored_start, window.scored_start),
            scored_stop=max(read.scored_stop, window.scored_stop),
        )
    return sorted(reads.values())


@dataclass(frozen=True)
class Column:
    """A number of a cell beside perplexity, nll and bits per byte.

        nll(of) / per,   or  nll(of) - nll(minus)

    metric:         its name. hope_eval/metrics.py describes the names it knows; others get a default.
    of:             windows of its nll; None: those of the cell.
    minus:          windows whose mean nll is subtracted, for each document; None: none.
    per:            `token`: a mean as the cell's own nll; `word`, `byte`: the nll of a document for each of its words
                    or bytes. Those need documents that are scored whole.
    exponentiated:  the value is exp of that.
    """

    metric: str
    of: WindowsOf | None = None
    minus: WindowsOf | None = None
    per: Literal["token", "word", "byte"] = "token"
    exponentiated: bool = False


@dataclass(frozen=True)
class Cell:
    """One column of a perplexity table: a length, or a part of one.

    protocol:  the id that every number carries, `prefix:L=4096`.
    length:    tokens that the model reads for it.
    label:     the heading of its column, if that is not the length.
    windows:   from the number of tokens of a document to the windows whose tokens are scored.
    weighting: mean over documents of document means, over tokens, or over window means.
    columns:   further numbers that this protocol alone has.
    """

    protocol: str
    length: int
    windows: WindowsOf
    weighting: Weighting
    label: str = ""
    columns: tuple[Column, ...] = ()

    def reads(self, n_tokens: int) -> list[Window]:
        """All windows that the model must read, those of further columns included."""
        extra = [of for column in self.columns for of in (column.of, column.minus) if of is not None]
        return [window for windows in (self.windows, *extra) for window in windows(n_tokens)]


def parameter(default: Any, about: str, least: int | None = None, words: Sequence[str] = ()) -> Any:
    """A field of a protocol that users set: `sliding:stride=512`.

    about: its meaning, for `hope-eval ppl --help`.
    least: the smallest number that is allowed.
    words: the words that are allowed.
    """
    return field(default=default, metadata={"about": about, "least": least, "words": tuple(words)})


# Tokens that are scored at a time, where nothing else is said: a quarter of the training window, so that lengths within
# the window have room for them, and at most so many.
_MOST, _PARTS = 256, 4

SHARE_OF_WINDOW = f"a quarter of the training length, at most {_MOST}"


def share_of_window(train_length: int | None) -> int:
    """Tokens: `SHARE_OF_WINDOW`."""
    return max(1, min(_MOST, (train_length or _PARTS * _MOST) // _PARTS))


@dataclass(frozen=True)
class Protocol:
    """A perplexity protocol and its parameters.

    name:     what users call it: the name of its file, with `-` for `_`.
    one_line: which tokens are read and scored.
    title:    the heading of its section in the report.
    axis:     meaning of its columns.
    varies:   the parts of its cells' ids that differ between columns: `L` of `prefix:L=4096`. Runs whose other parts
              differ are not compared.
    uses:     data that --data may give, as for a task: `text`.
    version:  raised when the same parameters read or score other tokens.
    prefixed: whether a prefix token B is read first. Without it, the first token of a read is not scored.

    Raises OptionError for a parameter outside its limits.
    """

    name: ClassVar[str]
    one_line: ClassVar[str]
    title: ClassVar[str]
    axis: ClassVar[Axis] = "length"
    varies: ClassVar[tuple[str, ...]] = ("L",)
    uses: ClassVar[str] = "text"
    version: ClassVar[int] = 1

    prefixed: bool = True

    def __init_subclass__(cls) -> None:
        """Name the protocol after its file, unless the class says otherwise."""
        defined = vars(cls)
        if "name" not in defined:
            cls.name = cls.__module__.rpartition(".")[2].replace("_", "-")
        if "one_line" not in defined:
            cls.one_line = (cls.__doc__ or cls.name).strip().split("\n")[0].rstrip(".")
        if "title" not in defined:
            cls.title = f"Perplexity, {cls.name}"

    def __post_init__(self) -> None:
        for setting in settings_of(type(self)):
            _check_limits(self.name, setting, getattr(self, setting.name))

    def fitted(self, train_length: int | None) -> "Protocol":
        """The protocol for a model of that training length: parameters that follow from it are filled in."""
        return self

    def cells(self, lengths: Sequence[int]) -> list[Cell]:
        """The columns for these lengths, ascending."""
        raise NotImplementedError

    def document_tokens(self, lengths: Sequence[int]) -> int:
        """Tokens that a document must have for every cell to be filled."""
        return max(lengths) - self.prefixed

    def reads_whole(self, lengths: Sequence[int]) -> bool:
        """Whether documents are read to their end, and not only as far as `document_tokens`."""
        return False

    def parameters(self) -> dict[str, object]:
        """Parameters that identify the protocol, besides its name and the lengths."""
        return {setting.name: getattr(self, setting.name) for setting in fields(self)}

    def identity(self, lengths: Sequence[int]) -> dict[str, object]:
        """Part of a run's identity.

        A protocol of your own adds a hash of its windows: another file of the same name is another run.
        """
        identity: dict[str, object] = {"protocol": self.name, "parameters": self.parameters()}
        if self.version > 1:
            identity["protocol_version"] = self.version
        if not self.is_bundled:
            needed = self.document_tokens(lengths)
            cells = [_as_record(cell, (needed, 2 * needed + 1)) for cell in self.cells(lengths)]
            identity["cells"] = hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]
        return identity

    def provenance(self, lengths: Sequence[int], sizes: Iterable[int]) -> dict[str, object]:
        """Part of a run's provenance. A protocol of your own stores everything for a table, so its file may be deleted.

        sizes: numbers of tokens of the documents.
        """
        if self.is_bundled:
            return {}
        facts = {
            "file": inspect.getfile(type(self)),
            "one_line": self.one_line,
            "title": self.title,
            "axis": self.axis,
            "varies": list(self.varies),
        }
        distinct = sorted(set(sizes))
        return {"protocol": {**facts, "cells": [_as_record(cell, distinct) for cell in self.cells(lengths)]}}

    @property
    def is_bundled(self) -> bool:
        """Whether it belongs to this package."""
        return type(self).__module__.startswith(f"{__name__}.")

    def shared_id(self, cell_id: str) -> str:
        """The id of a cell without the parts that differ between columns: `sliding:S=256` of `sliding:L=4096,S=256`."""
        head, _, tail = cell_id.partition(":")
        parts = [part for part in tail.split(",") if part and part.split("=")[0] not in self.varies]
        return f"{head}:{','.join(parts)}" if parts else head

    def __str__(self) -> str:
        """Its text on a command line: `sliding:stride=512`, `my/halves.py:k=8`."""
        name = self.name if self.is_bundled else _short_path(inspect.getfile(type(self)))
        values = {setting: getattr(self, setting.name) for setting in settings_of(type(self))}
        changed = [f"{setting.name}={value}" for setting, value in values.items() if value != setting.default]
        return f"{name}:{','.join(changed)}" if changed else name

    def _id(self, *parts: str) -> str:
        return f"{self.name}:" + ",".join(part for part in parts if part)

    def _check_lengths(self, lengths: Sequence[int], at_least: int, why: str) -> None:
        if min(lengths) < at_least:
            raise LengthError(
                f"`{self.name}` needs lengths of at least {at_least} tokens ({why}), got {min(lengths)}",
                "raise --lengths",
            )


class Recorded(Protocol):
    """The protocol of a user's file, as its run stores it."""

    def __init__(self, identity: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        for name in ("file", "one_line", "title", "axis"):
            object.__setattr__(self, name, facts[name])
        object.__setattr__(self, "name", identity["protocol"])
        object.__setattr__(self, "varies", tuple(facts["varies"]))
        object.__setattr__(self, "prefixed", identity["parameters"]["prefixed"])
        object.__setattr__(self, "recorded", (identity, facts))

    recorded: tuple[Mapping[str, Any], Mapping[str, Any]]
    file: str

    def parameters(self) -> dict[str, object]:
        return dict(self.recorded[0]["parameters"])

    def cells(self, lengths: Sequence[int]) -> list[Cell]:
        identity, facts = self.recorded
        if list(lengths) != list(identity["lengths"]):
            raise OptionError(
                f"other lengths of `{self.name}` need the file of the protocol", f"--protocol {self.file}"
            )
        return [self._cell(record) for record in facts["cells"]]

    def _cell(self, record: Mapping[str, Any]) -> Cell:
        columns = [
            Column(**{**column, **{key: self._windows(column[key]) for key in ("of", "minus") if column[key]}})
            for column in record["columns"]
        ]
        return Cell(
            record["protocol"],
            record["length"],
            self._windows(record["windows"]),
            record["weighting"],
            record["label"],
            tuple(columns),
        )

    def _windows(self, by_size: Mapping[str, list[list[Any]]]) -> WindowsOf:
        def windows(n_tokens: int) -> list[Window]:
            if str(n_tokens) in by_size:
                return [Window(*values) for values in by_size[str(n_tokens)]]
            alike = list(by_size.values())
            # The windows of a protocol that reads the same tokens of every document.
            if alike and all(other == alike[0] for other in alike):
                return [Window(*values) for values in alike[0]]
            raise StoreError(
                f"the run does not store the windows of `{self.name}` on {n_tokens:,} tokens",
                f"give the file of the protocol: hope-eval ppl --from RUN --protocol {self.file}",
            )

        return windows


def _as_record(cell: Cell, sizes: Sequence[int]) -> dict[str, Any]:
    """A cell as JSON, with its windows for documents of these sizes."""

    def windows(of: WindowsOf | None) -> dict[str, list[list[Any]]] | None:
        if of is None:
            return None
        return {str(n): [[w.start, w.stop, w.scored_start, w.scored_stop, w.prefixed] for w in of(n)] for n in sizes}

    columns = [
        {
            "metric": column.metric,
            "of": windows(column.of),
            "minus": windows(column.minus),
            "per": column.per,
            "exponentiated": column.exponentiated,
        }
        for column in cell.columns
    ]
    return {
        "protocol": cell.protocol,
        "length": cell.length,
        "label": cell.label,
        "weighting": cell.weighting,
        "windows": windows(cell.windows),
        "columns": columns,
    }


def _short_path(file: str) -> str:
    """A path relative to the current folder."""
    path = Path(file)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def protocol_of_run(header: Mapping[str, Any]) -> Protocol:
    """The protocol that a run was measured with, by its header.

    Raises StoreError if that was another version of the protocol.
    """
    identity, facts = header["identity"], header["provenance"].get("protocol")
    if facts:
        return Recorded(identity, facts)
    name, version = identity["protocol"], identity.get("protocol_version", 1)
    if version != protocol_class(name).version:
        raise StoreError(
            f"a run of {identity['model']} was made by version {version} of the protocol `{name}`; "
            f"this hope-eval has version {protocol_class(name).version}",
            f"measure it again with --protocol {name}, and remove the old run: hope-eval runs rm",
        )
    return protocol_named(name, **identity["parameters"])


def protocol_names() -> list[str]:
    """Names of the protocols of this package: those of its files."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def protocol_class(name: str) -> type[Protocol]:
    """The class of a protocol by its name, or by the path of a Python file that defines one.

    Raises OptionError for an unknown name, and for a file with the name of a protocol of this package.
    """
    if name.endswith(".py"):
        if not Path(name).expanduser().is_file():
            raise OptionError(f"there is no file `{name}`", "--protocol takes a name or the path of a Python file")
        cls = only_class(module_from_file(Path(name), "hope_eval_protocols"), Protocol)
        if cls.name in protocol_names():
            raise OptionError(
                f"`{name}` has the name of the protocol `{cls.name}` of hope-eval", "give the file another name"
            )
        return cls
    if name not in protocol_names():
        names = protocol_names()
        raise OptionError(
            f"no protocol is called `{name}`",
            did_you_mean(name, names, f"one of {', '.join(names)}, or the path of a Python file"),
        )
    return only_class(importlib.import_module(f"{__name__}.{name.replace('-', '_')}"), Protocol)


def settings_of(cls: type[Protocol]) -> list["Field[Any]"]:
    """The parameters of a protocol that users set."""
    return [setting for setting in fields(cls) if setting.name != "prefixed"]


def protocol_named(name: str, **parameters: object) -> Protocol:
    """The protocol of that name; parameters that are None keep their default.

    Raises OptionError for an unknown name, and for a parameter that this protocol does not have.
    """
    cls = protocol_class(name)
    given = {key: value for key, value in parameters.items() if value is not None}
    allowed = {setting.name for setting in fields(cls)}
    for key in given:
        if key not in allowed:
            raise OptionError(f"`{name}` has no parameter `{key}`", f"leave --{key} out, or choose another --protocol")
    return cls(**given)  # type: ignore[arg-type]


def split_protocol(text: str) -> tuple[str, dict[str, object]]:
    """Name and parameters of a protocol as users write it: `sliding:stride=512`, `my/halves.py:k=8`.

    Raises OptionError for an unknown name or parameter, and for a value of the wrong kind.
    """
    name, _, rest = text.partition(":")
    settings = {setting.name: setting for setting in settings_of(protocol_class(name))}
    given: dict[str, object] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in settings:
            allowed = f"it has {', '.join(settings)}" if settings else "it has none"
            raise OptionError(f"`{name}` has no parameter `{key}`", did_you_mean(key, settings, allowed))
        given[key] = _parsed(name, settings[key], value)
    return name, given


def parse_protocol(text: str) -> Protocol:
    """Read a protocol with its parameters: `sliding:stride=512`. Raises OptionError."""
    name, given = split_protocol(text)
    return protocol_named(name, **given)


def _parsed(name: str, setting: "Field[Any]", text: str) -> object:
    kind: Any = int if setting.default is None else type(setting.default)
    try:
        if kind is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if kind is int:
            return int(text) if text.isdecimal() else parse_length(text)
        return kind(text)
    except (KeyError, ValueError, LengthError):
        allowed = {int: "a number of tokens, such as 512 or 4k", float: "a number", bool: "yes or no"}
        raise OptionError(
            f"`{text}` is not a valid `{setting.name}` of `{name}`", f"give {allowed.get(kind, kind.__name__)}"
        ) from None


def _check_limits(name: str, setting: "Field[Any]", value: Any) -> None:
    least, words = setting.metadata.get("least"), setting.metadata.get("words")
    if least is not None and value is not None and value < least:
        raise OptionError(
            f"`{setting.name}` of `{name}` must be at least {least}, got {value}", f"--protocol {name}:{setting.name}=…"
        )
    if words and value not in words:
        raise OptionError(f"`{setting.name}` of `{name}` cannot be `{value}`", f"one of {', '.join(words)}")
