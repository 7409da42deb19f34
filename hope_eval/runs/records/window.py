"""One read of a document, a window of its tokens. Its array `nll` holds the nll of each token that is scored."""

from collections.abc import Hashable
from dataclasses import astuple
from typing import Any

from hope_eval import protocols
from hope_eval.runs.columns import Field, Record
from hope_eval.runs.records import Layout, RecordKind


class Window(RecordKind):
    """The kind of record of a window."""

    name = "window"
    fields = (Field("document", "string"), Field("window", "list"))

    def record(self, document: str, window: protocols.Window) -> Record:
        """A record of the kind.

        document: the id of the document.
        """
        return {"kind": self.name, "document": document, "window": list(astuple(window))}

    def window(self, record: Record) -> protocols.Window:
        """The window of a record."""
        return protocols.Window(*record["window"])

    def key(self, record: Record) -> tuple[Hashable, ...]:
        """Document and window."""
        return self.name, record["document"], *record["window"]

    def order(self, record: Record, layout: Layout) -> tuple[Any, ...]:
        """The longest reads come first, as they are read."""
        window = self.window(record)
        return 1, -window.n_read, layout.documents[record["document"]]["index"], window

    def piece(self, record: Record) -> Hashable | None:
        """Each window is measured whole."""
        return self.piece_of(record["document"], self.window(record))

    def piece_of(self, document: str, window: protocols.Window) -> Hashable:
        """The piece that a window of a document is, whether or not it was measured."""
        return document, *astuple(window)

    def own_fault(self, record: Record) -> str:
        """A window has an nll for each token that it scores."""
        fault = super().own_fault(record)
        if fault:
            return fault
        values = record["window"]
        is_window = len(values) == 5 and all(isinstance(value, int) for value in values)
        start, stop, scored_start, scored_stop, prefixed = values if is_window else [0] * 5
        first = start + (not prefixed)
        if not 0 <= start <= first <= scored_start < scored_stop <= stop + 1:
            return f"{record['window']} is not a window"
        arrays = record.get("arrays", {})
        if "nll" not in arrays:
            return "it has no `nll`"
        has_all = arrays["nll"]["count"] == scored_stop - scored_start
        return "" if has_all else "the number of its nll is not that of the tokens that it scores"

    def fault(self, record: Record, layout: Layout) -> str:
        """A window lies within its document."""
        fault = self.own_fault(record)
        if fault:
            return fault
        document = layout.documents.get(record["document"])
        if document is None:
            return f"its document `{record['document']}` does not come before it"
        if self.window(record).scored_stop > document["n_tokens"]:
            return f"the window {record['window']} reaches past its document"
        if self.window(record).prefixed and layout.header["identity"]["prefix_token"] is None:
            return "it begins with a prefix token, and its run has none"
        return ""

    def repeated(self, record: Record) -> str:
        """Fault of a run that holds a window twice."""
        return f"the window {record['window']} of `{record['document']}` occurs twice"


WINDOW = Window()
