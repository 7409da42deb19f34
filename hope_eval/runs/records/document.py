"""A document that perplexity is measured on. Its array `bytes` holds the bytes of each token."""

from collections.abc import Hashable
from typing import Any

from hope_eval.runs.columns import Field, Record
from hope_eval.runs.records import Layout, RecordKind


class Document(RecordKind):
    """The kind of record of a document."""

    name = "document"
    fields = (
        Field("document", "string"),
        Field("index", "int32"),
        Field("n_tokens", "int32"),
        Field("n_bytes", "int64"),
        Field("n_words", "int32"),
        Field("whole", "bool", required=False),
        Field("name", "string", required=False),
    )
    is_common = True

    def record(
        self, document: str, index: int, n_tokens: int, n_bytes: int, n_words: int, whole: bool, name: str = ""
    ) -> Record:
        """A record of the kind.

        document: its id.
        index:    its place in the sample.
        whole:    whether the numbers are of all its tokens, and not only of the first.
        name:     where it stands in the user's data.
        """
        record: Record = {
            "kind": self.name,
            "document": document,
            "index": index,
            "n_tokens": n_tokens,
            "n_bytes": n_bytes,
            "n_words": n_words,
        }
        return record | ({} if whole else {"whole": False}) | ({"name": name} if name else {})

    def key(self, record: Record) -> tuple[Hashable, ...]:
        """Its id."""
        return self.name, record["document"]

    def order(self, record: Record, layout: Layout) -> tuple[Any, ...]:
        """Documents come first, in order of the sample."""
        return 0, record["index"]

    def own_fault(self, record: Record) -> str:
        """Counts are not below 0, and each token has its bytes, where the tokenizer gives them."""
        fault = super().own_fault(record)
        below = [name for name in ("index", "n_tokens", "n_bytes", "n_words") if not fault and record[name] < 0]
        if below:
            return f"`{below[0]}` is {record[below[0]]}"
        if fault or "bytes" not in record.get("arrays", {}):
            return fault
        has_all = record["arrays"]["bytes"]["count"] == record["n_tokens"]
        return "" if has_all else "the number of its bytes is not that of its tokens"

    def repeated(self, record: Record) -> str:
        """Fault of a run that holds a document twice."""
        return f"document `{record['document']}` occurs twice"


DOCUMENT = Document()
