"""Files and folders of texts: which files are texts, what is in them, and what was left out.

    notes.txt, .md, .log, .rst…    one document a file
    books.jsonl                    one document a line, from one field
    tickets.csv, .tsv              one document a row, from one column
    books.parquet                  one document a row, from one column
    ….bz2, ….gz, ….xz              any of them, compressed

Texts are UTF-8, or UTF-16 and UTF-32 with a byte order mark; other encodings are named.
"""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hope_eval.errors import CorpusError, did_you_mean, first_line, require

# Functions that open a compressed file, by its ending.
OPENERS: dict[str, Callable[..., Any]] = {".bz2": bz2.open, ".gz": gzip.open, ".xz": lzma.open}

_PLAIN = (".txt", ".md", ".markdown", ".log", ".rst", ".text", ".tex", ".org", ".adoc", ".srt", ".vtt")
_TABLES = {".csv": ",", ".tsv": "\t"}
_KINDS = {**dict.fromkeys(_PLAIN, "txt"), ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}

# Documents of programs, which another program turns into text.
_OFFICE = (".docx", ".doc", ".pdf", ".pptx", ".xlsx", ".epub", ".odt", ".rtf", ".html", ".htm")

# Marks at the beginning of a file; the longer of two that begin alike first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

# Bytes of a document, or of a line, at most: a compressed file of a megabyte may unfold without end.
MOST_BYTES = 1 << 30

# Files whose faults are listed; the number of the others is said.
_LISTED = 5


@dataclass
class TextFiles:
    """Texts of a file or a folder.

    column:   field or column of the text.
    encoding: of all texts; empty: UTF-8, or by the mark at the beginning.
    note:     how many files were read, and which were left out, after all documents; empty for a single file.
    """

    path: Path
    column: str = "text"
    encoding: str = ""
    note: str = ""
    _faults: list[CorpusError] = field(default_factory=list)

    def documents(self) -> Iterator[tuple[str, str]]:
        """Yield (label, text) of every document, in order of path.

        Raises CorpusError for a file that cannot be read; of a folder, after all its files, with all their faults.
        """
        if self.path.is_file():
            yield from self._file(self.path, self.path.name)
            return
        read, ignored = [], Counter[str]()
        for child in _children(self.path):
            if not _kind(child):
                ignored[child.suffix.lower() or "without an ending"] += 1
            elif not child.stat().st_size:
                ignored["empty"] += 1
            else:
                read.append(child)
        if not read:
            raise CorpusError(f"the folder `{self.path}` contains no text files", _hint(ignored))
        for child in read:
            try:
                yield from self._file(child, child.relative_to(self.path).as_posix())
            except CorpusError as error:
                self._faults.append(error)
        self._raise_faults()
        left_out = ", ".join(f"{n} {kind}" for kind, n in sorted(ignored.items()))
        self.note = f"read {len(read)} files" + (f"; ignored {left_out}" if left_out else "")

    def _raise_faults(self) -> None:
        if not self._faults:
            return
        first = self._faults[0]
        if len(self._faults) == 1:
            raise first
        shown = "; ".join(error.message for error in self._faults[:_LISTED])
        more = f"; and {len(self._faults) - _LISTED} more" if len(self._faults) > _LISTED else ""
        raise CorpusError(f"{len(self._faults)} files cannot be read: {shown}{more}", first.hint)

    def _file(self, path: Path, label: str) -> Iterator[tuple[str, str]]:
        kind = _kind(path)
        if not kind:
            raise CorpusError(f"`{path}` has an ending that is not supported", _hint(Counter([path.suffix.lower()])))
        if kind == "parquet":
            yield from self._parquet(path, label)
            return
        try:
            with OPENERS.get(path.suffix.lower(), Path.open)(path, "rb") as stream:
                if kind == "txt":
                    yield label, self._decoded(_bounded(stream.read(MOST_BYTES + 1), f"`{path}`"), f"`{path}`")
                elif kind == "jsonl":
                    yield from self._jsonl(stream, path, label)
                else:
                    yield from self._table(stream, path, label, kind)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise CorpusError(f"cannot read `{path}`: {error}", "check the file and its permissions") from error

    def _jsonl(self, stream: Any, path: Path, label: str) -> Iterator[tuple[str, str]]:
        number = 0
        while line := stream.readline(MOST_BYTES + 1):
            number += 1
            where = f"`{path}`, line {number}"
            if not line.strip():
                continue
            text = self._decoded(_bounded(line, where), where)
            try:
                row = json.loads(text.lstrip("\ufeff"))
            except (ValueError, RecursionError) as error:
                raise CorpusError(
                    f"{where}, is not JSON: {first_line(error)}", "write one JSON object a line"
                ) from error
            yield f"{label}:{number}", text_of(row, self.column, f"{where},")

    def _table(self, stream: Any, path: Path, label: str, delimiter: str) -> Iterator[tuple[str, str]]:
        text = self._decoded(_bounded(stream.read(MOST_BYTES + 1), f"`{path}`"), f"`{path}`")
        csv.field_size_limit(MOST_BYTES)
        try:
            for number, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter), 1):
                yield f"{label}:{number}", text_of(row, self.column, f"`{path}`, row {number},")
        except csv.Error as error:
            raise CorpusError(f"`{path}` is not a table: {error}", "check its quotes") from error

    def _parquet(self, path: Path, label: str) -> Iterator[tuple[str, str]]:
        parquet = require("pyarrow.parquet", "reading parquet", "pyarrow")
        pyarrow = require("pyarrow", "reading parquet")
        try:
            names = parquet.read_schema(path).names
            # Other columns may hold what no Python object can.
            rows = parquet.read_table(path, columns=[self.column]).column(0).to_pylist() if self.column in names else []
        except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
            raise CorpusError(
                f"cannot read `{path}`: {first_line(error)}", "check that it is a parquet file"
            ) from error
        if self.column not in names:
            text_of(dict.fromkeys(names), self.column, f"`{path}`")
        for number, text in enumerate(rows, 1):
            yield f"{label}:{number}", text_of({self.column: text}, self.column, f"`{path}`, row {number},")

    def _decoded(self, data: bytes, where: str) -> str:
        encoding = self.encoding or next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            name = "UTF-8" if encoding == "utf-8" else f"in the encoding {encoding}"
            raise CorpusError(
                f"{where} is not {name}: byte {error.start} is {data[error.start]:#04x}", _guess(data)
            ) from error
        except (LookupError, ValueError) as error:
            raise CorpusError(
                f"`--text-encoding {encoding}` cannot be used: {first_line(error)}", "--text-encoding shift_jis"
            ) from error


