"""Measure several things on several models: what every evaluating command does.

    entries x models x encodings  ->  a run on disk each  ->  a table each

What is misspelt shows before anything is loaded, and what is broken before anything is measured.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hope_eval import zoo
from hope_eval.analysis import answers, perplexity, stopping
from hope_eval.analysis.rows import RunTable, by_seed
from hope_eval.analysis.stopping import Until
from hope_eval.data.corpora import load_corpus
from hope_eval.encodings import parse_encoding
from hope_eval.evaluation import perplexity as evaluate
from hope_eval.evaluation import questions as ask
from hope_eval.evaluation.preview import material_for
from hope_eval.evaluation.questions import Material
from hope_eval.evaluation.suites import Entry
from hope_eval.lengths import resolved
from hope_eval.model import checkpoint
from hope_eval.model.scoring import LanguageModel
from hope_eval.model.tokens import PrefixPolicy
from hope_eval.protocols import Protocol
from hope_eval.runs.shards import ALONE, Ranks
from hope_eval.runs.store import RunStore
from hope_eval.runs.token_store import TokenStore
from hope_eval.task import Task

# Documents of a perplexity, where nobody says how many.
N_DOCUMENTS = 10

# The same, where they end when enough is known: as many as there are questions of a task.
MOST_DOCUMENTS = ask.N_QUESTIONS

# From a title to what is told how far the work is, as long as it goes on.
Progress = Callable[[str], contextlib.AbstractContextManager[evaluate.Report]]


@dataclass(frozen=True)
class Models:
    """Which models: names (none: the whole zoo), encodings to put on them, and how to load them."""

    names: tuple[str, ...] = ()
    encodings: tuple[str, ...] = ()
    how: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise an error for what is misspelt or broken."""
        for encoding in self.encodings:
            if encoding != checkpoint.NATIVE:
                parse_encoding(encoding)
        if not self.how.get("loader"):
            for name in self.all_names:
                checkpoint.check(name, self.how.get("revision"), self.how.get("outline", False))

    @property
    def all_names(self) -> tuple[str, ...]:
        """The names, and those of the zoo where there are none."""
        return self.names or (("",) if self.how.get("loader") else tuple(zoo.names()))

    def load(self) -> Iterator[LanguageModel]:
        """Yield each model with each encoding."""
        for name in self.all_names:
            loaded = checkpoint.load_checkpoint(name, **self.how)
            for encoding in self.encodings or (checkpoint.NATIVE,):
                yield loaded.with_encoding(encoding)
            # So that no two are in memory at once; a model refers to itself.
            del loaded
            gc.collect()


@dataclass(frozen=True)
class Options:
    """How to measure.

    data:          texts, or labelled texts; None: the sources of Python's standard library, or what is generated.
    text_field:    where the text of a record is; None: `text`.
    label_field:   where its label is.
    min_documents: fewer documents are an error, for perplexity.
    chat:          whether tasks go into the chat template; None: where that is right.
    controls:      whether the controls of tasks are measured too.
    until_ci:      half the width of an interval at which its measurement ends; None: all samples are measured.
    by:            a fact of the questions that columns are broken down by.
    pool_seeds:    models named hope-0, hope-1… make one line.
    """

    data: str | None = None
    text_field: str = "text"
    label_field: str = "label"
    min_documents: int = 1
    prefix: PrefixPolicy = "auto"
    seed: int = 0
    chat: bool | None = None
    controls: bool = True
    until_ci: float | None = None
    by: str = ""
    pool_seeds: bool = False
    command: str = ""

    @property
    def until(self) -> Until | None:
        """When measuring ends before its time."""
        return None if self.until_ci is None else Until(self.until_ci)

    def n_documents(self, entry: Entry) -> int:
        """Return how many documents of a perplexity are read at most."""
        return entry.samples or (N_DOCUMENTS if self.until is None else MOST_DOCUMENTS)


