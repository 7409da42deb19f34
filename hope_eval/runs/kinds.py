"""The two kinds of runs: perplexity on documents, and questions about contexts.

The kind decides the records, samples and reading of a run. It follows from the run's identity, in this file only.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hope_eval.errors import StoreError
from hope_eval.runs.columns import Record
from hope_eval.runs.records import RecordKind
from hope_eval.runs.records.answer import ANSWER
from hope_eval.runs.records.document import DOCUMENT
from hope_eval.runs.records.infeasible import INFEASIBLE
from hope_eval.runs.records.oom import OOM
from hope_eval.runs.records.until import UNTIL
from hope_eval.runs.records.window import WINDOW

# The `task` of a run of perplexity, in its identity and in rows of tables; all others are names of tasks.
PPL = "ppl"


@dataclass(frozen=True)
class RunKind:
    """A kind of run.

    name:    `perplexity` or `questions`.
    sample:  the unit that n counts and intervals are made over: `document` or `context`.
    piece:   the unit that is measured whole: `window` or `context`.
    records: kinds of its records, the most frequent first.
    """

    name: str
    sample: str
    piece: str
    records: tuple[RecordKind, ...]

    def record_kind(self, record: Record) -> RecordKind:
        """The kind of a record. Raises StoreError if runs of this kind have no such records."""
        for kind in self.records:
            if kind.name == record.get("kind"):
                return kind
        raise StoreError(f"a run of {self.name} has no records of the kind `{record.get('kind')}`")

    def key(self, record: Record) -> tuple[Hashable, ...]:
        """Key of a record: unique in its run."""
        return self.record_kind(record).key(record)

    def pieces(self, records: Iterable[Record]) -> set[Hashable]:
        """Pieces that were measured whole in these records: windows, or contexts with all their questions."""
        keys: dict[Hashable, set[Hashable]] = defaultdict(set)
        whole: set[Hashable] = set()
        for record in records:
            kind = self.record_kind(record)
            piece = kind.piece(record)
            if piece is not None:
                keys[piece].add(kind.key(record))
                if len(keys[piece]) == kind.n_of_piece(record):
                    whole.add(piece)
        return whole


PERPLEXITY = RunKind("perplexity", "document", "window", (WINDOW, DOCUMENT, OOM, UNTIL))
QUESTIONS = RunKind("questions", "context", "context", (ANSWER, INFEASIBLE, OOM, UNTIL))


def kind_of(identity: Mapping[str, Any]) -> RunKind:
    """The kind of run that an identity, or a row of a table, is of: both name their `task`."""
    return PERPLEXITY if identity["task"] == PPL else QUESTIONS
