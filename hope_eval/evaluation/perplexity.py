"""Perplexity of documents by a protocol, as a measurement of the loop.

documents -> windows of every cell, merged -> batches of windows of one length -> nll of each token scored
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from hope_eval.analysis import perplexity
from hope_eval.analysis.rows import RunTable
from hope_eval.analysis.stopping import Until
from hope_eval.data.corpora import Corpus
from hope_eval.encodings import facts_of
from hope_eval.evaluation import documents
from hope_eval.evaluation.loop import Holdings, Measurement, NewRecord, Series, batch_size, identity_of
from hope_eval.model.reading import OutOfMemory
from hope_eval.model.scoring import LanguageModel
from hope_eval.model.tokens import PrefixPolicy
from hope_eval.protocols import Cell, Protocol, Window, merge
from hope_eval.runs.columns import Record
from hope_eval.runs.kinds import PPL
from hope_eval.runs.records.oom import OOM
from hope_eval.runs.records.window import WINDOW
from hope_eval.runs.store import RunStore
from hope_eval.runs.token_store import TokenizedDocument, TokenStore
from hope_eval.task import Sample

# Windows that are read side by side.
Batch = list[tuple[TokenizedDocument, Window]]


@dataclass(frozen=True)
class Perplexity(Measurement[Series, Batch]):
    """Perplexity of documents, in the tokens of a model.

    protocol:    its windows begin with a prefix token if the model has one.
    documents:   in order of the sample.
    n_too_short: documents that were left out.
    prefix:      the token that is read before a window; None: no token.
    max_length:  the end of the model's learned position table; None: it has none. Cells beyond it are not read.
    """

    protocol: Protocol
    lengths: tuple[int, ...]
    corpus: Corpus
    documents: tuple[TokenizedDocument, ...]
    n_too_short: int
    seed: int
    prefix: int | None
    nested_safe: bool
    max_length: int | None

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        protocol: Protocol,
        lengths: Sequence[int],
        corpus: Corpus,
        *,
        n_documents: int | None = None,
        minimum: int = 1,
        seed: int = 0,
        prefix: PrefixPolicy = "auto",
    ) -> "Perplexity":
        """Choose the documents of a measurement.

        n_documents: most documents; None: all that are long enough.
        minimum:     fewest documents.

        Raises CorpusError, LengthError or OptionError.
        """
        token = model.prefix_token(prefix)
        protocol = replace(protocol, prefixed=token is not None).fitted(model.train_length)
        # Cells beyond a learned position table stay empty, unless there is no other cell.
        model.check_length(min(cell.length for cell in protocol.cells(lengths)))
        needed, whole = protocol.document_tokens(lengths), protocol.reads_whole(lengths)
        chosen = documents.choose(model, corpus, needed, n_documents, minimum, seed, whole=whole)
        return cls(
            protocol, tuple(lengths), corpus, tuple(chosen.documents), chosen.n_short, seed, token, model.nested_safe,
            model.max_length,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The protocol."""
        return f"{PPL}:{self.protocol}"

    @property
    def series(self) -> Sequence[Series]:
        """One series: all documents, for all lengths together."""
        return [Series(len(self.documents))]

    @cached_property
    def cells(self) -> list[Cell]:
        """Columns of the table that the model can read."""
        cells = self.protocol.cells(self.lengths)
        return [cell for cell in cells if self.max_length is None or cell.length <= self.max_length]

    @property
    def n_samples(self) -> int:
        """Documents."""
        return len(self.documents)

    def smaller(self, lengths: Sequence[int], n_samples: int, controls: bool) -> "Perplexity":
        """The same with fewer lengths or documents."""
        return replace(self, lengths=tuple(lengths), documents=self.documents[:n_samples])

    def identity(self, model: LanguageModel) -> dict[str, Any]:
        """Everything that decides the records."""
        return {
            "task": PPL,
            "version": perplexity.VERSION,
            **identity_of(model),
            **self.protocol.identity(self.lengths),
            "lengths": list(self.lengths),
            "prefix_token": self.prefix,
            "corpus": self.corpus.fingerprint,
            "seed": self.seed,
        }

    def provenance(self, model: LanguageModel) -> dict[str, Any]:
        """Facts of corpus, prefix and model."""
        return {
            "corpus": self.corpus.name,
            "corpus_note": self.corpus.note,
            "documents": len(self.corpus.documents),
            "documents_too_short": self.n_too_short,
            "tokens_needed": self.protocol.document_tokens(self.lengths),
            "prefix": None if self.prefix is None else model.token_text(self.prefix),
            "train_length_source": model.train_length_source,
            "head_reason": model.reading.head_reason,
            "model_notes": list(model.notes),
            "encoding": facts_of(model.encoding),
            "tokenizer": model.tokenizer_fingerprint,
            **self.protocol.provenance(self.lengths, [len(document.ids) for document in self.documents]),
        }

    def holdings(self, store: RunStore) -> "HeldTokens":
        """Tokens of a run."""
        return HeldTokens(store, self)

    def batches(
        self, series: Series, start: int, stop: int, device_type: str, limit: float = math.inf
    ) -> Sequence[Batch]:
        """Windows of one length, the longest first: the speed of the rest can only be higher."""
        windows = [
            (document, window)
            for document in self.documents[start:stop]
            for window in merge((w for w in self.windows(document) if w.n_read < limit), self.nested_safe)
        ]
        return self.side_by_side(windows, device_type)

    def side_by_side(self, windows: Sequence[tuple[TokenizedDocument, Window]], device_type: str) -> list[Batch]:
        """Windows in batches of one length."""
        windows = sorted(windows, key=lambda pair: self.order([pair]))
        batches = []
        for n_read, group in groupby(windows, key=lambda pair: pair[1].n_read):
            equally_long, size = list(group), batch_size(device_type, n_read)
            batches += [equally_long[at : at + size] for at in range(0, len(equally_long), size)]
        return batches

    def order(self, batch: Batch) -> tuple[Any, ...]:
        """The longest reads come first; then documents as in the sample."""
        document, window = batch[0]
        return -window.n_read, document.index, window

    def windows(self, document: TokenizedDocument) -> Iterator[Window]:
        """Windows of all cells, including those that longer ones cover."""
        for cell in self.cells:
            yield from cell.reads(len(document.ids))

    def n_tokens(self, batch: Batch) -> int:
        """Tokens of all windows, prefixes included."""
        return sum(window.n_read for _, window in batch)

    def read(self, model: LanguageModel, batch: Batch) -> Iterator[NewRecord]:
        """Score the windows in one forward."""
        scores = model.score([self._sample(document, window) for document, window in batch])
        for (document, window), score in zip(batch, scores, strict=True):
            yield WINDOW.record(document.id, window), {"nll": score.nll[: window.n_scored].astype("<f4")}

    def _sample(self, document: TokenizedDocument, window: Window) -> Sample:
        ids = document.ids
        context = ids[window.start : window.scored_start]
        if window.prefixed:
            assert self.prefix is not None
            context = np.concatenate([[self.prefix], context])
        target = ids[window.scored_start : max(window.scored_stop, window.stop)]
        return Sample(context, target, unread=max(0, window.scored_stop - window.stop))

    def lost(self, batch: Batch, error: OutOfMemory) -> tuple[Record, int]:
        """The read that did not fit, and its tokens."""
        document, _ = batch[0]
        return OOM.of_window(document.id, error.n_read, error.figures, str(error)), error.n_read

    def shortened(self, unread: Sequence[Batch], recut: Sequence[Batch]) -> list[Batch]:
        """Shorter windows that those of this process would have covered."""
        reads: dict[str, list[Window]] = defaultdict(list)
        for document, window in (pair for batch in unread for pair in batch):
            reads[document.id].append(window)
        return [
            batch
            for batch in recut
            if any(read.covers(window, self.nested_safe) for document, window in batch for read in reads[document.id])
        ]

    def sample_records(self, series: Series, start: int, stop: int) -> Iterator[NewRecord]:
        """Documents that are about to be read."""
        for document in self.documents[start:stop]:
            yield document.record(), {} if document.bytes is None else {"bytes": document.bytes}

    def table(self, runs: Sequence[RunStore], by: str = "") -> RunTable:
        """Table over the documents of this measurement; there are no questions to break it down by."""
        return perplexity.table([TokenStore(run) for run in runs], n_documents=len(self.documents))


