"""A length that a task cannot be put into."""

from collections.abc import Hashable
from typing import Any

from hope_eval.runs.columns import Field, Record
from hope_eval.runs.records import Layout, RecordKind


class Infeasible(RecordKind):
    """The kind of record of a length that is too short."""

    name = "infeasible"
    fields = (Field("length", "int32"), Field("needed", "int32"))
    is_common = True

    def record(self, length: int, needed: int) -> Record:
        """A record of the kind.

        needed: fewest tokens that the task takes.
        """
        return {"kind": self.name, "length": length, "needed": needed}

    def key(self, record: Record) -> tuple[Hashable, ...]:
        """Its length."""
        return self.name, record["length"]

    def order(self, record: Record, layout: Layout) -> tuple[Any, ...]:
        """They come first, ascending."""
        return 0, record["length"]

    def repeated(self, record: Record) -> str:
        """Fault of a run that holds a length twice."""
        return f"the length {record['length']} occurs twice"


INFEASIBLE = Infeasible()