def text_of(row: object, column: str, where: str) -> str:
    """The text of a record. Raises CorpusError if it has none, or half a character."""
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        names = [str(name) for name in row] if isinstance(row, dict) else []
        known = ", ".join(names) if names else type(row).__name__
        raise CorpusError(
            f"{where} has no text in the field `{column}` (it has: {known})",
            did_you_mean(column, names, "name the field with --field"),
        )
    text: str = row[column]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{where} has half a character (a lone surrogate) at {error.start}", "write the text as UTF-8 anew"
        ) from error
    return text


def _children(folder: Path) -> list[Path]:
    """Files of a folder, in order; not hidden ones, and not what macOS puts beside files."""
    children = (child for child in folder.rglob("*") if child.is_file())
    parts = ((child, child.relative_to(folder).parts) for child in children)
    return sorted(child for child, names in parts if not any(n.startswith(".") or n == "__MACOSX" for n in names))


def _kind(path: Path) -> str:
    """Kind of a file: txt, jsonl or parquet, or what stands between the columns of a table; empty for any other."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in OPENERS:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    return _KINDS.get(last) or _TABLES.get(last, "")


def _hint(ignored: Counter[str]) -> str:
    """What to do about files that are no texts."""
    office = next((kind for kind in ignored if kind in _OFFICE), None)
    if office:
        return f"turn {office} into text: pip install markitdown; markitdown FILE{office} > FILE.md"
    return f"supported: {', '.join([*_PLAIN[:4], *_TABLES, '.jsonl', '.parquet'])}, also .gz, .bz2 and .xz"


def _bounded(data: bytes, where: str) -> bytes:
    if len(data) > MOST_BYTES:
        raise CorpusError(f"{where} has more than {MOST_BYTES >> 30} GiB", "cut it into documents")
    return data


def _guess(data: bytes) -> str:
    """What to do about bytes that are not UTF-8."""
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return "--text-encoding shift_jis, or whatever it is written in"
    best = from_bytes(data[: 1 << 20]).best()
    guessed = best.encoding if best else "shift_jis"
    return f"it may be {guessed}: --text-encoding {guessed}, and look at the text" if best else "is it a text?"
