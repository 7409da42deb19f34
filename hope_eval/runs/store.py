"""Runs on disk: append-only records that survive a kill at any byte.

    results/runs/ppl-SmolLM2-rope-1a2b3c4d5e/
      run.json         what the run is: its identity and provenance; written once, whole
      records.jsonl    one record a line, as it came
      arrays.bin       the arrays of the records (nll per token…), back to back
      sessions.jsonl   when it was worked on, for how long, with what versions
      shards/          what several processes have measured and nobody has merged yet, see sharding.py

A record is written after its arrays, and counts once its line has ended; what a kill leaves behind a last full line
is cut off by the next writer. The folder is named by a hash of the identity: the same command finds the same run and
goes on with it, and a changed checkpoint, encoding, protocol, dtype… finds another.

Opening a run for reading reads its header. Records are read when they are asked for: as they are, or, where there are
millions, as columns.
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
from hope_eval.runs.columns import Field, Record, damaged, n_lines, parsed, read_columns, remedy
from hope_eval.runs.kinds import RunKind, kind_of

if TYPE_CHECKING:
    import pandas

FORMAT = 1

# What to do about what a later version has written.
NEWER = "pip install --upgrade hope-eval"

# All that the folder of a run holds, and what it holds beside them for a while; a shard has the same files.
FILES = ("records.jsonl", "arrays.bin", "sessions.jsonl", "run.part", "run.json", "run.lock")
SHARDS = "shards"

T = TypeVar("T")

# How much of a file is searched at once for where its last line ends.
_TAIL = 1 << 16


class RunStore:
    """One run: its header, its records, and a way to append to them.

    header: `identity` and `provenance`.
    cut:    bytes of a half-written record at the end that are passed over; of records whose arrays were lost as well,
            once `records` are read.
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
        """Open the run of that identity below `root` for appending; it is made if it is not there.

        identity needs `task`, `model` and `encoding`, which go into the folder's name. Raises StoreError if the
        folder cannot be written, or if another process is writing the same run.
        """
        path = root / run_id(identity)
        with claimed(path, header_of(identity, provenance)) as header, cls(path, header).appending() as store:
            yield store

    @contextlib.contextmanager
    def appending(self) -> Iterator[Self]:
        """Open for appending what this process has locked; what a kill left behind the last whole record is cut off."""
        with explained(self.path):
            self._repair()
            self._lines = self._file.open("ab")
            self._arrays = (self.path / "arrays.bin").open("ab")
        try:
            yield self
        finally:
            # A full disk can make even closing fail; what is on it is whole up to the last full line.
            with contextlib.suppress(OSError):
                self._lines.close()
            with contextlib.suppress(OSError):
                self._arrays.close()

    @classmethod
    def reading(cls, path: Path) -> "RunStore":
        """Open a run for reading: its header only, records are read when they are asked for.

        Raises StoreError if there is no run, or one of a newer version of this program.
        """
        if not is_run(path):
            raise StoreError(f"no run at `{path}`", "give the folder of a run, such as results/runs/ppl-…")
        return cls(path, _read_header(path))

    @property
    def id(self) -> str:
        """The name of its folder."""
        return self.path.name

    @property
    def kind(self) -> RunKind:
        """Perplexity or questions."""
        return kind_of(self.header["identity"])

    @property
    def command(self) -> str:
        """What goes on with it, for people."""
        return str(self.header["provenance"].get("command") or "its command")

    @property
    def records(self) -> list[Record]:
        """All records that are whole, in the order they were written.

        Raises StoreError for a line that is damaged.
        """
        if self._records is None:
            self._load()
        assert self._records is not None
        return self._records

    @property
    def is_empty(self) -> bool:
        """Whether no record is whole."""
        return not self._end

    @property
    def n_records(self) -> int:
        """How many records are whole, counted without reading them."""
        return n_lines(self._file, self._end)

    @property
    def waiting(self) -> str:
        """What several processes have measured and nobody has merged yet, in words; empty if there is none."""
        shards = [RunStore(path, self.header) for path in shards_of(self.path)]
        n, k = sum(shard.n_records for shard in shards), sum(not shard.is_empty for shard in shards)
        return f"{n:,} records in {k} shard{'s' * (k != 1)} wait to be merged" if n else ""

    def columns(
        self,
        kind: str,
        columns: Sequence[Field],
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple["pandas.DataFrame", list[Record]]:
        """Return the records of one kind as a frame, and all others as they are; millions take seconds.

        report: called as the work goes on, with bytes read so far, and in all.

        Raises StoreError for a line that is damaged.
        """
        return read_columns(self._file, self._end, kind, columns, report)

    def holding(self, text: str) -> Iterator[Record]:
        """Yield the records whose line has this text in it; others are not parsed."""
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
        """Add a record with its arrays; it is with the operating system when this returns.

        Raises StoreError on a full disk; all records before it are kept.
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
        """Return which batches of what is to do are for this process: all; a shard has its share."""
        return list(todo)

    def whole(self) -> "RunStore":
        """Return what holds all records of the run, its arrays too: this, or the run that a shard went into."""
        return self

    def sync(self) -> None:
        """Return when all that was appended is on the disk, whatever happens to the machine."""
        assert self._lines is not None, "opened for reading"
        assert self._arrays is not None
        with explained(self.path):
            os.fsync(self._arrays.fileno())
            os.fsync(self._lines.fileno())

    def array(self, record: Record, name: str) -> np.ndarray:
        """Return an array of a record. Raises StoreError if its bytes are not what was written."""
        place = record["arrays"][name]
        dtype = np.dtype(place["dtype"])
        with (self.path / "arrays.bin").open("rb") as stream:
            stream.seek(place["offset"])
            data = stream.read(place["count"] * dtype.itemsize)
        if zlib.crc32(data) != place["crc"]:
            raise StoreError(f"{self.path / 'arrays.bin'} is damaged at byte {place['offset']}", remedy(self.path))
        return np.frombuffer(data, dtype)

    def log_session(self, session: Mapping[str, Any]) -> None:
        """Note when and with what the run was worked on; never part of the records, which repeat exactly.

        A checksum of all records so far goes with it.
        """
        with explained(self.path), (self.path / "sessions.jsonl").open("ab") as stream:
            known = {**session, "records": {"bytes": self._end, "crc": self.checksum(self._end)}}
            stream.write(json.dumps(known).encode() + b"\n")

    def sessions(self) -> list[Record]:
        """Return what is known of each session; the line of one that was killed may be half-written."""
        file = self.path / "sessions.jsonl"
        found = []
        for line in file.read_bytes().split(b"\n") if file.exists() else ():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [session for session in found if isinstance(session, dict)]

    def checksum(self, n_bytes: int) -> int:
        """Return the CRC-32 of the first bytes of the records."""
        crc = 0
        with self._file.open("rb") as stream:
            while n_bytes and (part := stream.read(min(n_bytes, 1 << 24))):
                crc = zlib.crc32(part, crc)
                n_bytes -= len(part)
        return crc

    def _load(self) -> int:
        """Read all records, and return how many bytes of arrays they use."""
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
                # Power was lost before the arrays reached the disk; this record and those after it are gone.
                break
            records.append(record)
            used, end = max(used, reach), end + len(line)
        self._records = records
        self.cut, self._end = self.cut + self._end - end, end
        return used

    def _whole(self) -> Iterator[bytes]:
        """Yield the lines that are whole."""
        at = 0
        if self._end:
            with self._file.open("rb") as stream:
                for line in stream:
                    at += len(line)
                    if at > self._end:
                        return
                    yield line

    def _repair(self) -> None:
        """Cut off what a kill has left behind the last whole record."""
        used = self._load()
        for path, size in ((self._file, self._end), (self.path / "arrays.bin", used)):
            if path.exists() and path.stat().st_size > size:
                os.truncate(path, size)


def place_size(place: Mapping[str, Any]) -> int:
    """Return how many bytes of `arrays.bin` an array takes."""
    size: int = place["count"] * np.dtype(place["dtype"]).itemsize
    return size


def _place_end(place: Mapping[str, Any]) -> int:
    """Return where an array ends."""
    end: int = place["offset"] + place_size(place)
    return end


def is_run(path: Path) -> bool:
    """Whether a folder holds a run, be it a damaged one. Raises StoreError if that cannot be seen."""
    with explained(path, "read"):
        return (path / "run.json").is_file()


def shards_of(path: Path) -> list[Path]:
    """Return the shards of a run that nobody has merged yet."""
    folder = path / SHARDS
    with explained(folder, "read"):
        return sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []


def check_merged(store: RunStore) -> None:
    """Raise StoreError if shards of a run wait to be merged: it would seem to lack what they hold."""
    if store.waiting:
        again = f"run it again, with any number of processes: {store.command}"
        raise StoreError(f"{store.path}: {store.waiting}", again)


def header_of(identity: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the header of a new run."""
    return {"format": FORMAT, "identity": dict(identity), "provenance": dict(provenance)}


@contextlib.contextmanager
def claimed(path: Path, header: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Keep other processes from writing a run, which is made if it is not there; yield the header that it has.

    Raises StoreError if its folder cannot be written, or if another process is writing it.
    """
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        write_header(path, header, path)
        yield _read_header(path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from writing a run. Raises StoreError if one does already."""
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
    """Return the name of the folder of a run: readable, and unique by a hash of the identity."""
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
            raise ValueError("its identity has no names")
        if not isinstance(header["provenance"], dict):
            raise ValueError("it has no provenance")
        format_ = int(header.get("format", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{file} is damaged: {error}", remedy(path)) from error
    if format_ > FORMAT:
        raise StoreError(f"{path} has the format {format_} of a newer hope-eval, this one reads {FORMAT}", NEWER)
    return header  # type: ignore[no-any-return]


def _whole_lines(file: Path) -> tuple[int, int]:
    """Return how many bytes of a file are whole lines, and how many follow them."""
    with explained(file, "read"):
        size = at = file.stat().st_size if file.exists() else 0
        if size:
            with file.open("rb") as stream:
                while at:
                    start = max(0, at - _TAIL)
                    stream.seek(start)
                    found = stream.read(at - start).rfind(b"\n")
                    if found >= 0:
                        return start + found + 1, size - start - found - 1
                    at = start
        return 0, size


def write_header(path: Path, header: Mapping[str, Any], own: Path) -> None:
    """Give a run its header if it has none: it is there whole or not at all.

    own: the folder in which this process alone writes.
    """
    with explained(path):
        if not (path / "run.json").exists():
            part = own / "run.part"
            part.write_text(json.dumps(header, indent=1, ensure_ascii=False) + "\n", "utf-8")
            part.replace(path / "run.json")


@contextlib.contextmanager
def explained(path: Path, verb: str = "write") -> Iterator[None]:
    """Turn what the operating system objects to into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(
                f"no space left to write {path}; what is done so far is kept",
                "free some space, or give another --out, and run the same command again",
            ) from error
        raise StoreError(
            f"cannot {verb} {path}: {error.strerror}", f"give a folder you may {verb}" + ": --out" * (verb == "write")
        ) from error
