"""Runs in a folder: list them, find one, describe it, remove it.

A run that is damaged, or of a newer version, can only be listed and removed.
"""

import contextlib
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hope_eval.errors import StoreError, did_you_mean
from hope_eval.files import explained
from hope_eval.runs.columns import Field
from hope_eval.runs.store import (
    FILES,
    SHARDS,
    RunStore,
    check_links,
    is_run,
    locked,
    remove_folder,
    shards_of,
)

# Most runs that a message names.
_NAMED = 4


@dataclass(frozen=True)
class Outline:
    """A run in a list.

    lengths:   of a perplexity; those of a task are in its records.
    n_bytes:   on disk.
    worked_on: when its records last changed.
    state:     ok; empty; cut: its last record is half-written; split: shards wait to be merged; bad: it cannot be read.
    """

    path: Path
    identity: dict[str, Any]
    lengths: tuple[int, ...]
    n_records: int
    n_bytes: int
    worked_on: datetime
    state: str


def runs_in(root: Path) -> list[Path]:
    """The folders of all runs below a folder, in order of their last change.

    Raises StoreError if there is no such folder.
    """
    if not root.is_dir():
        raise StoreError(
            f"no folder `{root}`", "`hope-eval run --suite quick` makes some runs; --out names their folder"
        )
    with explained(root, "read"):
        return sorted((path for path in root.iterdir() if is_run(path)), key=lambda path: (_worked_on(path), path))


def find(name: str, root: Path) -> Path:
    """The run of that name: a folder, an id below `root`, or the beginning of a single id there.

    Raises StoreError if no run, or more than one, has that name.
    """
    folder = Path(name).expanduser()
    if name and is_run(folder):
        return folder
    runs = runs_in(root) if root.is_dir() else []
    matches = [run for run in runs if run.name == name] or [run for run in runs if name and run.name.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        more = ", …" if len(matches) > _NAMED else ""
        names = ", ".join(run.name for run in matches[-_NAMED:])
        raise StoreError(f"the ids of {len(matches)} runs begin with `{name}`: {names}{more}", "give more of the id")
    if folder.is_dir() and name:
        raise StoreError(f"the folder `{name}` is not a run", f"`hope-eval runs --out {name}` lists runs below it")
    ids = [run.name for run in runs]
    raise StoreError(f"no run `{name}` in {root}", did_you_mean(name, ids, f"`hope-eval runs --out {root}` lists all"))


def latest(root: Path) -> list[Path]:
    """The runs below a folder that the last command worked on: those with a session of the same command.

    A command that had nothing left to do did not work on a run.

    Raises StoreError if there is no such folder, or no session.
    """
    # When a session began, its command, and the run.
    sessions: list[tuple[str, str, Path]] = []
    for path in runs_in(root):
        # A damaged run of another command is no hindrance.
        with contextlib.suppress(StoreError):
            sessions += [
                (str(session.get("started", "")), str(session.get("command") or path), path)
                for session in RunStore.reading(path).sessions()
            ]
    if not sessions:
        raise StoreError(f"no command has worked on a run below {root}", "`hope-eval run --suite quick` makes some")
    _, last, _ = max(sessions)
    return list(dict.fromkeys(path for _, command, path in sessions if command == last))


def outline(path: Path) -> Outline:
    """A run in a list; it may be damaged."""
    n_bytes = size(path)
    when = datetime.fromtimestamp(_worked_on(path)).astimezone()
    try:
        store = RunStore.reading(path)
    except StoreError:
        return Outline(path, {}, (), 0, n_bytes, when, "bad")
    identity = store.header["identity"]
    return Outline(path, identity, tuple(identity.get("lengths", ())), store.n_records, n_bytes, when, state(store))


def size(path: Path) -> int:
    """Bytes of a run on disk."""
    files = [folder / name for folder in (path, *shards_of(path)) for name in FILES]
    return sum(file.stat().st_size for file in files if file.is_file())


def state(store: RunStore) -> str:
    """The state of a run: ok, split, empty or cut."""
    return "split" if store.waiting else "empty" if store.is_empty else "cut" if store.cut else "ok"


def _worked_on(path: Path) -> float:
    records = path / "records.jsonl"
    return (records if records.exists() else path / "run.json").stat().st_mtime


def described(path: Path) -> dict[str, Any]:
    """Description of a run: its header, its sessions, and the number of its records of each kind.

    Raises StoreError if it is damaged, or of a newer version.
    """
    store = RunStore.reading(path)
    about = outline(path)
    frequent = store.kind.records[0].name
    frame, others = store.columns(frequent, [Field("kind", "string", category=True)])
    counts = Counter({frequent: len(frame), **Counter(record["kind"] for record in others)})
    return {
        "id": store.id,
        "path": str(path),
        "state": about.state,
        "bytes": about.n_bytes,
        "bytes_cut": store.cut,
        "waiting": store.waiting,
        "worked_on": about.worked_on.isoformat(timespec="seconds"),
        **store.header,
        "records": {kind: n for kind, n in sorted(counts.items()) if n},
        "sessions": store.sessions(),
    }


def remove(path: Path) -> None:
    """Remove a run.

    Raises StoreError if it is not a run, is a link, holds other files, or is being written.
    """
    check_removable(path)
    with locked(path):
        for shard in shards_of(path):
            with locked(shard):
                remove_folder(shard)
        with explained(path, "remove"):
            if (path / SHARDS).is_dir():
                (path / SHARDS).rmdir()
        remove_folder(path)


def check_removable(path: Path) -> None:
    """Raise StoreError if a folder is not a run, is a link, or holds anything else."""
    if not is_run(path):
        raise StoreError(f"no run at `{path}`", "give the folder of a run, such as results/runs/ppl-…")
    for folder in (path, *shards_of(path)):
        check_links(folder)
    others = _other_files(path)
    if others:
        raise StoreError(
            f"`{path}` also holds files that are not part of a run: {', '.join(others[:_NAMED])}",
            "move them elsewhere, or remove the folder yourself",
        )


def _other_files(path: Path) -> list[str]:
    """Names of files that no run writes, in the folder of a run and its shards; also linked folders."""
    folder = path / SHARDS
    with explained(path, "read"):
        others = [file.name for file in path.iterdir() if file.name not in (*FILES, SHARDS)]
        if folder.is_symlink() or folder.is_file():
            return sorted([*others, SHARDS])
        shards = shards_of(path)
        inside = [
            *(folder.iterdir() if folder.is_dir() else ()),
            *(file for shard in shards for file in shard.iterdir()),
        ]
        return sorted(others) + sorted(file.name for file in inside if file not in shards and file.name not in FILES)
