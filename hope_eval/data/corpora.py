"""Long texts: Python sources already on the machine, local files, or a dataset of the hub at a fixed revision.

    python                       the standard library of this interpreter (the default: no download, real documents)
    python:torch,numpy           installed packages
    books.txt  books.jsonl  folder  files and folders, see `text_files`
    hf:name[:config]@revision    a dataset of the hub; the revision is required, so that the texts stay the same

A corpus is read whole. Its fingerprint goes into every result, and so identifies the texts.
"""

import hashlib
import importlib.util
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hope_eval.data.text_files import TextFiles, text_of
from hope_eval.errors import CorpusError, did_you_mean, require
from hope_eval.lengths import short_length

# Characters of a token that `split` counts on: more than most texts have.
_CHARACTERS = 6

_BLANK = re.compile(r"\s")

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
    note:        what was read and what was left out, if that needs a word.
    """

    name: str
    documents: tuple[Document, ...]
    fingerprint: str
    note: str = ""

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Key of each document: a hash of its text, 16 hexadecimal digits; equal texts are numbered, `…-2`."""
        return _keys(self.documents)

    def split(self, n_tokens: int) -> "Corpus":
        """The same texts in disjoint pieces of about that many tokens, at six characters a token, cut at blanks.

        All tokenizers get the same pieces. What is left at the end of a text is a piece, too.
        """
        pieces = [
            Document(f"{document.id}#{number}", text)
            for document in self.documents
            for number, text in enumerate(_pieces(document.text, _CHARACTERS * n_tokens), 1)
        ]
        note = f"{len(self.documents)} texts in {len(pieces)} pieces of {_CHARACTERS * n_tokens:,} characters"
        notes = "; ".join(filter(None, (self.note, note)))
        return Corpus(f"{self.name} --split {short_length(n_tokens)}", tuple(pieces), _fingerprint(pieces), notes)

    def keyed(self, seed: int) -> list[tuple[str, Document]]:
        """Documents with their keys, in a random order that follows from (seed, text) alone.

        A new document does not move the others, and another name of a file changes nothing.
        """
        pairs = zip(self.keys, self.documents, strict=True)
        return sorted(pairs, key=lambda pair: _digest(f"{seed}/{pair[0]}"))

    def in_order(self, seed: int) -> list[Document]:
        """Documents in the order of `keyed`."""
        return [document for _, document in self.keyed(seed)]


def load_corpus(name: str, field: str = "text", encoding: str = "") -> Corpus:
    """Read a corpus by its name on the command line; the module's docstring lists all kinds.

    field:    the field of the text, in a file that has several.
    encoding: of the texts of files; empty: UTF-8, or by the mark at their beginning.

    Raises CorpusError, with file and line, for a text that is missing or cannot be opened, decoded or parsed.
    """
    note = ""
    if not name.strip():
        raise CorpusError("`--data` is empty: is a variable of the shell unset?", "leave --data out, or name a text")
    if name == "python" or name.startswith("python:"):
        documents = list(_python(name))
        version = ".".join(map(str, sys.version_info[:3]))
        label = f"{name} ({version})" if name == "python" else name
    elif name.startswith("hf:"):
        documents, label = list(_hub(name, field)), name
    else:
        files = TextFiles(_path(name), field, encoding)
        documents = [Document(*pair) for pair in files.documents()]
        label, note = files.path.name, files.note
    documents = [document for document in documents if document.text]
    if not documents:
        raise CorpusError(f"`{name}` contains no text", "choose another --data")
    return Corpus(label, tuple(documents), _fingerprint(documents), note)


def _path(name: str) -> Path:
    """The path of a text. Raises CorpusError if there is none."""
    try:
        path = Path(name).expanduser()
        found = path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        # Names that are too long, with a NUL, or of a user that does not exist.
        raise CorpusError(f"`{name[:80]}` cannot be a path: {error}", "--data takes a file or a folder") from error
    if not found:
        raise CorpusError(
            f"no text at `{name}`",
            did_you_mean(name, ["python"], "--data takes a file, a folder, `python`, or hf:name@revision"),
        )
    return path


def _keys(documents: Sequence[Document]) -> tuple[str, ...]:
    seen: Counter[str] = Counter()
    keys = []
    for document in documents:
        key = _digest(document.text).hex()[:16]
        seen[key] += 1
        keys.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return tuple(keys)


def _pieces(text: str, n: int) -> Iterator[str]:
    """Pieces of a text of about n characters, which end before a blank."""
    start = 0
    while start < len(text):
        blank = _BLANK.search(text, start + n)
        end = blank.start() if blank else len(text)
        yield text[start:end]
        start = end


def _fingerprint(documents: Sequence[Document]) -> str:
    return _digest(" ".join(sorted(_keys(documents)))).hex()[:16]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


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
        yield Document(f"{split}:{number}", text_of(row, field, f"`{name}`, {split} row {number},"))


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
