"""The kinds of records that a run holds: one a file, with its fields, key, order, piece and check.

document     a document, in tokens of the model           perplexity
window       one read of a document: the nll it gave      perplexity
answer       the answer to one question                   questions
infeasible   a length that is too short for the task      questions
oom          a read that did not fit in memory            both
until        where measuring ended early                  both
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from hope_eval.runs.columns import Field, Record


@dataclass(frozen=True)
class Layout:
    """Context for the order and the check of a record.

    header:    of the run: identity and provenance.
    documents: records of the documents before it, by id.
    """

    header: Mapping[str, Any]
    documents: Mapping[str, Record]

    @cached_property
    def controls(self) -> list[str]:
        """Controls of the task in their order; the task itself, "", comes first."""
        return ["", *self.header["provenance"].get("controls", ())]


class RecordKind:
    """One kind of record.

    name:       its `kind` on disk.
    fields:     of every record of the kind.
    is_common:  all processes of a session have the same record; the first one writes it.
    may_repeat: a run may hold several records with one key.
    """

    name: ClassVar[str]
    fields: ClassVar[tuple[Field, ...]]
    is_common: ClassVar[bool] = False
    may_repeat: ClassVar[bool] = False

    def key(self, record: Record) -> tuple[Hashable, ...]:
        """Key of a record: unique in its run."""
        raise NotImplementedError

    def order(self, record: Record, layout: Layout) -> tuple[Any, ...]:
        """The place of a record in a run that one process writes: such tuples ascend."""
        raise NotImplementedError

    def piece(self, record: Record) -> Hashable | None:
        """The piece that a record belongs to; pieces are measured whole. None: nothing was measured."""
        return None

    def n_of_piece(self, record: Record) -> int:
        """Number of records of a whole piece."""
        return 1

    def own_fault(self, record: Record) -> str:
        """Fault of a record by itself; empty if it has none."""
        try:
            for field in self.fields:
                field.of(record)
        except ValueError as error:
            return str(error)
        return ""

    def fault(self, record: Record, layout: Layout) -> str:
        """Fault of a record among those before it; empty if it has none."""
        return self.own_fault(record)

    def repeated(self, record: Record) -> str:
        """Fault of a run that holds the key of a record twice."""
        return f"its {self.name} occurs twice"
