"""Verification of a run: everything in it is as it was written, and consistent."""

from itertools import chain
from pathlib import Path
from typing import Any

from hope_eval.errors import StoreError
from hope_eval.runs.columns import Progress, Record, damaged, remedy
from hope_eval.runs.records import Layout
from hope_eval.runs.records.answer import ANSWER, SCORED
from hope_eval.runs.records.document import DOCUMENT
from hope_eval.runs.records.oom import OOM
from hope_eval.runs.store import RunStore, place_size, run_id


def verify(path: Path, progress: Progress = lambda done, total: None) -> RunStore:
    """A sound run. Raises StoreError for its first fault.

    Its folder is named after its identity, every line is a record, every array is as it was written, no record occurs
    twice, and each record fits the header and the records before it.

    progress: called during the work, in bytes.
    """
    store = RunStore.reading(path)
    wanted = run_id(store.header["identity"])
    if path.resolve().name != wanted:
        raise StoreError(
            f"its identity belongs to {wanted}",
            f"rename the folder to {wanted}; if run.json was changed, {remedy(path)}",
        )
    try:
        _verify_checksum(store)
        (_verify_answers if ANSWER in store.kind.records else _verify_tokens)(store, progress)
    except StoreError as error:
        command = store.header["provenance"].get("command")
        raise StoreError(error.message, remedy(path) + (f": {command}" if command else "")) from error
    return store


def _verify_checksum(store: RunStore) -> None:
    """Raise StoreError if the records that the last session left have changed since."""
    checksums = [session["records"] for session in store.sessions() if session.get("records")]
    checksums = [checksum for checksum in checksums if checksum.get("bytes") and checksum.get("crc") is not None]
    if not checksums:
        return
    n_bytes, records = checksums[-1]["bytes"], store.path / "records.jsonl"
    if not records.exists() or records.stat().st_size < n_bytes:
        raise StoreError("records that the last session wrote are missing")
    if store.checksum(n_bytes) != checksums[-1]["crc"]:
        raise StoreError("its records were changed: their checksum is not that of the last session")


def _verify_answers(store: RunStore, progress: Progress) -> None:
    """Raise StoreError if a question is answered twice, or a context in the middle is missing."""
    is_scored = "hits" in next(store.holding('"answer"'), {})
    answers, others = store.columns(ANSWER.name, [*ANSWER.fields, *(SCORED if is_scored else ())], progress)
    layout = Layout(store.header, {})
    # Contexts that ran out of memory leave gaps.
    may_have_gaps = any(record["kind"] == OOM.name for record in others)
    keys: set[Any] = set()
    faults = chain(
        ANSWER.faults(answers, layout),
        () if may_have_gaps else ANSWER.gaps(answers),
        (_named_fault(store, record, layout, keys) for record in others),
    )
    fault = next(filter(None, faults), "")
    if fault:
        raise StoreError(fault)


def _verify_tokens(store: RunStore, progress: Progress) -> None:
    """Raise StoreError if a window occurs twice, passes its document or lacks a number, or a document is missing."""
    documents: dict[str, Record] = {}
    layout = Layout(store.header, documents)
    keys: set[Any] = set()
    n_bytes = done = 0
    for record in store.records:
        n_bytes += sum(map(place_size, record.get("arrays", {}).values()))
    progress(done, n_bytes)
    for number, record in enumerate(store.records, 1):
        fault = _fault(store, record, layout, keys)
        if fault:
            raise damaged(store.path / "records.jsonl", number, fault)
        if record["kind"] == DOCUMENT.name:
            documents[record["document"]] = record
        for name, place in record.get("arrays", {}).items():
            store.array(record, name)
            done += place_size(place)
            progress(done, n_bytes)
    indices = sorted(document["index"] for document in documents.values())
    if indices != list(range(len(indices))):
        missing = next(number for number, index in enumerate([*indices, -1]) if number != index)
        raise StoreError(f"the document of index {missing} is missing, or another document has its index")


def _named_fault(store: RunStore, record: Record, layout: Layout, keys: set[Any]) -> str:
    """Fault of a record, with the name of its kind: records read as columns have no line number."""
    fault = _fault(store, record, layout, keys)
    return fault and f"a record of the kind `{record['kind']}` is damaged: {fault}"


def _fault(store: RunStore, record: Record, layout: Layout, keys: set[Any]) -> str:
    """Fault of a record, given those before it; empty if it has none.

    keys: of the records before it; the key of this one is added.
    """
    kind = store.kind.record_kind(record)
    fault = kind.fault(record, layout)
    if fault or kind.may_repeat:
        return fault
    key = kind.key(record)
    if key in keys:
        return kind.repeated(record)
    keys.add(key)
    return ""