def measure(
    entries: Sequence[Entry], models: Models, root: Path, options: Options, progress: Progress, ranks: Ranks = ALONE
) -> list[RunTable]:
    """Measure every entry on every model, or go on with it; return a table of each, entries first.

    ranks: the processes that share the work out. Only the first one makes tables, when all are done.

    Raises any of the errors of this project.
    """
    stopping.check(options.until, [entry.samples for entry in entries], ranks.world)
    models.check()
    prepared = [with_material(entry, options, strict=len(entries) == 1) for entry in entries]
    results: list[list[tuple[Any, tuple[int, ...], int]]] = [[] for _ in entries]
    lengths_of: dict[int, tuple[int, ...]] = {}
    for model in models.load():
        for number, (entry, material) in enumerate(prepared):
            lengths = resolved(entry.lengths, model.train_length)
            if entry.lengths is Entry.lengths:
                # Models that are compared are read at the same lengths: those of the first.
                lengths = lengths_of.setdefault(number, lengths)
            title = f"{model.name} {model.encoding}" + (f" {entry.what}" if isinstance(entry.what, Task) else "")
            with progress(title) as report:
                run, n = _measured(entry, material, model, lengths, root, options, report, ranks)
            results[number].append((run, lengths, n))
        del model
    if not ranks.finish():
        return []
    results = [[(_whole(run), lengths, n) for run, lengths, n in one] for one in results]
    tables = [table for one in results for table in _tables(one, options)]
    answers.check_slices(tables, options.by)
    return tables


def _measured(
    entry: Entry,
    material: Material,
    model: LanguageModel,
    lengths: tuple[int, ...],
    root: Path,
    options: Options,
    report: evaluate.Report,
    ranks: Ranks,
) -> tuple[Any, int]:
    shared: dict[str, Any] = {"seed": options.seed, "command": options.command, "report": report, "ranks": ranks}
    shared["until"] = options.until
    if isinstance(entry.what, Protocol):
        assert material.corpus is not None
        return evaluate.perplexity(
            model, material.corpus, entry.what, lengths, root, n_documents=options.n_documents(entry),
            minimum=options.min_documents, prefix=options.prefix, **shared,
        )  # fmt: skip
    vocabulary = ask.vocabulary_for(model.tokenizer, entry.what, material, options.chat, options.prefix, options.seed)
    return ask.ask(
        model, entry.what, lengths, root, vocabulary,
        material=material, n_contexts=entry.samples, controls=entry.controls and options.controls, **shared,
    )  # fmt: skip


def _whole(run: Any) -> Any:
    """Return a run with all that the other processes have measured."""
    if not isinstance(run, TokenStore):
        return run.whole()
    whole = run.store.whole()
    return run if whole is run.store else TokenStore(whole)


def _tables(results: Sequence[tuple[Any, tuple[int, ...], int]], options: Options) -> Iterator[RunTable]:
    """Yield the tables of the runs of one entry."""
    runs = [run for run, _, _ in results]
    known = {id(run): (lengths, n) for run, lengths, n in results}
    is_ppl = not isinstance(runs[0], RunStore)
    groups: list[list[Any]] = [[run] for run in runs]
    if options.pool_seeds:
        groups = by_seed(runs)
    for group in groups:
        lengths, n = known[id(group[0])]
        yield perplexity.table(group, n_documents=n) if is_ppl else answers.table(group, lengths, n, options.by)


def with_material(entry: Entry, options: Options, strict: bool) -> tuple[Entry, Material]:
    """Return the entry with the texts or examples that it needs.

    strict: data that it cannot use are an error; of several entries, each uses what it can.
    """
    if isinstance(entry.what, Protocol):
        return entry, Material(load_corpus(options.data or "python", options.text_field))
    can_use = strict or entry.what.uses == "text"
    data = options.data if can_use else None
    task, material = material_for(entry.what, data, options.text_field, options.label_field)
    return replace(entry, what=task), material
