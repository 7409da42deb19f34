"""A run on disk: append-only records that survive a kill at any byte.

    results/runs/ppl-SmolLM2-rope-1a2b3c4d5e/
      run.json         identity and provenance of the run; written once, whole
      records.jsonl    one record a line, as it came
      arrays.bin       the arrays of the records (nll per token…), one after the other
      sessions.jsonl   sessions of work: time, seconds, versions
      shards/          results of several processes that wait to be merged, see shards.py

A record is written after its arrays, and counts when its line has ended. A kill may leave half a line; the next writer
cuts it off. The folder is named by a hash of the identity, so that rerunning a command resumes its run, and another
checkpoint, encoding, protocol, dtype… makes another run.

Opening a run for reading reads its header only. Records are read on demand: one by one, or, if there are millions, as
columns.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeVar

import filelock
import numpy as np

from hope_eval.errors import StoreError
from hope_eval.files import whole_file
from hope_eval.runs.columns import Field, Progress, Record, damaged, n_lines, parsed, read_columns, remedy
from hope_eval.runs.kinds import RunKind, kind_of

if TYPE_CHECKING:
    import pandas

FORMAT = 1

# Remedy for a run that a later version has written.
NEWER = "pip install --upgrade hope-eval"

# All files in the folder of a run or of a shard, and the folder of shards that wait to be merged.
FILES = ("records.jsonl", "arrays.bin", "sessions.jsonl", "run.part", "run.json", "run.lock")
SHARDS = "shards"

T = TypeVar("T")

# Bytes of a step of the search for the end of the last line.
_TAIL = 1 << 16


class RunStore:
    """One run: its header, its records, and a way to append to them.

    header: `identity` and `provenance`.
    cut:    bytes at the end that are passed over: a half-written record and, after `records` are read, records whose
            arrays were lost.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.header = header
        self._records: list[Record] | None = None
        self._end, self.cut = _whole_lines(self._file)
        self._lines: BinaryIO | None = None
        self._arrays: BinaryIO | None = None

    @classmethod
    @contextlib.contextmanager
    def writing(cls, root: Path, identity: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator["RunStore"]:
        """Open the run of that identity below `root` for appending; make it if it does not exist.

        identity needs `task`, `model` and `encoding`, which go into the folder's name. Raises StoreError if the
        folder cannot be written, or if another process is writing the same run.
        """
        path = root / run_id(identity)
        with claimed(path, header_of(identity, provenance)) as header, cls(path, header).appending() as store:
            yield store

    @contextlib.contextmanager
    def appending(self) -> Iterator[Self]:
        """Open for appending a run that this process has locked; cut off what follows the last whole record."""
        with explained(self.path):
            self._repair()
            self._lines = self._file.open("ab")
            self._arrays = (self.path / "arrays.bin").open("ab")
        try:
            yield self
        finally:
            # On a full disk even closing can fail. Records up to the last full line are whole.
            with contextlib.suppress(OSError):
                self._lines.close()
            with contextlib.suppress(OSError):
                self._arrays.close()

    @classmethod
    def reading(cls, path: Path) -> "RunStore":
        """Open a run for reading. This reads its header; records are read on demand.

        Raises StoreError if the folder is not a run, or is one of a newer version.
        """
        if not is_run(path):
            raise StoreError(f"no run at `{path}`", "give the folder of a run, such as results/runs/ppl-…")
        return cls(path, _read_header(path))

    @property
    def id(self) -> str:
        """Name of its folder."""
        return self.path.name

    @property
    def kind(self) -> RunKind:
        """Perplexity or questions."""
        return kind_of(self.header["identity"])

    @property
    def command(self) -> str:
        """The command that resumes it."""
        return str(self.header["provenance"].get("command") or "its command")

    @property
    def records(self) -> list[Record]:
        """All whole records, in the order they were written.

        Raises StoreError for a line that is damaged.
        """
        if self._records is None:
            self._load()
        assert self._records is not None
        return self._records

    @property
    def is_empty(self) -> bool:
        """Whether it has no whole record."""
        return not self._end

    @property
    def n_records(self) -> int:
        """Number of whole records, counted without parsing them."""
        return n_lines(self._file, self._end)

    @property
    def waiting(self) -> str:
        """Records that wait to be merged, in words; empty if none do."""
        shards = [RunStore(path, self.header) for path in shards_of(self.path)]
        n, n_shards = sum(shard.n_records for shard in shards), sum(not shard.is_empty for shard in shards)
        return f"{n:,} records in {n_shards} shard{'s' * (n_shards != 1)} wait to be merged" if n else ""

    def columns(
        self,
        kind: str,
        columns: Sequence[Field],
        progress: Progress = lambda done, total: None,
    ) -> tuple["pandas.DataFrame", list[Record]]:
        """The records of one kind as a frame, and all others as they are; millions take seconds.

        progress: called during the work, in bytes.

        Raises StoreError for a line that is damaged.
        """
        return read_columns(self._file, self._end, kind, columns, progress)

    def holding(self, text: str) -> Iterator[Record]:
        """Records whose line contains a text; others are not parsed."""
        wanted = text.encode()
        for number, line in enumerate(self._whole(), 1):
            if wanted in line:
                try:
                    yield parsed(line)
                except ValueError as error:
                    raise damaged(self._file, number, error) from error

    @property
    def _file(self) -> Path:
        return self.path / "records.jsonl"

    def append(self, record: Record, **arrays: np.ndarray) -> None:
        """Add a record with its arrays; when this returns, a kill of this process cannot lose it.

        Raises StoreError on a full disk; earlier records are kept.
        """
        assert self._lines is not None, "opened for reading"
        assert self._arrays is not None
        places = {}
        with explained(self.path):
            for name, array in arrays.items():
                data = np.ascontiguousarray(array).tobytes()
                offset = self._arrays.seek(0, os.SEEK_END)
                self._arrays.write(data)
                places[name] = {
                    "offset": offset,
                    "count": int(array.size),
                    "dtype": array.dtype.str,
                    "crc": zlib.crc32(data),
                }
            self._arrays.flush()
            whole = {**record, "arrays": places} if places else record
            line = json.dumps(whole, ensure_ascii=False).encode() + b"\n"
            self._lines.write(line)
            self._lines.flush()
        self._end += len(line)
        self.records.append(whole)

    def share(self, todo: Sequence[T], pieces: Callable[[T], Iterable[Hashable]]) -> list[T]:
        """The batches that this process does: all; of several processes, each has a share (`Shard.share`)."""
        return list(todo)

    def whole(self) -> "RunStore":
        """The store with all records and arrays of the run: this one, or the run that a shard was merged into."""
        return self

    def sync(self) -> None:
        """Write everything to the disk: after this, a loss of power loses nothing."""
        assert self._lines is not None, "opened for reading"
        assert self._arrays is not None
        with explained(self.path):
            os.fsync(self._arrays.fileno())
            os.fsync(self._lines.fileno())

    def array(self, record: Record, name: str) -> np.ndarray:
        """An array of a record. Raises StoreError if its bytes have changed since they were written."""
        place = record["arrays"][name]
        dtype = np.dtype(place["dtype"])
        with (self.path / "arrays.bin").open("rb") as stream:
            stream.seek(place["offset"])
            data = stream.read(place["count"] * dtype.itemsize)
        if zlib.crc32(data) != place["crc"]:
            raise StoreError(f"{self.path / 'arrays.bin'} is damaged at byte {place['offset']}", remedy(self.path))
        return np.frombuffer(data, dtype)

    def log_session(self, session: Mapping[str, Any]) -> None:
        """Record a session of work: time, machine, versions, and a checksum of all records so far.

        Sessions are no records: two runs of one command have the same records, byte by byte.
        """
        with explained(self.path), (self.path / "sessions.jsonl").open("ab") as stream:
            line = {**session, "records": {"bytes": self._end, "crc": self.checksum(self._end)}}
            stream.write(json.dumps(line).encode() + b"\n")

    def sessions(self) -> list[Record]:
        """The recorded sessions; a half-written last line is passed over."""
        file = self.path / "sessions.jsonl"
        sessions = []
        for line in file.read_bytes().split(b"\n") if file.exists() else ():
            with contextlib.suppress(ValueError):
                sessions.append(json.loads(line))
        return [session for session in sessions if isinstance(session, dict)]

    def checksum(self, n_bytes: int) -> int:
        """CRC-32 of the first bytes of the records."""
        crc = 0
        with self._file.open("rb") as stream:
            while n_bytes and (part := stream.read(min(n_bytes, 1 << 24))):
                crc = zlib.crc32(part, crc)
                n_bytes -= len(part)
        return crc

    def _load(self) -> int:
        """Read all records; gives the bytes of arrays that they use."""
        arrays = self.path / "arrays.bin"
        n_arrays = arrays.stat().st_size if arrays.exists() else 0
        records: list[Record] = []
        used = end = 0
        for number, line in enumerate(self._whole(), 1):
            try:
                record = parsed(line)
                reach = max(map(_place_end, record.get("arrays", {}).values()), default=used)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise damaged(self._file, number, error) from error
            if reach > n_arrays:
                # Power was lost before the arrays reached the disk: this record and those after it are lost.
                break
            records.append(record)
            used, end = max(used, reach), end + len(line)
        self._records = records
        self.cut, self._end = self.cut + self._end - end, end
        return used

    def _whole(self) -> Iterator[bytes]:
        """The lines that are whole."""
        at = 0
        if self._end:
            with self._file.open("rb") as stream:
                for line in stream:
                    at += len(line)
                    if at > self._end:
                        return
                    yield line

    def _repair(self) -> None:
        """Cut off the half-written data that a kill has left after the last whole record."""
        used = self._load()
        for path, size in ((self._file, self._end), (self.path / "arrays.bin", used)):
            if path.exists() and path.stat().st_size > size:
                os.truncate(path, size)


def place_size(place: Mapping[str, Any]) -> int:
    """Bytes of `arrays.bin` that an array takes."""
    size: int = place["count"] * np.dtype(place["dtype"]).itemsize
    return size


def _place_end(place: Mapping[str, Any]) -> int:
    """Where an array ends in `arrays.bin`."""
    end: int = place["offset"] + place_size(place)
    return end


def is_run(path: Path) -> bool:
    """Whether a folder is a run, perhaps a damaged one. Raises StoreError if the folder cannot be read."""
    with explained(path, "read"):
        return (path / "run.json").is_file()


def shards_of(path: Path) -> list[Path]:
    """The folders of the shards of a run that wait to be merged. Links are left out: merged shards are removed."""
    folder = path / SHARDS
    with explained(folder, "read"):
        if folder.is_symlink() or not folder.is_dir():
            return []
        return sorted(child for child in folder.iterdir() if child.is_dir() and not child.is_symlink())


def remove_folder(folder: Path) -> None:
    """Remove the folder of a run or a shard, which holds only `FILES`.

    Records go first: a kill on the way leaves an empty run.
    """
    with explained(folder, "remove"):
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def check_merged(store: RunStore) -> None:
    """Raise StoreError if shards of a run wait to be merged: their records would seem to be missing."""
    if store.waiting:
        hint = f"rerun its command to merge them, with any number of processes: {store.command}"
        raise StoreError(f"{store.path}: {store.waiting}", hint)


def header_of(identity: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The header of a new run."""
    return {"format": FORMAT, "identity": dict(identity), "provenance": dict(provenance)}


@contextlib.contextmanager
def claimed(path: Path, header: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Lock a run for writing, make it if it does not exist, and yield its header.

    Raises StoreError if its folder cannot be written, or if another process is writing it.
    """
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        write_header(path, header, path)
        yield _read_header(path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a run for writing. Raises StoreError if another process is writing it."""
    with explained(path):
        lock = filelock.FileLock(path / "run.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise StoreError(
                f"another process is writing the run {path}", "wait for it, or give another --out"
            ) from None
    try:
        yield
    finally:
        lock.release()


def run_id(identity: Mapping[str, Any]) -> str:
    """Name of the folder of a run: readable, and unique by a hash of the identity."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    words = [str(identity[key]) for key in ("task", "model", "encoding")]
    slug = "-".join(re.sub(r"[^\w.=]+", "_", word).strip("_")[:60] for word in words)
    return f"{slug}-{digest}"


def _read_header(path: Path) -> dict[str, Any]:
    file = path / "run.json"
    try:
        with explained(file, "read"):
            header = json.loads(file.read_bytes())
        if not all(isinstance(header["identity"][key], str) for key in ("task", "model", "encoding")):
            raise ValueError("its identity lacks task, model or encoding")
        if not isinstance(header["provenance"], dict):
            raise ValueError("it has no provenance")
        format_ = int(header.get("format", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{file} is damaged: {error}", remedy(path)) from error
    if format_ > FORMAT:
        raise StoreError(f"{path} has the format {format_} of a newer hope-eval; this version reads {FORMAT}", NEWER)
    return header  # type: ignore[no-any-return]


def _whole_lines(file: Path) -> tuple[int, int]:
    """Bytes of a file that are whole lines, and bytes that follow them."""
    with explained(file, "read"):
        size = at = file.stat().st_size if file.exists() else 0
        if size:
            with file.open("rb") as stream:
                while at:
                    start = max(0, at - _TAIL)
                    stream.seek(start)
                    end = start + stream.read(at - start).rfind(b"\n") + 1
                    if end > start:
                        return end, size - end
                    at = start
        return 0, size


def write_header(path: Path, header: Mapping[str, Any], folder: Path) -> None:
    """Give a run its header if it has none.

    folder: only this process writes there.
    """
    with explained(path):
        if not (path / "run.json").exists():
            # The name of the temporary file is one of FILES, so that `remove` also removes what a kill leaves.
            with whole_file(path / "run.json", folder / "run.part") as part:
                part.write_text(json.dumps(header, indent=1, ensure_ascii=False) + "\n", "utf-8")


@contextlib.contextmanager
def explained(path: Path, verb: str = "write") -> Iterator[None]:
    """Turn an error of the operating system into a StoreError with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(
                f"no space left to write {path}; the results so far are kept",
                "free some space, then rerun the command to resume; or give another --out",
            ) from error
        raise StoreError(
            f"cannot {verb} {path}: {error.strerror}", f"give a folder you may {verb}" + ": --out" * (verb == "write")
        ) from error
