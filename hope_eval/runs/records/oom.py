"""A read that did not fit in memory, or that the model's code failed at. It is tried again if the run is resumed."""

from collections.abc import Hashable, Mapping
from typing import Any

from hope_eval.runs.columns import Field, Record
from hope_eval.runs.records import Layout, RecordKind

# In the message of a read that the model's own code failed at, before the error.
FAILED = "its code raises "


class OutOfMemory(RecordKind):
    """The kind of record of a read that did not fit. Perplexity notes document and tokens read, a task its length."""

    name = "oom"
    fields = (
        Field("document", "string", required=False),
        Field("n_read", "int32", required=False),
        Field("length", "int32", required=False),
        Field("memory", "struct"),
        Field("message", "string", required=False),
    )
    may_repeat = True

    def own_fault(self, record: Record) -> str:
        """It names the tokens that did not fit."""
        fault = super().own_fault(record)
        return fault or ("" if self.n_tokens(record) > 0 else "it has neither `n_read` nor `length`")

    def of_window(self, document: str, n_read: int, memory: Mapping[str, float], message: str) -> Record:
        """A record of a read of a document.

        memory: free and total memory in GiB, by name.
        """
        return {
            "kind": self.name,
            "document": document,
            "n_read": n_read,
            "memory": dict(memory),
            "message": message,
        }

    def of_length(self, length: int, memory: Mapping[str, float], message: str) -> Record:
        """A record of prompts of that length."""
        return {"kind": self.name, "length": length, "memory": dict(memory), "message": message}

    def status(self, record: Record) -> str:
        """Status of the cells that lack the read: `oom`, or `fails`."""
        return "fails" if FAILED in record.get("message", "") else self.name

    def why(self, record: Record) -> str:
        """What is known of the failure, in brackets; empty if nothing is."""
        known = ", ".join(f"{key.removesuffix('_gib')} {value} GiB" for key, value in record["memory"].items())
        if self.status(record) == "fails":
            _, before, error = record["message"].splitlines()[0].partition(FAILED)
            known = before + error
        return f" ({known})" if known else ""

    def n_tokens(self, record: Record) -> int:
        """Tokens that did not fit."""
        n_tokens: int = record["n_read"] if "n_read" in record else record.get("length", 0)
        return n_tokens

    def key(self, record: Record) -> tuple[Hashable, ...]:
        """Its length: of reads of one length that did not fit, one is enough when shards are merged."""
        return self.name, self.n_tokens(record)

    def order(self, record: Record, layout: Layout) -> tuple[Any, ...]:
        """They come last."""
        return 2, self.n_tokens(record)


OOM = OutOfMemory()
