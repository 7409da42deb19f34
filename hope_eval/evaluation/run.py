"""Evaluate: several things on several models, as every evaluating command does.

    entries x models x encodings  ->  a run on disk each  ->  a table each

Misspelt names are errors before any model is loaded, broken checkpoints before anything is measured.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hope_eval import zoo
from hope_eval.analysis import answers, stopping
from hope_eval.analysis.rows import RunTable, by_seed
from hope_eval.analysis.stopping import Until
from hope_eval.evaluation import loop, questions
from hope_eval.evaluation.loop import Measurement
from hope_eval.evaluation.material import Material, material_for
from hope_eval.evaluation.perplexity import Perplexity
from hope_eval.evaluation.questions import Questions
from hope_eval.evaluation.suites import Entry
from hope_eval.lengths import resolved
from hope_eval.model import checkpoint, checkpoint_files
from hope_eval.model.layer_choice import NATIVE, parse_choice
from hope_eval.model.scoring import LanguageModel
from hope_eval.model.tokens import PrefixPolicy
from hope_eval.protocols import Protocol
from hope_eval.runs.columns import Progress
from hope_eval.runs.processes import ALONE, Ranks
from hope_eval.runs.store import RunStore

# Documents of a perplexity without --samples: with fewer, a note says that the interval is not to be trusted.
N_DOCUMENTS = 30

# The same with --until-ci: as many as a task has questions.
MOST_DOCUMENTS = questions.N_QUESTIONS

# From the title of a piece of work to a function that is called with its progress.
ProgressBar = Callable[[str], contextlib.AbstractContextManager[Progress]]

Prepared = tuple[Entry, Material]


@dataclass(frozen=True)
class Models:
    """Models to evaluate: names (none: the whole zoo), encodings to put on them, and options of loading."""

    names: tuple[str, ...] = ()
    encodings: tuple[str, ...] = ()
    how: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise an error for misspelt names and broken checkpoints."""
        for encoding in self.encodings:
            if encoding != NATIVE:
                parse_choice(encoding)
        if not self.how.get("loader"):
            for name in self.all_names:
                checkpoint_files.located(name, self.how.get("revision"), self.is_outline)

    @property
    def all_names(self) -> tuple[str, ...]:
        """The names, with all checkpoints of a folder of several; those of the zoo if there are none."""
        if self.how.get("loader"):
            return self.names or ("",)
        return tuple(each for name in self.names for each in checkpoint_files.checkpoints_in(name)) or zoo.names()

    @property
    def is_outline(self) -> bool:
        """Whether models are made from their configs, without weights: for a plan."""
        return bool(self.how.get("outline"))

    def load(self) -> Iterator[LanguageModel]:
        """Each model with each encoding."""
        for name in self.all_names:
            loaded = checkpoint.load_checkpoint(name, **self.how)
            for encoding in self.encodings or (NATIVE,):
                yield loaded.with_encoding(encoding)
            # Only one model is in memory at a time; a model refers to itself.
            del loaded
            gc.collect()


@dataclass(frozen=True)
class Options:
    """How to measure.

    data:          texts, or labelled texts; None: the sources of Python's standard library, or generated texts.
    text_field:    field of the text of a record; None: `text`.
    text_encoding: of texts in files; empty: UTF-8, or by the mark at their beginning.
    split:         tokens of a piece, to cut texts into; None: whole texts.
    label_field:   field of its label.
    min_documents: fewer documents are an error, for perplexity.
    chat:          whether tasks go into the chat template; None: where it fits.
    controls:      whether the controls of tasks are measured too.
    until_ci:      half the width of an interval at which its measurement ends; None: all samples are measured.
    by:            a fact of the questions that columns are broken down by.
    pool_seeds:    models named hope-0, hope-1… make one line.
    """

    data: str | None = None
    text_field: str = "text"
    text_encoding: str = ""
    split: int | None = None
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
        """The condition that ends a measurement early."""
        return None if self.until_ci is None else Until(self.until_ci)


def evaluate(
    entries: Sequence[Entry], models: Models, root: Path, options: Options, progress: ProgressBar, ranks: Ranks = ALONE
) -> list[RunTable]:
    """Measure every entry on every model, or resume it; return the table of each run, entries first.

    ranks: the processes that share the work out. Only the first one makes tables, when all are done.

    Raises any of the errors of this project.
    """
    stopping.check(options.until, [entry.samples for entry in entries], ranks.world)
    models.check()
    prepared = prepare(entries, options)
    runs: list[list[tuple[Measurement[Any, Any], RunStore]]] = [[] for _ in entries]
    common = CommonLengths()
    for model in models.load():
        for number, (entry, material) in enumerate(prepared):
            lengths = common.of(entry, number, model.train_length)
            measurement = measurement_of(entry, material, model, lengths, options)
            title = f"{model.name} {model.encoding} {measurement.name}"
            with progress(title) as report:
                run = loop.measure(
                    measurement, model, root, report, ranks=ranks, until=options.until, command=options.command
                )
            runs[number].append((measurement, run))
        del model
    if not ranks.finish():
        return []
    tables = [table for of_entry in runs for table in _tables(of_entry, options)]
    answers.check_slices(tables, options.by)
    return tables


def prepare(entries: Sequence[Entry], options: Options) -> list[Prepared]:
    """Entries with the texts or examples that they need.

    Data that a single entry cannot use are an error; of several entries, each uses the data that it can.
    """
    prepared = []
    for entry in entries:
        data = options.data if len(entries) == 1 or entry.what.uses == "text" else None
        what, material = material_for(
            entry.what, data, options.text_field, options.label_field, options.text_encoding, options.split
        )
        prepared.append((replace(entry, what=what), material))
    return prepared


class CommonLengths:
    """Lengths of entries in tokens. Entries with default lengths use those of the first model for all models."""

    def __init__(self) -> None:
        self._first: dict[int, tuple[int, ...]] = {}

    def of(self, entry: Entry, number: int, train_length: int | None) -> tuple[int, ...]:
        """Lengths of the entry of that number, for a model of that training length."""
        lengths = resolved(entry.all_lengths, train_length)
        return self._first.setdefault(number, lengths) if entry.lengths is None else lengths


def measurement_of(
    entry: Entry, material: Material, model: LanguageModel, lengths: tuple[int, ...], options: Options
) -> Measurement[Any, Any]:
    """The measurement of an entry on a model."""
    seed, prefix = options.seed, options.prefix
    if isinstance(entry.what, Protocol):
        assert material.corpus is not None
        n = entry.samples or (N_DOCUMENTS if options.until is None else MOST_DOCUMENTS)
        return Perplexity.of(
            model, entry.what, lengths, material.corpus,
            n_documents=n, minimum=options.min_documents, seed=seed, prefix=prefix,
        )  # fmt: skip
    return Questions.of(
        model, entry.what, lengths, material, n_contexts=entry.samples, controls=entry.controls and options.controls,
        chat=options.chat, seed=seed, prefix=prefix,
    )  # fmt: skip


def _tables(runs: Sequence[tuple[Measurement[Any, Any], RunStore]], options: Options) -> Iterator[RunTable]:
    """Tables of the runs of one entry: one for each run, or for each group of training seeds."""
    whole = [run.whole() for _, run in runs]
    measurements = {id(run): measurement for run, (measurement, _) in zip(whole, runs, strict=True)}
    for group in by_seed(whole) if options.pool_seeds else [[run] for run in whole]:
        yield measurements[id(group[0])].table(group, options.by)
