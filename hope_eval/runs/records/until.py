"""Where measuring ended because an interval was narrow enough (`--until-ci`), or because nothing was left."""

from collections.abc import Hashable
from typing import Any

from hope_eval.runs.columns import Field, Record
from hope_eval.runs.records import Layout, RecordKind


class Until(RecordKind):
    """The kind of record of an end. A task notes one for each length and control, perplexity one for the run."""

    name = "until"
    fields = (
        Field("length", "int32", required=False),
        Field("control", "string", required=False),
        Field("half_width", "float64"),
        Field("n", "int32"),
        Field("of", "int32"),
        Field("narrow", "bool"),
    )
    may_repeat = True

    def record(self, half_width: float, n: int, of: int, narrow: bool, **column: Any) -> Record:
        """A record of the kind.

        half_width: the value of --until-ci.
        n, of:      documents or contexts that were measured, and the most possible.
        narrow:     whether the interval is as narrow as asked.
        column:     of a task: `length` and `control`.
        """
        return {"kind": self.name, **column, "half_width": half_width, "n": n, "of": of, "narrow": narrow}

    def key(self, record: Record) -> tuple[Hashable, ...]:
        """All of it: each time a run is resumed, measuring may end elsewhere."""
        return tuple(record.values())

    def order(self, record: Record, layout: Layout) -> tuple[Any, ...]:
        """After the answers of its series; in a run of perplexity, last."""
        if "length" in record:
            return 1, record["length"], layout.controls.index(record["control"]), record["n"]
        return 2, 0


UNTIL = Until()
