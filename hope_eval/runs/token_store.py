"""The tokens of a run of perplexity: the nll of every token that was scored, and the bytes of every token.

A cell of a table needs windows. If the run holds them (or, for a nested-safe model, a longer read of the same tokens),
the cell is filled without the model. A measurement checks the same to find the windows that it has yet to read.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hope_eval.protocols import Window
from hope_eval.runs.columns import Record
from hope_eval.runs.records.document import DOCUMENT
from hope_eval.runs.records.oom import OOM
from hope_eval.runs.records.until import UNTIL
from hope_eval.runs.records.window import WINDOW
from hope_eval.runs.store import RunStore


@dataclass(frozen=True)
class TokenizedDocument:
    """A document in a model's own tokens.

    id:     key of its text, see `Corpus.keys`.
    index:  its place in the sample.
    ids:    int32 [T], no special tokens.
    bytes:  UTF-8 bytes of each token, uint32 [T]; None if the tokenizer does not give them.
    whole:  ids, n_bytes and n_words are of the whole document, and not only of its beginning.
    name:   where it stands in the user's data.
    """

    id: str
    index: int
    ids: np.ndarray
    bytes: np.ndarray | None
    n_bytes: int
    n_words: int
    whole: bool = True
    name: str = ""

    def record(self) -> Record:
        """Its record in a run, without the bytes of each token."""
        return DOCUMENT.record(self.id, self.index, len(self.ids), self.n_bytes, self.n_words, self.whole, self.name)


def n_words(text: str) -> int:
    """Number of words as lm-evaluation-harness counts them."""
    return len(re.split(r"\s+", text))


class TokenStore:
    """The tokens of a run: its windows, and their nll."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.nested_safe: bool = store.header["identity"]["nested_safe"]
        self.documents: dict[str, Record] = {}
        self.out_of_memory: list[Record] = []
        # Records of the ends that --until-ci set.
        self.until: list[Record] = []
        self._n_measured: int | None = None
        # A cache: every cell of a table needs them.
        self._bytes: dict[str, np.ndarray | None] = {}
        # A cache, by the id of a record.
        self._finite: dict[int, np.ndarray | None] = {}
        # By document, start and prefix: a window covers only others with the same three.
        self._windows: dict[tuple[str, int, bool], list[tuple[Window, Record]]] = defaultdict(list)
        for record in store.records:
            store.check_record(record)
            self._index(record)

    @property
    def header(self) -> dict[str, Any]:
        """Identity and provenance of the run."""
        return self.store.header

    def _index(self, record: Record) -> None:
        if record["kind"] == DOCUMENT.name:
            self.documents[record["document"]] = record
        elif record["kind"] == WINDOW.name:
            window = WINDOW.window(record)
            self._windows[record["document"], window.start, window.prefixed].append((window, record))
            document = self.documents.get(record["document"])
            if document is None or document["index"] >= (self._n_measured or 0):
                self._n_measured = None
        elif record["kind"] == OOM.name:
            self.out_of_memory.append(record)
        elif record["kind"] == UNTIL.name:
            self.until.append(record)
            self._n_measured = record["n"]

    def add(self, record: Record, **arrays: np.ndarray) -> None:
        """Add a record, unless its document or window is in the store."""
        if record["kind"] == DOCUMENT.name and record["document"] in self.documents:
            return
        if record["kind"] == WINDOW.name and self.covers(record["document"], WINDOW.window(record)):
            return
        self.store.append(record, **arrays)
        self._index(self.store.records[-1])

    def _find(self, document: str, window: Window) -> tuple[Window, Record] | None:
        """The read that gives the nll of a window: of no more tokens, or longer and without a NaN there.

        A NaN late in a long read can reach back in the model, so a shorter window is then read by itself.
        """
        held = (pair for pair in self._held(document, window) if pair[0].covers(window, self.nested_safe))
        return next((pair for pair in held if self._serves(pair, window)), None)

    def _serves(self, pair: tuple[Window, Record], window: Window) -> bool:
        """Whether a read that covers a window gives its nll: it read no more, or its numbers are finite there."""
        read, record = pair
        if read.stop == window.stop:
            return True
        finite = self._finite_of(record)
        first = window.scored_start - read.scored_start
        return finite is None or bool(finite[first : first + window.n_scored].all())

    def _finite_of(self, record: Record) -> np.ndarray | None:
        """Which nll of a window are finite; None: all of them."""
        if id(record) not in self._finite:
            finite = np.isfinite(self.store.array(record, "nll"))
            self._finite[id(record)] = None if finite.all() else finite
        return self._finite[id(record)]

    def _held(self, document: str, window: Window) -> list[tuple[Window, Record]]:
        return self._windows.get((document, window.start, window.prefixed), [])

    def has_nan(self, document: str, window: Window) -> bool:
        """Whether the run holds that very window, with an nll that is not finite."""
        return any(
            read == window and self._finite_of(record) is not None for read, record in self._held(document, window)
        )

    def was_read(self, document: str, window: Window) -> bool:
        """Whether a read of the run covers a window, even if a NaN spoilt its numbers."""
        return any(read.covers(window, self.nested_safe) for read, _ in self._held(document, window))

    def covers(self, document: str, window: Window) -> bool:
        """Whether the run holds the nll of that window."""
        return self._find(document, window) is not None

    def n_begun(self, documents: Sequence[TokenizedDocument]) -> int:
        """Number of these documents up to the last one that has a window."""
        begun = {document for document, _, _ in self._windows}
        return max((n for n, document in enumerate(documents, 1) if document.id in begun), default=0)

    def nll(self, document: str, window: Window) -> np.ndarray:
        """The nll [nats] of the scored tokens of a window that the run holds."""
        held = self._find(document, window)
        assert held is not None
        first = window.scored_start - held[0].scored_start
        return self.store.array(held[1], "nll")[first : first + window.n_scored]

    def bytes(self, document: str) -> np.ndarray | None:
        """Bytes of each token of a document; None if the tokenizer did not give them."""
        if document not in self._bytes:
            record = self.documents[document]
            self._bytes[document] = self.store.array(record, "bytes") if "arrays" in record else None
        return self._bytes[document]

    def sample(self, n_documents: int | None) -> list[str]:
        """Ids of the first n documents of the sample, up to the end of the measurement."""
        ordered = sorted(self.documents.values(), key=lambda record: int(record["index"]))
        return [record["document"] for record in ordered[: self._n_measured][:n_documents]]