class HeldTokens(TokenStore, Holdings[Series, Batch]):
    """Tokens that a run holds of a measurement."""

    def __init__(self, store: RunStore, measurement: Perplexity) -> None:
        super().__init__(store)
        self.measurement = measurement

    def missing(self, batch: Batch) -> list[Hashable]:
        """Windows whose nll the run lacks."""
        return [WINDOW.piece_of(d.id, window) for d, window in batch if not self.covers(d.id, window)]

    def spoilt(self, batches: Sequence[Batch], device_type: str, limit: float) -> list[Batch]:
        """Shorter windows of documents whose longer ones have a NaN in their part."""
        measurement = self.measurement
        pairs = [pair for batch in batches for pair in batch] if self.nested_safe else []
        found = {document.index: document for document, window in pairs if self.has_nan(document.id, window)}
        windows = [
            (document, window)
            for document in found.values()
            for window in merge(
                (
                    w
                    for w in measurement.windows(document)
                    if w.n_read < limit and self.was_read(document.id, w) and not self.covers(document.id, w)
                ),
                self.nested_safe,
            )
        ]
        return measurement.side_by_side(windows, device_type)

    def first_records(self) -> Iterator[NewRecord]:
        """Number of documents up to the last one with windows: a killed process may leave windows without one."""
        (series,) = self.measurement.series
        return self.measurement.sample_records(series, 0, self.n_begun(self.measurement.documents))

    def is_known(self, series: Series, n: int, until: Until) -> bool:
        """Whether the interval of every cell with a number is narrow enough on the first n documents."""
        ids = [document.id for document in self.measurement.documents[:n]]
        return perplexity.is_narrow(self, self.measurement.cells, ids, until)

    def n_held(self, series: Series, n: int, n_most: int, limit: float) -> int:
        """The first n documents, and later ones whose windows are all in the run."""
        documents = self.measurement.documents
        while n < n_most and all(
            self.covers(documents[n].id, window)
            for window in self.measurement.windows(documents[n])
            if window.n_read < limit
        ):
            n += 1
        return n
