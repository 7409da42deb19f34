"""Labelled texts that a user brings along: csv, jsonl, json, or a folder with a file for each split.

    train.csv                    one text a row, with columns for text and label
    examples.jsonl[.bz2|.gz|.xz] one object a line
    data.json                    {"train": [[text, label], …], "test": …}, or lists of objects
    folder                       train.* is shown, test.* (else valid*, val*, dev*) is asked for

A file without splits is split by a hash of each text: a quarter of the texts of each label is asked for, and never
shown.
"""

import csv
import hashlib
import io
import json
import lzma
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hope_eval.data.corpora import OPENERS
from hope_eval.data.vocabulary import Examples
from hope_eval.errors import CorpusError

_ENDINGS = (".csv", ".tsv", ".jsonl", ".json")
_ASKED = ("test", "validation", "valid", "val", "dev")

# Of texts of one label that are asked for, where no split says.
_SHARE_ASKED = 4

Pairs = list[tuple[str, str]]


def load_examples(name: str, text: str = "text", label: str = "label") -> Examples:
    """Read labelled texts from a file or a folder.

    text, label: the names of the two columns.

    Raises CorpusError for what cannot be found or read, for a missing column, and for a label without enough texts.
    """
    path = Path(name).expanduser()
    if not path.exists():
        raise CorpusError(f"no labelled texts at `{name}`", f"--data takes a folder or a file: {', '.join(_ENDINGS)}")
    splits = _folder(path, text, label) if path.is_dir() else _file(path, text, label)
    shown = splits.get("train") or splits.get("")
    if not shown:
        raise CorpusError(f"`{name}` has no split `train` (it has: {', '.join(splits)})", "name one of them train")
    asked = next((splits[split] for split in _ASKED if splits.get(split)), None)
    if asked is None:
        shown, asked = _split(shown)
    # What is shown is never asked for, whatever its label.
    known = {one for one, _ in shown}
    pairs = (shown, [pair for pair in asked if pair[0] not in known])
    by_label = [_by_label(one) for one in pairs]
    both = sorted(by_label[0].keys() & by_label[1].keys())
    if len(both) < 2:
        raise CorpusError(f"`{name}` has {len(both)} labels with texts to show and to ask for", "two are needed")
    return Examples(path.name, *({key: part[key] for key in both} for part in by_label))


def _by_label(pairs: Pairs) -> Mapping[str, Sequence[str]]:
    texts: dict[str, list[str]] = defaultdict(list)
    for text, label in pairs:
        texts[label].append(text)
    return texts


def _split(pairs: Pairs) -> tuple[Pairs, Pairs]:
    def order(pair: tuple[str, str]) -> bytes:
        # By the text alone: with two labels, it still is on one side.
        return hashlib.sha256(pair[0].encode("utf-8", "surrogatepass")).digest()

    shown: Pairs = []
    asked: Pairs = []
    for label, texts in _by_label(list(dict.fromkeys(pairs))).items():
        ordered = sorted(((text, label) for text in texts), key=order)
        n = len(ordered) // _SHARE_ASKED or min(1, len(ordered) - 1)
        asked += ordered[:n]
        shown += ordered[n:]
    return shown, asked


def _folder(path: Path, text: str, label: str) -> dict[str, Pairs]:
    files = sorted(child for child in path.iterdir() if _ending(child))
    named = {child.name.split(".")[0]: child for child in files}
    chosen = {split: named[split] for split in ("train", *_ASKED) if split in named}
    if not chosen and len(files) == 1:
        return _file(files[0], text, label)
    if "train" not in chosen:
        found = ", ".join(file.name for file in files) or "none of these"
        raise CorpusError(f"`{path}` has no train{'|'.join(_ENDINGS)} (it has: {found})", "give the file itself")
    return {split: pairs for split, file in chosen.items() for pairs in _file(file, text, label).values()}


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in _ENDINGS else ""


def _file(path: Path, text: str, label: str) -> dict[str, Pairs]:
    kind = _ending(path)
    if not kind:
        raise CorpusError(f"`{path}` is of a kind that cannot be read", f"supported: {', '.join(_ENDINGS)}")
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
            f"cannot read `{path}`: {error}", "check what kind of file it is, and that it is UTF-8"
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
                    f"`{path}`, row {number}, has no `{field}` (it has: {names})", f"{option} names the column"
                )
        pairs.append((str(row[text]), str(row[label])))
    return pairs
