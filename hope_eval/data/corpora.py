"""Long texts: Python sources already on the machine, local files, or a dataset of the hub at a fixed revision.

    python                       the standard library of this interpreter (the default: no download, real documents)
    python:torch,numpy           installed packages
    books.txt  notes.md  folder  one document a file; a folder is read recursively, in order of path
    books.jsonl[.bz2|.gz|.xz]    one document a line, from the field `text` (or --field)
    books.parquet                one document a row
    hf:name[:config]@revision    a dataset of the hub; the revision is required, so that the texts stay the same

A corpus is read whole. Its fingerprint goes into every result, and so identifies the texts.
"""

import bz2
import gzip
import hashlib
import importlib.util
import json
import lzma
import sys
import sysconfig
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hope_eval.errors import CorpusError, did_you_mean, require

# Functions that open a compressed file, by its ending.
OPENERS: dict[str, Callable[..., Any]] = {".bz2": bz2.open, ".gz": gzip.open, ".xz": lzma.open}
_TEXT = {".txt", ".md"}

# Source files are grouped into documents of at least this many bytes: about 64k tokens of a usual vocabulary.
_DOCUMENT_BYTES = 256 * 1024

# Left out of the sources: tests, tables that programs generated, and what is installed beside the standard library.
_SKIPPED = {"__pycache__", "test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "lib2to3"}


@dataclass(frozen=True)
class Document:
    """One text. `id` says where it stands: a file of a folder, a line of a file, a package."""

    id: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Texts, with a name.

    fingerprint: of the texts, whatever the names and the order of the files that they are in.
    """

    name: str
    documents: tuple[Document, ...]
    fingerprint: str

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Key of each document: a hash of its text, 16 hexadecimal digits; equal texts are numbered, `…-2`."""
        return _keys(self.documents)

    def keyed(self, seed: int) -> list[tuple[str, Document]]:
        """Documents with their keys, in a random order that follows from (seed, text) alone.

        A new document does not move the others, and another name of a file changes nothing.
        """
        pairs = zip(self.keys, self.documents, strict=True)
        return sorted(pairs, key=lambda pair: _digest(f"{seed}/{pair[0]}"))

    def in_order(self, seed: int) -> list[Document]:
        """Documents in the order of `keyed`."""
        return [document for _, document in self.keyed(seed)]


def load_corpus(name: str, field: str = "text") -> Corpus:
    """Read a corpus by its name on the command line; the module's docstring lists all kinds.

    field: the field of the text, in a file that has several.

    Raises CorpusError, with file and line, for a text that is missing or cannot be opened, decoded or parsed.
    """
    if name == "python" or name.startswith("python:"):
        documents = list(_python(name))
        version = ".".join(map(str, sys.version_info[:3]))
        label = f"{name} ({version})" if name == "python" else name
    elif name.startswith("hf:"):
        documents, label = list(_hub(name, field)), name
    else:
        path = Path(name).expanduser()
        if not path.exists():
            raise CorpusError(
                f"no text at `{name}`",
                did_you_mean(name, ["python"], "--data takes a file, a folder, `python`, or hf:name@revision"),
            )
        documents, label = list(_files(path, field)), path.name
    documents = [document for document in documents if document.text]
    if not documents:
        raise CorpusError(f"`{name}` contains no text", "choose another --data")
    return Corpus(label, tuple(documents), _fingerprint(documents))


def _keys(documents: Sequence[Document]) -> tuple[str, ...]:
    seen: Counter[str] = Counter()
    keys = []
    for document in documents:
        key = _digest(document.text).hex()[:16]
        seen[key] += 1
        keys.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return tuple(keys)


def _fingerprint(documents: Sequence[Document]) -> str:
    return _digest(" ".join(sorted(_keys(documents)))).hex()[:16]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _files(path: Path, field: str) -> Iterator[Document]:
    if path.is_file():
        yield from _file(path, path.name, field)
        return
    paths = sorted(child for child in path.rglob("*") if child.is_file() and _kind(child))
    if not paths:
        raise CorpusError(f"the folder `{path}` contains no text files", f"supported: {', '.join(_supported())}")
    for child in paths:
        yield from _file(child, child.relative_to(path).as_posix(), field)


def _supported() -> list[str]:
    return [*sorted(_TEXT), ".jsonl", ".jsonl.bz2", ".jsonl.gz", ".jsonl.xz", ".parquet"]


def _kind(path: Path) -> str:
    """Kind of a file: txt, jsonl or parquet; empty for any other."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in OPENERS:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    return "txt" if last in _TEXT else last[1:] if last in (".jsonl", ".parquet") else ""


def _file(path: Path, label: str, field: str) -> Iterator[Document]:
    kind = _kind(path)
    if kind == "parquet":
        yield from _parquet(path, label, field)
        return
    if not kind:
        raise CorpusError(f"`{path}` has an ending that is not supported", f"supported: {', '.join(_supported())}")
    try:
        with OPENERS.get(path.suffix.lower(), Path.open)(path, "rb") as stream:
            if kind == "txt":
                yield Document(label, _decoded(stream.read(), str(path)))
            else:
                yield from _jsonl(stream, path, label, field)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise CorpusError(f"cannot read `{path}`: {error}", "check the file and its permissions") from error


def _jsonl(stream: Iterator[bytes], path: Path, label: str, field: str) -> Iterator[Document]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(_decoded(line, f"{path}, line {number}"))
        except json.JSONDecodeError as error:
            raise CorpusError(
                f"`{path}`, line {number}, is not JSON: {error}", "write one JSON object a line"
            ) from error
        yield Document(f"{label}:{number}", _text(row, field, f"`{path}`, line {number},"))


def _parquet(path: Path, label: str, field: str) -> Iterator[Document]:
    parquet = require("pyarrow.parquet", "reading parquet", "pyarrow")
    pyarrow = require("pyarrow", "reading parquet")
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise CorpusError(f"cannot read `{path}`: {error}", "check that it is a parquet file") from error
    for number, row in enumerate(table.to_pylist(), 1):
        yield Document(f"{label}:{number}", _text(row, field, f"`{path}`, row {number},"))


def _hub(name: str, field: str) -> Iterator[Document]:
    spec, _, revision = name.removeprefix("hf:").partition("@")
    if not revision:
        raise CorpusError(f"`{name}` has no revision", f"fix one, so that the numbers stay comparable: {name}@COMMIT")
    datasets = require("datasets", "data from the hub")
    dataset, _, config = spec.partition(":")
    try:
        splits = datasets.load_dataset(dataset, config or None, revision=revision)
    except Exception as error:
        # The hub's client raises dozens of kinds of errors; the user can do the same about all.
        raise CorpusError(
            f"cannot load `{name}`: {type(error).__name__}: {error}", "check name, config, revision and connection"
        ) from error
    split = next((usual for usual in ("test", "validation", "train") if usual in splits), None)
    if split is None:
        raise CorpusError(
            f"`{name}` has none of the splits test, validation, train (it has: {', '.join(splits)})",
            "choose another --data",
        )
    for number, row in enumerate(splits[split], 1):
        yield Document(f"{split}:{number}", _text(row, field, f"`{name}`, {split} row {number},"))


def _text(row: object, field: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        names = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise CorpusError(
            f"{where} has no text in the field `{field}` (it has: {names})", "name the field with --field"
        )
    text: str = row[field]
    return text


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{where} is not UTF-8: byte {error.start} is {data[error.start]:#04x}",
            "convert it, for example with: iconv -f latin1 -t utf-8",
        ) from error


def _python(name: str) -> Iterator[Document]:
    if name == "python":
        yield from _sources(Path(sysconfig.get_paths()["stdlib"]), "")
        return
    for package in name.removeprefix("python:").split(","):
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise CorpusError(f"the package `{package}` is not installed here", f"pip install {package}")
        yield from _sources(Path(next(iter(spec.submodule_search_locations))), f"{package}/")


def _sources(root: Path, prefix: str) -> Iterator[Document]:
    """One document for each sub-package; small ones, and single modules, are grouped in order of name."""
    group: list[Path] = []
    size = 0
    for entry in sorted(root.iterdir()):
        # _sysconfigdata holds the paths of the machine that built this interpreter.
        if entry.name in _SKIPPED or entry.name.startswith("_sysconfigdata"):
            continue
        if not (entry.is_dir() or entry.suffix == ".py"):
            continue
        files = sorted(entry.rglob("*.py")) if entry.is_dir() else [entry]
        files = [file for file in files if not _SKIPPED & set(file.relative_to(root).parts)]
        weight = sum(file.stat().st_size for file in files)
        if weight >= _DOCUMENT_BYTES:
            yield _source(files, root, prefix + entry.name)
            continue
        group += files
        size += weight
        if size >= _DOCUMENT_BYTES:
            yield _source(group, root, f"{prefix}{_unit(group[0], root)}..{_unit(group[-1], root)}")
            group, size = [], 0
    if group:
        yield _source(group, root, f"{prefix}{_unit(group[0], root)}..{_unit(group[-1], root)}")


def _unit(file: Path, root: Path) -> str:
    return file.relative_to(root).parts[0]


def _source(files: list[Path], root: Path, name: str) -> Document:
    """Document of the modules one after the other, each below a comment with its path.

    A module that is not UTF-8 (a few declare another encoding) is left out.
    """
    parts = []
    for file in files:
        try:
            parts.append(f"# {file.relative_to(root).as_posix()}\n\n{file.read_text('utf-8').strip()}\n")
        except UnicodeDecodeError:
            continue
        except OSError as error:
            raise CorpusError(f"cannot read `{file}`: {error}", "check the installation") from error
    return Document(name, "\n\n".join(parts))
