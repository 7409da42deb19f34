"""The header of a run, `run.json`: the types of its facts, and the facts that tables need.

    identity     everything that decides the records
    provenance   how the run was made, for people and tables

A run that another version wrote may lack a fact of its provenance: tables then show the default.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hope_eval.errors import StoreError
from hope_eval.runs.columns import is_type, remedy

# Types of the facts of an identity; a `?` allows null as well. Other facts may have any type.
_IDENTITY = {
    "task": "string",
    "model": "string",
    "encoding": "string",
    "fingerprint": "string",
    "train_length": "count?",
    "max_length": "count?",
    "dtype": "string",
    "device": "string",
    "kernel": "string",
    "head": "string",
    "seed": "int64",
    "prefix_token": "int64?",
}
_OF_PPL = {
    "nested_safe": "bool",
    "lengths": "counts",
    "corpus": "string",
    "protocol": "string",
    "parameters": "struct",
    "protocol_version": "int64",
}
_OF_TASK = {"answers": "int64", "task_fingerprint": "string", "data": "string", "chat": "bool"}

# The same for a provenance, with the defaults of runs that lack a fact.
_PROVENANCE: dict[str, tuple[str, Any]] = {
    "command": ("string?", ""),
    "machine": ("string", "?"),
    "versions": ("struct", {}),
    "commit": ("struct?", None),
    "tokenizer": ("string", ""),
    "encoding": ("struct", {}),
}
_FACTS_OF_PPL: dict[str, tuple[str, Any]] = {
    "corpus": ("string", "?"),
    "documents_too_short": ("int64", 0),
    "tokens_needed": ("int64", 0),
    "prefix": ("string?", None),
    "train_length_source": ("string", "?"),
    "head_reason": ("string?", ""),
    "protocol": ("struct?", None),
}
_FACTS_OF_TASK: dict[str, tuple[str, Any]] = {
    "one_line": ("string", ""),
    "source": ("string", ""),
    "controls": ("strings", []),
    "above": ("string?", ""),
    "arms": ("string?", ""),
    "readers": ("strings", []),
    "shots_grow": ("bool?", None),
    "data": ("string", "?"),
    "about": ("string", ""),
}
_NEEDED = {"family": "string", "metric": "string"}


def header_fault(header: Any, is_ppl: bool) -> str:
    """The first fact of a header that has another type; empty if there is none. Missing facts are no fault."""
    of_kind, facts = (_OF_PPL, _FACTS_OF_PPL) if is_ppl else (_OF_TASK, _FACTS_OF_TASK)
    types = {name: type_ for name, (type_, _) in (_PROVENANCE | facts).items()} | ({} if is_ppl else _NEEDED)
    for part, wanted in (("identity", _IDENTITY | of_kind), ("provenance", types)):
        for name, type_ in wanted.items():
            if name in header[part] and not is_type(header[part][name], type_):
                return f"`{name}` of its {part} is {_short(header[part][name])}"
    return ""


def complete(header: Mapping[str, Any], is_ppl: bool, path: Path) -> dict[str, Any]:
    """A header with all facts that tables need.

    Raises StoreError if its identity lacks one, or if its provenance lacks one that has no default.
    """
    identity, provenance = header["identity"], header["provenance"]
    missing = [name for name in (*_IDENTITY, *(_OF_PPL if is_ppl else _OF_TASK)) if name not in identity]
    missing = [name for name in missing if name not in ("chat", "protocol_version")]
    missing += [] if is_ppl else [name for name in _NEEDED if name not in provenance]
    if missing:
        raise StoreError(f"{path / 'run.json'} is damaged: it has no `{missing[0]}`", remedy(path))
    facts = _PROVENANCE | (_FACTS_OF_PPL if is_ppl else _FACTS_OF_TASK)
    return {**header, "provenance": {name: default for name, (_, default) in facts.items()} | provenance}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
