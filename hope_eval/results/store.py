"""Runs on disk: append-only records that survive a kill at any byte.

    results/runs/ppl-SmolLM2-rope-1a2b3c4d5e/
      run.json         what the run is: its identity and provenance; written once, whole
      records.jsonl    one record a line, as it came
      arrays.bin       the arrays of the records (nll per token…), back to back
      sessions.jsonl   when it was worked on, for how long, with what versions

A record is written after its arrays, and counts once its line has ended; what a kill leaves behind a last full line
is cut off by the next writer. The folder is named by a hash of the identity: the same command finds the same run and
goes on with it, and a changed checkpoint, encoding, protocol, dtype… finds another.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np

from hope_eval.errors import StoreError

FORMAT = 1

Record = dict[str, Any]


class RunStore:
    """One run: its header, its records, and a way to append to them.

    header:  `identity` and `provenance`.
    records: all records that are whole, in the order they were written.
    cut:     bytes of a half-written record that were dropped on opening.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.header = header
        self.records: list[Record] = []
        self.cut = 0
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
        header = {"format": FORMAT, "identity": dict(identity), "provenance": dict(provenance)}
        with _explained(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(path / "run.lock")
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                raise StoreError(
                    f"another process is writing the run {path}", "wait for it, or give another --out"
                ) from None
        try:
            if not (path / "run.json").exists():
                with _explained(path):
                    _write_whole(path / "run.json", header)
            store = cls(path, _read_header(path))
            with _explained(path):
                store._read(repair=True)
                store._lines = (path / "records.jsonl").open("ab")
                store._arrays = (path / "arrays.bin").open("ab")
            try:
                yield store
            finally:
                # A full disk can make even closing fail; what is on it is whole up to the last full line.
                with contextlib.suppress(OSError):
                    store._lines.close()
                with contextlib.suppress(OSError):
                    store._arrays.close()
        finally:
            lock.release()

    @classmethod
    def reading(cls, path: Path) -> "RunStore":
        """Open a run for reading; a half-written last record is passed over.

        Raises StoreError if there is no run, or one of a newer version of this program.
        """
        if not (path / "run.json").is_file():
            raise StoreError(f"no run at `{path}`", "give the folder of a run, such as results/runs/ppl-…")
        store = cls(path, _read_header(path))
        store._read(repair=False)
        return store

    @property
    def id(self) -> str:
        """The name of its folder."""
        return self.path.name

    def append(self, record: Record, **arrays: np.ndarray) -> None:
        """Add a record with its arrays; it is with the operating system when this returns.

        Raises StoreError on a full disk; all records before it are kept.
        """
        assert self._lines is not None, "opened for reading"
        assert self._arrays is not None
        places = {}
        with _explained(self.path):
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
            self._lines.write(json.dumps(whole, ensure_ascii=False).encode() + b"\n")
            self._lines.flush()
        self.records.append(whole)

    def array(self, record: Record, name: str) -> np.ndarray:
        """Return an array of a record. Raises StoreError if its bytes are not what was written."""
        place = record["arrays"][name]
        dtype = np.dtype(place["dtype"])
        with (self.path / "arrays.bin").open("rb") as stream:
            stream.seek(place["offset"])
            data = stream.read(place["count"] * dtype.itemsize)
        if zlib.crc32(data) != place["crc"]:
            raise StoreError(
                f"{self.path / 'arrays.bin'} is damaged at byte {place['offset']}", "delete the run and repeat it"
            )
        return np.frombuffer(data, dtype)

    def log_session(self, session: Mapping[str, Any]) -> None:
        """Note when and with what the run was worked on; never part of the records, which repeat exactly."""
        with _explained(self.path), (self.path / "sessions.jsonl").open("ab") as stream:
            stream.write(json.dumps(dict(session)).encode() + b"\n")

    def _read(self, repair: bool) -> None:
        lines, arrays = self.path / "records.jsonl", self.path / "arrays.bin"
        data = lines.read_bytes() if lines.exists() else b""
        n_arrays = arrays.stat().st_size if arrays.exists() else 0
        kept = data[: data.rfind(b"\n") + 1]
        used = end = 0
        for number, line in enumerate(kept.splitlines(keepends=True), 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise StoreError(
                    f"{lines}, line {number}, is damaged: {error}", "delete the run and repeat it"
                ) from error
            places = record.get("arrays", {}).values()
            reach = max((p["offset"] + p["count"] * np.dtype(p["dtype"]).itemsize for p in places), default=used)
            if reach > n_arrays:
                # Power was lost before the arrays reached the disk; this record and those after it are gone.
                break
            self.records.append(record)
            used, end = max(used, reach), end + len(line)
        self.cut = len(data) - end
        if repair:
            for path, size in ((lines, end), (arrays, used)):
                if path.exists() and path.stat().st_size > size:
                    os.truncate(path, size)


def run_id(identity: Mapping[str, Any]) -> str:
    """Return the name of the folder of a run: readable, and unique by a hash of the identity."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    words = [str(identity[key]) for key in ("task", "model", "encoding")]
    slug = "-".join(re.sub(r"[^\w.=]+", "_", word).strip("_")[:60] for word in words)
    return f"{slug}-{digest}"


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads((path / "run.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path / 'run.json'}: {error}", "delete the run and repeat it") from error
    if header.get("format", 0) > FORMAT:
        raise StoreError(
            f"{path} was written by a newer hope-eval (format {header['format']}, this one reads {FORMAT})",
            "pip install --upgrade hope-eval",
        )
    return header


def _write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file so that it is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    part.replace(path)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the operating system objects to into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(
                f"no space left to write {path}; what is done so far is kept",
                "free some space, or give another --out, and run the same command again",
            ) from error
        raise StoreError(f"cannot write {path}: {error.strerror}", "give a folder you may write to: --out") from error
