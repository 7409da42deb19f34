"""Runs in a folder: which there are, whether they are sound, and how to be rid of them.

    runs_in     the folders of all runs
    find        one of them, by its folder, its id, or how its id begins
    outline     what a list shows of it
    described   all that is known of it
    check       whether what it holds fits together
    remove      it, and nothing else

A run that is damaged, or of a newer version, is listed and can be removed; nothing else can be done with it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from hope_eval.errors import StoreError, did_you_mean
from hope_eval.runs.columns import Field, Record, damaged, remedy
from hope_eval.runs.records import Layout
from hope_eval.runs.records.answer import ANSWER, SCORED
from hope_eval.runs.records.document import DOCUMENT
from hope_eval.runs.records.oom import OOM
from hope_eval.runs.store import (
    FILES,
    SHARDS,
    RunStore,
    explained,
    is_run,
    locked,
    place_size,
    run_id,
    shards_of,
)

# How many of several runs are named in a message.
_NAMED = 4

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Outline:
    """What a list shows of a run.

    lengths:   of a perplexity; a task has them in its records.
    n_bytes:   on disk.
    worked_on: when its records were last changed.
    state:     ok, empty, cut (its last record is half-written), split (shards wait to be merged) or, of what cannot be
               read, bad.
    """

    path: Path
    identity: dict[str, Any]
    lengths: tuple[int, ...]
    n_records: int
    n_bytes: int
    worked_on: datetime
    state: str


def runs_in(root: Path) -> list[Path]:
    """Return the folders of all runs below a folder, the one last worked on at the end.

    Raises StoreError if there is no such folder.
    """
    if not root.is_dir():
        raise StoreError(
            f"no folder `{root}`", "`hope-eval run --suite quick` makes some runs; --out names their folder"
        )
    with explained(root, "read"):
        return sorted((path for path in root.iterdir() if is_run(path)), key=lambda path: (_worked_on(path), path))


def find(name: str, root: Path) -> Path:
    """Return the run of that name: a folder, an id below `root`, or how a single one of these ids begins.

    Raises StoreError if there is none, or more than one.
    """
    given = Path(name).expanduser()
    if name and is_run(given):
        return given
    runs = runs_in(root) if root.is_dir() else []
    found = [run for run in runs if run.name == name] or [run for run in runs if name and run.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        more = ", …" if len(found) > _NAMED else ""
        names = ", ".join(run.name for run in found[-_NAMED:])
        raise StoreError(f"`{name}` begins the ids of {len(found)} runs: {names}{more}", "give more of the id")
    if given.is_dir() and name:
        raise StoreError(f"the folder `{name}` holds no run", f"`hope-eval runs --out {name}` lists runs below it")
    ids = [run.name for run in runs]
    raise StoreError(f"no run `{name}` in {root}", did_you_mean(name, ids, f"`hope-eval runs --out {root}` lists all"))


def outline(path: Path) -> Outline:
    """Return what a list shows of a run, be it a damaged one."""
    n_bytes = size(path)
    when = datetime.fromtimestamp(_worked_on(path)).astimezone()
    try:
        store = RunStore.reading(path)
    except StoreError:
        return Outline(path, {}, (), 0, n_bytes, when, "bad")
    identity = store.header["identity"]
    return Outline(path, identity, tuple(identity.get("lengths", ())), store.n_records, n_bytes, when, state(store))


def size(path: Path) -> int:
    """Return how many bytes a run takes on disk."""
    files = [folder / name for folder in (path, *shards_of(path)) for name in FILES]
    return sum(file.stat().st_size for file in files if file.is_file())


def state(store: RunStore) -> str:
    """Return whether a run is ok, split, empty, or cut."""
    return "split" if store.waiting else "empty" if store.is_empty else "cut" if store.cut else "ok"


def _worked_on(path: Path) -> float:
    records = path / "records.jsonl"
    return (records if records.exists() else path / "run.json").stat().st_mtime


def described(path: Path) -> dict[str, Any]:
    """Return all that is known of a run: its header, its sessions, and how many records it has of each kind.

    Raises StoreError for one that is damaged, or of a newer version.
    """
    store = RunStore.reading(path)
    known = outline(path)
    main = store.kind.records[0].name
    frame, others = store.columns(main, [Field("kind", "string", category=True)])
    counts = Counter({main: len(frame), **Counter(record["kind"] for record in others)})
    return {
        "id": store.id,
        "path": str(path),
        "state": known.state,
        "bytes": known.n_bytes,
        "bytes_cut": store.cut,
        "waiting": store.waiting,
        "worked_on": known.worked_on.isoformat(timespec="seconds"),
        **store.header,
        "records": {kind: n for kind, n in sorted(counts.items()) if n},
        "sessions": store.sessions(),
    }


def remove(path: Path) -> None:
    """Remove a run. Raises StoreError if there is none, if it is being written, or if its folder holds other files."""
    check_removable(path)
    with locked(path):
        for shard in shards_of(path):
            with locked(shard):
                _empty(shard)
            with explained(shard, "remove"):
                shard.rmdir()
        _empty(path)
    with explained(path, "remove"):
        if (path / SHARDS).is_dir():
            (path / SHARDS).rmdir()
        path.rmdir()


def _empty(folder: Path) -> None:
    with explained(folder, "remove"):
        for name in FILES:
            (folder / name).unlink(missing_ok=True)


def check_removable(path: Path) -> None:
    """Raise StoreError if a folder holds no run, or something else besides."""
    if not is_run(path):
        raise StoreError(f"no run at `{path}`", "give the folder of a run, such as results/runs/ppl-…")
    shards = shards_of(path)
    with explained(path, "read"):
        strange = sorted(file.name for file in path.iterdir() if file.name not in (*FILES, SHARDS))
        if shards or (path / SHARDS).exists():
            inside = [*(path / SHARDS).iterdir(), *(file for shard in shards for file in shard.iterdir())]
            strange += sorted(file.name for file in inside if file not in shards and file.name not in FILES)
    if strange:
        raise StoreError(
            f"`{path}` holds what is of no run: {', '.join(strange[:_NAMED])}",
            "move it elsewhere, or remove the folder",
        )


def check(path: Path, report: Report = lambda done, total: None) -> RunStore:
    """Return a run in which everything fits together.

    Its folder has the name of its identity, every line is a record, every array is as it was written, no record is
    there twice, and records are such as a run of that header has.

    report: called as the work goes on, with bytes checked so far, and in all.

    Raises StoreError for the first thing that is wrong.
    """
    store = RunStore.reading(path)
    wanted = run_id(store.header["identity"])
    if path.resolve().name != wanted:
        raise StoreError(
            f"its identity is that of {wanted}",
            f"name the folder so; if it is run.json that was changed, {remedy(path)}",
        )
    try:
        _check_sum(store)
        (_check_answers if ANSWER in store.kind.records else _check_tokens)(store, report)
    except StoreError as error:
        command = store.header["provenance"].get("command")
        raise StoreError(error.message, remedy(path) + (f": {command}" if command else "")) from error
    return store


def _check_sum(store: RunStore) -> None:
    """Raise StoreError unless the records are those that the last session left, and what came after."""
    told = [session["records"] for session in store.sessions() if "records" in session]
    if not told:
        return
    n_bytes = told[-1]["bytes"]
    if (store.path / "records.jsonl").stat().st_size < n_bytes:
        raise StoreError("records are missing that were there when it was last worked on")
    if store.checksum(n_bytes) != told[-1]["crc"]:
        raise StoreError("its records are not those that were written: they have another checksum")


def _check_answers(store: RunStore, report: Report) -> None:
    """Raise StoreError unless every question is answered once, and nothing is missing in between."""
    is_scored = "hits" in next(store.holding('"answer"'), {})
    answers, others = store.columns(ANSWER.name, [*ANSWER.fields, *(SCORED if is_scored else ())], report)
    layout = Layout(store.header, {})
    # What ran out of memory leaves gaps.
    has_gaps = any(record["kind"] == OOM.name for record in others)
    keys: set[Any] = set()
    faults = chain(
        ANSWER.faults(answers, layout),
        () if has_gaps else ANSWER.gaps(answers),
        (_fault(store, record, layout, keys) for record in others),
    )
    fault = next(filter(None, faults), "")
    if fault:
        raise StoreError(fault)


def _check_tokens(store: RunStore, report: Report) -> None:
    """Raise StoreError unless every window is there once, within its document, with as many numbers as it scores."""
    documents: dict[str, Record] = {}
    layout = Layout(store.header, documents)
    keys: set[Any] = set()
    n_bytes = done = 0
    for record in store.records:
        n_bytes += sum(map(place_size, record.get("arrays", {}).values()))
    report(done, n_bytes)
    for number, record in enumerate(store.records, 1):
        fault = _fault(store, record, layout, keys)
        if fault:
            raise damaged(store.path / "records.jsonl", number, fault)
        if record["kind"] == DOCUMENT.name:
            documents[record["document"]] = record
        for name, place in record.get("arrays", {}).items():
            store.array(record, name)
            done += place_size(place)
            report(done, n_bytes)
    indices = sorted(document["index"] for document in documents.values())
    if indices != list(range(len(indices))):
        missing = next(number for number, index in enumerate([*indices, -1]) if number != index)
        raise StoreError(f"the document of index {missing} is missing, or another has its index")


def _fault(store: RunStore, record: Record, layout: Layout, keys: set[Any]) -> str:
    """Return what is wrong with a record, given those before it; empty if nothing is.

    keys: of the records before it, and then of this one too.
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
