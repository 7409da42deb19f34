"""Labelled texts of a user: csv, jsonl, json, or a folder with one file for each split.

    train.csv                    one text a row, with columns for text and label
    examples.jsonl[.bz2|.gz|.xz] one object a line
    data.json                    {"train": [[text, label], …], "test": …}, or lists of objects
    folder                       train.* is shown in prompts, test.* (else valid*, val*, dev*) is asked about

Texts that are shown and texts that are asked about are never the same. A file without splits is split by a hash of each
text: a quarter of the texts of each label is asked about.
"""

import csv
import hashlib
import io
import json
import lzma
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hope_eval.data.text_files import OPENERS
from hope_eval.errors import CorpusError

_ENDINGS = (".csv", ".tsv", ".jsonl", ".json")

# Splits that are asked about: the first of them that has texts.
_ASKED = ("test", "validation", "valid", "val", "dev")

# In a file without splits, one text of this many is asked about.
_ONE_ASKED_OF = 4

# Pairs of text and label.
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class LabelledTexts:
    """Labelled texts: some are shown in prompts, others are asked about and never shown.

    shown, asked: the texts of each label.
    """

    name: str
    shown: Mapping[str, Sequence[str]]
    asked: Mapping[str, Sequence[str]]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all texts and labels, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for part in (self.shown, self.asked):
            for label in sorted(part):
                for text in (label, *part[label]):
                    digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
                digest.update(b"\1")
        return digest.hexdigest()[:16]


def load_labelled(name: str, text: str = "text", label: str = "label") -> LabelledTexts:
    """Read labelled texts from a file or a folder.

    text, label: the names of the two columns.

    Raises CorpusError for a file that is missing or cannot be read, a missing column, and fewer than two labels.
    """
    if not name.strip():
        raise CorpusError("`--data` is empty: is a variable of the shell unset?", "leave --data out, or name a file")
    path = Path(name).expanduser()
    if not path.exists():
        raise CorpusError(f"no labelled texts at `{name}`", f"--data takes a folder or a file: {', '.join(_ENDINGS)}")
    splits = _folder(path, text, label) if path.is_dir() else _file(path, text, label)
    shown = splits.get("train") or splits.get("")
    if not shown:
        raise CorpusError(f"`{name}` has no split `train` (it has: {', '.join(splits)})", "rename one of them to train")
    asked = next((splits[split] for split in _ASKED if splits.get(split)), None)
    if asked is None:
        shown, asked = _split(shown)
    # A text that is shown is never asked about, whatever its labels.
    shown_texts = {text for text, _ in shown}
    shown_by_label = _by_label(shown)
    asked_by_label = _by_label([pair for pair in asked if pair[0] not in shown_texts])
    labels = sorted(shown_by_label.keys() & asked_by_label.keys())
    if len(labels) < 2:
        raise CorpusError(
            f"`{name}` has {len(labels)} labels with texts both to show and to ask about", "at least two are needed"
        )
    return LabelledTexts(path.name, *({key: part[key] for key in labels} for part in (shown_by_label, asked_by_label)))


def _by_label(pairs: Pairs) -> Mapping[str, Sequence[str]]:
    texts: dict[str, list[str]] = defaultdict(list)
    for text, label in pairs:
        texts[label].append(text)
    return texts


def _split(pairs: Pairs) -> tuple[Pairs, Pairs]:
    def order(pair: tuple[str, str]) -> bytes:
        # By the text alone, so that a text with two labels is on one side only.
        return hashlib.sha256(pair[0].encode("utf-8", "surrogatepass")).digest()

    shown: Pairs = []
    asked: Pairs = []
    for label, texts in _by_label(list(dict.fromkeys(pairs))).items():
        ordered = sorted(((text, label) for text in texts), key=order)
        n_asked = len(ordered) // _ONE_ASKED_OF or min(1, len(ordered) - 1)
        asked += ordered[:n_asked]
        shown += ordered[n_asked:]
    return shown, asked


def _folder(path: Path, text: str, label: str) -> dict[str, Pairs]:
    files = sorted(child for child in path.iterdir() if _ending(child))
    named = {child.name.split(".")[0]: child for child in files}
    chosen = {split: named[split] for split in ("train", *_ASKED) if split in named}
    if not chosen and len(files) == 1:
        return _file(files[0], text, label)
    if "train" not in chosen:
        names = ", ".join(file.name for file in files) or "no such file"
        raise CorpusError(f"`{path}` has no file train{'|'.join(_ENDINGS)} (it has: {names})", "give the file itself")
    return {split: pairs for split, file in chosen.items() for pairs in _file(file, text, label).values()}


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in _ENDINGS else ""


def _file(path: Path, text: str, label: str) -> dict[str, Pairs]:
    kind = _ending(path)
    if not kind:
        raise CorpusError(f"`{path}` has an ending that is not supported", f"supported: {', '.join(_ENDINGS)}")
    try:
        with OPENERS.get(path.suffix.lower(), Path.open)(path, "rb") as stream:
            content = stream.read().decode("utf-8-sig")
        if kind == ".json":
            data = json.loads(content)
            splits = data if isinstance(data, dict) else {"": data}
            return {name: _pairs(rows, path, text, label) for name, rows in splits.items() if isinstance(rows, list)}
        rows: Iterable[Any]
        if kind == ".jsonl":
            rows = (json.loads(line) for line in content.split("\n") if line.strip())
        else:
            rows = csv.DictReader(io.StringIO(content, newline=""), delimiter="\t" if kind == ".tsv" else ",")
        return {"": _pairs(rows, path, text, label)}
    except (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError, csv.Error) as error:
        raise CorpusError(
            f"cannot read `{path}`: {error}", "check that the file is of the kind its ending says, and UTF-8"
        ) from error


def _pairs(rows: Iterable[Any], path: Path, text: str, label: str) -> Pairs:
    pairs: Pairs = []
    for number, row in enumerate(rows, 1):
        if isinstance(row, list) and len(row) == 2:
            pairs.append((str(row[0]), str(row[1])))
            continue
        for field, option in ((text, "--field"), (label, "--label")):
            if not isinstance(row, dict) or row.get(field) in (None, ""):
                names = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
                raise CorpusError(
                    f"`{path}`, row {number}, has no `{field}` (it has: {names})", f"name the column with {option}"
                )
        pairs.append((str(row[text]), str(row[label])))
    return pairs
